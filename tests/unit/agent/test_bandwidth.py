"""Claims about the budget of a line."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.clock import FakeClock
from vedette.agent.domain.bandwidth import Bandwidth


class Running(FakeClock):
    """A clock on which sleeping takes its time at once."""

    async def sleep(self, seconds: float) -> None:
        self._monotonic += seconds


@pytest.mark.parametrize("size", [100, 1_000, 32_768, 2_000_000])
async def test_the_mean_rate_holds_whatever_the_size_of_what_is_sent(size: int) -> None:
    clock = Running()
    line, begun, count = Bandwidth(10_000, clock), clock.monotonic(), max(20, 200_000 // size)
    for _ in range(count):
        await line.spend(size)
    assert clock.monotonic() - begun == pytest.approx((count * size - 10_000) / 10_000)


async def test_one_second_may_be_saved_up_and_no_more() -> None:
    clock = FakeClock()
    line = Bandwidth(1000, clock)
    await clock.advance(3600)
    await line.spend(1000)
    waiting = asyncio.create_task(line.spend(500))
    await clock.until_asleep(1)
    assert clock.slept == [0.5]
    waiting.cancel()


async def test_those_who_share_a_line_wait_behind_each_other() -> None:
    clock = FakeClock()
    line = Bandwidth(1000, clock)
    waiting = [asyncio.create_task(line.spend(1000)) for _ in range(4)]
    await clock.until_asleep(3)
    assert clock.slept == [1.0, 2.0, 3.0]
    for task in waiting:
        task.cancel()


async def test_without_a_budget_nobody_waits() -> None:
    clock = FakeClock()
    await Bandwidth(0, clock).spend(10**12)
    assert clock.slept == []
