"""Time as the agent's decisions see it: a port, and a clock that lies less than the appliance's.

Rules: durations come from ``monotonic`` alone. ``now`` of :class:`TrustedClock` is never before the time floor, the
newest time a verified signature vouched for; the wall clock never raises that floor, because a wrong one would refuse
everything signed from then on (python-tuf issue 2359). For the same reason a signed time raises it no further than to a
wall clock that may be right: a floor must be certainly past, and one of the two clocks is wrong. Nothing that runs is
stopped by any clock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

EARLIEST = datetime(2026, 11, 1, tzinfo=UTC)
"""This program did not exist before: the floor of an appliance that has not yet seen a signed time."""

CLOCK_TOLERANCE = timedelta(seconds=2)
"""The wall clock is believed while it is this close to the controller's."""

PLAUSIBLE_LAG = timedelta(days=1)
"""A wall clock further behind the floor is one without a battery or a time service, and says nothing."""


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

    def raise_floor(self, signed: datetime) -> datetime | None:
        """Take a time from a verified signed document; return the new floor, to be stored, or None when it stays.

        A controller whose clock was a year ahead for an hour would else make its agents refuse, as expired, what it
        signs in the year after.
        """
        floor, wall = self.floor_now(), self._clock.now()
        if wall >= floor - PLAUSIBLE_LAG:
            signed = min(signed, wall)
        if signed <= floor:
            return None
        self._floor = (signed, self._clock.monotonic())
        return signed

    def controller_said(self, time_of_day: datetime) -> timedelta:
        """Take the controller's time of day; return how far the wall clock is ahead of it (negative: behind)."""
        self._reference = (time_of_day, self._clock.monotonic())
        return self._clock.now() - time_of_day

    def ahead(self) -> timedelta | None:
        """Return how far the wall clock is now ahead of the controller's word; None before there was one."""
        return None if self._reference is None else self._clock.now() - self._carried(self._reference)

    def _carried(self, anchor: tuple[datetime, float]) -> datetime:
        at, since = anchor
        elapsed = timedelta(seconds=self._clock.monotonic() - since)
        return at if at > datetime.max.replace(tzinfo=UTC) - elapsed else at + elapsed
