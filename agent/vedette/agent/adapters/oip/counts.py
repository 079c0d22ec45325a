"""What programs asked and what they got, for ``/metrics`` and ``status``."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from vedette.agent.domain.metrics import Family, Sample, histogram
from vedette.models.profile import LATENCY_EDGES_MS

_EDGES_S: tuple[float, ...] = tuple(edge / 1000 for edge in LATENCY_EDGES_MS.tolist())
ANSWERED = "OK"


class RequestCounts:
    """Requests by method, slot and status. Only slots that serve are told apart: any other name is the caller's."""

    def __init__(self) -> None:
        self._ends: Counter[tuple[str, str, str]] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self.streams = 0  # open now, and watches of health

    def add(self, method: str, slot: str, code: str, took_s: float) -> None:
        """Count the end of a request; ``slot`` is empty where there is none of that name."""
        self._ends[method, slot, code] += 1
        counts = self._latencies.get(slot)
        if counts is None:
            counts = self._latencies[slot] = [0] * (len(_EDGES_S) + 1)
        counts[bisect_left(_EDGES_S, took_s)] += 1
        self._seconds[slot] = self._seconds.get(slot, 0.0) + took_s

    def add_stranger(self) -> None:
        """Count a call without the token. What it asked for is not told apart: its name may be anything."""
        self._ends["", "", "UNAUTHENTICATED"] += 1

    @property
    def answered(self) -> int:
        """Requests that got an answer."""
        return sum(count for (_, _, code), count in self._ends.items() if code == ANSWERED)

    @property
    def refused(self) -> int:
        """Requests that got an error, whoever's it was."""
        return sum(count for (_, _, code), count in self._ends.items() if code != ANSWERED)

    def families(self) -> Iterator[Family]:
        """Return the figures for ``/metrics``."""
        ends = [
            Sample(count, {"method": method, "slot": slot, "code": code})
            for (method, slot, code), count in sorted(self._ends.items())
        ]
        text = "Inference requests of programs by how they ended, a gRPC status."
        yield Family("vedette_agent_requests_total", "counter", text, ends)
        text = "From a request's bytes to its answer's, by slot."
        yield histogram("vedette_agent_request_duration_seconds", text, _EDGES_S, self._latencies, self._seconds)
        text = "Streams of requests, and watches of health, that are open."
        yield Family("vedette_agent_request_streams", "gauge", text, (Sample(self.streams),))
