"""Drift reports: enough rows, the fleet and each agent, the verdict, bad profiles, unknown models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.learning import DataRoom, StepClock, data_room
from vedette.controller.domain.drift import ENOUGH_ROWS, MAX_AGENTS, Observed, judge
from vedette.controller.domain.errors import InvalidInput, NotFound
from vedette.controller.domain.registry import EXACT, Draft
from vedette.controller.services.drift import DriftService
from vedette.models.profile import DataProfile, ReferenceProfile
from vedette.models.release import Build, TensorSpec

NAMES = ("bytes", "packets", "rate")


def sample(rows: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source = np.random.default_rng(seed)
    features = (source.gamma(2.0, 1.0, (rows, len(NAMES))) + shift).astype(np.float32)
    scores = source.random(rows).astype(np.float32)
    return features, scores, scores > 0.9


REFERENCE = ReferenceProfile.fit(NAMES, *sample(20_000, 1))


def profile(rows: int, seed: int, shift: float = 0.0) -> DataProfile:
    made = DataProfile(REFERENCE)
    made.add(*sample(rows, seed, shift))
    return made


def test_same_traffic_is_quiet_and_another_is_shifted() -> None:
    quiet = judge(Observed("m:1", REFERENCE, {"a": profile(2_000, 2), "b": profile(3_000, 3)}))
    moved = judge(Observed("m:1", REFERENCE, {"a": profile(2_000, 2, 1.5), "b": profile(3_000, 3, 1.5)}))
    assert (quiet.verdict, moved.verdict) == ("quiet", "shifted")
    assert quiet.rows == 5_000
    assert quiet.flagged_share == pytest.approx(0.1, abs=0.02)
    assert max(feature.psi for feature in quiet.features) < 0.05
    assert sorted(feature.feature for feature in quiet.features) == sorted((*NAMES, "score"))
    assert [f.psi for f in moved.features] == sorted((f.psi for f in moved.features), reverse=True)


def test_one_moved_column_of_three_is_listed_first_and_is_not_the_mix() -> None:
    features, scores, flagged = sample(4_000, 5)
    features[:, 1] += 5
    made = DataProfile(REFERENCE)
    made.add(features, scores, flagged)
    found = judge(Observed("m:1", REFERENCE, {"a": made}))
    assert (found.verdict, found.features[0].feature) == ("quiet", "packets")
    assert found.features[0].psi > 1


def test_too_few_rows_say_how_many_are_missing() -> None:
    few = profile(ENOUGH_ROWS + 50, 4)  # a tenth of them flagged
    found = judge(Observed("m:1", REFERENCE, {"a": few}))
    assert (found.verdict, found.features) == ("not enough rows", ())
    assert found.rows_needed == few.flagged - 50 > 0


def test_burst_of_flagged_rows_moves_the_flagged_share_and_nothing_else() -> None:
    calm, burst = profile(3_000, 2), profile(3_000, 2)
    features, scores, _ = sample(9_000, 6, shift=9.0)
    burst.add(features, scores, np.ones(9_000, np.bool_))
    found = [judge(Observed("m:1", REFERENCE, {"a": made})) for made in (calm, burst)]
    assert found[0].features == tuple(
        replace(f, agents=found[0].features[i].agents) for i, f in enumerate(found[1].features)
    )
    assert found[1].flagged_share > 0.75


def test_nothing_seen_needs_all_rows() -> None:
    assert judge(Observed("m:1", REFERENCE, {})).rows_needed == ENOUGH_ROWS


def test_agents_with_few_rows_count_for_the_fleet_and_are_not_judged_alone() -> None:
    agents = {"big": profile(2_000, 1, 1.0), "small": profile(500, 2)} | {
        f"more-{place}": profile(1_200, 10 + place) for place in range(MAX_AGENTS + 5)
    }
    found = judge(Observed("m:1", REFERENCE, agents))
    shown = found.features[0].agents
    assert found.rows == 2_500 + 1_200 * (MAX_AGENTS + 5)
    assert (len(shown), shown[0].agent) == (MAX_AGENTS, "big")


@dataclass
class Telemetry:
    """Windows as a telemetry store keeps them."""

    rows: list[Any]
    asked: list[tuple[str, datetime]]

    def profiles(self, model: str, since: datetime, *, after: int = 0) -> list[Any]:
        self.asked.append((model, since))
        return [row for row in self.rows if row.id > after][:2]


class Fleet:
    async def agents(self, selector: str = "") -> tuple[Any, ...]:
        return tuple(SimpleNamespace(id=f"id-{name}", name=name) for name in ("edge-1", "edge-2"))

    async def agent(self, name: str) -> Any:
        raise NotImplementedError(name)


def window(agent: str, version: int, made: bytes) -> Any:
    return SimpleNamespace(agent_id=f"id-{agent}", version=version, profile=made)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[DataRoom]:
    with data_room(tmp_path) as opened:
        yield opened


async def service(room: DataRoom, rows: list[Any], *, versions: int = 1) -> tuple[DriftService, Telemetry]:
    blob, reference = room.blobs.put(b"model"), room.blobs.put(REFERENCE.to_bytes())
    tensor = (TensorSpec("x", "float32", (-1, 3)),)
    for place in range(versions):
        draft = Draft("m", "tensor", None, tensor, tensor, (), 0.5, (Build("onnx", blob, EXACT),), blob, reference)
        await room.registry.add(draft, f"source {place}")
    for place, row in enumerate(rows, 1):
        row.id = place
    telemetry = Telemetry(rows, [])
    made = DriftService(room.database, telemetry, room.versions, room.blobs, Fleet(), StepClock())
    return made, telemetry


async def test_report_merges_windows_by_agent_and_passes_over_bad_ones(room: DataRoom) -> None:
    parts = [profile(1_500, 1), profile(1_500, 2), profile(1_200, 3)]
    rows = [
        window("edge-1", 1, parts[0].encode()),
        window("edge-1", 1, parts[1].encode()),
        window("edge-2", 1, parts[2].encode()),
        window("edge-2", 1, b"not a profile"),
        window("removed", 1, parts[0].encode()),
    ]
    drift, telemetry = await service(room, rows)
    report = await drift.report("m", timedelta(hours=1))
    (version,) = report.versions
    assert (version.version, version.rows) == ("m:1", 4_200)
    assert {agent.agent: agent.rows for agent in version.features[0].agents} == {"edge-1": 3_000, "edge-2": 1_200}
    assert set(telemetry.asked) == {("m", report.since)}


async def test_report_tells_of_each_version_that_answered_newest_first(room: DataRoom) -> None:
    rows = [window("edge-1", 1, profile(1_500, 1).encode()), window("edge-2", 3, profile(1_500, 2, 1.0).encode())]
    drift, _ = await service(room, rows, versions=3)
    report = await drift.report("m", timedelta(0))
    assert [(v.version, v.verdict) for v in report.versions] == [("m:3", "shifted"), ("m:1", "quiet")]


async def test_report_without_telemetry_names_the_newest_version_and_what_is_missing(room: DataRoom) -> None:
    drift, _ = await service(room, [], versions=2)
    (version,) = (await drift.report("m", timedelta(hours=1))).versions
    assert (version.version, version.verdict, version.rows_needed) == ("m:2", "not enough rows", ENOUGH_ROWS)


async def test_unknown_model_and_endless_window_are_refused(room: DataRoom) -> None:
    drift, _ = await service(room, [])
    with pytest.raises(NotFound):
        await drift.report("n", timedelta(hours=1))
    with pytest.raises(InvalidInput):
        await drift.report("m", timedelta(days=1000))
