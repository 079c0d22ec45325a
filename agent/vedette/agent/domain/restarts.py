"""How long a program waits before it starts once more, so that a broken appliance is tried for ever and never worn out.

Two quick failures cost nothing: a worker's memory was short, the disk came late. From the third in a row on the wait
doubles from 5 s to 5 minutes. A run that lived for ten minutes ends the row.
"""

from __future__ import annotations

from dataclasses import dataclass

FREE_FAILURES = 2
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 300.0
LIVED_S = 600.0
_MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Start:
    """One start: after how many failures in a row, and when, by the host's time since boot."""

    failures: int
    at_s: float

    @property
    def wait_s(self) -> float:
        """How long it waits before it does anything."""
        if self.failures <= FREE_FAILURES:
            return 0.0
        doublings = min(self.failures - FREE_FAILURES - 1, _MOST_DOUBLINGS)
        return min(FIRST_WAIT_S * 2.0**doublings, LONGEST_WAIT_S)


def next_start(last: Start | None, now_s: float) -> Start:
    """Return this start, given the last that did not end well; its row is over when that lived long enough."""
    if last is None or now_s - last.at_s - last.wait_s >= LIVED_S:
        return Start(0, now_s)
    return Start(last.failures + 1, now_s)
