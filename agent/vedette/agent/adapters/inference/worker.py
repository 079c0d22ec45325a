"""One model in a process of its own, seen from the agent.

Rules:

* The agent's process never imports onnxruntime and trusts nothing that a worker writes: a record out of order, or a
  shape that does not fit, ends the worker.
* Everything runs on the event loop's thread: the loop reads the doorbell; there is no thread and no pickle.
* A worker answers in order, so when it dies only the oldest batch in flight can be to blame; those behind it never ran.
* Time: ``RunOptions.terminate`` in the worker at the deadline, SIGKILL from here ``grace_s`` later. The deadline is
  max(1 s, 20 x p99 of the time per row x rows), at most a minute, by the agent's own clock.

Who asks, what waits and what is tried again is :mod:`vedette.agent.adapters.inference.runner`'s.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vedette.agent.adapters.inference.ring import (
    AREAS,
    RECORD,
    Area,
    Array,
    Failure,
    Kind,
    Part,
    Patience,
    Plan,
    RingError,
    create_ring,
)
from vedette.agent.adapters.inference.worker_process import STDERR_BYTES, Child
from vedette.agent.domain.errors import (
    AgentError,
    InferenceError,
    ModelFailed,
    ModelRefused,
    OutOfMemory,
    SpawnFailed,
    WorkerCrashed,
    WorkerTimeout,
)

SpawnChild = Callable[[], Awaitable[Child]]
"""Starts a process that waits for a model. Raises SpawnFailed."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker lives."""

    threads: int = 1  # of onnxruntime inside one operator
    memory_bytes: int = 512 * 1024 * 1024  # RLIMIT_AS; python, numpy and onnxruntime take 280 MiB of it
    nice: int = 5  # on top of the agent's own
    cpus: tuple[int, ...] = ()  # may run there; empty is anywhere
    max_rows: int = 4096  # of one batch; larger requests are cut
    variable_bytes: int = 4 * 1024 * 1024  # for each tensor with more than its rows undecided
    in_flight: int = 2  # batches of one worker; 1.09 of in-process rows/s against .91 with one (FACTS.md)
    workers: int = 1  # processes of one model
    queue: int = 256  # requests that may wait for a worker
    deadline_s: float = 1.0  # the least of a batch
    deadline_factor: float = 20.0  # times the p99 per row
    deadline_most_s: float = 60.0  # whatever the pace: a model that slows down bit by bit would raise it without end
    grace_s: float = 1.0  # between terminate and SIGKILL
    test_deadline_s: float = 10.0  # of a batch of golden samples, before anything is known of the model's pace
    load_timeout_s: float = 60.0
    arena: bool = False  # off saves 3 to 9 MB
    admit: Callable[[int], None] = lambda pid: None  # puts a new process in its place; must not raise
    on_unfiltered: Callable[[str], None] = lambda why: None  # a worker runs without its filter of system calls
    spin_us: int = 100  # both sides look so long for the other's word before they sleep; 0 on a single core

    def __post_init__(self) -> None:
        if not 1 <= self.in_flight <= AREAS:
            raise ValueError(f"in_flight is {self.in_flight}, limits 1 and {AREAS}")


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


@dataclass(slots=True, eq=False)
class Batch:
    """What one run of the model answers."""

    parts: Sequence[Part]
    rows: int
    chosen: bytes  # of Plan.chosen
    limit_s: float | None  # instead of the deadline by pace
    owner: Any  # the asker's own; not looked at
    request: int = 0
    area: int = 0
    deadline_s: float = 0.0
    since: float = field(default=0.0)  # when it was sent, and what writing and reading it took
    input_ns: int = 0
    compute_ns: int = 0
    output_ns: int = 0


class Asker(Protocol):
    """Who sends batches and is told of them, on the loop; must not raise."""

    def answered(self, worker: Worker, batch: Batch, result: dict[str, Array] | InferenceError) -> None:
        """Take an answer: outputs, or why the runtime gave none."""

    def lost(self, worker: Worker, error: InferenceError, flying: Sequence[Batch]) -> None:
        """Take notice, once, that a worker is gone unasked; only the first of what it had can be to blame."""


class Worker:
    """One process with one model loaded. Made by :meth:`start`."""

    def __init__(self, plan: Plan, settings: WorkerSettings, pace: RowPace) -> None:
        self._plan = plan
        self._settings = settings
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._areas: tuple[Area, ...] = ()
        self._free = list(range(AREAS))
        self._flying: deque[Batch] = deque()
        self._head_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._requests = 0
        self._run_us = 0.0  # of a row, as the worker tells it: only good for the choice to spin
        self._patience = Patience(settings.spin_us if len(os.sched_getaffinity(0)) > 1 else 0)
        self._cause: str | None = None
        self._child: Child | None = None
        self._asker: Asker | None = None

    @classmethod
    async def start(
        cls, model: int, plan: Plan, settings: WorkerSettings, spawn: SpawnChild, pace: RowPace | None = None
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
        child = worker._child = await spawn()
        try:
            worker._hand(child, model)
            await worker._loaded(child)
        except BaseException:
            await worker.stop()
            raise
        worker._loop.add_reader(child.doorbell.fileno(), worker._read)
        return worker

    def serve(self, asker: Asker) -> None:
        """Say who asks from now on."""
        self._asker = asker

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid if self._child else 0

    @property
    def alive(self) -> bool:
        """Whether it takes batches."""
        return self._cause is None

    @property
    def outstanding(self) -> int:
        """Batches in flight."""
        return len(self._flying)

    @property
    def is_free(self) -> bool:
        """Whether it takes one more batch now."""
        return self._cause is None and len(self._flying) < self._settings.in_flight

    def _hand(self, child: Child, model: int) -> None:
        try:
            ring, self._areas = create_ring(self._plan)
            try:
                socket.send_fds(child.doorbell, [self._setup()], [ring, model])
            finally:
                os.close(ring)
        except OSError as exc:
            raise SpawnFailed(f"a worker process cannot be given its model: {exc}") from exc

    def _setup(self) -> bytes:
        settings = self._settings
        described = {
            side: [[t.name, t.kind, list(t.shape)] for t in tensors]
            for side, tensors in (("inputs", self._plan.inputs), ("outputs", self._plan.outputs))
        }
        limits = {
            "threads": settings.threads,
            "memory_bytes": settings.memory_bytes,
            "stderr_bytes": STDERR_BYTES,
            "nice": settings.nice,
            "cpus": list(settings.cpus),
            "max_rows": self._plan.max_rows,
            "variable_bytes": self._plan.variable_bytes,
            "row_wise": self._plan.row_wise,
            "arena": settings.arena,
            "spin_us": self._patience.us,
        }
        return json.dumps(described | limits).encode()

    async def _loaded(self, child: Child) -> None:
        answer = await child.heard(self._settings.load_timeout_s, WorkerTimeout, "the model was not loaded")
        if not answer:
            raise WorkerCrashed(f"the worker died while loading the model: {await child.ended()}")
        word = _parse_answer(answer)
        if isinstance(word, _Refused):
            raise _load_error(word, self._settings.memory_bytes)
        if word:
            self._settings.on_unfiltered(word)

    def send(self, batch: Batch) -> None:
        """Have a batch of checked inputs answered, behind those in flight; the asker is told.

        Raises:
            InvalidRequest: Its strings do not fit; nothing was sent.
        """
        begun = time.monotonic_ns()
        area = self._free[-1]
        place = self._areas[area]
        place.write_inputs(batch.parts)
        if batch.chosen:
            place.choose(batch.chosen)
        self._free.pop()
        self._requests = (self._requests + 1) & 0xFFFFFFFF
        batch.request, batch.area = self._requests, area
        batch.deadline_s = self.deadline_s(batch.rows) if batch.limit_s is None else batch.limit_s
        sent = time.monotonic_ns()
        batch.input_ns = sent - begun
        batch.since = sent / 1e9
        self._ring(batch)

    def deadline_s(self, rows: int) -> float:
        """Return how long a batch of that many rows may take."""
        wanted = self._settings.deadline_factor * self._pace.p99_s * rows
        return min(max(self._settings.deadline_s, wanted), self._settings.deadline_most_s)

    def _ring(self, batch: Batch) -> None:
        if not self._flying:
            self._head_since = batch.since
        self._flying.append(batch)
        is_chosen, limit_us = int(bool(batch.chosen)), int(batch.deadline_s * 1e6)
        try:
            self._doorbell.send(RECORD.pack(Kind.RUN, batch.area, is_chosen, batch.request, limit_us))
        except OSError as exc:  # at most AREAS records ever wait, so a full socket is no working one
            self._lose(f"the doorbell failed: {exc}")
            return
        self._look_at(batch.since + batch.deadline_s + self._settings.grace_s)

    @property
    def _doorbell(self) -> socket.socket:
        if self._child is None:
            raise WorkerCrashed("the worker was never started")
        return self._child.doorbell

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

    def pays_to_spin(self, rows: int) -> bool:
        """Return whether an answer for that many rows may come before sleeping and waking would cost more."""
        return self._run_us * rows < self._patience.us and self._patience.pays()

    def spin(self, answer: asyncio.Future[Any]) -> None:
        """Look for a quick answer before the loop sleeps: waking either side costs more than a small model.

        Measured on 2 virtual cores, perceptron 40-128-64-5, one row, p50 of 2,000 and CPU of both processes: without
        130 us and 125 us; with 33 us and 69 us (tests/bench/bench_worker.py).
        """
        end = time.monotonic() + self._patience.us / 1e6
        while not answer.done() and self._cause is None and time.monotonic() < end:
            self._read()
        self._patience.tell(came=answer.done())

    def _read(self) -> None:
        was_reset = False
        while self._cause is None:
            try:
                record = self._doorbell.recv(RECORD.size)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # The kernel tells of words that the dead never read before it gives those it had written: unix(7),
                # one error a socket. What was answered before the death is not to be asked again.
                record, was_reset = b"", not was_reset
                if was_reset:
                    continue
            except OSError:
                record = b""
            if not record:
                self._lose("the worker died")
            else:
                self._take(record)

    def _take(self, record: bytes) -> None:
        begun = time.monotonic_ns()
        try:
            head = self._flying[0] if self._flying else None
            kind, area, code, request, took_ns = RECORD.unpack(record) if len(record) == RECORD.size else (0,) * 5
            if head is None or (area, request) != (head.area, head.request) or kind not in (Kind.DONE, Kind.FAILED):
                raise RingError(f"record {record.hex()} answers nothing that was asked")
            place = self._areas[area]
            result = place.read_outputs(head.chosen) if kind == Kind.DONE else _batch_error(code, place.read_text())
        except RingError as exc:
            self._lose(f"the worker broke the rules: {exc}")
            return
        now = time.monotonic_ns()
        head.compute_ns, head.output_ns = min(took_ns, now - int(head.since * 1e9)), now - begun
        self._run_us += 0.1 * (took_ns / 1e3 / max(head.rows, 1) - self._run_us)
        self._finish(head, result, now / 1e9)

    def _finish(self, head: Batch, result: dict[str, Array] | InferenceError, now: float) -> None:
        self._flying.popleft()
        if isinstance(result, dict):
            self._pace.add(now - self._head_since, max(head.rows, 1))
        self._head_since = now
        self._free.append(head.area)
        if self._asker is not None:
            self._asker.answered(self, head, result)

    def _lose(self, cause: str, error: type[InferenceError] = WorkerCrashed) -> None:
        if self._cause is not None:
            return
        self._shut(cause)
        flying = list(self._flying)
        self._flying.clear()
        if self._asker is not None:
            self._asker.lost(self, error(cause), flying)

    def _shut(self, cause: str) -> None:
        """Stop taking and reading; the process gets SIGKILL, whatever it is doing."""
        self._cause = cause
        if self._timer is not None:
            self._timer.cancel()
        if self._child is not None:
            if self._child.doorbell.fileno() >= 0:
                self._loop.remove_reader(self._child.doorbell.fileno())
            self._child.kill()

    def halt(self) -> list[Batch]:
        """Kill the process now, without a word to the asker; return what was in flight."""
        if self._cause is None:
            self._shut("it was stopped")
        flying = list(self._flying)
        self._flying.clear()
        return flying

    async def stop(self) -> str:
        """End the process now, and forget what is in flight. Return how it ended.

        Harmless when it is gone already, and the way to learn of what it died.
        """
        self.halt()
        return await self._child.ended() if self._child is not None else "it was never started"


@dataclass(frozen=True, slots=True)
class _Refused:
    failure: int
    text: str


def _parse_answer(answer: bytes) -> _Refused | str:
    """Return a worker's first message: why it did not load its model, or why it has no filter of system calls.

    Raises:
        WorkerCrashed: It is no such message.
    """
    try:
        value = json.loads(answer)
        if "unfiltered" in value:
            return _printable(str(value["unfiltered"])[:200])
        return _Refused(int(value["failure"]), _printable(str(value["text"])[:4096]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as exc:
        # Not what it says: that may be as long as the message.
        raise WorkerCrashed(f"the worker's first message is not one: {type(exc).__name__}") from exc


def _printable(text: str) -> str:
    """Return a worker's words as they may be told: half a surrogate could be sent to nobody."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _load_error(refused: _Refused, memory_bytes: int) -> AgentError:
    if refused.failure == Failure.MEMORY:
        return OutOfMemory(f"loading the model took more than {memory_bytes} bytes (memory_bytes): {refused.text}")
    return SpawnFailed(refused.text) if refused.failure == Failure.HOST else ModelRefused(refused.text)


def _batch_error(code: int, text: str) -> InferenceError:
    kinds: dict[int, type[InferenceError]] = {Failure.TIMEOUT: WorkerTimeout, Failure.MEMORY: OutOfMemory}
    return kinds.get(code, ModelFailed)(text)
