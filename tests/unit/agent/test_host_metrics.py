"""Claims about the appliance's own metrics as a source of rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.clock import FakeClock
from tests.support.flow_models import flow_release
from tests.support.host_models import answers, host_release
from tests.support.tiny_models import Shelf
from vedette.agent.adapters.inference.serving import Answer
from vedette.agent.adapters.sinks.fanout import Verdicts
from vedette.agent.adapters.sources.host_metrics import HostSource
from vedette.agent.domain.errors import WorkerCrashed
from vedette.agent.domain.priority import Priority
from vedette.agent.domain.windows import Gauges, Windows
from vedette.models.host import HOST_SCHEMA, HostReading
from vedette.models.release import Release
from vedette.wire.values import BuildRef

SHELF = Shelf()
RELEASE = host_release(SHELF, bound=100.0)


@dataclass
class Active:
    """A build that answers."""

    release: Release

    @property
    def ref(self) -> BuildRef:
        return BuildRef(model=self.release.model, version=self.release.version, build=self.release.builds[0].digest)


class Bench:
    """A host that says what the test wants, and a model of it computed by numpy."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.actives = {"host-health": Active(RELEASE), "flow-threat": Active(flow_release(SHELF))}
        self.windows = Windows(self.clock)
        self.tasks = 50.0
        self.written: list[Verdicts] = []
        self.fails = False
        self.score: float | None = None
        self.asked: list[tuple[str, int]] = []
        self.source = HostSource(self.read, self, self, self.windows, self.clock, host="edge-7", interval_s=10.0)

    def read(self, now_s: float) -> HostReading:
        spent = {f"cpu_{name}": now_s for name in ("user", "system", "iowait", "interrupt", "steal", "idle")}
        return HostReading(now_s, spent, {"tasks": self.tasks}, {"forks": now_s * 3})

    async def infer(
        self,
        slot: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        is_counted: bool = True,
        priority: Priority = Priority.FLOW,
    ) -> Answer:
        self.asked.append((slot, len(inputs["features"])))
        if self.fails:
            raise WorkerCrashed("the worker died")
        outputs: dict[str, Any] = answers(inputs["features"], 100.0)
        if self.score is not None:
            outputs["score"][:] = self.score
        return Answer(outputs, RELEASE, RELEASE.builds[0].digest, 1.5)

    def reference(self, slot: str) -> bytes | None:
        assert RELEASE.reference is not None
        return SHELF.blobs[RELEASE.reference.digest]

    def write(self, verdicts: Verdicts) -> None:
        self.written.append(verdicts)

    async def steps(self, count: int) -> None:
        for _ in range(count):
            await self.source.step()
            await self.clock.advance(10.0)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for verdicts in self.written for line in verdicts.lines]


async def test_a_row_an_interval_goes_to_the_slots_that_read_hosts_and_to_no_other() -> None:
    bench = Bench()
    await bench.steps(3)
    assert bench.asked == [("host-health", 1)] * 2, "the first reading has no interval behind it"
    assert (bench.source.counters.rows, bench.source.counters.scored, bench.source.counters.flagged) == (2, 2, 0)
    windows = bench.windows.close(Gauges())
    assert [(w.slot, w.rows, w.flagged, w.verdicts) for w in windows[:-1]] == [("host-health", 2, 0, {"healthy": 2})]
    assert windows[0].profile


async def test_a_verdict_has_the_whole_row_and_no_address() -> None:
    bench = Bench()
    await bench.steps(2)
    (line,) = bench.lines
    assert line.keys() == {"timestamp", "event_type", "host", "host_metrics", "vedette"}
    assert (line["event_type"], line["host"]) == ("vedette", "edge-7")
    assert list(line["host_metrics"]) == list(HOST_SCHEMA.names)
    assert line["host_metrics"]["forks_rate"] == 3.0
    assert line["host_metrics"]["temperature"] is None
    assert (line["vedette"]["verdict"], line["vedette"]["flagged"], line["vedette"]["version"]) == ("healthy", False, 1)
    (verdicts,) = bench.written
    assert len(verdicts.flows) == len(verdicts) == 1
    assert verdicts.flows["src_lo"][0] == verdicts.flows["src_hi"][0] == 0


async def test_a_flagged_row_says_what_drove_it() -> None:
    bench = Bench()
    bench.tasks = 120.0
    await bench.steps(2)
    (line,) = bench.lines
    assert (line["vedette"]["verdict"], line["vedette"]["flagged"]) == ("crowded", True)
    evidence = line["vedette"]["evidence"]
    assert (evidence[0]["feature"], evidence[0]["value"]) == ("tasks", 120.0)
    assert bench.source.counters.flagged == 1


async def test_a_model_that_fails_costs_its_row_alone() -> None:
    bench = Bench()
    bench.fails = True
    await bench.steps(2)
    bench.fails, bench.score = False, float("nan")
    await bench.steps(1)
    bench.score = None
    await bench.steps(1)
    assert (bench.source.counters.failed, bench.source.counters.scored, len(bench.lines)) == (2, 1, 1)
    assert bench.windows.close(Gauges())[0].errors == 2


async def test_without_a_model_the_host_is_read_all_the_same() -> None:
    bench = Bench()
    model = bench.actives.pop("host-health")
    await bench.steps(3)
    bench.actives["host-health"] = model
    await bench.steps(1)
    assert (bench.source.counters.rows, bench.source.counters.scored) == (3, 1)
    assert bench.lines[0]["host_metrics"]["forks_rate"] == 3.0, "of one interval, not of four"


async def test_a_model_that_only_borrows_the_schema_is_not_fed() -> None:
    bench = Bench()
    bench.actives["host-health"] = Active(replace(RELEASE, kind="tensor"))
    await bench.steps(3)
    assert bench.asked == []


async def test_it_waits_an_interval_between_two_rows() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.source.run())
    await bench.clock.until_asleep(1)
    await bench.clock.advance(9.9)
    assert bench.source.counters.rows == 0
    await bench.clock.advance(0.2)
    await bench.clock.until_asleep(2)
    assert bench.source.counters.rows == 1
    assert bench.clock.slept == [10.0, 10.0]
    running.cancel()


async def test_a_reference_of_another_release_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(bench, "reference", lambda slot: b"another")
    await bench.steps(2)
    assert bench.windows.close(Gauges())[0].profile == b""
    assert np.isfinite(bench.lines[0]["vedette"]["score"])
