"""What is told of a span of time: counts of each slot's work that merge by addition, and the agent's own gauges.

Rules: one window a build that did anything, so no window mixes two versions; one more, with an empty slot name, that
carries what belongs to no slot: collector and sink counters, CPU and memory of all processes. Spans are measured on the
monotonic clock, so a clock that is set neither loses nor doubles a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.agent.domain.clock import Clock
from vedette.models.profile import LATENCY_EDGES_MS, DataProfile, ReferenceProfile, latency_bin
from vedette.wire.values import BuildRef, Window


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """A batch of rows that one build answered.

    Attributes:
        slot: Where.
        build: By which build.
        labels: Of the build's release, by class index.
        features: Shape (rows, features), as the model read them.
        scores: Shape (rows,).
        classes: Indices into ``labels``, shape (rows,).
        flagged: Shape (rows,).
        latency_ms: Each of the rows waited for all of it.
        reference: Of the release; None without one.
        profiled_one_in: Of so many rows one is counted in the profile, which says itself how many it counted.
    """

    slot: str
    build: BuildRef
    labels: Sequence[str]
    features: npt.NDArray[np.float32]
    scores: npt.NDArray[np.floating[Any]]
    classes: npt.NDArray[np.integer[Any]]
    flagged: npt.NDArray[np.bool_]
    latency_ms: float
    reference: ReferenceProfile | None
    profiled_one_in: int = 1


@dataclass(frozen=True, slots=True)
class Gauges:
    """The agent's own figures at the end of a window. Counters only grow; a window carries their growth."""

    counters: Mapping[str, int] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)  # of workers, by slot
    cpu_seconds: float = 0.0  # spent in the window
    memory_bytes: int = 0


@dataclass(slots=True)
class _Work:
    """One build's work in the open window."""

    rows: int = 0
    flagged: int = 0
    errors: int = 0
    shed: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    latency_counts: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(LATENCY_EDGES_MS) + 1, dtype=np.int64)
    )
    profile: DataProfile | None = None


class Windows:
    """The open window. Used from one thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._work: dict[tuple[str, BuildRef], _Work] = {}
        self._counters: dict[str, int] = {}
        self._restarts: dict[str, int] = {}
        self._open()

    def scored(self, rows: ScoredRows) -> None:
        """Count rows that a build answered."""
        work = self._of(rows.slot, rows.build)
        count = len(rows.scores)
        profiled = slice(-work.rows % rows.profiled_one_in, None, rows.profiled_one_in)
        work.rows += count
        work.flagged += int(np.count_nonzero(rows.flagged))
        work.latency_counts[latency_bin(rows.latency_ms)] += count
        _add_verdicts(work.verdicts, rows)
        if rows.reference is not None:
            if work.profile is None:
                work.profile = DataProfile(rows.reference)
            work.profile.add(rows.features[profiled], rows.scores[profiled], rows.flagged[profiled])

    def failed(self, slot: str, build: BuildRef) -> None:
        """Count a batch that a build did not answer."""
        self._of(slot, build).errors += 1

    def shed(self, slot: str, build: BuildRef, rows: int) -> None:
        """Count rows that a build was not given, because under pressure only a share is scored."""
        self._of(slot, build).shed += rows

    def close(self, gauges: Gauges) -> tuple[Window, ...]:
        """Return the windows of the span that ends now, the agent's own last, and open the next span."""
        start = self._start
        end = start + timedelta(seconds=self._clock.monotonic() - self._started)
        windows = []
        for (slot, build), work in self._work.items():
            restarts = gauges.restarts.get(slot, 0)
            grown = max(0, restarts - self._restarts.get(slot, 0))
            self._restarts[slot] = restarts
            windows.append(
                Window(
                    start=start,
                    end=end,
                    slot=slot,
                    model=build.model,
                    version=build.version,
                    build=build.build,
                    rows=work.rows,
                    flagged=work.flagged,
                    errors=work.errors,
                    worker_restarts=grown,
                    verdicts=work.verdicts,
                    latency_counts=tuple(work.latency_counts.tolist()),
                    profile=work.profile.encode() if work.profile else b"",
                    counters={"rows_shed": work.shed} if work.shed else {},
                )
            )
        windows.append(
            Window(
                start=start,
                end=end,
                counters=self._growth(gauges.counters),
                cpu_seconds=gauges.cpu_seconds,
                memory_bytes=gauges.memory_bytes,
            )
        )
        self._open()
        return tuple(windows)

    def _open(self) -> None:
        self._work.clear()
        self._start, self._started = self._clock.now(), self._clock.monotonic()

    def _of(self, slot: str, build: BuildRef) -> _Work:
        return self._work.setdefault((slot, build), _Work())

    def _growth(self, counters: Mapping[str, int]) -> dict[str, int]:
        grown = {name: count - self._counters.get(name, 0) for name, count in counters.items()}
        self._counters = dict(counters)
        return {name: count for name, count in grown.items() if count > 0}


def _add_verdicts(verdicts: dict[str, int], rows: ScoredRows) -> None:
    counts = np.bincount(rows.classes, minlength=len(rows.labels))
    for label, count in zip(rows.labels, counts.tolist(), strict=True):
        if count:
            verdicts[label] = verdicts.get(label, 0) + count
