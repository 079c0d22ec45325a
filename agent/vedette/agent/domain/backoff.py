"""How long to wait before the next try, so that a fleet that lost its controller does not return as one.

Full jitter: each wait is drawn evenly from zero to the capped doubling. The jitter comes after the cap; jitter before
it makes every long-waiting agent return in the same second (Fleet's 28 minutes).

Source: Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import SystemRandom

_MOST_DOUBLINGS = 30  # 2**30 s is beyond any cap; more would overflow a float after a year of tries


@dataclass(slots=True)
class Backoff:
    """Waits that grow with failures in a row."""

    base_s: float = 1.0
    cap_s: float = 900.0
    uniform: Callable[[float, float], float] = field(default=SystemRandom().uniform)
    failures: int = 0

    def failed(self) -> float:
        """Count a failure and return how many seconds to wait before the next try."""
        ceiling_s = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, _MOST_DOUBLINGS))
        self.failures += 1
        return self.uniform(0.0, ceiling_s)

    def succeeded(self) -> None:
        """Forget the failures; the next wait is short again."""
        self.failures = 0
