"""The parent's side of a job: start a child under limits, follow its progress, keep its log, end it when asked.

Rules: at most so many children at once; a cancelled wait kills the child's whole process group and returns only when
it is gone; the log is bounded, its end is kept; a child that crashes is an error with the end of its log, never more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vedette.controller.adapters.openmp import library_path
from vedette.controller.domain import errors
from vedette.controller.domain.disk import disk_full, typed_os_errors
from vedette.controller.domain.jobs import ChildLimits, JobCrashed, Log
from vedette.controller.jobs import harness

logger = logging.getLogger(__name__)

Follow = Callable[[float, str], None]
"""Called in the event loop with a fraction of 0 to 1 and what the child does now."""

_LINE_BYTES = 64 * 1024
_STEP_CHARACTERS = 200
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class Children:
    """Starts jobs. One per controller; all methods belong to its event loop."""

    def __init__(self, *, at_once: int = 2) -> None:
        self._places = asyncio.Semaphore(at_once)

    async def run(
        self,
        module: str,
        folder: Path,
        arguments: Mapping[str, Any],
        *,
        limits: ChildLimits,
        follow: Follow | None = None,
        log: Log | None = None,
    ) -> dict[str, Any]:
        """Run ``python -m module FOLDER`` to its end and return its result.

        Args:
            module: The job, in full: ``vedette.controller.jobs.import_data``.
            folder: Of this job, existing; a result left there by an earlier try is removed first.
            arguments: JSON values for the job.
            limits: What it may use.
            follow: Told of progress.
            log: Filled with what the child prints.

        Raises:
            ControllerError: Whatever the job refused or failed with, as its own class.
            JobCrashed: It died, or passed its deadline.
        """
        log = log if log is not None else Log()
        async with self._places:
            with typed_os_errors(folder):
                _write_job(folder, arguments, limits)
            status = await _supervise(module, folder, limits, follow or _ignore, log)
        return _result(module, folder, status, log)


def _ignore(fraction: float, step: str) -> None:
    pass


def _write_job(folder: Path, arguments: Mapping[str, Any], limits: ChildLimits) -> None:
    (folder / harness.RESULT_FILE).unlink(missing_ok=True)
    job = {
        "arguments": dict(arguments),
        "parent": os.getpid(),
        "memory_bytes": limits.memory_bytes,
        "memory_setting": limits.memory_setting,
        "file_bytes": limits.file_bytes,
        "niceness": limits.niceness,
    }
    harness.replace(folder / harness.JOB_FILE, json.dumps(job).encode())


async def _supervise(module: str, folder: Path, limits: ChildLimits, follow: Follow, log: Log) -> int:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", module, str(folder)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
        env=_environment(limits.threads, library_path(folder / "lib")),
        cwd=folder,
        start_new_session=True,
    )
    logger.debug("job %s started as process %d", module, child.pid)
    try:
        async with asyncio.timeout(limits.deadline_s):
            await asyncio.gather(_follow(_stream(child.stdout), follow), _keep(_stream(child.stderr), log))
            return await child.wait()
    except TimeoutError:
        log.add(f"ended by the controller: past its deadline of {limits.deadline_s:g} s".encode())
        return -signal.SIGKILL
    finally:
        await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill the child's process group and wait until it is gone; shielded, so that a second cancel leaves no orphan."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    await asyncio.shield(child.wait())


def _stream(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    if stream is None:
        raise RuntimeError("a child was started without its pipes")
    return stream


def _environment(threads: int, libraries: str | None) -> dict[str, str]:
    # onnxruntime keeps an event database in the home folder and may upload it; a controller reports to nobody.
    silent = {"ORT_DISABLE_TELEMETRY": "1"}
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    plain = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    found = {"LD_LIBRARY_PATH": libraries} if libraries else {}
    return kept | dict.fromkeys(pools, str(threads)) | silent | plain | found


async def _follow(stream: asyncio.StreamReader, follow: Follow) -> None:
    async for line in _lines(stream):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn last line of a killed child
            said = json.loads(line)
            follow(min(max(float(said["fraction"]), 0.0), 1.0), str(said["step"])[:_STEP_CHARACTERS])


async def _keep(stream: asyncio.StreamReader, log: Log) -> None:
    async for line in _lines(stream):
        log.add(line)


async def _lines(stream: asyncio.StreamReader) -> Any:
    """Yield lines; one longer than the buffer is cut into pieces of it instead of ending the stream."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            line = await stream.read(_LINE_BYTES)
        except asyncio.IncompleteReadError as exc:
            if exc.partial:
                yield exc.partial
            return
        yield line


def _result(module: str, folder: Path, status: int, log: Log) -> dict[str, Any]:
    try:
        said = json.loads((folder / harness.RESULT_FILE).read_bytes()[: harness.MAX_JOB_BYTES])
    except (FileNotFoundError, ValueError):
        said = {}
    if status == harness.EXIT_DONE and "result" in said:
        return dict(said["result"])
    if status == harness.EXIT_FAILED and "error" in said:
        raise _error(said["error"])
    if status == harness.EXIT_DISK_FULL:
        raise disk_full(f"job {module.rpartition('.')[2]} in {folder}")
    raise JobCrashed(
        "job-crashed", f"{module.rpartition('.')[2]} {_ending(status)}", "\n".join(list(log.lines)[-3:])[:500]
    )


def _error(said: Mapping[str, str]) -> errors.ControllerError:
    kind = getattr(errors, said["kind"], errors.InvalidInput)
    made: errors.ControllerError = kind(said["code"], said["what"], said["why"], said["remedy"])
    return made


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status} and no result"
    return f"was ended by {signal.Signals(-status).name}"
