"""A clock that moves on command, for the agent's tests."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class FakeClock:
    """Time of day and monotonic seconds that only ``advance`` and ``step_wall`` move; ``sleep`` waits for them."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self.slept: list[float] = []
        self._asleep = asyncio.Event()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._monotonic + seconds, self._count, waiter))
        self._asleep.set()
        await waiter

    def step_wall(self, by: timedelta) -> None:
        """Move the time of day alone, as a clock that is set does."""
        self._now += by

    async def advance(self, seconds: float) -> None:
        """Let time pass, wake who waited for it and let them run."""
        self._monotonic += seconds
        self._now += timedelta(seconds=seconds)
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            _, _, waiter = heapq.heappop(self._sleepers)
            if not waiter.done():
                waiter.set_result(None)
        await asyncio.sleep(0)

    async def until_asleep(self, times: int) -> None:
        """Return once ``sleep`` has been called that many times."""
        while len(self.slept) < times:
            self._asleep.clear()
            await self._asleep.wait()
