"""How long work has stood at one place, judged by looks at it and not by a clock: a process that was stopped and
continued has not worked meanwhile, and its work is not stuck for that."""

from __future__ import annotations


class Standstill:
    """Looks at where some work is."""

    def __init__(self) -> None:
        self._place: int | None = None
        self._looked_s = 0.0

    def look(self, place: int | None, since_last_s: float) -> float:
        """Return for how many seconds of looking the work has been where it is now.

        Args:
            place: Where it is; None when there is none.
            since_last_s: What the looker meant to wait since the last look.
        """
        if place is None or place != self._place:
            self._looked_s = 0.0
        else:
            self._looked_s += since_last_s
        self._place = place
        return self._looked_s
