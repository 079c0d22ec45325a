"""From flow records to biflows with features: the one implementation that training and agents share.

The clock of everything here is the exporter's own: a tick is one second of the export times in its datagrams' headers.

- A tick is closed by the first record of a later one. All its records are then stitched, oriented, added to the
  context and given their features together, in the order they came: how they were batched on the way in cannot be seen.
- A half whose other half is missing waits for one more tick, then goes out alone.
- A record that is late by no more than :attr:`Limits.tolerance_s` counts to the open tick; a clock that jumps back
  further starts a new epoch of that exporter with nothing remembered.
- A tick of more than :attr:`Limits.tick_records` records is closed in pieces of exactly so many.
- After :data:`SILENCE_MS` of the receiver's clock without a word from an exporter, its open tick and waiting halves go
  out with the values they have if its clock moves on; the state itself advances by record time only. Should the same
  second go on after all (a stalled sender), the state and all later flows are as if there had been no pause; a flow of
  which one half was shown then comes out once more, whole, and is counted in ``reunited``.

State is per exporter and bounded: so many exporters, so many entries each, so many bytes in all.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vedette.models.flows.features import FLOW_SCHEMA, Context, Matrix
from vedette.models.flows.records import FlowRecords, chosen, empty, joined
from vedette.models.flows.stitch import stitch

__all__ = ["FLOW_SCHEMA", "SILENCE_MS", "Counters", "FlowBatch", "FlowExtractor", "Limits"]

SILENCE_MS = 3_000
_OLD_MS = 3_600_000  # a flow that ended so long before its export is counted as old
_FUTURE_MS = 60_000  # and one that ended so long after it as future

Numbers = npt.NDArray[np.int64]


_NOTHING: tuple[FlowRecords, Numbers] = (empty(), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Limits:
    """What an extractor may hold."""

    exporters: int = 64
    """The longest silent one is closed and forgotten when one more appears."""
    memory_bytes: int = 96 << 20
    """Tables stop growing here; they then forget the longest unused entries earlier."""
    tick_records: int = 16_384
    tolerance_s: int = 10


@dataclass(slots=True)
class Counters:
    """What happened since the extractor was made."""

    records: int = 0
    flows: int = 0
    lone: int = 0  # flows that came out with one half only
    epochs: int = 0  # started because a record clock jumped back
    late: int = 0  # records of an earlier tick, counted to the open one
    old: int = 0
    future: int = 0
    silences: int = 0
    reunited: int = 0
    exporters_forgotten: int = 0
    growth_refused: int = 0


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """Biflows, client first, with their features; those of one exporter in the order its ticks closed."""

    flows: FlowRecords  # shape (rows,)
    features: Matrix  # shape (rows, len(FLOW_SCHEMA))
    origins: Numbers  # shape (rows, 2): running numbers, from 0, of the records pushed that made the flow; -1 for none

    def __len__(self) -> int:
        return len(self.flows)


@dataclass(slots=True)
class _Exporter:
    """One exporter's open tick, waiting halves and context."""

    tick: int
    context: Context
    heard_ms: int = 0
    newest: int = 0  # number of the last record it sent
    open: list[tuple[FlowRecords, Numbers]] = field(default_factory=list)
    opened: int = 0
    held: tuple[FlowRecords, Numbers] = _NOTHING
    shown_before: int = 0  # records with smaller numbers have gone out already

    @property
    def unshown(self) -> bool:
        """Tell whether a record waits that has not gone out in any form."""
        newest = self.open[-1][1] if self.open else self.held[1]
        return len(newest) > 0 and int(newest[-1]) >= self.shown_before


class FlowExtractor:
    """Makes biflows with features from the records of any number of exporters. One per process, not thread-safe."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.counters = Counters()
        self._exporters: dict[int, _Exporter] = {}

    @property
    def state_bytes(self) -> int:
        """Return the memory of all tables."""
        return sum(t.nbytes for e in self._exporters.values() for t in e.context.tables)

    def push(self, records: FlowRecords, *, now_ms: int) -> FlowBatch | None:
        """Take records in the order they came and return the flows of the ticks they closed.

        Args:
            records: Any number, of any exporters; not kept.
            now_ms: The receiver's monotonic clock, used for silence only.
        """
        numbers = np.arange(self.counters.records, self.counters.records + len(records))
        self.counters.records += len(records)
        self._count_times(records)
        done: list[FlowBatch] = []
        for name in _in_order(records["exporter"]):
            mine = records["exporter"] == name
            own = records if mine.all() else chosen(records, mine)
            self._take(name, own, numbers[mine], now_ms, done)
        return self._joined(done)

    def advance(self, *, now_ms: int) -> FlowBatch | None:
        """Return what waits of exporters that have been silent for :data:`SILENCE_MS`."""
        done: list[FlowBatch] = []
        for exporter in self._exporters.values():
            if exporter.unshown and now_ms - exporter.heard_ms >= SILENCE_MS:
                self.counters.silences += 1
                # On a copy: the tick may yet go on, and must then be closed once, whole.
                self._finish(copy.deepcopy(exporter), done)
                exporter.shown_before = self.counters.records
        return self._joined(done)

    def flush(self) -> FlowBatch | None:
        """Close everything, return what waited and forget all state: the end of a file."""
        done: list[FlowBatch] = []
        for exporter in self._exporters.values():
            self._finish(exporter, done)
        self._exporters.clear()
        return self._joined(done)

    def _take(self, name: int, records: FlowRecords, numbers: Numbers, now_ms: int, done: list[FlowBatch]) -> None:
        ticks = records["export_ms"] // 1000
        while len(records):
            exporter = self._exporter(name, int(ticks[0]), done)
            exporter.heard_ms, exporter.newest = now_ms, int(numbers[-1])
            clock = np.maximum(np.maximum.accumulate(ticks), exporter.tick)
            jumps = np.flatnonzero(clock - ticks > self.limits.tolerance_s)
            end = int(jumps[0]) if len(jumps) else len(records)
            self.counters.late += int(np.count_nonzero(clock[:end] > ticks[:end]))
            self._run(exporter, records[:end], numbers[:end], clock[:end], done)
            if end < len(records):
                self.counters.epochs += 1
                self._finish(self._exporters.pop(name), done)
            records, numbers, ticks = records[end:], numbers[end:], ticks[end:]

    def _exporter(self, name: int, tick: int, done: list[FlowBatch]) -> _Exporter:
        exporter = self._exporters.get(name)
        if exporter is None:
            if len(self._exporters) >= self.limits.exporters:
                # By records, not by our clock, which stands still where a file is read.
                silent = min(self._exporters, key=lambda known: self._exporters[known].newest)
                self._finish(self._exporters.pop(silent), done)
                self.counters.exporters_forgotten += 1
            exporter = self._exporters[name] = _Exporter(tick, Context(tick))
        return exporter

    def _run(
        self, exporter: _Exporter, records: FlowRecords, numbers: Numbers, clock: Numbers, done: list[FlowBatch]
    ) -> None:
        """Take records whose clock never goes back, closing each tick they leave behind."""
        edges = [0, *(np.flatnonzero(np.diff(clock)) + 1).tolist(), len(records)]
        for begin, end in itertools.pairwise(edges):
            if begin == end:
                continue
            tick = int(clock[begin])
            if tick > exporter.tick:
                self._leave(exporter, tick, done)
            self._open(exporter, records[begin:end], numbers[begin:end], done)

    def _leave(self, exporter: _Exporter, tick: int, done: list[FlowBatch]) -> None:
        """Close the open tick, and the empty one after it for halves that wait unless that is ``tick`` itself."""
        self._close(exporter, done)
        exporter.tick = min(exporter.tick + 1, tick)
        if exporter.tick < tick:
            self._close(exporter, done)
            exporter.tick = tick

    def _open(self, exporter: _Exporter, records: FlowRecords, numbers: Numbers, done: list[FlowBatch]) -> None:
        while len(records):
            room = self.limits.tick_records - exporter.opened
            # Copies: the caller may use its buffer again, and a view would keep all of it alive.
            exporter.open.append((joined([records[:room]]), numbers[:room].copy()))
            exporter.opened += len(records[:room])
            if exporter.opened == self.limits.tick_records:
                self._close(exporter, done)
            records, numbers = records[room:], numbers[room:]

    def _finish(self, exporter: _Exporter, done: list[FlowBatch]) -> None:
        self._leave(exporter, exporter.tick + 2, done)

    def _close(self, exporter: _Exporter, done: list[FlowBatch]) -> None:
        """Stitch, add to the context and hand out what the open tick and the waiting halves hold."""
        waited = len(exporter.held[0])
        parts = [exporter.held, *exporter.open] if waited else exporter.open
        exporter.open, exporter.opened, exporter.held = [], 0, _NOTHING
        if not parts:
            return
        records, numbers = parts[0]
        if len(parts) > 1:
            records, numbers = joined(part for part, _ in parts), np.concatenate([part for _, part in parts])
        made = stitch(records)
        waits = (made.second < 0) & (made.first >= waited) & ~records["bidirectional"][made.first]
        if waits.any():
            exporter.held = (chosen(records, made.first[waits]), numbers[made.first[waits]])
        goes = ~waits
        second = np.where(made.second >= 0, numbers[made.second], -1)
        origins = np.stack([numbers[made.first], second], axis=1)[goes]
        flows = made.flows if goes.all() else chosen(made.flows, goes)
        if len(flows):
            self._grow(exporter.context)
            features = exporter.context.advance(flows, exporter.tick)
            self._show(exporter, FlowBatch(flows, features, origins), done)

    def _show(self, exporter: _Exporter, batch: FlowBatch, done: list[FlowBatch]) -> None:
        shown = batch.origins < exporter.shown_before
        new: npt.NDArray[np.bool_] = np.logical_not(shown.all(axis=1))
        if not new.all():
            batch = FlowBatch(chosen(batch.flows, new), batch.features[new], batch.origins[new])
            shown = shown[new]
        self.counters.reunited += int(np.count_nonzero(shown.any(axis=1) & (batch.origins[:, 1] >= 0)))
        if len(batch):
            done.append(batch)

    def _grow(self, context: Context) -> None:
        for table in context.tables:
            more = table.wants_bytes
            if more and self.state_bytes + more <= self.limits.memory_bytes:
                table.grow()
            elif more:
                self.counters.growth_refused += 1

    def _joined(self, done: list[FlowBatch]) -> FlowBatch | None:
        if not done:
            return None
        batch = done[0]
        if len(done) > 1:
            batch = FlowBatch(
                joined(b.flows for b in done),
                np.concatenate([b.features for b in done]),
                np.concatenate([b.origins for b in done]),
            )
        self.counters.flows += len(batch)
        self.counters.lone += int(np.count_nonzero(~batch.flows["bidirectional"]))
        return batch

    def _count_times(self, records: FlowRecords) -> None:
        # In float64: hostile times near the ends of int64 must not wrap round.
        behind = records["export_ms"].astype(np.float64) - records["end_ms"]
        self.counters.old += int(np.count_nonzero(behind > _OLD_MS))
        self.counters.future += int(np.count_nonzero(behind < -_FUTURE_MS))


def _in_order(names: npt.NDArray[np.uint32]) -> list[int]:
    """Return the different exporters of a batch, ascending."""
    if len(names) == 0:
        return []
    if (names == names[0]).all():
        return [int(names[0])]
    return [int(name) for name in np.unique(names)]
