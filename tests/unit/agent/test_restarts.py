from __future__ import annotations

from itertools import pairwise

from vedette.agent.domain.restarts import Start, next_start
from vedette.agent.domain.standstill import Standstill


def row_of_failures(count: int, lived_s: float) -> list[Start]:
    starts = [next_start(None, 0.0)]
    for _ in range(count):
        last = starts[-1]
        starts.append(next_start(last, last.at_s + last.wait_s + lived_s))
    return starts


def test_waits_grow_from_nothing_to_five_minutes_and_never_end():
    waits = [start.wait_s for start in row_of_failures(200, lived_s=1.0)]
    assert waits[:10] == [0, 0, 0, 5, 10, 20, 40, 80, 160, 300]
    assert set(waits[9:]) == {300}


def test_a_run_of_ten_minutes_ends_the_row_and_its_own_wait_does_not_count():
    starts = row_of_failures(20, lived_s=599.0)
    assert all(later.failures == earlier.failures + 1 for earlier, later in pairwise(starts))
    assert next_start(starts[-1], starts[-1].at_s + starts[-1].wait_s + 600).failures == 0


def test_work_stands_still_only_while_it_is_looked_at_in_one_place():
    work = Standstill()
    assert [work.look(place, 5.0) for place in (None, 1, 1, 1, 2, 2, None, None, 2)] == [0, 0, 5, 10, 0, 5, 0, 0, 0]
