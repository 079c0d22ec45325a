"""The child's side of a job: limits first, then the work, then one result file.

The parent reads standard output as JSON lines of progress and standard error as the log; libraries that print are led
to the log. A child never outlives its parent: it asks the kernel for SIGKILL at the parent's death.

Files of a job's folder: ``job.json`` (parent writes, child reads), ``result.json`` (child writes, in one rename).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vedette.controller.domain import errors
from vedette.controller.domain.disk import is_disk_full
from vedette.controller.domain.errors import ControllerError
from vedette.models.errors import ModelsError

JOB_FILE = "job.json"
RESULT_FILE = "result.json"
MAX_JOB_BYTES = 16 << 20

EXIT_DONE, EXIT_FAILED, EXIT_DISK_FULL = 0, 3, 4
"""3: ``result.json`` says what failed. 4: there was no room, not even to say so in a file. Anything else is a crash:
then the parent has only the log."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OOM_SCORE = 500  # of -1000 (never) to 1000 (first)


@dataclass(frozen=True, slots=True)
class Job:
    """What a child works on."""

    folder: Path
    arguments: Mapping[str, Any]
    _progress: IO[str]

    def progress(self, fraction: float, step: str) -> None:
        """Tell the parent how far the work is: 0 to 1, and what is done now in words for people."""
        self._progress.write(json.dumps({"fraction": round(fraction, 4), "step": step}) + "\n")
        self._progress.flush()


def run(work: Callable[[Job], Mapping[str, Any]]) -> int:
    """Do a job and return the exit status. To be called by ``__main__`` of a job's module.

    ``work`` returns the result's JSON values; a :class:`ControllerError` or ``ModelsError`` it raises travels to the
    parent as what it is, anything else as a crash with its trace in the log.
    """
    folder = Path(sys.argv[1])
    progress = _claim_stdout()
    job = json.loads((folder / JOB_FILE).read_bytes()[:MAX_JOB_BYTES])
    _limit(job)
    try:
        return _finish(folder, _worked(work, Job(folder, job["arguments"], progress), job))
    except OSError as exc:
        traceback.print_exc()
        if is_disk_full(exc):
            return EXIT_DISK_FULL
        raise


def _worked(work: Callable[[Job], Mapping[str, Any]], task: Job, job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"result": dict(work(task))}
    except (ControllerError, ModelsError, MemoryError) as exc:
        traceback.print_exc()
        return {"error": _described(exc, job)}


def _finish(folder: Path, result: Mapping[str, Any]) -> int:
    replace(folder / RESULT_FILE, json.dumps(result).encode())
    return EXIT_FAILED if "error" in result else EXIT_DONE


def replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or the old one, also after a power cut."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _claim_stdout() -> IO[str]:
    """Keep the progress pipe for us and lead whatever prints to the log: lightgbm's C code writes to descriptor 1."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8")


def _limit(job: Mapping[str, Any]) -> None:
    """Take on the parent's limits before anything large is imported."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != job["parent"]:  # it died before the kernel was told: nobody waits for the result
        os._exit(EXIT_FAILED)
    memory = int(job["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file_bytes = int(job["file_bytes"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    os.nice(int(job["niceness"]))
    _go_first_when_memory_ends()


def _go_first_when_memory_ends() -> None:
    """Let the kernel end this child, a failed run, rather than the server or a neighbour; raising needs no right."""
    with Path("/proc/self/oom_score_adj").open("r+") as score:
        raised = max(int(score.read()), _OOM_SCORE)
        score.seek(0)
        score.write(str(raised))


def _described(exc: Exception, job: Mapping[str, Any]) -> dict[str, str]:
    if isinstance(exc, ControllerError):
        # the nearest class the parent knows: a part's own subclass may live in a module it must not import
        kind = next(base.__name__ for base in type(exc).__mro__ if base.__module__ == errors.__name__)
        return {"kind": kind, "code": exc.code, "what": exc.what, "why": exc.why, "remedy": exc.remedy}
    if isinstance(exc, MemoryError):
        why = f"the child may use {job['memory_bytes']} bytes ({job['memory_setting']})"
        return {
            "kind": "Refused",
            "code": "out-of-memory",
            "what": "the job ran out of memory",
            "why": why,
            "remedy": "",
        }
    return {
        "kind": "InvalidInput",
        "code": "bad-input",
        "what": "the input cannot be read",
        "why": str(exc),
        "remedy": "",
    }
