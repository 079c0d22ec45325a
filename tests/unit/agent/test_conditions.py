"""Claims about conditions."""

from __future__ import annotations

from datetime import timedelta

from tests.support.clock import NOON, FakeClock
from vedette.agent.domain.conditions import MOST_TEXT, Conditions
from vedette.wire.values import Severity


async def test_a_condition_keeps_the_time_it_began_while_its_text_changes() -> None:
    clock = FakeClock()
    conditions = Conditions(clock)
    conditions.hold("disk-full", Severity.WARNING, "12 bytes lost")
    await clock.advance(60.0)
    conditions.hold("disk-full", Severity.WARNING, "24 bytes lost")
    (held,) = conditions.current()
    assert (held.since, held.text) == (NOON, "24 bytes lost")


def test_only_coming_going_and_severity_are_changes() -> None:
    changes: list[int] = []
    conditions = Conditions(FakeClock(), on_change=lambda: changes.append(1))
    conditions.hold("a", Severity.INFO, "one")
    conditions.hold("a", Severity.INFO, "two")
    conditions.hold("a", Severity.ERROR, "two")
    conditions.clear("a", "never-held")
    conditions.clear("a")
    assert len(changes) == 3


async def test_the_worst_comes_first_then_the_oldest() -> None:
    clock = FakeClock()
    conditions = Conditions(clock)
    conditions.hold("info", Severity.INFO, "")
    conditions.hold("old", Severity.WARNING, "")
    await clock.advance((timedelta(seconds=1)).total_seconds())
    conditions.hold("new", Severity.WARNING, "")
    conditions.hold("error", Severity.ERROR, "")
    assert [c.code for c in conditions.current()] == ["error", "old", "new", "info"]


def test_a_long_text_is_cut_to_what_travels() -> None:
    conditions = Conditions(FakeClock())
    conditions.hold("a", Severity.INFO, "x" * 10_000)
    assert len(conditions.current()[0].text) == MOST_TEXT


def test_what_comes_and_goes_is_news_once_and_a_new_text_is_none():
    news: list[tuple[str, str, bool]] = []
    conditions = Conditions(FakeClock(), on_news=lambda c, holds: news.append((c.code, c.text, holds)))
    conditions.hold("disk", Severity.WARNING, "1 byte lost")
    conditions.hold("disk", Severity.WARNING, "2 bytes lost")
    conditions.hold("disk", Severity.ERROR, "3 bytes lost")
    conditions.clear("disk", "unknown")
    assert news == [("disk", "1 byte lost", True), ("disk", "3 bytes lost", True), ("disk", "3 bytes lost", False)]
