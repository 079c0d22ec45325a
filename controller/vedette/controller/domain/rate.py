"""How often an address may knock before it has proved who it is.

Generous, because a whole site may stand behind one address: SPIRE's one a second and flightctl's 300 a window kept
real fleets out. It bounds what a scanner costs, nothing more; the secrets have 256 bits.
"""

from __future__ import annotations

from collections import OrderedDict


class AddressLimit:
    """A token bucket for each address; forgets the address that knocked longest ago when there are too many."""

    RATE_PER_S = 200.0
    BURST = 2000.0
    MOST_ADDRESSES = 10_000

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tokens left, at)

    def allows(self, address: str, now_s: float) -> bool:
        """Return whether one more knock is allowed, and count it when it is."""
        left, at = self._buckets.pop(address, (self.BURST, now_s))
        left = min(self.BURST, left + (now_s - at) * self.RATE_PER_S)
        is_allowed = left >= 1.0
        self._buckets[address] = (left - 1.0 if is_allowed else left, now_s)
        if len(self._buckets) > self.MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return is_allowed
