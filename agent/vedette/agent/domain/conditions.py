"""What holds at this agent that somebody should know, as data.

A condition has a code, stays until it is cleared, and keeps the time at which it began while its text may change.
``on_change`` is called after a condition came, went or changed its severity, never for a new text alone: a byte count
in a text must not send a status a second. ``on_news`` hears of the same, with the condition and whether it holds.
"""

from __future__ import annotations

from collections.abc import Callable

from vedette.agent.domain.clock import Clock
from vedette.wire.values import Condition, Severity

MOST_TEXT = 1000
"""Characters of a condition's text; a longer one is cut."""


class Conditions:
    """The conditions that hold now, by code."""

    def __init__(
        self,
        clock: Clock,
        on_change: Callable[[], None] = lambda: None,
        on_news: Callable[[Condition, bool], None] = lambda condition, holds: None,
    ) -> None:
        self._clock = clock
        self._held: dict[str, Condition] = {}
        self.on_change = on_change
        self._on_news = on_news

    def hold(self, code: str, severity: Severity, text: str) -> None:
        """State that a condition holds; saying it again only renews the text."""
        before = self._held.get(code)
        since = before.since if before else self._clock.now()
        self._held[code] = held = Condition(code=code, severity=severity, text=text[:MOST_TEXT], since=since)
        if before is None or before.severity is not severity:
            self._on_news(held, True)
            self.on_change()

    def clear(self, *codes: str) -> None:
        """State that conditions no longer hold; unknown ones are fine."""
        gone = [self._held.pop(code) for code in codes if code in self._held]
        for condition in gone:
            self._on_news(condition, False)
        if gone:
            self.on_change()

    def current(self) -> tuple[Condition, ...]:
        """Return what holds, worst first, then oldest first."""
        order = [Severity.ERROR, Severity.WARNING, Severity.INFO]
        return tuple(sorted(self._held.values(), key=lambda c: (order.index(c.severity), c.since, c.code)))
