"""The agent's errors, typed by who must act. Messages give the value and the limit."""

from __future__ import annotations

from enum import StrEnum


class AgentError(Exception):
    """Base of every error of the agent."""


class StateError(AgentError):
    """The state database cannot be read or written: the operator must look at the disk."""


class StateReadOnly(StateError):
    """The disk of the state takes no writes, for it is read-only or failing: the operator must mend or replace it."""


class StateDamaged(StateError):
    """What the disk gives back is not what was stored there: the operator must look at the disk."""


class DiskFull(AgentError):
    """No space, or no quota, is left for a file of the agent: the operator must free some."""


class InferenceError(AgentError):
    """A request got no answer."""


class NoActiveModel(InferenceError):
    """The slot serves nothing yet, or nothing any more."""


class InvalidRequest(InferenceError):
    """The inputs do not fit the model's declared tensors: the caller must mend them."""


class Overloaded(InferenceError):
    """Too many requests wait already: the caller should try again after ``retry_after_s``."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(InferenceError):
    """The caller's own deadline went by before the answer came; neither the model nor the caller is at fault."""


class ModelFailed(InferenceError):
    """The runtime gave an error for these inputs; the worker goes on."""


class OutOfMemory(InferenceError):
    """The model wanted more memory than its worker's budget."""


class WorkerTimeout(InferenceError):
    """A batch, or the loading of a model, was not done by its deadline."""


class WorkerCrashed(InferenceError):
    """The worker process ended before it answered."""


class ModelRefused(AgentError):
    """A model cannot be loaded, or is not what its release says: its maker must mend it."""


class BlobCorrupt(AgentError):
    """A file on this disk has not the digest it is named by."""


class SpawnFailed(AgentError):
    """The host would not start a process; no model is to blame."""


class InstallCode(StrEnum):
    """Why an installation failed; travels as the code of a generation's result."""

    DIGEST_MISMATCH = "digest-mismatch"
    MODEL_REFUSED = "model-refused"
    SELF_TEST_FAILED = "self-test-failed"
    WORKER_CRASHED = "worker-crashed"
    WORKER_TIMEOUT = "worker-timeout"
    OUT_OF_MEMORY = "out-of-memory"
    DISK_FULL = "disk-full"
    STATE_FAILED = "state-failed"
    QUARANTINED = "quarantined"
    DOWNLOAD_FAILED = "download-failed"
    HOST_FAILED = "host-failed"
    GAVE_UP = "gave-up"

    @property
    def blames_build(self) -> bool:
        """Whether trying the same bytes again on this appliance is pointless."""
        return self in _BUILD_FAULTS


_BUILD_FAULTS = frozenset(
    {
        InstallCode.MODEL_REFUSED,
        InstallCode.SELF_TEST_FAILED,
        InstallCode.WORKER_CRASHED,
        InstallCode.WORKER_TIMEOUT,
        InstallCode.OUT_OF_MEMORY,
        InstallCode.GAVE_UP,
    }
)


class InstallFailed(AgentError):
    """A candidate did not become active; what served before serves on.

    ``blames_build`` is the code's, unless only the release's words were judged: those are cheap to judge again, and the
    same bytes may come with better ones, or the appliance with a newer runtime.
    """

    def __init__(self, code: InstallCode, reason: str, *, blames_build: bool | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.blames_build = code.blames_build if blames_build is None else blames_build
