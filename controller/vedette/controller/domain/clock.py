"""Time as a port: decisions ask it, tests move it."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Usable from any thread; both methods return at once."""

    def now(self) -> datetime:
        """Return the wall time, aware UTC. It may step; never measure a duration with it."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""
