"""One model in a process of its own, seen from the agent; and the runner that keeps one such process answering.

Rules:

* The agent's process never imports onnxruntime and trusts nothing that a worker writes: a record out of order, or a
  shape that does not fit, ends the worker.
* Everything runs on the event loop's thread: the loop reads the doorbell; there is no thread and no pickle.
* A worker answers in order, so when it dies only the oldest batch in flight can be to blame. That one is tried once
  more on the replacement, never twice; those behind it never ran and are simply sent again. Thus a poisonous input
  costs two workers and its own answer, and nobody else's.
* The first word is the worker's, its version, before it is handed anything: one that ends without it, or is of another
  version because the program was replaced under a running agent, is the host's trouble and blames no model.
* Time: ``RunOptions.terminate`` in the worker at the deadline, SIGKILL from here ``grace_s`` later. The deadline is
  max(1 s, 20 x p99 of the time per row x rows), at most a minute, by the agent's own clock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vedette.agent.adapters.ring import (
    AREAS,
    RECORD,
    SETUP_BYTES,
    Array,
    Failure,
    Kind,
    Plan,
    RingError,
    create_ring,
)
from vedette.agent.domain.errors import (
    AgentError,
    BlobCorrupt,
    InferenceError,
    InvalidRequest,
    ModelFailed,
    ModelRefused,
    OutOfMemory,
    Overloaded,
    SpawnFailed,
    WorkerCrashed,
    WorkerTimeout,
)
from vedette.agent.domain.priority import Priority
from vedette.models.version import __version__

logger = logging.getLogger(__name__)

_MODULE = "vedette.agent.adapters.worker_main"
_STDERR_BYTES = 64 * 1024
_KEPT_VARIABLES = ("PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")
_SET_VARIABLES = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # onnxruntime from 1.29 on keeps a database of events under the home folder and uploads it to its maker, from two
    # threads of its own, unless this is set before it is imported (microsoft/onnxruntime #27379, #29843).
    "ORT_DISABLE_TELEMETRY": "1",
}
_RESTART_WAITS_S = (0.0, 0.1, 0.5, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker lives."""

    threads: int = 1  # of onnxruntime inside one operator
    memory_bytes: int = 512 * 1024 * 1024  # RLIMIT_AS; python, numpy and onnxruntime take 280 MiB of it
    nice: int = 5  # on top of the agent's own
    cpus: tuple[int, ...] = ()  # may run there; empty is anywhere
    max_rows: int = 4096  # of one batch; larger requests are cut
    variable_bytes: int = 4 * 1024 * 1024  # for each tensor with more than its rows undecided
    in_flight: int = 2  # batches; 1.09 of in-process rows/s against .91 with one (FACTS.md)
    queue: int = 256  # requests that may wait
    deadline_s: float = 1.0  # the least of a batch
    deadline_factor: float = 20.0  # times the p99 per row
    deadline_most_s: float = 60.0  # whatever the pace: a model that slows down bit by bit would raise it without end
    grace_s: float = 1.0  # between terminate and SIGKILL
    test_deadline_s: float = 10.0  # of a batch of golden samples, before anything is known of the model's pace
    load_timeout_s: float = 60.0
    arena: bool = False  # off saves 3 to 9 MB
    admit: Callable[[int], None] = lambda pid: None  # puts a new process in its place; must not raise
    spin_us: int = 100  # both sides look so long for the other's word before they sleep; 0 on a single core

    def __post_init__(self) -> None:
        if not 1 <= self.in_flight <= AREAS:
            raise ValueError(f"in_flight is {self.in_flight}, limits 1 and {AREAS}")


class Unsent(Exception):
    """The worker died before it began this batch; it may be sent to another without a second thought."""


class Retired(Exception):
    """The runner answers no more; another build may."""


@dataclass(slots=True)
class _Batch:
    request: int
    area: int
    rows: int
    deadline_s: float
    answer: asyncio.Future[dict[str, Array]]


class RowPace:
    """How long a row takes: log2 bins of nanoseconds per row, halved now and then so that the past fades."""

    def __init__(self) -> None:
        self._counts = [0] * 64
        self._total = 0
        self.p99_s = 0.0

    def add(self, seconds: float, rows: int) -> None:
        """Count one batch."""
        self._counts[min(int(seconds * 1e9 / rows).bit_length(), 63)] += 1
        self._total += 1
        if self._total % 64 == 0 or self._total < 64:  # a percentile costs 5 us, a batch perhaps 50
            self.p99_s = self._percentile()
        if self._total >= 4096:
            self._counts = [count // 2 for count in self._counts]
            self._total = sum(self._counts)

    def _percentile(self) -> float:
        left = self._total * 0.99
        for exponent, count in enumerate(self._counts):
            left -= count
            if left <= 0:
                return float(2**exponent) / 1e9  # the bin's upper edge
        return 0.0


class Worker:
    """One process with one model loaded. Made by :meth:`start`; ``on_lost`` is called once when it is gone unasked."""

    def __init__(self, plan: Plan, settings: WorkerSettings, pace: RowPace) -> None:
        self._plan = plan
        self._settings = settings
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._areas: tuple[Any, ...] = ()
        self._free = list(range(AREAS))
        self._tickets = asyncio.Semaphore(settings.in_flight)
        self._flying: deque[_Batch] = deque()
        self._head_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._requests = 0
        self._run_us = 0.0  # of a row, as the worker tells it: only good for the choice to spin
        self._spin_rest = self._spin_skips = 0  # requests to let pass without spinning, after a vain one and from now
        self._spin_us = settings.spin_us if len(os.sched_getaffinity(0)) > 1 else 0
        self._cause: str | None = None
        self._stderr = -1
        self._doorbell: socket.socket
        self._process: subprocess.Popen[bytes]
        self.on_lost: Callable[[InferenceError], None] = lambda error: None

    @classmethod
    async def start(
        cls, model: int, plan: Plan, settings: WorkerSettings, *, workdir: Path, pace: RowPace | None = None
    ) -> Worker:
        """Return a worker that has loaded the model whose (sealed) descriptor is given; the caller closes it.

        Raises:
            SpawnFailed: The host would not start a process of this agent's version or make a ring.
            ModelRefused: The model cannot be loaded, or is not what its release says.
            OutOfMemory: It does not fit the budget.
            WorkerCrashed: The process died while loading.
            WorkerTimeout: It was not loaded by ``load_timeout_s``.
        """
        worker = cls(plan, settings, pace or RowPace())
        try:
            worker._spawn(workdir)
            await worker._greeted()
            worker._hand(model)
            await worker._loaded()
        except BaseException:
            await worker.stop()
            raise
        worker._loop.add_reader(worker._doorbell.fileno(), worker._read)
        return worker

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it takes batches."""
        return self._cause is None

    def _spawn(self, workdir: Path) -> None:
        try:
            workdir.mkdir(mode=0o500, parents=True, exist_ok=True)
            self._fork(workdir)
        except OSError as exc:
            raise SpawnFailed(f"a worker process cannot be started: {exc}") from exc

    async def _greeted(self) -> None:
        """Wait until the worker has said that it is of this version; it knows nothing of the model yet.

        Raises:
            SpawnFailed: It is not, or it ended, or said nothing.
        """
        greeting = (await self._heard(SpawnFailed, "a worker process did not greet")).decode("utf-8", "replace")
        if not greeting:
            raise SpawnFailed(f"a worker process ended before it was given a model: {await self._ended()}")
        if greeting != __version__:
            raise SpawnFailed(
                f"the program on the disk is {greeting[:64]}, this agent is {__version__}: "
                "restart the agent to finish the upgrade"
            )

    def _hand(self, model: int) -> None:
        try:
            ring, self._areas = create_ring(self._plan)
            try:
                socket.send_fds(self._doorbell, [self._setup()], [ring, model])
            finally:
                os.close(ring)
        except OSError as exc:
            raise SpawnFailed(f"a worker process cannot be given its model: {exc}") from exc

    def _fork(self, workdir: Path) -> None:
        self._doorbell, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._doorbell.setblocking(False)
        # Not a pipe: nobody would read it. The worker's RLIMIT_FSIZE bounds it.
        self._stderr = os.memfd_create("vedette-stderr", os.MFD_CLOEXEC)
        with theirs:
            command = [sys.executable, "-P", "-s", "-m", _MODULE, str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=(theirs.fileno(),),
                cwd=workdir,
                env=_environment(),
            )
        self._settings.admit(self._process.pid)

    def _setup(self) -> bytes:
        settings = self._settings
        described = {
            side: [[t.name, str(t.dtype), list(t.shape)] for t in tensors]
            for side, tensors in (("inputs", self._plan.inputs), ("outputs", self._plan.outputs))
        }
        limits = {
            "threads": settings.threads,
            "memory_bytes": settings.memory_bytes,
            "stderr_bytes": _STDERR_BYTES,
            "nice": settings.nice,
            "cpus": list(settings.cpus),
            "max_rows": self._plan.max_rows,
            "variable_bytes": self._plan.variable_bytes,
            "arena": settings.arena,
            "spin_us": self._spin_us,
        }
        return json.dumps(described | limits).encode()

    async def _heard(self, late: type[AgentError], what: str) -> bytes:
        """Return the worker's next word, b"" when it is gone; raise ``late`` when it takes too long."""
        limit_s = self._settings.load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._loop.sock_recv(self._doorbell, SETUP_BYTES)
        except TimeoutError as exc:
            raise late(f"{what} in {limit_s:g} s (load_timeout_s)") from exc
        except ConnectionError:
            return b""

    async def _loaded(self) -> None:
        answer = await self._heard(WorkerTimeout, "the model was not loaded")
        if not answer:
            raise WorkerCrashed(f"the worker died while loading the model: {await self._ended()}")
        failure = _parse_answer(answer)
        if failure is not None:
            raise _load_error(*failure, self._settings.memory_bytes)

    async def run(
        self, arrays: Mapping[str, Array], start: int, stop: int, *, deadline_s: float | None = None
    ) -> dict[str, Array]:
        """Answer rows ``start`` to ``stop`` of checked inputs.

        Raises:
            Unsent: The worker died before it began this batch.
            WorkerCrashed: It died at this batch.
            WorkerTimeout: The batch was stopped at its deadline, or the worker killed at the end of the grace.
            ModelFailed, OutOfMemory: The runtime refused the batch.
        """
        await self._tickets.acquire()
        if self._cause is not None:
            self._tickets.release()
            raise Unsent(self._cause)
        area, rows = self._free[-1], stop - start
        try:
            self._areas[area].write_inputs(arrays, start, stop)
        except BaseException:
            self._tickets.release()
            raise
        self._free.pop()
        self._requests = (self._requests + 1) & 0xFFFFFFFF
        wanted_s = self.deadline_s(rows) if deadline_s is None else deadline_s
        batch = _Batch(self._requests, area, rows, wanted_s, self._loop.create_future())
        self._send(batch)
        try:
            if self._spin_skips:
                self._spin_skips -= 1
            elif self._run_us * rows < self._spin_us:
                # First everything else that is ready: other batches leave before we look for this one's answer, and
                # who asks again and again keeps the loop from nothing.
                await asyncio.sleep(0)
                self._spin(batch)
            return await batch.answer
        finally:
            batch.answer.cancel()  # when the caller went away; the area stays taken until the worker answers

    def _spin(self, batch: _Batch) -> None:
        """Look for a quick answer before the loop sleeps: waking either side costs more than a small model.

        Measured on 2 virtual cores, perceptron 40-128-64-5, one row, p50 of 2,000 and CPU of both processes: without
        130 us and 125 us; with 33 us and 69 us (tests/bench/bench_worker.py).
        """
        end = self._loop.time() + self._spin_us / 1e6
        while not batch.answer.done() and self._loop.time() < end:
            self._read()
        # On a busy host the worker has no core to answer from: then looking is only in its way, so look less and less.
        self._spin_rest = 0 if batch.answer.done() else min(2 * self._spin_rest + 1, 255)
        self._spin_skips = self._spin_rest

    def deadline_s(self, rows: int) -> float:
        """Return how long a batch of that many rows may take."""
        wanted = self._settings.deadline_factor * self._pace.p99_s * rows
        return min(max(self._settings.deadline_s, wanted), self._settings.deadline_most_s)

    def _send(self, batch: _Batch) -> None:
        now = self._loop.time()
        if not self._flying:
            self._head_since = now
        self._flying.append(batch)
        record = RECORD.pack(Kind.RUN, batch.area, 0, batch.request, int(batch.deadline_s * 1e6))
        try:
            self._doorbell.send(record)
        except OSError as exc:  # at most AREAS records ever wait, so a full socket is no working one
            self._lose(f"the doorbell failed: {exc}")
            return
        self._look_at(now + batch.deadline_s + self._settings.grace_s)

    def _look_at(self, due: float) -> None:
        # Not one timer a batch: an earlier one that finds nothing overdue sets the next.
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Kill a worker whose oldest batch is overdue."""
        self._timer = None
        if not self._flying or self._cause is not None:
            return
        head = self._flying[0]
        due = self._head_since + head.deadline_s + self._settings.grace_s
        if due > self._loop.time():
            self._look_at(due)
        else:
            self._lose(f"a batch of {head.rows} rows was not done in {head.deadline_s:.3g} s", WorkerTimeout)

    def _read(self) -> None:
        while self._cause is None:
            try:
                record = self._doorbell.recv(RECORD.size)
            except BlockingIOError:
                return
            except OSError:
                record = b""
            if not record:
                self._lose("the worker died")
            else:
                self._take(record)

    def _take(self, record: bytes) -> None:
        try:
            head = self._flying[0] if self._flying else None
            kind, area, code, request, took_us = RECORD.unpack(record) if len(record) == RECORD.size else (0,) * 5
            if head is None or (area, request) != (head.area, head.request) or kind not in (Kind.DONE, Kind.FAILED):
                raise RingError(f"record {record.hex()} answers nothing that was asked")
            place = self._areas[area]
            result = place.read_outputs() if kind == Kind.DONE else _batch_error(code, place.read_text())
        except RingError as exc:
            self._lose(f"the worker broke the rules: {exc}")
            return
        self._run_us += 0.1 * (took_us / head.rows - self._run_us)
        self._finish(head, result)

    def _finish(self, head: _Batch, result: dict[str, Array] | InferenceError) -> None:
        self._flying.popleft()
        now = self._loop.time()
        if isinstance(result, dict):
            self._pace.add(now - self._head_since, head.rows)
        self._head_since = now
        self._free.append(head.area)
        self._tickets.release()
        if head.answer.done():
            return  # its caller went away
        if isinstance(result, dict):
            head.answer.set_result(result)
        else:
            head.answer.set_exception(result)

    def _lose(self, cause: str, error: type[InferenceError] = WorkerCrashed) -> None:
        if self._cause is not None:
            return
        self._shut(cause)
        for index, batch in enumerate(self._drop_flying()):
            if not batch.answer.done():
                batch.answer.set_exception(error(cause) if index == 0 else Unsent(cause))
        self.on_lost(error(cause))

    def _shut(self, cause: str) -> None:
        """Stop taking and reading; the process gets SIGKILL, whatever it is doing."""
        self._cause = cause
        if self._timer is not None:
            self._timer.cancel()
        if hasattr(self, "_doorbell"):
            self._loop.remove_reader(self._doorbell.fileno())
            self._doorbell.close()
        if hasattr(self, "_process"):
            self._process.kill()

    def _drop_flying(self) -> list[_Batch]:
        dropped = list(self._flying)
        self._flying.clear()
        for _ in dropped:
            self._tickets.release()  # each waiter wakes, finds the cause and wakes the next
        return dropped

    async def _ended(self) -> str:
        """Wait, without a thread, for the end of a killed or dying process; return how it ended."""
        if not hasattr(self, "_process"):
            return "it was never started"
        if self._process.returncode is None:
            await _exit_of(self._process)
        return _describe_exit(self._process.returncode) + self._last_words()

    def _last_words(self) -> str:
        words = os.pread(self._stderr, _STDERR_BYTES, 0) if self._stderr >= 0 else b""
        text = words.decode("utf-8", "replace").strip()
        return f"; it said: {text[-500:]}" if text else ""

    async def stop(self) -> str:
        """End the process now; batches in flight are answered with :class:`Unsent`. Return how it ended.

        Harmless when it is gone already, and the way to learn of what it died.
        """
        if self._cause is None:
            self._shut("it was stopped")
            for batch in self._drop_flying():
                if not batch.answer.done():
                    batch.answer.set_exception(Unsent("the worker was stopped"))
        how = await self._ended()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
        return how


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | _SET_VARIABLES


async def _exit_of(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that is ending, on the event loop."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.poll()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


def _parse_answer(answer: bytes) -> tuple[int, str] | None:
    """Return failure and text of a worker's first message, or None when the model is loaded.

    Raises:
        WorkerCrashed: It is no such message.
    """
    try:
        value = json.loads(answer)
        return (int(value["failure"]), str(value["text"])[:4096]) if value else None
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise WorkerCrashed(f"the worker's first message is not one: {exc!r}") from exc


def _load_error(failure: int, text: str, memory_bytes: int) -> AgentError:
    if failure == Failure.MEMORY:
        return OutOfMemory(f"loading the model took more than {memory_bytes} bytes (memory_bytes): {text}")
    return SpawnFailed(text) if failure == Failure.HOST else ModelRefused(text)


def _batch_error(code: int, text: str) -> InferenceError:
    kinds: dict[int, type[InferenceError]] = {Failure.TIMEOUT: WorkerTimeout, Failure.MEMORY: OutOfMemory}
    return kinds.get(code, ModelFailed)(text)


@dataclass(frozen=True, slots=True)
class Strike:
    """One reason to think ill of a build. A conclusive one needs no second."""

    error: AgentError
    conclusive: bool = False


class Runner:
    """Keeps one build answering: starts its worker, replaces it when it is lost, and says so.

    Args:
        plan: Layout of the model's tensors.
        settings: Of the worker.
        spawn: Starts a worker for the build. Raises as :meth:`Worker.start`, or BlobCorrupt.
        on_strike: Called, on the loop, for each death, hang, breach of the budget or failed restart.
    """

    def __init__(
        self,
        plan: Plan,
        settings: WorkerSettings,
        spawn: Callable[[], Awaitable[Worker]],
        on_strike: Callable[[Strike], None] = lambda strike: None,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._spawn = spawn
        self.on_strike = on_strike
        self.on_batch: Callable[[int, int, int, int, int], None] = lambda *_: None
        self._worker: Worker | None = None
        self._dying: Worker | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # a worker came, or the runner was retired
        self._retired = False
        self._outstanding = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The worker's process, when there is one."""
        return self._worker.pid if self._worker else None

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return self._outstanding

    async def start(self) -> None:
        """Start the first worker. Raises as ``spawn``."""
        self._adopt(await self._spawn())

    def _adopt(self, worker: Worker) -> None:
        worker.on_lost = self._lost
        self._worker = worker
        if worker.alive:
            self._changed.set()
        else:
            self._lost(WorkerCrashed("the worker died"))  # between its start and now

    def _lost(self, error: InferenceError) -> None:
        self._dying, self._worker = self._worker, None
        self._changed.clear()
        self._replacing = asyncio.get_running_loop().create_task(self._replace(error))

    async def _replace(self, error: InferenceError) -> None:
        # The dead must be gone before the next is born: both together would not fit the budget.
        how = await self._dying.stop() if self._dying else ""
        self.on_strike(Strike(type(error)(f"{error}: {how}")))
        attempt = 0
        while not self._retired:
            await asyncio.sleep(_RESTART_WAITS_S[min(attempt, len(_RESTART_WAITS_S) - 1)])
            attempt += 1
            try:
                worker = await self._spawn()
            except SpawnFailed as exc:
                logger.warning("%s; trying again", exc)  # the host's fault, no strike
            except AgentError as exc:
                self.on_strike(Strike(exc, conclusive=isinstance(exc, BlobCorrupt | ModelRefused)))
            else:
                self.restarts += 1
                self._adopt(worker)
                return

    async def infer(
        self, arrays: Mapping[str, Array], *, priority: Priority = Priority.FLOW, deadline_s: float | None = None
    ) -> dict[str, Array]:
        """Answer a request, cut into batches where it is longer than one and joined again.

        The last eighth of the queue is for the appliance's own programs.

        Raises:
            Retired: This runner answers no more and no part of the request is to blame.
            InvalidRequest: The inputs do not fit.
            Overloaded: ``queue`` requests wait already.
            ModelFailed, OutOfMemory, WorkerTimeout, WorkerCrashed: As :meth:`Worker.run`; a batch that killed its
                worker was tried twice.
        """
        rows = self._plan.rows(arrays)
        most = self._settings.queue if priority is Priority.PROGRAM else self._settings.queue * 7 // 8
        if self._outstanding >= most:
            raise Overloaded(f"{self._outstanding} requests wait, limit {most} (queue)", retry_after_s=0.1)
        self._outstanding += 1
        self._drained.clear()
        try:
            if 0 < rows <= self._plan.max_rows:
                return await self._batch(arrays, 0, rows, deadline_s)
            if rows == 0:
                return self._plan.empty_outputs()
            return await self._cut(arrays, rows, deadline_s)
        finally:
            self._outstanding -= 1
            if not self._outstanding:
                self._drained.set()

    async def _cut(self, arrays: Mapping[str, Array], rows: int, deadline_s: float | None) -> dict[str, Array]:
        step = self._plan.max_rows
        if not self._plan.divisible:
            raise InvalidRequest(f"{rows} rows, limit {step} (max_rows) for a model that cannot be cut into batches")
        parts = await asyncio.gather(
            *(self._batch(arrays, at, min(at + step, rows), deadline_s) for at in range(0, rows, step)),
            return_exceptions=True,  # so that no part still runs when the request has failed
        )
        answers = [_unless_error(part) for part in parts]
        joined = {t.name: np.concatenate([answer[t.name] for answer in answers]) for t in self._plan.outputs}
        lengths = {name: len(array) for name, array in joined.items() if len(array) != rows}
        if lengths:
            raise ModelFailed(f"outputs {lengths} have not the {rows} rows of the inputs, so batches cannot be joined")
        return joined

    async def _batch(
        self, arrays: Mapping[str, Array], start: int, stop: int, deadline_s: float | None
    ) -> dict[str, Array]:
        blamed = False
        while True:
            worker = self._worker or await self._next_worker()
            try:
                return await worker.run(arrays, start, stop, deadline_s=deadline_s)
            except Unsent:
                continue
            except (WorkerCrashed, WorkerTimeout) as exc:
                if worker.alive:  # stopped at its deadline by the worker's own watchdog: once more would be no better
                    self.on_strike(Strike(exc))
                    raise
                if blamed:
                    raise
                blamed = True
            except OutOfMemory as exc:
                self.on_strike(Strike(exc))
                raise

    async def _next_worker(self) -> Worker:
        while self._worker is None:
            if self._retired:
                raise Retired
            await self._changed.wait()
        return self._worker

    async def retire(self, drain_s: float) -> None:
        """Answer what was asked for, for at most ``drain_s``, then end the worker. Ask nothing new of it meanwhile."""
        try:
            async with asyncio.timeout(drain_s):
                await self._drained.wait()
        except TimeoutError:
            logger.warning("%d requests were not answered in %g s of draining", self._outstanding, drain_s)
        await self.abandon()

    async def abandon(self) -> None:
        """End the worker now; requests that are not to blame raise :class:`Retired`."""
        self._retired = True
        self._changed.set()
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.gather(self._replacing, return_exceptions=True)
        for worker in (self._worker, self._dying):
            if worker is not None:
                await worker.stop()
        self._worker = None


def _unless_error(part: dict[str, Array] | BaseException) -> dict[str, Array]:
    if isinstance(part, BaseException):
        raise part
    return part
