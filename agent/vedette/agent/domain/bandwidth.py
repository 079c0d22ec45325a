"""How many bytes a second the agent's bulk may take of a line: downloads one way, telemetry the other.

A bucket that fills by the rate and holds one second of it. What is larger than the bucket is let through and paid for
afterwards, so that a message of any size passes and the mean of the rate holds. What the controller and the agent say
to each other on their stream is not bulk: it is small, and never waits.

Source: Turner, New Directions in Communications (token bucket), IEEE Communications Magazine 24(10), 1986.
"""

from __future__ import annotations

from vedette.agent.domain.clock import Clock


class Bandwidth:
    """The budget of one direction, shared by all who use it.

    Args:
        bytes_per_s: The rate; 0 is no limit.
        clock: For waiting.
    """

    def __init__(self, bytes_per_s: int, clock: Clock) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._left = float(bytes_per_s)
        self._at = clock.monotonic()

    async def spend(self, amount: int) -> None:
        """Take bytes and wait until they are paid for; those who come meanwhile wait behind them."""
        if self._rate == 0:
            return
        now = self._clock.monotonic()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate) - amount
        self._at = now
        if self._left < 0:
            await self._clock.sleep(-self._left / self._rate)
