"""Plain values of what travels, named as their messages in ``v1``; ``convert`` translates them.

Domains on both sides work with these and never see a generated message. ``Annotated[..., Limit(n)]`` bounds what is
accepted from a peer: characters of a text, bytes, entries of a list or map. Without it :data:`DEFAULT_LIMIT` holds.
All times are aware UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from vedette.wire.limits import (
    MAX_DOCUMENT_BYTES,
    MAX_GAPS_PER_BATCH,
    MAX_PROFILE_BYTES,
    MAX_SLOTS,
    MAX_WINDOWS_PER_BATCH,
)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most characters, bytes or entries a field may have."""

    most: int


DEFAULT_LIMIT = 4096

Name = Annotated[str, Limit(128)]
"""A short text: names, digests, codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an appliance is: decides which build it can run and which selectors it matches."""

    agent_version: Name = ""
    os: str = ""  # "debian 12"
    kernel: str = ""
    architecture: str = ""  # machine of uname: x86_64, aarch64
    cpu_cores: int = 0
    cpu_features: Annotated[tuple[str, ...], Limit(256)] = ()  # lower case: avx2, avx512f, avx512_vnni, asimd
    memory_bytes: int = 0
    python: str = ""
    runtimes: Mapping[str, str] = field(default_factory=dict)  # "onnxruntime" -> "1.32.0"
    gpus: Annotated[tuple[Gpu, ...], Limit(64)] = ()
    hostname: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of an appliance."""

    name: str = ""
    compute_capability: str = ""  # "9.0"
    memory_bytes: int = 0
    driver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first word on a stream: who connects and how it stands."""

    facts: Facts
    boot_epoch: int = 0  # grows at every start of the agent's state, never repeats
    applied_digest: str = ""  # of the assignment applied last; empty when none. Equal to desired: nothing is sent
    highest_sequence: int = 0  # of any assignment accepted, so that a restored controller continues above it
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The answer to a hello."""

    time: datetime
    status_interval_s: int = 0  # at least this often a status goes up, changed or not


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """What the controller wants of an agent: a signed assignment and the releases it names."""

    assignment: Annotated[bytes, Limit(MAX_DOCUMENT_BYTES)] = b""  # signed envelope (DSSE JSON), see docs/protocol.md
    releases: Annotated[
        tuple[Annotated[bytes, Limit(MAX_DOCUMENT_BYTES)], ...], Limit(MAX_SLOTS)
    ] = ()  # signed envelopes of every release the assignment names


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How an agent stands. Desired, attempted, failed and running are four facts; none is derived from another."""

    desired_sequence: int = 0  # newest assignment accepted
    attempted_sequence: int = 0
    failed_sequence: int = 0
    running_sequence: int = 0
    slots: Annotated[tuple[SlotStatus, ...], Limit(MAX_SLOTS)] = ()
    conditions: Annotated[tuple[Condition, ...], Limit(64)] = ()
    agent_time: datetime | None = None


class SlotState(StrEnum):
    """Where the newest build of a slot stands on its way to serving."""

    EMPTY = "empty"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    STAGED = "staged"
    TESTED = "tested"
    ACTIVE = "active"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatus:
    """One slot of an agent."""

    slot: Name = ""
    state: SlotState  # of the candidate when there is one, else of the active build
    active: BuildRef | None = None
    previous: BuildRef | None = None
    candidate: BuildRef | None = None
    candidate_bytes_done: int = 0
    candidate_bytes_total: int = 0
    reason: str = ""  # why the newest candidate failed; empty otherwise
    quarantined: Annotated[tuple[str, ...], Limit(256)] = ()  # digests of builds this appliance will not try again
    worker_restarts: int = 0
    rows: int = 0  # answered since the slot became active
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRef:
    """A build of a version of a model."""

    model: Name = ""
    version: int = 0
    build: Name = ""  # sha256:…


class Severity(StrEnum):
    """How much a condition asks of a person."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that holds at an agent, told as data."""

    code: Name = ""  # listed in docs/errors.md
    severity: Severity
    text: str = ""
    since: datetime


class Outcome(StrEnum):
    """What became of an assignment."""

    APPLIED = "applied"
    REFUSED = "refused"  # nothing was tried: signature, sequence, schema
    FAILED = "failed"  # tried, and what ran before runs again


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """Acknowledges or refuses one assignment."""

    sequence: int = 0
    outcome: Outcome
    code: Name = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloResponse:
    """Who the controller says it is."""

    controller_id: str = ""
    ca_certificate: Annotated[bytes, Limit(16384)] = b""  # PEM
    time: datetime  # controller's clock, unsigned: for display only
    version: str = ""  # of the controller


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """A one-time token, a new public key and what the appliance is."""

    token_id: Name = ""
    token_secret: Name = ""
    certificate_request: Annotated[bytes, Limit(4096)] = b""  # PKCS #10, PEM; only its public key is used
    name: Name = ""  # wished for; the controller makes it unique
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolResponse:
    """An identity and the keys to trust from now on."""

    agent_id: str = ""
    name: str = ""  # as the controller knows it
    certificate: Annotated[bytes, Limit(16384)] = b""  # PEM
    controller_id: str = ""
    release_keys: Annotated[
        tuple[Annotated[bytes, Limit(32)], ...], Limit(16)
    ] = ()  # raw Ed25519 public keys trusted to sign releases
    assignment_keys: Annotated[
        tuple[Annotated[bytes, Limit(32)], ...], Limit(16)
    ] = ()  # raw Ed25519 public keys trusted to sign assignments
    addresses: Annotated[tuple[str, ...], Limit(16)] = ()  # host:port of the mTLS port


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryBatch:
    """What is acknowledged as one."""

    boot_epoch: int = 0
    sequence: int = 0  # from 1 without holes within a boot epoch; dropped ones are named in `gaps`
    windows: Annotated[tuple[Window, ...], Limit(MAX_WINDOWS_PER_BATCH)] = ()
    gaps: Annotated[tuple[Gap, ...], Limit(MAX_GAPS_PER_BATCH)] = ()
    first_sequence: int = 0  # of all that were merged into this one; 0: it was made as it is

    @property
    def first(self) -> int:
        """The first sequence that this batch stands for."""
        return self.first_sequence or self.sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One slot's work over one span of time; all but the gauges merges by addition."""

    start: datetime
    end: datetime
    slot: Name = ""
    model: Name = ""
    version: int = 0
    build: Name = ""
    rows: int = 0
    flagged: int = 0
    errors: int = 0
    worker_restarts: int = 0
    verdicts: Annotated[Mapping[str, int], Limit(256)] = field(default_factory=dict)  # rows by label
    latency_counts: Annotated[
        tuple[int, ...], Limit(128)
    ] = ()  # per row, bins of vedette.models.profile.LATENCY_EDGES_MS
    profile: Annotated[bytes, Limit(MAX_PROFILE_BYTES)] = b""  # of features and scores, see vedette.models.profile
    counters: Annotated[Mapping[str, int], Limit(256)] = field(
        default_factory=dict
    )  # collector and sinks: datagrams, records, malformed, dropped
    cpu_seconds: float = 0.0  # of all the agent's processes
    memory_bytes: int = 0  # proportional set size at the end of the window, all processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Batches that were given up before they could be sent."""

    first_sequence: int = 0
    last_sequence: int = 0
    rows: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryAcknowledgement:
    """The batch is committed."""

    boot_epoch: int = 0
    sequence: int = 0
