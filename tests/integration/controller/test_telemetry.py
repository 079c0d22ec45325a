import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio

from tests.support.clock import NOON, FakeClock
from tests.support.controller import Appliance, Running, code_of, prepare, running
from vedette.controller.adapters.sqlite.telemetry import TelemetryStore
from vedette.models.profile import LATENCY_EDGES_MS, latency_bin
from vedette.wire import convert
from vedette.wire.limits import MAX_MESSAGE_BYTES
from vedette.wire.v1 import admin_pb2, telemetry_pb2
from vedette.wire.values import Gap, TelemetryBatch, Window


def latencies(**counts: int) -> tuple[int, ...]:
    bins = np.zeros(len(LATENCY_EDGES_MS) + 1, int)
    for name, count in counts.items():
        bins[latency_bin(float(name.removeprefix("ms")))] += count
    return tuple(bins.tolist())


def window(**changes: Any) -> Window:
    whole: dict[str, Any] = {
        "start": NOON - timedelta(seconds=10),
        "end": NOON,
        "slot": "flow-threat",
        "model": "flow-threat",
        "version": 1,
        "build": "sha256:b",
        "rows": 100,
        "flagged": 3,
        "verdicts": {"benign": 97, "scan": 3},
        "latency_counts": latencies(ms1=90, ms10=10),
        "counters": {"datagrams": 7},
        "cpu_seconds": 0.5,
        "memory_bytes": 60_000_000,
    }
    return Window(**(whole | changes))


async def report(appliance: Appliance, **batch: Any) -> Any:
    sent = TelemetryBatch(**{"boot_epoch": 1, "sequence": 1, "windows": (window(),), **batch})
    async with appliance.telemetry() as stub:
        return convert.ACKNOWLEDGEMENT.from_wire(await stub.Report(convert.BATCH.to_wire(sent)))


async def shown(running: Running, name: str = "edge") -> Any:
    async with running.admin() as admin:
        return await admin.GetAgent(admin_pb2.GetAgentRequest(name=name))


async def fleet_rows(running: Running, **request: Any) -> list[Any]:
    async with running.admin() as admin:
        found = await admin.GetFleetTelemetry(admin_pb2.GetFleetTelemetryRequest(**request))
        return [convert.AGENT_TELEMETRY.from_wire(row) for row in found.agents]


async def test_a_batch_is_acknowledged_and_shown(tmp_path: Path):
    async with running(prepare(tmp_path / "data"), clock=FakeClock()) as served:
        edge = await served.enrolled("edge")
        async with edge.connected():
            answer = await report(edge)
            agent = await shown(served)
            rows = await fleet_rows(served, model="flow-threat")
    assert (answer.boot_epoch, answer.sequence) == (1, 1)
    assert (agent.rows, agent.flagged, agent.flows_per_s) == (100, 3, 10.0)
    assert agent.latency_p50_ms == pytest.approx(1.0, rel=0.35)
    assert agent.latency_p99_ms == pytest.approx(10.0, rel=0.35)
    assert len(rows) == 1
    assert (rows[0].agent, rows[0].version, rows[0].rows, rows[0].flagged) == ("edge", "flow-threat:1", 100, 3)
    assert (rows[0].verdicts, rows[0].counters) == ({"benign": 97, "scan": 3}, {"datagrams": 7})
    assert (rows[0].cpu_percent, rows[0].memory_bytes) == (5.0, 60_000_000)


async def test_percentiles_come_of_merged_histograms(tmp_path: Path):
    async with running(prepare(tmp_path / "data"), clock=FakeClock()) as served:
        edge = await served.enrolled("edge")
        await report(edge, windows=(window(rows=1000, latency_counts=latencies(ms1=1000)),))
        await report(edge, sequence=2, windows=(window(rows=10, latency_counts=latencies(ms100=10)),))
        rows = await fleet_rows(served)
    assert rows[0].latency_p50_ms == pytest.approx(1.0, rel=0.35)
    assert rows[0].latency_p99_ms == pytest.approx(1.0, rel=0.35)
    assert rows[0].rows_per_s == 1010 / 20


async def test_a_repeated_batch_is_acknowledged_and_not_counted(served: Running):
    edge = await served.enrolled("edge")
    answers = [await report(edge) for _ in range(3)]
    await asyncio.gather(*(report(edge, sequence=2) for _ in range(5)))
    await report(edge, boot_epoch=2)
    assert answers[0] == answers[1] == answers[2]
    assert (await shown(served)).rows == 300
    assert (served.controller.rooms.telemetry.batches, served.controller.rooms.telemetry.repeated) == (3, 6)


async def test_agents_count_apart(served: Running):
    edge, other = await served.enrolled("edge"), await served.enrolled("other")
    await report(edge)
    await report(other, windows=(window(rows=7), window(rows=8, slot="b", model="b")))
    assert ((await shown(served)).rows, (await shown(served, "other")).rows) == (100, 15)


async def test_what_was_given_up_is_kept_as_a_gap(served: Running):
    edge = await served.enrolled()
    gap = Gap(first_sequence=1, last_sequence=4, rows=400, reason="spool full")
    await report(edge, sequence=5, gaps=(gap,))
    await report(edge, sequence=3)
    store = TelemetryStore(served.controller.database)
    assert store.gaps(edge.id) == [gap]
    assert served.controller.rooms.telemetry.totals(edge.id).rows == 100


async def test_profiles_of_a_model_are_read_back(served: Running):
    edge = await served.enrolled()
    now = datetime.now(UTC)
    with_profile = window(profile=b"profile", end=now)
    await report(edge, windows=(with_profile, window(end=now), window(model="other", profile=b"x", end=now)))
    found = TelemetryStore(served.controller.database).profiles("flow-threat", now - timedelta(minutes=1))
    assert [(row.agent_id, row.version, row.rows, row.flagged, row.profile) for row in found] == [
        (edge.id, 1, 100, 3, b"profile")
    ]


async def test_a_window_from_a_clock_years_ahead_belongs_to_when_it_came(tmp_path: Path):
    clock = FakeClock()
    async with running(prepare(tmp_path / "data"), clock=clock) as served:
        edge = await served.enrolled("edge")
        await report(edge, windows=(window(end=NOON + timedelta(days=7000)),))
        assert len(await fleet_rows(served, window_s=60)) == 1
        await clock.advance(120)
        assert await fleet_rows(served, window_s=60) == []


async def test_old_windows_are_deleted_and_totals_stay(tmp_path: Path):
    clock = FakeClock()
    async with running(prepare(tmp_path / "data"), clock=clock) as served:
        edge = await served.enrolled("edge")
        await report(edge, windows=tuple(window() for _ in range(60)))
        await clock.advance(89 * 86400)
        assert await served.controller.rooms.telemetry.purge() == 0
        await report(edge, sequence=2, windows=(window(end=clock.now()),))
        await clock.advance(2 * 86400)
        assert await served.controller.rooms.telemetry.purge() == 60
        rows = await fleet_rows(served, window_s=100 * 86400)
        agent = await shown(served)
    assert [row.rows for row in rows] == [100]
    assert agent.rows == 6100


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"sequence": 0}, "sequence is 0, limits 1"),
        ({"boot_epoch": 2**63}, "boot_epoch is 9223372036854775808"),
        ({"windows": (window(rows=2**60),)}, "windows.rows"),
        ({"windows": (window(counters={"x": 2**60}),)}, "windows.counters[x]"),
        ({"windows": (window(latency_counts=(1, 2)),)}, "has 2 bins, expected 58"),
        ({"windows": (window(cpu_seconds=float("nan")),)}, "windows.cpu_seconds is nan"),
        ({"gaps": (Gap(first_sequence=5, last_sequence=4),)}, "gaps.last_sequence is 4, limits 5"),
        ({"windows": (window(profile=b"x" * 300_000),)}, "limit 262144"),
        ({"windows": (window(),) * 65}, "65 entries, limit 64"),
    ],
)
async def test_numbers_outside_their_limits_are_refused_by_name(served: Running, batch: dict[str, Any], says: str):
    edge = await served.enrolled("edge")
    with pytest.raises(aio.AioRpcError) as caught:
        await report(edge, **batch)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in str(caught.value.details())
    await report(edge)
    assert (await shown(served)).rows == 100


async def test_an_oversized_batch_is_refused_and_the_connection_goes_on(served: Running):
    edge = await served.enrolled()
    async with edge.telemetry() as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Report(telemetry_pb2.TelemetryBatch(windows=[{"profile": b"x" * (MAX_MESSAGE_BYTES + 1)}]))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        batch = TelemetryBatch(boot_epoch=1, sequence=1, windows=(window(),))
        await stub.Report(convert.BATCH.to_wire(batch))


async def test_a_full_disk_is_told_and_nothing_is_lost_or_counted_twice(served: Running):
    """The database may not grow: the agent keeps its batch, repeats it, and it counts once there is room."""
    edge = await served.enrolled("edge")
    await report(edge)
    database = served.controller.database

    def limit_pages(extra: int) -> None:
        with database.transaction() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + extra}")

    limit_pages(0)
    batch = {"sequence": 2, "windows": tuple(window(profile=b"x" * 50_000) for _ in range(8))}
    for _ in range(2):
        with pytest.raises(aio.AioRpcError) as caught:
            await report(edge, **batch)
        assert (caught.value.code(), code_of(caught.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "disk-full")
    assert (await shown(served)).rows == 100
    limit_pages(100_000)
    await report(edge, **batch)
    await report(edge, **batch)
    assert (await shown(served)).rows == 900


async def test_a_restart_remembers_what_was_counted(tmp_path: Path):
    settings = prepare(tmp_path / "data")
    async with running(settings, clock=FakeClock()) as served:
        edge = await served.enrolled("edge")
        await report(edge)
        before = await shown(served)
    async with running(settings, clock=FakeClock()) as served:
        edge._running = served
        await report(edge)
        after = await shown(served)
    for name in ("rows", "flagged", "flows_per_s", "latency_p50_ms", "latency_p99_ms"):
        assert getattr(after, name) == getattr(before, name)


async def test_the_overview_sums_up_the_fleet(tmp_path: Path):
    async with running(prepare(tmp_path / "data"), clock=FakeClock()) as served, served.admin() as admin:
        empty = await admin.GetOverview(admin_pb2.GetOverviewRequest())
        edge = await served.enrolled("edge")
        unfed = await admin.GetOverview(admin_pb2.GetOverviewRequest())
        target = served.release()
        idle = await admin.GetOverview(admin_pb2.GetOverviewRequest())
        await served.controller.rooms.fleet.set_slot(edge.id, target)
        await report(edge, windows=(window(), window(version=2)))
        full = await admin.GetOverview(admin_pb2.GetOverviewRequest())
    assert "token create" in empty.next_steps[0]
    assert "data import" in unfed.next_steps[0]
    assert "rollout start flow-threat:1" in idle.next_steps[0]
    assert (full.agents, full.online, full.need_attention, list(full.next_steps)) == (1, 0, 0, [])
    model = full.models[0]
    assert (model.model, model.newest_version, model.rows_per_hour) == ("flow-threat", 1, 200.0)
    assert model.flagged_share == 0.03
    assert model.latency_p99_ms == pytest.approx(10.0, rel=0.35)
