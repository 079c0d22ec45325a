"""Claims about the agent's time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clock import NOON, FakeClock
from vedette.agent.domain.clock import EARLIEST, TrustedClock

LONG_AGO = EARLIEST - timedelta(days=365)


@pytest.mark.parametrize("wrong", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC), LONG_AGO])
def test_time_is_never_before_the_floor_when_the_appliance_boots_long_before_it_was_built(wrong: datetime) -> None:
    trusted = TrustedClock(FakeClock(wrong), floor=NOON)
    assert trusted.now() == trusted.floor_now() == NOON


async def test_the_floor_moves_with_uptime() -> None:
    wall = FakeClock(datetime(1970, 1, 1, tzinfo=UTC))
    trusted = TrustedClock(wall, floor=NOON)
    await wall.advance(90.0)
    assert trusted.now() == NOON + timedelta(seconds=90)


def test_a_wall_clock_twenty_years_ahead_does_not_raise_the_floor() -> None:
    wall = FakeClock(NOON + timedelta(days=7300))
    trusted = TrustedClock(wall, floor=NOON)
    assert trusted.now() == wall.now()
    assert trusted.floor_now() == NOON


def test_the_controllers_time_corrects_a_wall_clock_that_is_ahead() -> None:
    trusted = TrustedClock(FakeClock(NOON + timedelta(days=7300)), floor=NOON)
    assert trusted.controller_said(NOON + timedelta(hours=1)) == timedelta(days=7300, hours=-1)
    assert trusted.now() == NOON + timedelta(hours=1)


def test_a_wall_clock_that_steps_while_running_does_not_move_corrected_time() -> None:
    wall = FakeClock(NOON)
    trusted = TrustedClock(wall, floor=NOON - timedelta(days=400))
    trusted.controller_said(NOON)
    wall.step_wall(timedelta(days=365))
    assert trusted.now() == NOON
    wall.step_wall(timedelta(days=-730))
    assert trusted.now() == NOON


def test_small_differences_leave_the_wall_clock_in_charge() -> None:
    wall = FakeClock(NOON)
    trusted = TrustedClock(wall, floor=NOON - timedelta(days=1))
    trusted.controller_said(NOON - timedelta(seconds=1))
    assert trusted.now() == NOON


def test_the_floor_rises_by_newer_signed_times_only() -> None:
    trusted = TrustedClock(FakeClock(NOON + timedelta(days=7300)), floor=NOON)
    assert trusted.raise_floor(NOON + timedelta(hours=2)) == NOON + timedelta(hours=2)
    assert trusted.raise_floor(NOON + timedelta(hours=1)) is None
    assert trusted.floor_now() == NOON + timedelta(hours=2)


def test_a_signed_time_a_year_ahead_raises_the_floor_no_further_than_to_a_wall_clock_that_may_be_right() -> None:
    trusted = TrustedClock(FakeClock(NOON), floor=NOON - timedelta(days=30))
    assert trusted.raise_floor(NOON + timedelta(days=365)) == NOON
    assert trusted.floor_now() == NOON


def test_a_signed_time_is_all_there_is_to_a_clock_without_a_battery() -> None:
    trusted = TrustedClock(FakeClock(datetime(1970, 1, 2, tzinfo=UTC)), floor=NOON)
    assert trusted.raise_floor(NOON + timedelta(days=365)) == NOON + timedelta(days=365)


def test_a_wall_clock_a_moment_behind_the_floor_may_be_right() -> None:
    trusted = TrustedClock(FakeClock(NOON - timedelta(seconds=1)), floor=NOON)
    assert trusted.raise_floor(NOON + timedelta(days=365)) is None


async def test_a_step_of_the_wall_clock_is_seen_against_the_controllers_word() -> None:
    wall = FakeClock(NOON)
    trusted = TrustedClock(wall, floor=NOON - timedelta(days=1))
    assert trusted.ahead() is None
    trusted.controller_said(NOON)
    await wall.advance(600.0)
    assert trusted.ahead() == timedelta(0)
    wall.step_wall(timedelta(days=-365))
    assert trusted.ahead() == timedelta(days=-365)


async def test_a_floor_at_the_end_of_time_does_not_overflow() -> None:
    wall = FakeClock(NOON)
    trusted = TrustedClock(wall, floor=datetime.max.replace(tzinfo=UTC))
    await wall.advance(5.0)
    assert trusted.now() == datetime.max.replace(tzinfo=UTC)
