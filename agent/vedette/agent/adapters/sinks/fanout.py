"""Where verdicts go: one value for a batch of them, a fan-out to every sink, and what all sinks have in common.

Rules: ``write`` never waits, whatever a sink does. Each sink has a thread and a queue of its own, bounded in bytes:
what does not fit is counted as lost, the newest first, and no other sink notices. What a sink could not hand over is
counted by the place where it was lost. A sink tells when it begins to fail and when that ends, once each; one whose
queue is full fails, too, though it may only be slow or hang without a word, until its queue was empty once.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vedette.agent.domain.metrics import Family, Sample
from vedette.models.flows.records import FlowRecords, chosen
from vedette.models.verdict import ScoredBy

logger = logging.getLogger(__name__)

OnProblem = Callable[[str | None], None]
"""Called from a sink's thread with what is wrong when that begins, and with None when it ends."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What one build said of some flows; every sequence has one item a flow, in the same order.

    Attributes:
        lines: Whole JSON lines, each with its newline.
        flows: The biflows themselves, shape (rows,).
        labels: The verdicts, as the data names them.
        scores: Shape (rows,).
        flagged: Shape (rows,).
        exporters: The addresses of who reported the flows.
        by: Who gave the verdicts.
        at_ms: When, by the appliance's corrected clock, Unix milliseconds.
    """

    lines: Sequence[bytes]
    flows: FlowRecords
    labels: Sequence[str]
    scores: npt.NDArray[np.floating[Any]]
    flagged: npt.NDArray[np.bool_]
    exporters: Sequence[str]
    by: ScoredBy
    at_ms: int

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def size_bytes(self) -> int:
        """Bytes of all lines."""
        return sum(map(len, self.lines))

    def only_flagged(self) -> Verdicts:
        """Return the flagged ones."""
        if self.flagged.all():
            return self
        rows = np.flatnonzero(self.flagged)
        places = rows.tolist()
        return replace(
            self,
            lines=[self.lines[place] for place in places],
            flows=chosen(self.flows, rows),
            labels=[self.labels[place] for place in places],
            scores=self.scores[rows],
            flagged=self.flagged[rows],
            exporters=[self.exporters[place] for place in places],
        )


@dataclass(slots=True)
class SinkCounters:
    """What a sink did since it was made; ``lost`` is verdicts by the place where they were lost."""

    written: int = 0
    bytes: int = 0
    lost: Counter[str] = field(default_factory=Counter)


class QueuedSink(ABC):
    """A sink with a bounded queue and a thread of its own.

    ``write``, ``reopen``, ``end`` and the counters are for any thread; what has an underscore runs in the sink's own.

    Args:
        emits_all: Whether verdicts that are not flagged are wanted too.
        queue_bytes: The most that may wait, in bytes of lines.
        on_problem: Told when the sink begins to fail, and when that ends.
    """

    name: ClassVar[str]
    lost_at: ClassVar[tuple[str, ...]]
    """The places where it may lose verdicts, beside its queue."""

    def __init__(self, *, emits_all: bool, queue_bytes: int, on_problem: OnProblem) -> None:
        self.emits_all = emits_all
        self.counters = SinkCounters(lost=Counter(dict.fromkeys(("queue", *self.lost_at), 0)))
        self.problem: str | None = None
        self._failure: str | None = None
        self._is_overrun = False
        self._queue_bytes = queue_bytes
        self._on_problem = on_problem
        self._waiting: deque[tuple[Verdicts, int]] = deque()
        self._bytes = 0
        self._is_busy = False
        self._must_reopen = False
        self._ends_at: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"{self.name}-sink", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def write(self, verdicts: Verdicts) -> None:
        """Queue verdicts, or count them as lost when there is no room."""
        size = verdicts.size_bytes
        with self._changed:
            if self._bytes + size > self._queue_bytes:
                self.counters.lost["queue"] += len(verdicts)
                self._is_overrun = True
                self._tell()
                return
            self._waiting.append((verdicts, size))
            self._bytes += size
            self._changed.notify_all()

    def reopen(self) -> None:
        """Let go of the file or connection and begin anew with the next verdict; what failed is tried at once."""
        with self._changed:
            self._must_reopen = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is queued or worked at; return whether it came to that."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._is_busy, timeout_s)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of lines in the queue."""
        return self._bytes

    @property
    def is_broken(self) -> bool:
        """Whether the thread was started and ended unasked."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def end(self, timeout_s: float) -> None:
        """Have the thread hand over what waits, for ``timeout_s`` at the most, and end; does not wait for it."""
        with self._changed:
            self._ends_at = time.monotonic() + timeout_s
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end, and say what had to be left."""
        if self._thread.ident is not None:
            self._thread.join(max(timeout_s, 0.0))
        with self._changed:
            left = sum(len(verdicts) for verdicts, _ in self._waiting)
        if left:
            logger.warning("%d verdicts were not handed to the %s sink before the agent ended", left, self.name)

    def close(self, timeout_s: float) -> None:
        """Hand over what waits, as long as that takes no longer than ``timeout_s``, and end the thread."""
        self.end(timeout_s)
        self.join(timeout_s)

    @abstractmethod
    def _deliver(self, verdicts: Verdicts) -> None:
        """Hand over, or count as lost; may take its time."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close what is open; the next verdict opens it anew."""

    def _patience_s(self) -> float | None:
        """Return after how long ``_grow_impatient`` is wanted though nothing comes; None is never."""
        return None

    def _is_unsure(self) -> bool:
        """Tell whether something that was handed over may still turn out to be lost."""
        return False

    def _grow_impatient(self) -> None:
        """Do what was put off; here, close what nobody used for so long."""
        self._let_go()

    def _finish(self) -> None:
        """Do what was put off and close what is open: the thread ends."""
        self._let_go()

    def _run(self) -> None:
        while True:
            verdicts, must_reopen, must_end = self._next()
            if must_reopen:
                self._let_go()
            if verdicts is not None:
                self._deliver(verdicts)
            elif must_end:
                self._finish()
                break
            elif not must_reopen:
                self._grow_impatient()
        with self._changed:
            self._is_busy = False
            self._changed.notify_all()

    def _next(self) -> tuple[Verdicts | None, bool, bool]:
        """Wait for something to do; return what to hand over, whether to reopen, whether to end."""
        with self._changed:
            self._is_busy = self._is_unsure()
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._waiting or self._must_reopen or self._ends_at is not None, self._patience_s()
            )
            self._is_busy = True
            must_reopen, self._must_reopen = self._must_reopen, False
            if not self._waiting:
                return None, must_reopen, self._ends_at is not None
            if len(self._waiting) == 1 and self._is_overrun:
                self._is_overrun = False
                self._tell()
            verdicts, size = self._waiting.popleft()
            self._bytes -= size
            return verdicts, must_reopen, False

    def _pause(self, wait_s: float) -> None:
        """Wait before another try; not beyond the end, and not at all once the sink is to reopen."""
        with self._changed:
            if self._ends_at is None:
                self._changed.wait_for(lambda: self._must_reopen or self._ends_at is not None, wait_s)
            else:
                self._changed.wait_for(lambda: self._must_reopen, min(wait_s, self._ends_at - time.monotonic()))
            if self._must_reopen:
                self._must_reopen = False
                self._let_go()

    def _is_over(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _say(self, failure: str | None) -> None:
        with self._changed:
            self._failure = failure
            self._tell()

    def _tell(self) -> None:
        """Say what is wrong when that begins or ends. With the lock only: two threads know of it."""
        overrun = f"takes verdicts slower than they come; sink.{self.name}.queue is full and what comes now is lost"
        was, self.problem = self.problem, self._failure or (overrun if self._is_overrun else None)
        if (self.problem is None) != (was is None):
            self._on_problem(self.problem)


class Fanout:
    """All sinks of an appliance, as one."""

    def __init__(self, sinks: Sequence[QueuedSink]) -> None:
        self.sinks = tuple(sinks)

    @property
    def emits_all(self) -> bool:
        """Whether any sink wants verdicts that are not flagged."""
        return any(sink.emits_all for sink in self.sinks)

    def start(self) -> None:
        """Start every sink."""
        for sink in self.sinks:
            sink.start()

    def write(self, verdicts: Verdicts) -> None:
        """Give every sink what it wants of them; never waits."""
        flagged = verdicts.only_flagged()
        for sink in self.sinks:
            wanted = verdicts if sink.emits_all else flagged
            if len(wanted):
                sink.write(wanted)

    def reopen(self) -> None:
        """Have every sink begin anew: files were rotated, certificates or secrets renewed."""
        for sink in self.sinks:
            sink.reopen()

    @property
    def broken(self) -> str | None:
        """The name of a sink whose thread ended unasked."""
        return next((sink.name for sink in self.sinks if sink.is_broken), None)

    def close(self, timeout_s: float) -> None:
        """Hand over what waits, in all sinks at once and within ``timeout_s``."""
        for sink in self.sinks:
            sink.end(timeout_s)
        ends_at = time.monotonic() + timeout_s
        for sink in self.sinks:
            sink.join(ends_at - time.monotonic())

    def counters(self) -> dict[str, int]:
        """Return sums over all sinks, by plain names, for telemetry windows and ``status``."""
        if not self.sinks:
            return {}
        return {
            "verdicts_written": sum(sink.counters.written for sink in self.sinks),
            "verdicts_lost": sum(sink.counters.lost.total() for sink in self.sinks),
        }

    def report(self) -> list[dict[str, Any]]:
        """Return how each sink stands, for ``status``."""
        return [
            {
                "sink": sink.name,
                "written": sink.counters.written,
                "lost": dict(sink.counters.lost),
                "waiting_bytes": sink.waiting_bytes,
                "problem": sink.problem,
            }
            for sink in self.sinks
        ]


def families_sinks(fanout: Fanout) -> Iterator[Family]:
    """Return what ``/metrics`` says of the sinks."""

    def each(name: str, kind: str, text: str, value: Callable[[QueuedSink], float]) -> Family:
        return Family(name, kind, text, [Sample(value(sink), {"sink": sink.name}) for sink in fanout.sinks])

    text = "Verdicts handed over."
    yield each("vedette_agent_sink_written_total", "counter", text, lambda sink: sink.counters.written)
    text = "Bytes of verdicts handed over."
    yield each("vedette_agent_sink_written_bytes_total", "counter", text, lambda sink: sink.counters.bytes)
    lost = [
        Sample(count, {"sink": sink.name, "where": place})
        for sink in fanout.sinks
        for place, count in sink.counters.lost.items()
    ]
    yield Family("vedette_agent_sink_lost_total", "counter", "Verdicts not handed over, by where they were lost.", lost)
    text = "Bytes of verdicts that wait."
    yield each("vedette_agent_sink_waiting_bytes", "gauge", text, lambda sink: sink.waiting_bytes)
    text = "1 while the sink hands nothing over."
    yield each("vedette_agent_sink_failed", "gauge", text, lambda sink: int(sink.problem is not None))
