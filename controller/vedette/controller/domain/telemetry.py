"""Telemetry: which batches were counted, and what windows add up to.

Rules: a batch is counted exactly once for each (agent, boot epoch, sequence); what was counted, or given up, is kept
as ranges of sequences, a few numbers for years of reports. A batch may stand for several sequences that its agent
merged; none of them was sent before. Windows may be of any span and merge by addition; percentiles come of merged
histograms, never of percentiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vedette.controller.domain.errors import InvalidInput
from vedette.models.profile import LATENCY_EDGES_MS, latency_percentile
from vedette.wire.values import Gap, TelemetryBatch, Window
from vedette.wire.views import AgentTelemetry

MAX_COUNT = 2**53
"""Of any number in a window: what a float and SQLite's integers both hold exactly."""

MAX_RANGES = 64
"""Of counted sequences in one boot epoch; with more, the oldest hole is closed and kept as a gap."""

LATENCY_BINS = len(LATENCY_EDGES_MS) + 1

Range = tuple[int, int]
Place = tuple[int, int]
"""Where a reading in pieces goes on; only the store knows what it means."""

Counts = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a batch is new, and what is counted or given up from now on.

    Attributes:
        is_new: The batch is to be counted.
        counted: Sequences counted or given up, disjoint, ascending, both ends inside.
        lost: Gaps to keep: those the agent reports, holes that were closed, and what was merged with what was counted.
    """

    is_new: bool
    counted: tuple[Range, ...]
    lost: tuple[Gap, ...] = ()


def admit(counted: Sequence[Range], batch: TelemetryBatch) -> Admission:
    """Decide whether a batch is counted, given what was counted before of its boot epoch."""
    if _has(counted, batch.sequence):
        return Admission(is_new=False, counted=tuple(counted))
    own = (batch.first, batch.sequence)
    if any(first <= own[1] and own[0] <= last for first, last in counted):
        return _mixed(counted, batch)
    gaps = [gap for gap in batch.gaps if not _covers(counted, (gap.first_sequence, gap.last_sequence))]
    added = [(gap.first_sequence, gap.last_sequence) for gap in gaps]
    merged = _merge([*counted, *added, own])
    merged, holes = _close_oldest(merged)
    return Admission(is_new=True, counted=merged, lost=(*gaps, *holes))


def _mixed(counted: Sequence[Range], batch: TelemetryBatch) -> Admission:
    """Refuse to count twice: part of a merged batch was counted, and a sum cannot be taken apart.

    No agent of ours merges what it may have sent; one whose disk was put back to an older copy would.
    """
    rows = sum(window.rows for window in batch.windows)
    gap = Gap(
        first_sequence=batch.first, last_sequence=batch.sequence, rows=rows, reason="merged with what was counted"
    )
    merged, holes = _close_oldest(_merge([*counted, (batch.first, batch.sequence)]))
    return Admission(is_new=False, counted=merged, lost=(gap, *holes))


def _has(ranges: Iterable[Range], sequence: int) -> bool:
    return any(first <= sequence <= last for first, last in ranges)


def _covers(ranges: Iterable[Range], wanted: Range) -> bool:
    return any(first <= wanted[0] and wanted[1] <= last for first, last in ranges)


def _merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _close_oldest(ranges: tuple[Range, ...]) -> tuple[tuple[Range, ...], tuple[Gap, ...]]:
    excess = len(ranges) - MAX_RANGES
    if excess <= 0:
        return ranges, ()
    closed = ranges[: excess + 1]
    holes = tuple(
        Gap(first_sequence=before[1] + 1, last_sequence=after[0] - 1, reason="never reported")
        for before, after in pairwise(closed)
    )
    return ((closed[0][0], closed[-1][1]), *ranges[excess + 1 :]), holes


def check_batch(batch: TelemetryBatch) -> None:
    """Check what a batch says before any of it is kept.

    Raises:
        InvalidInput: A number is outside its limits; the message names it, its value and the limit.
    """
    _check("sequence", batch.sequence, least=1)
    _check("first_sequence", batch.first_sequence, most=batch.sequence)
    _check("boot_epoch", batch.boot_epoch, most=2**63 - 1)
    for gap in batch.gaps:
        _check("gaps.first_sequence", gap.first_sequence, least=1)
        _check("gaps.last_sequence", gap.last_sequence, least=gap.first_sequence)
        _check("gaps.rows", gap.rows)
    for window in batch.windows:
        _check_window(window)


def _check_window(window: Window) -> None:
    for name in ("rows", "flagged", "errors", "worker_restarts", "memory_bytes", "version"):
        _check(f"windows.{name}", getattr(window, name))
    for name in ("verdicts", "counters"):
        for key, count in getattr(window, name).items():
            _check(f"windows.{name}[{key[:40]}]", count)
    if len(window.latency_counts) not in (0, LATENCY_BINS):
        raise _invalid("windows.latency_counts", f"has {len(window.latency_counts)} bins, expected {LATENCY_BINS}")
    for count in window.latency_counts:
        _check("windows.latency_counts", count)
    if not 0 <= window.cpu_seconds <= MAX_COUNT:
        raise _invalid("windows.cpu_seconds", f"is {window.cpu_seconds}, limits 0 and {MAX_COUNT}")


def _check(name: str, count: int, *, least: int = 0, most: int = MAX_COUNT) -> None:
    if not least <= count <= most:
        raise _invalid(name, f"is {count}, limits {least} and {most}")


def _invalid(name: str, why: str) -> InvalidInput:
    return InvalidInput("telemetry-invalid", "the telemetry batch cannot be counted", f"{name} {why}")


@dataclass(slots=True)
class Tally:
    """What windows of one agent and version add up to."""

    agent_id: str
    model: str
    version: int
    rows: int = 0
    flagged: int = 0
    errors: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0  # of the newest window
    newest: datetime | None = None
    verdicts: Counter[str] = field(default_factory=Counter)
    counters: Counter[str] = field(default_factory=Counter)
    latency: Counts = field(default_factory=lambda: np.zeros(LATENCY_BINS, np.uint64))

    def add(self, window: Window) -> None:
        """Add a window."""
        self.add_counts(
            rows=window.rows,
            flagged=window.flagged,
            errors=window.errors,
            start=window.start,
            end=window.end,
            cpu_seconds=window.cpu_seconds,
            memory_bytes=window.memory_bytes,
            verdicts=window.verdicts,
            counters=window.counters,
            latency=np.array(window.latency_counts, np.uint64),
        )

    def add_counts(
        self,
        *,
        rows: int,
        flagged: int,
        errors: int,
        start: datetime,
        end: datetime,
        cpu_seconds: float,
        memory_bytes: int,
        verdicts: Mapping[str, int],
        counters: Mapping[str, int],
        latency: Counts,
    ) -> None:
        """Add the counts of a window; ``latency`` has shape (LATENCY_BINS,), or (0,) when nothing was timed."""
        self.rows += rows
        self.flagged += flagged
        self.errors += errors
        self.seconds += max((end - start).total_seconds(), 0.0)
        self.cpu_seconds += cpu_seconds
        self.verdicts.update(verdicts)
        self.counters.update(counters)
        if len(latency):
            self.latency += latency
        if self.newest is None or end >= self.newest:
            self.newest, self.memory_bytes = end, memory_bytes

    def merge(self, other: Tally) -> None:
        """Add another tally of the same agent and version."""
        self.rows += other.rows
        self.flagged += other.flagged
        self.errors += other.errors
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.verdicts.update(other.verdicts)
        self.counters.update(other.counters)
        self.latency += other.latency
        if self.newest is None or (other.newest is not None and other.newest >= self.newest):
            self.newest, self.memory_bytes = other.newest, other.memory_bytes

    def view(self, agent_name: str) -> AgentTelemetry:
        """Return what an admin sees."""
        return AgentTelemetry(
            agent=agent_name,
            version=f"{self.model}:{self.version}" if self.model else "",
            rows=self.rows,
            flagged=self.flagged,
            rows_per_s=self.rows / self.seconds if self.seconds else 0.0,
            latency_p50_ms=latency_percentile(self.latency, 0.5),
            latency_p99_ms=latency_percentile(self.latency, 0.99),
            verdicts=dict(self.verdicts),
            counters=dict(self.counters),
            cpu_percent=100.0 * self.cpu_seconds / self.seconds if self.seconds else 0.0,
            memory_bytes=self.memory_bytes,
            errors=self.errors,
        )


class Tallies:
    """Adds tallies up by agent, model and version."""

    def __init__(self, tallies: Iterable[Tally] = ()) -> None:
        self._sums: dict[tuple[str, str, int], Tally] = {}
        self.add(tallies)

    def add(self, tallies: Iterable[Tally]) -> None:
        """Add further ones."""
        for item in tallies:
            key = (item.agent_id, item.model, item.version)
            if key not in self._sums:
                self._sums[key] = Tally(*key)
            self._sums[key].merge(item)

    def all(self) -> list[Tally]:
        """Return the sums, sorted by agent, model and version."""
        return [self._sums[key] for key in sorted(self._sums)]


def fleet_rows(tallies: Iterable[Tally], names: Mapping[str, str], model: str = "") -> list[AgentTelemetry]:
    """Return what each agent told of each version, of one model when it is named, by agent and version.

    An agent reports its CPU, memory and the counters of collector and sinks once, in windows of no model; they stand
    beside each of its versions. One that ran no model has a row of its own, unless a model is asked for.

    Args:
        tallies: Of all models and of none.
        names: Of agents by id; others are left out.
        model: Its name, or empty for all.
    """
    known = [each for each in tallies if each.agent_id in names]
    own = {each.agent_id: each.view(names[each.agent_id]) for each in known if not each.model}
    busy = [each for each in known if each.model]
    rows = [
        _beside(each.view(names[each.agent_id]), own.get(each.agent_id)) for each in busy if model in ("", each.model)
    ]
    if not model:
        rows += [row for agent, row in own.items() if agent not in {each.agent_id for each in busy}]
    return sorted(rows, key=lambda row: (row.agent, row.version))


def _beside(row: AgentTelemetry, own: AgentTelemetry | None) -> AgentTelemetry:
    if own is None:
        return row
    counters = {**own.counters, **row.counters}
    return replace(row, counters=counters, cpu_percent=own.cpu_percent, memory_bytes=own.memory_bytes)


@dataclass(frozen=True, slots=True)
class Totals:
    """All that an agent ever reported."""

    rows: int = 0
    flagged: int = 0


PULSE_SPAN = timedelta(minutes=1)
"""What a pulse looks back over, in the agent's own time: one window as they come by default, several shorter ones."""

MAX_RECENT = 64
"""Windows kept of an agent for its pulse: a minute of windows of 5 s for four slots and the agent itself."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """How an agent works right now: what its newest windows add up to."""

    rows_per_s: float = 0.0
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0


def recent(windows: Sequence[Window]) -> tuple[Window, ...]:
    """Return those of some windows, oldest first, that a pulse is made of, without what it does not need.

    The last one says what time it is at the agent: a clock that was set back there must not keep old windows for ever.
    """
    if not windows:
        return ()
    now = windows[-1].end
    return tuple(
        replace(window, profile=b"", counters={}, verdicts={})
        for window in windows[-MAX_RECENT:]
        if now - PULSE_SPAN < window.end <= now
    )


def pulse(windows: Sequence[Window]) -> Pulse:
    """Return the pulse of an agent from its recent windows.

    Every span has a window of the agent's own, with or without traffic, so that silence counts too. A flow feeds every
    flow slot, so rows of slots are not added: the busiest slot speaks for the agent.
    """
    latency = np.zeros(LATENCY_BINS, np.uint64)
    rows: Counter[str] = Counter()
    for window in windows:
        rows[window.slot] += window.rows
        if window.latency_counts:
            latency += np.array(window.latency_counts, np.uint64)
    length_s = _covered_s(windows)
    rate = max(rows.values()) / length_s if length_s > 0 else 0.0
    return Pulse(rate, latency_percentile(latency, 0.5), latency_percentile(latency, 0.99))


def _covered_s(windows: Sequence[Window]) -> float:
    """Return how long some windows are together; what several cover counts once, however their spans overlap."""
    covered_s, reached = 0.0, datetime.min.replace(tzinfo=UTC)
    for start, end in sorted((window.start, window.end) for window in windows):
        covered_s += max((end - max(start, reached)).total_seconds(), 0.0)
        reached = max(reached, end)
    return covered_s
