from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clock import NOON
from vedette.controller.domain.telemetry import MAX_RANGES, MAX_RECENT, Range, Tallies, Tally, admit, pulse, recent
from vedette.models.profile import LATENCY_EDGES_MS
from vedette.wire.values import Gap, TelemetryBatch, Window

BINS = len(LATENCY_EDGES_MS) + 1


def batch(sequence: int, *gaps: tuple[int, int]) -> TelemetryBatch:
    named = tuple(Gap(first_sequence=first, last_sequence=last) for first, last in gaps)
    return TelemetryBatch(boot_epoch=1, sequence=sequence, gaps=named)


def members(ranges: tuple[Range, ...]) -> set[int]:
    return {sequence for first, last in ranges for sequence in range(first, last + 1)}


@given(st.lists(st.integers(1, 40), max_size=80))
def test_every_sequence_is_counted_exactly_once_in_any_order(sequences: list[int]):
    counted: tuple[Range, ...] = ()
    new = []
    for sequence in sequences:
        admission = admit(counted, batch(sequence))
        counted = admission.counted
        if admission.is_new:
            new.append(sequence)
    assert sorted(new) == sorted(set(sequences))
    assert members(counted) == set(sequences)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(counted))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), max_size=30))
def test_what_is_given_up_is_never_counted_later(steps: list[tuple[int, int]]):
    counted: tuple[Range, ...] = ()
    given_up: set[int] = set()
    new: set[int] = set()
    for sequence, width in steps:
        gap = (max(1, sequence - width), sequence - 1)
        admission = admit(counted, batch(sequence, *([gap] if gap[0] <= gap[1] else [])))
        counted = admission.counted
        if admission.is_new:
            assert sequence not in given_up | new
            new.add(sequence)
            given_up |= {item for lost in admission.lost for item in range(lost.first_sequence, lost.last_sequence + 1)}
    assert members(counted) == new | given_up


@settings(max_examples=30)
@given(st.permutations(range(1, 3 * MAX_RANGES)))
def test_ranges_stay_bounded_however_sparse_the_reports(order: list[int]):
    counted: tuple[Range, ...] = ()
    for sequence in order:
        counted = admit(counted, batch(2 * sequence)).counted
        assert len(counted) <= MAX_RANGES


def test_a_hole_that_is_closed_is_kept_as_a_gap():
    counted: tuple[Range, ...] = ()
    for sequence in range(1, MAX_RANGES + 1):
        admission = admit(counted, batch(10 * sequence))
        assert admission.lost == ()
        counted = admission.counted
    admission = admit(counted, batch(10_000))
    assert admission.lost == (Gap(first_sequence=11, last_sequence=19, reason="never reported"),)
    assert admission.counted[0] == (10, 20)
    assert not admit(admission.counted, batch(15)).is_new


def test_a_vast_gap_costs_nothing():
    admission = admit((), batch(2**50, (1, 2**50 - 1)))
    assert admission.counted == ((1, 2**50),)


def window(rows: int = 10, seconds: float = 10, **changes: object) -> Window:
    counts = np.zeros(BINS, int)
    counts[5] = rows
    made = {"slot": "s", "model": "m", "version": 1, "rows": rows, "latency_counts": tuple(counts.tolist()), **changes}
    return Window(start=NOON, end=NOON + timedelta(seconds=seconds), **made)  # type: ignore[arg-type]


def single(agent_id: str, made: Window) -> Tally:
    tally = Tally(agent_id, made.model, made.version)
    tally.add(made)
    return tally


def test_tallies_add_up_by_agent_model_and_version_in_any_order():
    windows = [window(version=2), window(), window(rows=5), window(model="n")]
    items = [single("b", window()), *(single("a", made) for made in windows)]
    found, again = Tallies(items).all(), Tallies(reversed(items)).all()
    assert [(t.agent_id, t.model, t.version, t.rows) for t in found] == [
        ("a", "m", 1, 15),
        ("a", "m", 2, 10),
        ("a", "n", 1, 10),
        ("b", "m", 1, 10),
    ]
    assert [t.view("x") for t in found] == [t.view("x") for t in again]


def span(second: float, seconds: float = 5, rows: int = 0, slot: str = "s") -> tuple[Window, ...]:
    """Return what an agent tells of a span: its own window last, one of a slot before it only when that worked."""
    start = NOON + timedelta(seconds=second)
    at = {"start": start, "end": start + timedelta(seconds=seconds)}
    busy = (replace(window(rows=rows, slot=slot), **at),) if rows else ()
    return (*busy, Window(**at))  # type: ignore[arg-type]


def test_a_window_whose_clock_stepped_back_has_no_rate():
    assert pulse([window(seconds=-5)]).rows_per_s == 0.0
    backwards = Tally("a", "m", 1)
    backwards.add(window(seconds=-5))
    assert (backwards.view("x").rows_per_s, backwards.view("x").cpu_percent, backwards.rows) == (0.0, 0.0, 10)


def test_the_pulse_is_that_of_the_busiest_slot():
    assert pulse([window(slot="a", rows=10), window(slot="b", rows=50)]).rows_per_s == 5.0
    assert pulse([]).rows_per_s == 0.0


def test_the_pulse_of_a_burst_is_not_that_of_its_tail():
    told = recent([*span(0, rows=7500), *span(5, rows=3)])
    assert pulse(told).rows_per_s == 750.3


def test_the_pulse_ends_a_minute_after_the_traffic():
    told = recent([each for second in range(0, 60, 5) for each in span(second, rows=100 if second == 0 else 0)])
    assert pulse(told).rows_per_s == 100 / 60
    told = recent([*told, *span(60)])
    assert (pulse(told).rows_per_s, pulse(told).latency_p99_ms) == (0.0, 0.0)


def test_a_long_window_is_a_pulse_by_itself():
    assert pulse(recent([*span(0, 300, rows=900), *span(300, 300, rows=300)])).rows_per_s == 1.0


def test_windows_of_a_clock_that_was_set_back_do_not_stay():
    told = recent([*span(3600, rows=500), *span(0, rows=5)])
    assert pulse(told).rows_per_s == 1.0


def test_what_is_kept_for_a_pulse_is_bounded_and_small():
    crowd = [replace(window(rows=1), start=NOON, end=NOON, profile=b"x" * 1000, counters={"a": 1}) for _ in range(500)]
    kept = recent(crowd)
    assert len(kept) == MAX_RECENT
    assert all(not made.profile and not made.counters and not made.verdicts for made in kept)


def merged_batch(first: int, last: int, *windows: Window) -> TelemetryBatch:
    return TelemetryBatch(boot_epoch=1, first_sequence=first, sequence=last, windows=windows)


def test_a_merged_batch_stands_for_all_its_sequences_and_reads_as_no_loss():
    admission = admit(((1, 4),), merged_batch(5, 1444, window()))
    assert (admission.is_new, admission.counted, admission.lost) == (True, ((1, 1444),), ())
    again = admit(admission.counted, merged_batch(5, 1444, window()))
    assert (again.is_new, again.counted, again.lost) == (False, ((1, 1444),), ())
    assert not admit(admission.counted, batch(700)).is_new


def test_a_sum_of_which_a_part_was_counted_is_not_counted_and_told_as_lost():
    admission = admit(((1, 7),), merged_batch(5, 10, window(rows=3), window(rows=4)))
    assert not admission.is_new
    assert admission.counted == ((1, 10),)
    assert admission.lost == (Gap(first_sequence=5, last_sequence=10, rows=7, reason="merged with what was counted"),)
    assert admit(admission.counted, merged_batch(5, 10)).lost == ()


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8)), max_size=40))
def test_no_sequence_is_counted_twice_however_batches_were_merged(steps: list[tuple[int, int]]):
    counted: tuple[Range, ...] = ()
    new: list[int] = []
    for last, width in steps:
        first = max(1, last - width)
        admission = admit(counted, merged_batch(first, last))
        counted = admission.counted
        new += range(first, last + 1) if admission.is_new else ()
    assert len(new) == len(set(new))
    assert set(new) <= members(counted)


def test_the_pulse_of_windows_of_any_span_counts_no_second_twice():
    own = Window(start=NOON, end=NOON + timedelta(hours=1))
    half = timedelta(minutes=30)
    work = replace(window(rows=3600), start=NOON + half, end=NOON + timedelta(hours=1))
    early = replace(window(rows=3600, version=2), start=NOON, end=NOON + timedelta(minutes=40))
    assert pulse([early, work, own]).rows_per_s == 2.0
