"""Claims about windows and their way to the controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.support.clock import NOON, FakeClock
from tests.support.fake_controller import AGENT_ID, FakeController
from tests.support.waiting import until
from vedette.agent.adapters.fleet.channels import OPTIONS, credentials
from vedette.agent.adapters.fleet.identity import certificate_request
from vedette.agent.adapters.fleet.telemetry import Reporter
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.bandwidth import Bandwidth
from vedette.agent.domain.windows import Gauges, ScoredRows, Windows
from vedette.models.profile import DataProfile, ReferenceProfile, latency_percentile
from vedette.wire.convert import BATCH
from vedette.wire.limits import MAX_MESSAGE_BYTES
from vedette.wire.values import BuildRef, Window

FIRST, SECOND = BuildRef(model="m", version=1, build="sha256:a"), BuildRef(model="m", version=2, build="sha256:b")
RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(500, 3)).astype(np.float32)
SCORES = RNG.random(500)
REFERENCE = ReferenceProfile.fit(["a", "b", "c"], FEATURES, SCORES, SCORES > 0.9)


def rows(count: int, build: BuildRef = FIRST, latency_ms: float = 2.0) -> ScoredRows:
    scores = SCORES[:count]
    return ScoredRows(
        slot="m",
        build=build,
        labels=("benign", "scan", "brute"),
        features=FEATURES[:count],
        scores=scores,
        classes=np.arange(count) % 3,
        flagged=scores > 0.9,
        latency_ms=latency_ms,
        reference=REFERENCE,
    )


async def test_a_window_counts_rows_verdicts_latency_and_profile() -> None:
    clock = FakeClock()
    windows = Windows(clock)
    windows.scored(rows(300, latency_ms=2.0))
    windows.scored(rows(100, latency_ms=50.0))
    windows.failed("m", FIRST)
    await clock.advance(60.0)
    work, _ = windows.close(Gauges(restarts={"m": 2}))
    assert (work.rows, work.errors, work.worker_restarts) == (400, 1, 2)
    assert work.flagged == int((SCORES[:300] > 0.9).sum() + (SCORES[:100] > 0.9).sum())
    assert work.verdicts == {"benign": 134, "scan": 133, "brute": 133}
    assert (work.start, work.end) == (NOON, NOON + timedelta(seconds=60))
    assert sum(work.latency_counts) == 400
    assert 1.0 < latency_percentile(work.latency_counts, 0.5) < 3.0
    assert 40.0 < latency_percentile(work.latency_counts, 0.99) < 60.0
    assert DataProfile.decode(work.profile, REFERENCE).rows == 400


def test_a_switch_within_a_window_gives_each_version_its_own() -> None:
    windows = Windows(FakeClock())
    windows.scored(rows(10, FIRST))
    windows.scored(rows(20, SECOND))
    first, second, _ = windows.close(Gauges())
    assert [(w.version, w.rows) for w in (first, second)] == [(1, 10), (2, 20)]


def test_the_agents_own_window_carries_growth_not_totals() -> None:
    windows = Windows(FakeClock())
    windows.close(Gauges(counters={"datagrams": 100, "dropped": 0}))
    (own,) = windows.close(Gauges(counters={"datagrams": 130, "dropped": 0}, cpu_seconds=1.5, memory_bytes=7))
    assert (own.slot, own.counters, own.cpu_seconds, own.memory_bytes) == ("", {"datagrams": 30}, 1.5, 7)


async def test_a_clock_that_is_set_neither_loses_nor_doubles_a_window() -> None:
    clock = FakeClock()
    windows = Windows(clock)
    clock.step_wall(timedelta(days=365))
    await clock.advance(60.0)
    (own,) = windows.close(Gauges())
    assert own.end - own.start == timedelta(seconds=60)


class Bulk:
    """A bulk connection to a fake controller."""

    def __init__(self, controller: FakeController, key: bytes) -> None:
        certificate = controller.authority.client(certificate_request(key, "edge"), AGENT_ID)
        self._credentials = credentials(controller.authority.pem, key, certificate)
        self._address = controller.address
        self.channel: grpc.aio.Channel | None = None

    async def bulk(self) -> grpc.aio.Channel:
        if self.channel is None:
            self.channel = grpc.aio.secure_channel(self._address, self._credentials, options=OPTIONS)
        return self.channel


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with FakeController() as started:
        yield started


@asynccontextmanager
async def reporting(controller: FakeController, key: bytes, spool: Spool, clock: FakeClock) -> AsyncIterator[Reporter]:
    bulk = Bulk(controller, key)
    reporter = Reporter(bulk, spool, clock, Backoff(uniform=lambda low, high: high))
    task = asyncio.create_task(reporter.run())
    try:
        yield reporter
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if bulk.channel is not None:
            await bulk.channel.close()


def _spool(tmp_path: Path, count: int) -> Spool:
    spool = Spool(tmp_path / "spool.db", 10**9, boot_epoch=4)
    for number in range(1, count + 1):
        spool.append([Window(start=NOON, end=NOON, slot="m", rows=number)])
    return spool


async def test_what_waits_is_sent_in_order_and_deleted_after_the_acknowledgement(
    controller: FakeController, agent_key: bytes, tmp_path: Path
) -> None:
    spool = _spool(tmp_path, 3)
    async with reporting(controller, agent_key, spool, FakeClock()) as reporter:
        await controller.until(lambda c: len(c.committed) == 3)
        spool.append([Window(start=NOON, end=NOON, slot="m", rows=4)])
        reporter.appended()
        await controller.until(lambda c: len(c.committed) == 4)
        await until(lambda: spool.is_empty)
    assert list(controller.committed) == [(4, 1), (4, 2), (4, 3), (4, 4)]


async def test_a_lost_acknowledgement_sends_again_and_is_counted_once(
    controller: FakeController, agent_key: bytes, tmp_path: Path
) -> None:
    controller.lose_acknowledgements = 2
    clock = FakeClock()
    async with reporting(controller, agent_key, _spool(tmp_path, 1), clock):
        for times in (1, 2):
            await clock.until_asleep(times)
            await clock.advance(900.0)
        await controller.until(lambda c: c.reports == 3)
    assert clock.slept == [1.0, 2.0]
    assert [b.windows[0].rows for b in controller.committed.values()] == [1]


async def test_what_the_controller_will_never_take_arrives_as_a_gap(
    controller: FakeController, agent_key: bytes, tmp_path: Path
) -> None:
    controller.refuse_batch = (4, 1)
    async with reporting(controller, agent_key, _spool(tmp_path, 2), FakeClock()):
        await controller.until(lambda c: len(c.committed) == 2)
    gap = controller.committed[4, 1].gaps[0]
    assert (gap.first_sequence, gap.last_sequence, gap.rows, gap.reason) == (1, 1, 1, "refused: too-large")
    assert controller.committed[4, 2].windows[0].rows == 2


async def test_a_batch_over_the_limit_of_a_message_becomes_a_gap_and_does_not_hold_up_the_rest(
    controller: FakeController, agent_key: bytes, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "spool.db", 10**9, boot_epoch=4)
    heavy = Window(start=NOON, end=NOON, slot="m", rows=5, profile=bytes(200_000))
    spool.append([heavy] * (MAX_MESSAGE_BYTES // 200_000 + 1))
    spool.append([Window(start=NOON, end=NOON, slot="m", rows=2)])
    async with reporting(controller, agent_key, spool, FakeClock()):
        await controller.until(lambda c: len(c.committed) == 2)
    assert controller.committed[4, 1].gaps[0].reason == "refused: message-too-large"
    assert controller.committed[4, 2].windows[0].rows == 2


async def test_telemetry_keeps_to_the_budget_of_the_line(
    controller: FakeController, agent_key: bytes, tmp_path: Path
) -> None:
    clock, bulk = FakeClock(), Bulk(controller, agent_key)
    with closing(_spool(tmp_path, 2)) as spool:
        reporter = Reporter(bulk, spool, clock, Backoff(), bandwidth=Bandwidth(10, clock))
        task = asyncio.create_task(reporter.run())
        await clock.until_asleep(1)
        waiting = spool.oldest()
        assert waiting is not None
        size = BATCH.to_wire(waiting).ByteSize()
        assert clock.slept == [(size - 10) / 10]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
