"""So many a second, with a second's worth saved up at most."""

from __future__ import annotations


class Allowance:
    """A bucket that fills by ``per_s`` a second up to ``per_s``.

    Source: Turner, New Directions in Communications (token bucket), IEEE Communications Magazine 24(10), 1986.
    """

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at: float | None = None

    def take(self, wanted: int, now: float) -> int:
        """Return how many of the wanted are allowed at a monotonic time, and count them as taken."""
        if self._at is not None:
            self._left = min(float(self._per_s), self._left + (now - self._at) * self._per_s)
        self._at = now
        allowed = min(wanted, int(self._left))
        self._left -= allowed
        return allowed
