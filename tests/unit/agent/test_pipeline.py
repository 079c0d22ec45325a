"""Claims about the way from datagrams to verdicts, on real captures with a model computed by numpy."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.captures import capture_datagrams
from tests.support.clock import FakeClock
from tests.support.flow_models import capture_features, flow_release, logistic
from tests.support.tiny_models import Shelf
from vedette.agent.adapters import pipeline as pipeline_module
from vedette.agent.adapters.inference.serving import Answer
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sinks.fanout import Verdicts
from vedette.agent.domain.allowance import Allowance
from vedette.agent.domain.errors import WorkerCrashed
from vedette.agent.domain.pressure import Level
from vedette.agent.domain.priority import Priority
from vedette.agent.domain.windows import Gauges, Windows
from vedette.models.flows.datagrams import Datagram
from vedette.models.profile import DataProfile, ReferenceProfile
from vedette.models.release import Release
from vedette.wire.values import BuildRef

CAPTURE = "base/softflowd-v9"
BIAS = -5.0
SHELF = Shelf()
RELEASE = flow_release(SHELF, bias=BIAS)


@dataclass
class Active:
    """A build that answers."""

    release: Release

    @property
    def ref(self) -> BuildRef:
        return BuildRef(model=self.release.model, version=self.release.version, build=self.release.builds[0].digest)


class Numpy:
    """Models computed by numpy in place of workers."""

    def __init__(self, *slots: str) -> None:
        self.actives: dict[str, Active] = {slot: Active(RELEASE) for slot in slots}
        self.fails = False
        self.spoil: dict[str, Any] = {}
        self.rows: list[int] = []
        self.priorities: set[tuple[bool, Priority]] = set()

    async def infer(
        self,
        slot: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        is_counted: bool = True,
        priority: Priority = Priority.FLOW,
    ) -> Answer:
        await asyncio.sleep(0)
        if self.fails:
            raise WorkerCrashed("the worker died")
        features = inputs["features"]
        self.rows.append(len(features))
        self.priorities.add((is_counted, priority))
        outputs: dict[str, Any] = logistic(features, BIAS)
        for name, item in self.spoil.items():
            outputs[name][0] = item
        return Answer(outputs, RELEASE, RELEASE.builds[0].digest, 1.5)

    def reference(self, slot: str) -> bytes | None:
        assert RELEASE.reference is not None
        return SHELF.blobs[RELEASE.reference.digest]


class Lines:
    """A sink in memory."""

    def __init__(self) -> None:
        self.text = b""
        self.count = 0
        self.sizes: list[int] = []

    def write(self, verdicts: Verdicts) -> None:
        self.sizes.append(len(verdicts))
        self.text += b"".join(verdicts.lines)
        self.count += len(verdicts)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


class Bench:
    """A pipeline with everything around it in memory."""

    def __init__(self, *slots: str, emit_all: bool = False, evidence_per_s: int = 1000) -> None:
        self.clock = FakeClock()
        self.scorer = Numpy(*slots)
        self.lines = Lines()
        self.windows = Windows(self.clock)
        self.pipeline = FlowPipeline(
            self.scorer,
            self.lines,
            self.windows,
            self.clock,
            host="edge-7",
            emit_all=emit_all,
            evidence_per_s=evidence_per_s,
        )

    async def replay(self, datagrams: list[Datagram], batch: int = 64) -> None:
        for begin in range(0, len(datagrams), batch):
            self.pipeline.take(datagrams[begin : begin + batch])
            await self.pipeline.score_waiting()
        self.pipeline.flush()
        await self.pipeline.score_waiting()


def _parts(datagrams: list[Datagram], size: int) -> list[list[Datagram]]:
    return [datagrams[begin : begin + size] for begin in range(0, len(datagrams), size)]


async def test_every_flow_of_a_capture_is_scored_and_the_flagged_ones_are_written() -> None:
    bench = Bench("flow-threat")
    await bench.replay(capture_datagrams(CAPTURE))
    expected = logistic(capture_features(CAPTURE), BIAS)["score"] >= np.float32(0.5)
    counters = bench.pipeline.counters
    assert (counters.flows, counters.rows_scored) == (len(expected), len(expected))
    assert counters.rows_flagged == bench.lines.count == int(expected.sum()) > 50
    assert {v["vedette"]["verdict"] for v in bench.lines.verdicts} == {"scan"}


async def test_thousands_of_verdicts_at_once_leave_the_loop_to_others_in_between() -> None:
    bench = Bench("flow-threat", emit_all=True, evidence_per_s=0)
    bench.pipeline.take(capture_datagrams(CAPTURE)[:400])
    bench.pipeline.flush()
    turns: list[int] = []

    async def another() -> None:
        while True:
            turns.append(bench.lines.count)
            await asyncio.sleep(0)

    other = asyncio.create_task(another())
    await bench.pipeline.score_waiting()
    other.cancel()
    told = bench.lines.count
    assert told == bench.pipeline.counters.flows > 2000
    steps = [after - before for before, after in itertools.pairwise([*turns, told])]
    assert max(steps) == max(bench.lines.sizes) <= 256


async def test_evidence_is_asked_for_behind_every_flow() -> None:
    bench = Bench("flow-threat")
    await bench.replay(capture_datagrams(CAPTURE)[:600])
    assert bench.scorer.priorities == {(True, Priority.FLOW), (False, Priority.EXPLAIN)}


async def test_a_verdict_names_host_model_exporter_and_what_drove_it() -> None:
    bench = Bench("flow-threat")
    await bench.replay(capture_datagrams(CAPTURE)[:600])
    first = bench.lines.verdicts[0]
    assert (first["event_type"], first["host"]) == ("vedette", "edge-7")
    assert first["flow"]["exporter"] == capture_datagrams(CAPTURE)[0].source
    said = first["vedette"]
    assert (said["model"], said["version"], said["build"]) == ("flow-threat", 1, RELEASE.builds[0].digest)
    assert [item["feature"] for item in said["evidence"]] == ["source_failed_10s"]
    assert said["evidence"][0]["weight"] == 1.0


@pytest.mark.parametrize("batch", [1, 7, 1000])
async def test_verdicts_do_not_depend_on_how_datagrams_were_batched(batch: int) -> None:
    datagrams = capture_datagrams(CAPTURE)[:300]
    one, other = Bench("flow-threat", emit_all=True), Bench("flow-threat", emit_all=True)
    await one.replay(datagrams, batch=50)
    await other.replay(datagrams, batch=batch)

    def told(bench: Bench) -> list[tuple[Any, ...]]:
        return sorted(
            (v["flow"]["start"], v["src_ip"], v["src_port"], v["vedette"]["score"]) for v in bench.lines.verdicts
        )

    assert told(one) == told(other)


async def test_without_a_model_flows_are_counted_and_the_context_stays_warm() -> None:
    datagrams = capture_datagrams(CAPTURE)[:400]
    cold, late = Bench("flow-threat", emit_all=True), Bench(emit_all=True)
    await cold.replay(datagrams)
    half = len(datagrams) // 2
    for part in _parts(datagrams[:half], 16):
        late.pipeline.take(part)
    unscored = late.pipeline.counters.flows_unscored
    assert unscored == late.pipeline.counters.flows > 0
    late.scorer.actives["flow-threat"] = Active(RELEASE)
    await late.replay(datagrams[half:])
    assert late.lines.count == cold.lines.count - unscored
    # The same flow scores the same whether or not a model watched what came before it.
    scores = {json.dumps(v["flow"]) + v["src_ip"]: v["vedette"]["score"] for v in cold.lines.verdicts}
    assert all(scores[json.dumps(v["flow"]) + v["src_ip"]] == v["vedette"]["score"] for v in late.lines.verdicts)


async def test_every_flow_slot_scores_every_flow() -> None:
    bench = Bench("flow-threat", "flow-other")
    await bench.replay(capture_datagrams(CAPTURE)[:200])
    assert bench.pipeline.counters.rows_scored == 2 * bench.pipeline.counters.flows
    slots = {w.slot: w.rows for w in bench.windows.close(Gauges()) if w.slot}
    assert slots == {"flow-threat": bench.pipeline.counters.flows, "flow-other": bench.pipeline.counters.flows}


async def test_a_model_that_fails_costs_its_rows_and_nothing_else() -> None:
    bench = Bench("flow-threat")
    datagrams = capture_datagrams(CAPTURE)[:400]
    bench.scorer.fails = True
    for part in _parts(datagrams[:300], 16):
        bench.pipeline.take(part)
    await bench.pipeline.score_waiting()
    failed = bench.pipeline.counters.rows_failed
    assert failed == bench.pipeline.counters.flows > 0
    bench.scorer.fails = False
    await bench.replay(datagrams[300:])
    assert bench.pipeline.counters.rows_scored == bench.pipeline.counters.flows - failed
    assert bench.windows.close(Gauges())[0].errors > 0


@pytest.mark.parametrize("spoil", [{"score": np.nan}, {"score": np.inf}, {"label": 2}, {"label": -1}])
async def test_answers_that_are_none_are_counted_and_left_out(spoil: dict[str, Any]) -> None:
    bench = Bench("flow-threat", emit_all=True)
    bench.scorer.spoil = spoil
    await bench.replay(capture_datagrams(CAPTURE)[:100])
    counters = bench.pipeline.counters
    assert counters.rows_invalid > 0
    assert counters.rows_scored == bench.lines.count == counters.flows - counters.rows_invalid


async def test_flows_that_wait_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_WAITING_FLOWS", 4000)
    bench = Bench("flow-threat")
    for part in _parts(capture_datagrams(CAPTURE), 16):
        bench.pipeline.take(part)
        assert bench.pipeline._waiting_flows <= 4000
    await bench.pipeline.score_waiting()
    counters = bench.pipeline.counters
    assert counters.flows_dropped > 0
    assert counters.rows_scored + counters.flows_dropped == counters.flows


async def test_evidence_keeps_to_its_allowance_and_the_rest_is_counted() -> None:
    bench = Bench("flow-threat", evidence_per_s=10)
    await bench.replay(capture_datagrams(CAPTURE))
    explained = [v for v in bench.lines.verdicts if "evidence" in v["vedette"]]
    assert len(explained) == 10  # the clock stands still: one second's worth
    assert bench.pipeline.counters.verdicts_without_evidence == bench.lines.count - 10


def test_an_allowance_saves_up_one_second_at_most() -> None:
    allowance = Allowance(10)
    assert allowance.take(25, 0.0) == 10
    assert allowance.take(25, 0.5) == 5
    assert allowance.take(25, 100.0) == 10
    assert Allowance(0).take(5, 1.0) == 0


async def test_the_profile_of_a_window_counts_the_rows_that_were_scored() -> None:
    bench = Bench("flow-threat")
    await bench.replay(capture_datagrams(CAPTURE)[:200])
    assert RELEASE.reference is not None
    reference = ReferenceProfile.from_bytes(SHELF.blobs[RELEASE.reference.digest])
    (window, _) = bench.windows.close(Gauges())
    assert DataProfile.decode(window.profile, reference).rows == window.rows == bench.pipeline.counters.rows_scored
    assert sum(window.verdicts.values()) == window.rows


async def test_hostile_datagrams_do_not_stop_a_good_exporter() -> None:
    good = capture_datagrams(CAPTURE)[:300]
    rng = np.random.default_rng(3)
    mixed: list[Datagram] = []
    for number, datagram in enumerate(good):
        mixed.append(datagram)
        noise = bytearray(datagram.payload)
        for place in rng.integers(0, len(noise), 8):
            noise[place] ^= int(rng.integers(1, 256))
        mixed.append(Datagram(datagram.at_ns, "192.0.2.66", 9999, bytes(noise[: rng.integers(0, len(noise))])))
        if number % 50 == 0:
            mixed.append(Datagram(datagram.at_ns, "192.0.2.67", 9999, b""))
    clean, attacked = Bench("flow-threat", emit_all=True), Bench("flow-threat", emit_all=True)
    await clean.replay(good)
    await attacked.replay(mixed)
    exporter = good[0].source
    scores = [v["vedette"]["score"] for v in attacked.lines.verdicts if v["flow"]["exporter"] == exporter]
    assert sorted(scores) == sorted(v["vedette"]["score"] for v in clean.lines.verdicts)
    assert sum(attacked.pipeline.decoder.counters.malformed.values()) > 0


async def test_a_fault_of_our_own_costs_its_batch_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench("flow-threat")
    whole, bench.pipeline.decoder.decode_many = bench.pipeline.decoder.decode_many, None  # type: ignore[assignment]
    bench.pipeline.take(capture_datagrams(CAPTURE)[:5])
    assert bench.pipeline.counters.batches_failed == 1
    assert "5 datagrams could not be taken" in caplog.text
    bench.pipeline.decoder.decode_many = whole  # type: ignore[method-assign]
    await bench.replay(capture_datagrams(CAPTURE)[:100])
    assert bench.pipeline.counters.rows_scored == bench.pipeline.counters.flows > 0


async def test_silence_brings_out_what_waits_and_then_no_timer_runs() -> None:
    bench = Bench("flow-threat", emit_all=True)

    class Source:
        def __init__(self, datagrams: list[Datagram]) -> None:
            self.left = datagrams

        @property
        def is_empty(self) -> bool:
            return not self.left

        def take(self, most: int) -> list[Datagram]:
            taken, self.left = self.left[:most], self.left[most:]
            return taken

    ready = asyncio.Event()
    gathering = asyncio.create_task(bench.pipeline.gather(Source(capture_datagrams(CAPTURE)[:20]), ready, 0.2))
    await _turns()
    assert bench.clock.slept == []  # idle: no timer
    ready.set()
    await _turns()
    seen = 0
    while len(bench.clock.slept) > seen:
        seen = len(bench.clock.slept)
        await bench.clock.advance(bench.clock.slept[-1])
        await _turns()
    assert bench.pipeline.extractor.counters.silences == 1
    assert bench.pipeline.counters.flows > 0
    assert seen < 15  # then it waits for datagrams alone
    gathering.cancel()
    await asyncio.gather(gathering, return_exceptions=True)


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_under_pressure_whole_conversations_are_left_out_and_counted_and_the_others_are_scored_as_ever() -> None:
    calm, pressed = (Bench("flow-threat", emit_all=True, evidence_per_s=0) for _ in range(2))
    pressed.pipeline.flow_share = 0.4
    for bench in (calm, pressed):
        await bench.replay(capture_datagrams(CAPTURE))
    told, kept = calm.lines.verdicts, pressed.lines.verdicts
    counters = pressed.pipeline.counters
    assert counters.flows == calm.pipeline.counters.flows == counters.flows_shed + counters.rows_scored
    assert 0 < counters.rows_scored < counters.flows
    pairs = {_ends(verdict) for verdict in kept}
    expected = [_timeless(verdict) for verdict in told if _ends(verdict) in pairs]
    assert [_timeless(verdict) for verdict in kept] == expected
    window = pressed.windows.close(Gauges())[0]
    assert (window.rows, window.counters) == (counters.rows_scored, {"rows_shed": counters.flows_shed})


def _ends(verdict: dict[str, Any]) -> frozenset[str]:
    return frozenset((verdict["src_ip"], verdict["dest_ip"]))


def _timeless(verdict: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in verdict.items() if key != "flow_id"}


async def test_a_profile_under_pressure_counts_one_row_in_eight_whatever_the_batches_are() -> None:
    bench = Bench("flow-threat")
    bench.pipeline.pressure = Level.PROFILES
    await bench.replay(capture_datagrams(CAPTURE), batch=3)
    window = bench.windows.close(Gauges())[0]
    profile = DataProfile.decode(window.profile, _reference())
    assert (window.rows, profile.rows) == (bench.pipeline.counters.flows, -(-bench.pipeline.counters.flows // 8))


def _reference() -> ReferenceProfile:
    assert RELEASE.reference is not None
    return ReferenceProfile.from_bytes(SHELF.blobs[RELEASE.reference.digest])


class Silent:
    """A source with nothing in it."""

    is_empty = True

    def take(self, most: int) -> list[Datagram]:
        return []


@pytest.mark.parametrize(("level", "gathered_s"), [(Level.NONE, 0.2), (Level.PROFILES, 0.2), (Level.WAITING, 1.0)])
async def test_under_pressure_datagrams_are_gathered_for_longer(level: Level, gathered_s: float) -> None:
    bench = Bench("flow-threat")
    bench.pipeline.pressure = level
    ready = asyncio.Event()
    ready.set()
    gathering = asyncio.create_task(bench.pipeline.gather(Silent(), ready, 0.2))
    await bench.clock.until_asleep(1)
    gathering.cancel()
    assert bench.clock.slept == [gathered_s]
