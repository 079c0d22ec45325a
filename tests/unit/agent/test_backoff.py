"""Claims about the waits between tries."""

from __future__ import annotations

import random
import statistics

from vedette.agent.domain.backoff import Backoff


def _upper(low: float, high: float) -> float:
    return high


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    backoff = Backoff(base_s=1.0, cap_s=10.0, uniform=_upper)
    assert [backoff.failed() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_spreads_long_waits_over_the_whole_cap() -> None:
    rng = random.Random(7)
    waits = []
    for _ in range(4000):
        backoff = Backoff(cap_s=900.0, uniform=rng.uniform, failures=40)
        waits.append(backoff.failed())
    assert max(waits) <= 900.0
    assert min(waits) < 9.0
    assert abs(statistics.mean(waits) - 450.0) < 20.0
    counts = [sum(1 for w in waits if low <= w < low + 90) for low in range(0, 900, 90)]
    assert max(counts) / (len(waits) / 10) < 1.5


def test_success_makes_the_next_wait_short_again() -> None:
    backoff = Backoff(base_s=1.0, cap_s=900.0, uniform=_upper)
    for _ in range(12):
        backoff.failed()
    backoff.succeeded()
    assert backoff.failed() == 1.0


def test_a_year_of_failures_overflows_nothing() -> None:
    backoff = Backoff(uniform=_upper, failures=10**7)
    assert backoff.failed() == 900.0
