"""From datagrams to verdicts: decode, extract, score, say. Testable without sockets and processes.

Rules: decoding and extraction happen whether or not a model serves, so that the context is warm when one does; what no
model scored is counted. Extraction runs ahead of inference by a bounded number of flows; over it the oldest are dropped
and counted. A model that fails costs its own rows alone. Every slot with a flow schema scores every flow.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vedette.agent.adapters.inference.serving import Answer
from vedette.agent.adapters.sinks.fanout import Verdicts
from vedette.agent.domain.allowance import Allowance
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.errors import InferenceError
from vedette.agent.domain.pressure import PROFILED_ONE_IN, Level
from vedette.agent.domain.priority import Priority
from vedette.agent.domain.sampling import in_share
from vedette.agent.domain.windows import ScoredRows, Windows
from vedette.models.documents import digest_of
from vedette.models.errors import ModelsError
from vedette.models.evidence import EvidenceError, occlusion_rows, rank
from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.extract import FLOW_SCHEMA, SILENCE_MS, FlowBatch, FlowExtractor
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.flows.records import FlowRecords, chosen
from vedette.models.profile import ReferenceProfile
from vedette.models.release import Release
from vedette.models.verdict import Evidence, ScoredBy, verdict_lines
from vedette.wire.values import BuildRef

logger = logging.getLogger(__name__)

MAX_WAITING_FLOWS = 65_536
"""Flows that may wait for inference; 420 bytes each with their features, 27 MB in all."""
_AHEAD_FLOWS = (
    16_384  # queued for inference, beyond which datagrams stay in the collector's queue, where they are small
)
_TURN_DATAGRAMS = 256  # decoded at once; some 6,000 records, 25 ms of the loop
_SCORE_ROWS = 4096  # of one request
_TOLD_ROWS = 256  # written as text at once: 5 ms of the loop
_SILENCE_STEP_S = 1.0
_GATHER_S = 1.0  # under pressure: at 1,000 flows/s a fifth of the batches, each five times as large
_LAST_EXPORTER = 2**32 - 1  # numbers of other sources go down from here; the decoder's go up from 0
_MAX_REFERENCES = 15  # kept beside the newest


class Serves(Protocol):
    """A build that answers."""

    @property
    def release(self) -> Release:
        """Its release."""
        ...

    @property
    def ref(self) -> BuildRef:
        """Its name."""
        ...


class Scorer(Protocol):
    """The models of this appliance."""

    @property
    def actives(self) -> Mapping[str, Serves]:
        """Every slot that answers now."""
        ...

    async def infer(
        self,
        slot: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        is_counted: bool = True,
        priority: Priority = Priority.FLOW,
    ) -> Answer:
        """Answer a request, wholly by one build; raises InferenceError."""
        ...

    def reference(self, slot: str) -> bytes | None:
        """Return the reference profile of the slot's active release."""
        ...


class VerdictSink(Protocol):
    """Where verdicts go; never waits."""

    def write(self, verdicts: Verdicts) -> None:
        """Take what one build said of some flows."""
        ...


class DatagramSource(Protocol):
    """Where datagrams come from."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        ...

    def take(self, most: int) -> list[Datagram]:
        """Return what waits, oldest first."""
        ...


@dataclass(slots=True)
class PipelineCounters:
    """What a pipeline did since it was made."""

    flows: int = 0
    flows_unscored: int = 0  # no flow model was active
    flows_shed: int = 0  # under pressure only a share of the conversations is scored; these are not in it
    flows_dropped: int = 0  # inference was too slow
    batches_failed: int = 0  # of datagrams, by a fault of ours
    rows_scored: int = 0  # a flow counts once for each slot that scored it
    rows_flagged: int = 0
    rows_failed: int = 0  # the model gave an error
    rows_invalid: int = 0  # the model gave no number, or a class that it does not have
    verdicts_without_evidence: int = 0  # flagged, over the allowance


@dataclass(frozen=True, slots=True)
class _Scored:
    """A batch and what one build said of it."""

    batch: FlowBatch
    release: Release
    build: BuildRef
    scores: npt.NDArray[np.floating[Any]]
    classes: npt.NDArray[np.integer[Any]]
    flagged: npt.NDArray[np.bool_]


class FlowPipeline:
    """One appliance's flows.

    Args:
        scorer: The models.
        sink: Where verdicts go; None keeps only the counts.
        windows: Where work is counted.
        clock: ``now`` stamps verdicts, ``monotonic`` tells silence.
        host: The name in every verdict.
        emit_all: Whether verdicts that are not flagged are written too.
        evidence_per_s: Flagged flows a second that are explained.
    """

    def __init__(
        self,
        scorer: Scorer,
        sink: VerdictSink | None,
        windows: Windows,
        clock: Clock,
        *,
        host: str,
        emit_all: bool,
        evidence_per_s: int,
    ) -> None:
        self._scorer = scorer
        self._sink = sink
        self._windows = windows
        self._clock = clock
        self._host = host
        self._emit_all = emit_all
        self._allowance = Allowance(evidence_per_s)
        self.decoder = FlowDecoder()
        self.extractor = FlowExtractor()
        self.counters = PipelineCounters()
        self.pressure = Level.NONE
        self.flow_share = 1.0  # of the conversations that are scored; 1 below Level.FLOWS
        self._secret = secrets.randbits(64)
        self._waiting: deque[FlowBatch] = deque()
        self._waiting_flows = 0
        self._parts = 0
        self.scoring: int | None = None  # the number of the part of a batch that is scored now
        self._has_flows = asyncio.Event()
        self._is_drained, self._has_room = asyncio.Event(), asyncio.Event()
        self._is_drained.set()
        self._has_room.set()
        self._exporters: dict[int, str] = {}
        self._own_exporters: dict[int, str] = {}  # the decoder knows nothing of
        self.queued_flows = 0
        self._scoring_flows = 0
        self._references: dict[str, ReferenceProfile | None] = {}

    def take(self, datagrams: Sequence[Datagram]) -> None:
        """Decode datagrams and queue the flows of the ticks they close; never raises for what they hold."""
        try:
            records = self.decoder.decode_many(datagrams)
            self._queue(self.extractor.push(records, now_ms=self._now_ms()))
        except Exception:
            # The network decides what comes in here. Should a packet find a fault of ours that no test has found, it
            # costs its batch, not the appliance's verdicts until somebody restarts the agent.
            self.counters.batches_failed += 1
            logger.exception("%d datagrams could not be taken", len(datagrams))

    def add_exporter(self, name: str) -> int:
        """Return the number by which records of another source than the network name their exporter."""
        number = _LAST_EXPORTER - len(self._own_exporters)
        self._own_exporters[number] = name
        return number

    def take_records(self, records: FlowRecords) -> None:
        """Queue the flows of the ticks that these records close; never raises for what they hold."""
        try:
            self._queue(self.extractor.push(records, now_ms=self._now_ms()))
        except Exception:
            self.counters.batches_failed += 1
            logger.exception("%d records could not be taken", len(records))

    def advance(self) -> None:
        """Queue what waits of exporters that fell silent. To be called about once a second after datagrams came."""
        self._queue(self.extractor.advance(now_ms=self._now_ms()))

    def flush(self) -> None:
        """Queue all that waits, at the end: open ticks and lone halves with the values they have now."""
        self._queue(self.extractor.flush())

    async def gather(self, source: DatagramSource, has_datagrams: asyncio.Event, batch_s: float) -> None:
        """Take datagrams from a source for ever; idle costs nothing: with no exporter there is no timer.

        Args:
            source: Sets ``has_datagrams`` when it is no longer empty.
            has_datagrams: Cleared here.
            batch_s: How long datagrams are gathered before they are decoded together.
        """
        heard_at = float("-inf")
        while True:
            is_settling = self._clock.monotonic() - heard_at <= SILENCE_MS / 1000 + _SILENCE_STEP_S
            if not has_datagrams.is_set() and is_settling:
                await self._clock.sleep(max(batch_s, _SILENCE_STEP_S / 2))
                self.advance()
            else:
                await has_datagrams.wait()
                await self._clock.sleep(max(batch_s, _GATHER_S) if self.pressure >= Level.WAITING else batch_s)
            has_datagrams.clear()
            while datagrams := source.take(_TURN_DATAGRAMS):
                heard_at = self._clock.monotonic()
                self.take(datagrams)
                await asyncio.sleep(0)  # inference and the link have their turn between two batches
                await self.room()

    async def score_forever(self) -> None:
        """Score what is queued."""
        while True:
            await self._has_flows.wait()
            await self.score_waiting()

    async def score_waiting(self) -> None:
        """Score all that is queued now."""
        while self._waiting:
            batch = self._waiting.popleft()
            self._waiting_flows -= len(batch)
            self._scoring_flows = len(batch)
            if self._waiting_flows <= _AHEAD_FLOWS:
                self._has_room.set()
            for begin in range(0, len(batch), _SCORE_ROWS):
                self._parts += 1
                self.scoring = self._parts
                await self._score(_part(batch, begin, begin + _SCORE_ROWS))
            self._scoring_flows = 0
        self.scoring = None
        self._has_flows.clear()
        self._is_drained.set()

    async def room(self) -> None:
        """Wait until little enough is queued for inference that more may be taken off the network's own queue."""
        await self._has_room.wait()

    @property
    def finished_flows(self) -> int:
        """How many of the flows that were ever queued have been scored and told, or given up; the oldest are first."""
        return self.queued_flows - self._waiting_flows - self._scoring_flows

    async def drained(self) -> None:
        """Wait until whoever runs :meth:`score_forever` has scored everything."""
        await self._is_drained.wait()

    def _queue(self, batch: FlowBatch | None) -> None:
        if batch is None or len(batch) == 0:
            return
        self.counters.flows += len(batch)
        if not self._flow_slots():
            self.counters.flows_unscored += len(batch)
            return
        if self.flow_share < 1:
            batch = self._sampled(batch)
            if len(batch) == 0:
                return
        self._waiting.append(batch)
        self._waiting_flows += len(batch)
        self.queued_flows += len(batch)
        while self._waiting_flows > MAX_WAITING_FLOWS and len(self._waiting) > 1:
            dropped = len(self._waiting.popleft())
            self._waiting_flows -= dropped
            self.counters.flows_dropped += dropped
        self._is_drained.clear()
        self._has_flows.set()
        if self._waiting_flows > _AHEAD_FLOWS:
            self._has_room.clear()

    def _sampled(self, batch: FlowBatch) -> FlowBatch:
        """Return the flows that are scored, and count the others for every slot that would have scored them."""
        kept = in_share(batch.flows, self.flow_share, self._secret)
        shed = len(batch) - int(np.count_nonzero(kept))
        self.counters.flows_shed += shed
        for slot, model in self._flow_slots().items():
            self._windows.shed(slot, model.ref, shed)
        return _where(batch, kept) if shed else batch

    @property
    def fill(self) -> float:
        """How much of what may wait for inference waits; at a half no more is taken off the network's own queue."""
        return self._waiting_flows / (2 * _AHEAD_FLOWS)

    def _flow_slots(self) -> dict[str, Serves]:
        return {slot: model for slot, model in self._scorer.actives.items() if _reads_flows(model.release)}

    async def _score(self, batch: FlowBatch) -> None:
        slots = self._flow_slots()
        if not slots:
            self.counters.flows_unscored += len(batch)
        await asyncio.gather(*(self._score_in(slot, model.ref, batch) for slot, model in slots.items()))

    async def _score_in(self, slot: str, build: BuildRef, batch: FlowBatch) -> None:
        try:
            answer = await self._scorer.infer(slot, {"features": batch.features})
        except InferenceError as exc:
            logger.debug("slot %s did not score %d flows: %s", slot, len(batch), exc)
            self.counters.rows_failed += len(batch)
            self._windows.failed(slot, build)
            return
        release = answer.release
        build = BuildRef(model=release.model, version=release.version, build=answer.build_digest)
        scores, classes = answer.outputs["score"], answer.outputs["label"]
        invalid = ~np.isfinite(scores) | (classes < 0) | (classes >= len(release.labels))
        if invalid.any():
            self.counters.rows_invalid += int(np.count_nonzero(invalid))
            self._windows.failed(slot, build)
            good = ~invalid
            batch, scores, classes = _where(batch, good), scores[good], classes[good]
        scored = _Scored(batch, release, build, scores, classes, scores >= release.threshold)
        self._count(slot, scored, answer.latency_ms)
        await self._tell(slot, scored)

    def _count(self, slot: str, scored: _Scored, latency_ms: float) -> None:
        self.counters.rows_scored += len(scored.batch)
        self.counters.rows_flagged += int(np.count_nonzero(scored.flagged))
        self._windows.scored(
            ScoredRows(
                slot=slot,
                build=scored.build,
                labels=scored.release.labels,
                features=scored.batch.features,
                scores=scored.scores,
                classes=scored.classes,
                flagged=scored.flagged,
                latency_ms=latency_ms,
                reference=self._reference(slot, scored.release),
                profiled_one_in=PROFILED_ONE_IN if self.pressure >= Level.PROFILES else 1,
            )
        )

    async def _tell(self, slot: str, scored: _Scored) -> None:
        if self._sink is None:
            return
        told = np.arange(len(scored.batch)) if self._emit_all else np.flatnonzero(scored.flagged)
        if len(told) == 0:
            return
        evidence = await self._evidence(slot, scored)
        for begin in range(0, len(told), _TOLD_ROWS):
            self._sink.write(self._verdicts(scored, told[begin : begin + _TOLD_ROWS], evidence))
            await asyncio.sleep(0)  # programs' requests and the link have their turn between two of these

    def _verdicts(
        self, scored: _Scored, told: npt.NDArray[np.intp], evidence: Mapping[int, Sequence[Evidence]]
    ) -> Verdicts:
        """Return what is told of some rows."""
        places = {int(place): number for number, place in enumerate(told)}
        flows = chosen(scored.batch.flows, told)
        labels = [scored.release.labels[index] for index in scored.classes[told].tolist()]
        exporters = [self._exporter(index) for index in flows["exporter"].tolist()]
        scores, flagged = scored.scores[told], scored.flagged[told]
        by = ScoredBy(self._host, scored.build.model, scored.build.version, scored.build.build)
        now_ms = int(self._clock.now().timestamp() * 1000)
        lines = verdict_lines(
            flows,
            labels,
            scores,
            flagged,
            by=by,
            exporters=exporters,
            evidence={places[place]: items for place, items in evidence.items() if place in places},
            now_ms=now_ms,
        )
        return Verdicts(lines, flows, labels, scores, flagged, exporters, by, now_ms)

    async def _evidence(self, slot: str, scored: _Scored) -> dict[int, Sequence[Evidence]]:
        """Return what drove the flagged rows, by row: as many as the allowance has, through the same build."""
        flagged = np.flatnonzero(scored.flagged)
        reference = self._reference(slot, scored.release)
        allowed = self._allowance.take(len(flagged), self._clock.monotonic()) if reference is not None else 0
        self.counters.verdicts_without_evidence += len(flagged) - allowed
        if reference is None or allowed == 0:
            return {}
        told = await self._explained(slot, scored, flagged[:allowed], reference.medians)
        self.counters.verdicts_without_evidence += allowed - len(told)
        return told

    async def _explained(
        self, slot: str, scored: _Scored, rows: npt.NDArray[np.integer[Any]], usual: npt.NDArray[np.float32]
    ) -> dict[int, Sequence[Evidence]]:
        """Return what drove these rows; nothing when the model failed or was switched in between."""
        features = scored.batch.features[rows]
        variants = np.concatenate([occlusion_rows(row, usual) for row in features])
        try:
            answer = await self._scorer.infer(slot, {"features": variants}, is_counted=False, priority=Priority.EXPLAIN)
            if answer.build_digest != scored.build.build:
                return {}
            scores = answer.outputs["score"].reshape(len(rows), -1)
            return {
                place: rank(row, usual, given, FLOW_SCHEMA.names)
                for place, row, given in zip(rows.tolist(), features, scores, strict=True)
            }
        except (InferenceError, EvidenceError) as exc:
            logger.debug("no evidence from slot %s: %s", slot, exc)
            return {}

    def _reference(self, slot: str, release: Release) -> ReferenceProfile | None:
        """Return the reference profile of a release, read once."""
        if release.reference is None:
            return None
        digest = release.reference.digest
        if digest not in self._references:
            data = self._scorer.reference(slot)
            if data is not None and digest_of(data) != digest:
                return None  # a switch came in between, the next batch will find its own
            newest = list(self._references.items())[-_MAX_REFERENCES:]
            self._references = {**dict(newest), digest: _read_reference(data)}
        return self._references[digest]

    def _exporter(self, index: int) -> str:
        if index not in self._exporters:
            heard = {number: exporter.address for number, exporter in self.decoder.exporters.items()}
            self._exporters = heard | self._own_exporters
        return self._exporters.get(index, "")

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)


def _reads_flows(release: Release) -> bool:
    return release.kind == "flow" and release.schema is not None and release.schema.digest == FLOW_SCHEMA.digest


def _read_reference(data: bytes | None) -> ReferenceProfile | None:
    """Return the profile when it is one of flows; a model without one is served all the same."""
    if data is None:
        return None
    try:
        profile = ReferenceProfile.from_bytes(data)
    except ModelsError as exc:
        logger.warning("a reference profile cannot be used: %s", exc)
        return None
    return profile if profile.columns[:-1] == FLOW_SCHEMA.names else None


def _part(batch: FlowBatch, begin: int, end: int) -> FlowBatch:
    return FlowBatch(batch.flows[begin:end], batch.features[begin:end], batch.origins[begin:end])


def _where(batch: FlowBatch, rows: npt.NDArray[np.bool_]) -> FlowBatch:
    return FlowBatch(chosen(batch.flows, rows), batch.features[rows], batch.origins[rows])
