"""How fast something goes just now."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
"""A rate is of the last so many seconds: at 256 kbit/s a few chunks, and a stall shows soon."""


class Pace:
    """Amounts by the time they came; times are monotonic seconds that never step back."""

    def __init__(self) -> None:
        self._came: deque[tuple[float, int]] = deque()

    def add(self, now: float, amount: int) -> None:
        """Count an amount."""
        self._came.append((now, amount))
        self._forget(now)

    def per_second(self, now: float) -> float:
        """Return the mean rate of the last :data:`WINDOW_S`; 0.0 when nothing came."""
        self._forget(now)
        return sum(amount for _, amount in self._came) / WINDOW_S

    def _forget(self, now: float) -> None:
        while self._came and self._came[0][0] <= now - WINDOW_S:
            self._came.popleft()
