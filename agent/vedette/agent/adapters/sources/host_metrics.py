"""The appliance's own metrics as a source of rows: read, score, say.

One row an interval goes to every slot whose schema is the host schema. A row that no model reads is not made up for
later: it costs nothing but the reading, which keeps rates right for the model that comes. A model that fails costs its
own row. The reading itself can be looked at in the verdicts: every one has the whole row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vedette.agent.adapters.inference.serving import Answer
from vedette.agent.adapters.pipeline import Scorer, Serves, VerdictSink
from vedette.agent.adapters.sinks.fanout import Verdicts
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.errors import InferenceError
from vedette.agent.domain.priority import Priority
from vedette.agent.domain.windows import ScoredRows, Windows
from vedette.models.documents import digest_of
from vedette.models.errors import ModelsError
from vedette.models.evidence import EvidenceError, occlusion_rows, rank
from vedette.models.flows.records import empty
from vedette.models.host import HOST_SCHEMA, HostReading, Row, host_row, host_values
from vedette.models.profile import ReferenceProfile
from vedette.models.release import Release
from vedette.models.verdict import Evidence, ScoredBy, host_verdict_line
from vedette.wire.values import BuildRef

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class HostCounters:
    """What was done with host metrics since the start."""

    rows: int = 0  # an interval counts once
    scored: int = 0  # once for each slot
    flagged: int = 0
    failed: int = 0  # no answer, or none of the model's kind


class HostSource:
    """The appliance's own metrics.

    Args:
        read: Reads the machine at a time of the monotonic clock.
        scorer: The models.
        sink: Where verdicts go; None keeps only the counts.
        windows: Where work is counted.
        clock: ``now`` stamps verdicts, ``monotonic`` tells how long an interval was.
        host: The name in every verdict.
        interval_s: Between two rows.
    """

    def __init__(
        self,
        read: Callable[[float], HostReading],
        scorer: Scorer,
        sink: VerdictSink | None,
        windows: Windows,
        clock: Clock,
        *,
        host: str,
        interval_s: float,
    ) -> None:
        self._read = read
        self._scorer = scorer
        self._sink = sink
        self._windows = windows
        self._clock = clock
        self._host = host
        self._interval_s = interval_s
        self._before: HostReading | None = None
        self._references: dict[str, tuple[str, ReferenceProfile | None]] = {}  # by slot, with their digest
        self.counters = HostCounters()

    async def run(self) -> None:
        """Read and score for ever."""
        while True:
            await self.step()
            await self._clock.sleep(self._interval_s)

    async def step(self) -> None:
        """Read the machine, and score the row since the last reading in every slot that reads such rows."""
        before, self._before = self._before, self._read(self._clock.monotonic())
        if before is None:
            return
        self.counters.rows += 1
        row = host_row(before, self._before)
        for slot, model in self._slots().items():
            await self._score(slot, model.ref, row)

    def _slots(self) -> Mapping[str, Serves]:
        return {slot: model for slot, model in self._scorer.actives.items() if _reads_host(model.release)}

    async def _score(self, slot: str, build: BuildRef, row: Row) -> None:
        try:
            answer = await self._scorer.infer(slot, {"features": row})
        except InferenceError as exc:
            logger.debug("slot %s did not score the host's metrics: %s", slot, exc)
            self._failed(slot, build)
            return
        release = answer.release
        build = BuildRef(model=release.model, version=release.version, build=answer.build_digest)
        score, place = float(answer.outputs["score"][0]), int(answer.outputs["label"][0])
        if not np.isfinite(score) or not 0 <= place < len(release.labels):
            self._failed(slot, build)
            return
        is_flagged = score >= release.threshold
        self.counters.scored += 1
        self.counters.flagged += is_flagged
        reference = self._reference(slot, release)
        self._count(slot, build, row, answer, reference)
        if self._sink is None:
            return
        evidence = await self._evidence(slot, build, row, reference) if is_flagged and reference is not None else None
        by = ScoredBy(self._host, build.model, build.version, build.build)
        now_ms = int(self._clock.now().timestamp() * 1000)
        line = host_verdict_line(
            host_values(row[0]),
            release.labels[place],
            score,
            is_flagged=is_flagged,
            by=by,
            evidence=evidence,
            now_ms=now_ms,
        )
        # No flow is behind it: sinks that act on addresses find the unspecified one.
        scores, flagged = np.array([score]), np.array([is_flagged])
        self._sink.write(Verdicts([line], empty(1), [release.labels[place]], scores, flagged, [""], by, now_ms))

    def _failed(self, slot: str, build: BuildRef) -> None:
        self.counters.failed += 1
        self._windows.failed(slot, build)

    def _count(self, slot: str, build: BuildRef, row: Row, answer: Answer, reference: ReferenceProfile | None) -> None:
        scores, classes = answer.outputs["score"], answer.outputs["label"]
        self._windows.scored(
            ScoredRows(
                slot=slot,
                build=build,
                labels=answer.release.labels,
                features=row,
                scores=scores,
                classes=classes,
                flagged=scores >= answer.release.threshold,
                latency_ms=answer.latency_ms,
                reference=reference,
            )
        )

    async def _evidence(
        self, slot: str, build: BuildRef, row: Row, reference: ReferenceProfile
    ) -> tuple[Evidence, ...] | None:
        """Return what drove a flagged row; None when the model failed or was switched in between."""
        try:
            variants = occlusion_rows(row[0], reference.medians)
            answer = await self._scorer.infer(slot, {"features": variants}, is_counted=False, priority=Priority.EXPLAIN)
            if answer.build_digest != build.build:
                return None
            found = rank(row[0], reference.medians, answer.outputs["score"], HOST_SCHEMA.names)
        except (InferenceError, EvidenceError) as exc:
            logger.debug("no evidence from slot %s: %s", slot, exc)
            return None
        return tuple(item for item in found if np.isfinite(item.value) and np.isfinite(item.usual))

    def _reference(self, slot: str, release: Release) -> ReferenceProfile | None:
        """Return the reference profile of a release, read once."""
        if release.reference is None:
            return None
        digest = release.reference.digest
        if self._references.get(slot, ("", None))[0] != digest:
            data = self._scorer.reference(slot)
            if data is None or digest_of(data) != digest:
                return None  # a switch came in between, the next row will find its own
            self._references[slot] = (digest, _read_reference(data))
        return self._references[slot][1]


def _reads_host(release: Release) -> bool:
    return release.kind == "host" and release.schema is not None and release.schema.digest == HOST_SCHEMA.digest


def _read_reference(data: bytes) -> ReferenceProfile | None:
    try:
        profile = ReferenceProfile.from_bytes(data)
    except ModelsError as exc:
        logger.warning("a reference profile cannot be used: %s", exc)
        return None
    return profile if profile.columns[:-1] == HOST_SCHEMA.names else None
