"""Telemetry that fades instead of being lost: which waiting batches become one, and what they add up to.

Everything in a window merges by addition, so a batch of five minutes, an hour or a day says what its minutes said, but
for when within it. Rules: only neighbours merge, within one boot of the agent and one span of the calendar (UTC), so
that a clock that is set in between never makes a window of fifty years; the merged batch takes the last one's name and
says from which sequence on it stands for. Of all that may merge the pieces go first that are oldest for their size:
detail fades with age, as in a round-robin database, but with no fixed grid of ages.

Source: Oetiker, MRTG: The Multi Router Traffic Grapher, LISA 1998 (consolidation of old measurements).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from vedette.models.profile import ProfileCounts, ProfileError
from vedette.wire.values import Gap, TelemetryBatch, Window

SPANS_S = (300, 3_600, 86_400)
"""Of what is merged, one after the other: five minutes, an hour, a day."""
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Piece:
    """A batch that waits and may be merged."""

    boot_epoch: int
    first_sequence: int
    sequence: int
    start: int  # of its first window, microseconds since 1970


def next_run(pieces: Iterable[Piece], newest: int) -> Sequence[Piece]:
    """Return neighbours that should become one now; none when nothing is left to merge.

    Args:
        pieces: All that may merge, in the order of their names.
        newest: The start of the newest of them.
    """
    runs = {span_s: _Runs(span_s * _MICROSECONDS) for span_s in SPANS_S}
    for piece in pieces:
        for run in runs.values():
            run.take(piece)
        if all(run.oldest for run in runs.values()):
            break
    found = [(run.span, run.found()) for run in runs.values()]
    ages = [((newest - pieces[0].start) / span, pieces) for span, pieces in found if pieces]
    return max(ages, key=lambda item: item[0])[1] if ages else ()


@dataclass(slots=True)
class _Runs:
    """Finds the oldest run of one span."""

    span: int
    oldest: list[Piece] = field(default_factory=list)
    _open: list[Piece] = field(default_factory=list)

    def take(self, piece: Piece) -> None:
        if self.oldest:
            return
        if self._open and not self._continues(piece):
            if len(self._open) > 1:
                self.oldest = self._open
                return
            self._open = []
        self._open.append(piece)

    def found(self) -> list[Piece]:
        return self.oldest or (self._open if len(self._open) > 1 else [])

    def _continues(self, piece: Piece) -> bool:
        last = self._open[-1]
        return (
            piece.boot_epoch == last.boot_epoch
            and piece.first_sequence == last.sequence + 1
            and piece.start // self.span == last.start // self.span
        )


def merged(batches: Sequence[TelemetryBatch]) -> TelemetryBatch:
    """Return one batch that says what several neighbours say; grouping does not matter.

    Args:
        batches: One at least, of one boot epoch, in order and without a hole.
    """
    sums: dict[Any, _Sum] = {}
    gaps: list[Gap] = []
    odd = count()
    for batch in batches:
        gaps += batch.gaps
        for window in batch.windows:
            profile = _counts(window.profile)
            # Bins of another reference never merge, and what cannot be read is handed on as it is.
            kind = (window.slot, window.model, window.version, window.build, profile and profile.reference)
            key = kind if profile or not window.profile else (*kind, next(odd))
            if key in sums:
                sums[key].add(window, profile)
            else:
                sums[key] = _Sum(window, profile)
    windows = sorted((made.window() for made in sums.values()), key=lambda window: window.slot == "")
    first, last = batches[0], batches[-1]
    return replace(last, windows=tuple(windows), gaps=tuple(gaps), first_sequence=first.first)


def _counts(profile: bytes) -> ProfileCounts | None:
    try:
        return ProfileCounts.decode(profile) if profile else None
    except ProfileError:
        return None


class _Sum:
    """What windows of one build add up to."""

    def __init__(self, window: Window, profile: ProfileCounts | None) -> None:
        self._window = window
        self._profile = profile
        self._verdicts = Counter(window.verdicts)
        self._counters = Counter(window.counters)

    def add(self, other: Window, profile: ProfileCounts | None) -> None:
        mine = self._window
        latency = mine.latency_counts or (0,) * len(other.latency_counts)
        self._window = replace(
            mine,
            start=min(mine.start, other.start),
            end=max(mine.end, other.end),
            rows=mine.rows + other.rows,
            flagged=mine.flagged + other.flagged,
            errors=mine.errors + other.errors,
            worker_restarts=mine.worker_restarts + other.worker_restarts,
            latency_counts=tuple(map(sum, zip(latency, other.latency_counts or (0,) * len(latency), strict=True))),
            cpu_seconds=mine.cpu_seconds + other.cpu_seconds,
            memory_bytes=other.memory_bytes,
        )
        self._verdicts.update(other.verdicts)
        self._counters.update(other.counters)
        if self._profile is not None and profile is not None:
            self._profile.merge(profile)

    def window(self) -> Window:
        profile = self._profile.encode() if self._profile is not None else self._window.profile
        return replace(self._window, verdicts=dict(self._verdicts), counters=dict(self._counters), profile=profile)
