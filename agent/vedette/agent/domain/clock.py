"""Time as the agent's decisions see it: a port, and a clock that lies less than the appliance's.

Rules: durations come from ``monotonic`` alone. ``now`` of :class:`TrustedClock` is never before the time floor, the
newest time a verified signature vouched for; the wall clock never raises that floor, because a wrong one would refuse
everything signed from then on (python-tuf issue 2359). Nothing that runs is stopped by any clock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

EARLIEST = datetime(2026, 11, 1, tzinfo=UTC)
"""This program did not exist before: the floor of an appliance that has not yet seen a signed time."""

CLOCK_TOLERANCE = timedelta(seconds=2)
"""The wall clock is believed while it is this close to the controller's."""


class Clock(Protocol):
    """What time it is and how long things take. A test's clock moves on command."""

    def now(self) -> datetime:
        """Return the aware UTC time of day; it may step either way."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed instant; never steps back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that many seconds of ``monotonic``."""
        ...


class TrustedClock:
    """A clock kept honest by signed times and by the controller's word.

    ``floor_now`` (floor plus time since it was learnt) is the only time that expiry may be judged by.
    """

    def __init__(self, clock: Clock, floor: datetime) -> None:
        self._clock = clock
        self._floor = (floor, clock.monotonic())
        self._reference: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        """Return the best known time of day: the wall's while plausible, else the controller's carried forward."""
        wall = self._clock.now()
        if self._reference is not None:
            known = self._carried(self._reference)
            wall = wall if abs(wall - known) <= CLOCK_TOLERANCE else known
        return max(wall, self.floor_now())

    def monotonic(self) -> float:
        """Return the underlying monotonic seconds."""
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait on the underlying clock."""
        await self._clock.sleep(seconds)

    def floor_now(self) -> datetime:
        """Return a time that is certainly past: the floor plus the time since it was learnt."""
        return self._carried(self._floor)

    def raise_floor(self, signed: datetime) -> bool:
        """Take a time from a verified signed document; return whether the floor moved and must be stored."""
        if signed <= self.floor_now():
            return False
        self._floor = (signed, self._clock.monotonic())
        return True

    def controller_said(self, time_of_day: datetime) -> timedelta:
        """Take the controller's time of day; return how far the wall clock is ahead of it (negative: behind)."""
        self._reference = (time_of_day, self._clock.monotonic())
        return self._clock.now() - time_of_day

    def _carried(self, anchor: tuple[datetime, float]) -> datetime:
        at, since = anchor
        elapsed = timedelta(seconds=self._clock.monotonic() - since)
        return at if at > datetime.max.replace(tzinfo=UTC) - elapsed else at + elapsed
