"""Tables of lately seen behaviour against a plain dictionary that remembers everything."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from vedette.models.flows.context import (
    FIRST_MEAN,
    FORGET_S,
    HALF_S,
    INITIAL_ENTRIES,
    INTERVAL_DEVIATION,
    INTERVAL_MEAN,
    INTERVALS,
    KNOWN_AFTER_S,
    Table,
    TableShape,
    Tick,
    Touched,
)
from vedette.models.flows.hashing import Keys, mix


def _keys(*numbers: int) -> Keys:
    return mix(np.array(numbers, np.uint64))


def _touch(table: Table, keys: Keys, second: int, *, member: Keys | None = None, values: Any = None) -> Touched:
    tick = Tick(second, 0, np.ones((len(keys), table.shape.sums)), np.full(len(keys), second * 1000))
    members = () if member is None else (member,)
    return table.touch(keys, tick, members, None if values is None else np.asarray(values, np.float64)[:, None])


def _flows(touched: Touched) -> list[float]:
    return [float(value) for value in touched.slow[touched.entry, 0]]


def test_sums_are_those_of_a_dictionary_that_decays_while_the_table_grows() -> None:
    table, rng = Table(TableShape(sums=2, limit=32_768)), np.random.default_rng(1)
    for _ in range(4):
        table.grow()  # so few keys in so many places that no three share a set
    plain: dict[int, tuple[int, float, float]] = defaultdict(lambda: (0, 0.0, 0.0))
    for second in range(1, 200):
        if second in (50, 100):
            table.grow()
        numbers = rng.integers(0, 150, 50)
        amounts = rng.integers(0, 1_500, (50, 2)).astype(np.float64)
        touched = table.touch(_keys(*numbers), Tick(second, 0, amounts, np.zeros(50, np.int64)))
        for number in np.unique(numbers):
            seen, fast, slow = plain[number]
            new = amounts[numbers == number, 1].sum()
            age = second - seen
            plain[number] = (second, fast * math.exp(-age / 10) + new, slow * math.exp(-age / 60) + new)
        for row, number in enumerate(numbers):
            entry = touched.entry[row]
            assert touched.fast[entry, 1] == pytest.approx(plain[number][1], rel=1e-5, abs=1e-3)
            assert touched.slow[entry, 1] == pytest.approx(plain[number][2], rel=1e-5, abs=1e-3)


def test_growing_loses_nothing() -> None:
    table = Table(TableShape(sums=1))
    keys = _keys(*range(200))
    _touch(table, keys, 1)
    before = len(table)
    table.grow()
    assert len(table) == before
    kept = np.array(_flows(_touch(table, keys, 1))) == 2.0
    assert kept.sum() >= before


def _set_of(keys: Keys, places: int) -> Any:
    return keys & np.uint64(places // 2 - 1)


def _rivals(count: int) -> Keys:
    """Return keys that share one set of a small table."""
    keys = _keys(*range(200_000))
    return keys[_set_of(keys, INITIAL_ENTRIES) == np.uint64(0)][:count]


def test_a_new_entry_takes_the_place_of_the_longer_unused_one() -> None:
    table = Table(TableShape(sums=1, limit=INITIAL_ENTRIES))
    first, second, third = (_rivals(3)[i : i + 1] for i in range(3))
    for at, key in enumerate((first, second, first, third), start=1):
        _touch(table, key, at)
    assert _flows(_touch(table, first, 4))[0] > 2.0
    assert _flows(_touch(table, second, 4)) == [1.0]
    assert table.untracked == 0


def test_a_third_entry_of_one_set_in_one_tick_is_counted_and_not_remembered() -> None:
    table = Table(TableShape(sums=1, limit=INITIAL_ENTRIES))
    assert _flows(_touch(table, _rivals(3), 1)) == [1.0, 1.0, 1.0]
    assert table.untracked == 1
    assert sorted(_flows(_touch(table, _rivals(3), 1))) == [1.0, 2.0, 2.0]


def test_a_table_stops_at_its_limit_and_goes_on_forgetting() -> None:
    table, rng = Table(TableShape(sums=1, limit=1_024)), np.random.default_rng(2)
    for second in range(50):
        while table.wants_bytes:
            table.grow()
        _touch(table, mix(rng.integers(0, 1 << 60, 500)), second)
    assert len(table) <= 1_024
    assert table.wants_bytes == 0


@pytest.mark.parametrize("count", [1, 10, 50, 100, 200])
def test_distinct_members_are_estimated_by_linear_counting(count: int) -> None:
    table = Table(TableShape(sums=1, bitmaps=1))
    members = np.tile(_keys(*range(count)), 3)
    touched = _touch(table, np.repeat(_keys(7), len(members)), 1, member=members)
    # Standard error of linear counting with 256 bits at load 0.8 is under 6 % (Whang et al., table II).
    assert touched.distinct[0, 0] == pytest.approx(count, rel=0.2, abs=1.0)


def test_members_are_forgotten_after_one_to_two_halves() -> None:
    table = Table(TableShape(sums=1, bitmaps=1))
    start = 10 * HALF_S

    def distinct(second: int) -> float:
        return float(_touch(table, _keys(7), second, member=_keys(second)).distinct[0, 0])

    assert distinct(start) == pytest.approx(1.0, abs=0.01)
    assert distinct(start + HALF_S - 1) == pytest.approx(2.0, abs=0.02)
    assert distinct(start + HALF_S) == pytest.approx(3.0, abs=0.02)
    assert distinct(start + 2 * HALF_S) == pytest.approx(2.0, abs=0.02)
    assert distinct(start + 9 * HALF_S) == pytest.approx(1.0, abs=0.01)


def test_means_and_deviations_are_those_of_the_formula() -> None:
    table = Table(TableShape(sums=1, means=1, weight=0.25))
    mean = deviation = 0.0
    for count, value in enumerate((100.0, 140.0, 90.0, 100.0, 400.0, 100.0), start=1):
        touched = _touch(table, _keys(7), 5 * count, values=[value])
        weight = max(0.25, 1 / count)
        off = value - mean
        mean += weight * off
        deviation += 0.0 if count == 1 else weight * (abs(off) - deviation)
        assert touched.means[0, FIRST_MEAN] == pytest.approx(mean)
        assert touched.means[0, FIRST_MEAN + 1] == pytest.approx(deviation)
    assert touched.means[0, INTERVALS] == 5
    assert touched.means[0, INTERVAL_MEAN] == pytest.approx(5_000.0)
    assert touched.means[0, INTERVAL_DEVIATION] == pytest.approx(0.0)


def test_a_pause_starts_the_intervals_anew_and_leaves_the_sizes() -> None:
    table = Table(TableShape(sums=1, means=1))
    for second in (0, 5, 10, 15):
        _touch(table, _keys(7), second, values=[100.0])
    paused = _touch(table, _keys(7), 15 + 41, values=[100.0])
    assert paused.means[0, INTERVALS] == 0
    assert paused.means[0, FIRST_MEAN] == 100.0
    again = _touch(table, _keys(7), 15 + 41 + 3, values=[100.0])
    assert (again.means[0, INTERVALS], again.means[0, INTERVAL_MEAN]) == (1.0, 3_000.0)


def test_an_entry_becomes_known_and_is_new_again_after_an_hour() -> None:
    table = Table(TableShape(sums=1))
    got = [float(_touch(table, _keys(7), at).known[0]) for at in (100, 100 + KNOWN_AFTER_S // 2, 100 + KNOWN_AFTER_S)]
    assert got == [0.0, 0.5, 1.0]
    last = 100 + KNOWN_AFTER_S
    assert float(_touch(table, _keys(7), last + FORGET_S).known[0]) == 1.0
    assert float(_touch(table, _keys(7), last + 2 * FORGET_S + 1).known[0]) == 0.0


def test_order_within_a_tick_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    numbers, order = rng.integers(0, 40, 300), rng.permutation(300)
    one, other = (Table(TableShape(sums=1, bitmaps=1, means=1)) for _ in range(2))
    for second in (1, 2):
        keys, values = _keys(*numbers), numbers * 3.0
        straight = _touch(one, keys, second, member=mix(keys), values=values)
        mixed = _touch(other, keys[order], second, member=mix(keys[order]), values=values[order])
        for name in ("fast", "slow", "distinct", "known", "means"):
            np.testing.assert_array_equal(getattr(straight, name), getattr(mixed, name))
