"""The two measures of drift: their ends, their symmetry, their bias, and an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial.distance
from hypothesis import given
from hypothesis import strategies as st

from vedette.controller.domain.drift import HistogramMismatch, js_divergence, stability_index

counts = st.lists(st.integers(0, 10_000), min_size=2, max_size=32).filter(any)
pairs = counts.flatmap(
    lambda one: st.tuples(
        st.just(np.array(one)),
        st.lists(st.integers(0, 10_000), min_size=len(one), max_size=len(one)).filter(any).map(np.array),
    )
)


@given(pairs)
def test_divergence_is_what_scipy_computes(pair: tuple[np.ndarray, np.ndarray]) -> None:
    wanted = scipy.spatial.distance.jensenshannon(*pair, base=2) ** 2
    assert js_divergence(*pair) == pytest.approx(wanted, abs=1e-9)


@given(pairs)
def test_measures_are_symmetric_and_within_their_scales(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = pair
    assert js_divergence(one, other) == pytest.approx(js_divergence(other, one), abs=1e-12)
    assert stability_index(one, other) == pytest.approx(stability_index(other, one), abs=1e-9)
    assert 0 <= js_divergence(one, other) <= 1
    assert stability_index(one, other) >= 0


@given(counts, st.integers(1, 1000))
def test_proportional_histograms_do_not_differ(one: list[int], times: int) -> None:
    assert js_divergence(np.array(one), np.array(one) * times) == pytest.approx(0, abs=1e-12)
    assert stability_index(np.array(one) * 1000, np.array(one) * 1000 * times) == pytest.approx(0, abs=1e-3)


def test_disjoint_histograms_are_one_bit_apart_and_far_by_the_index() -> None:
    one, other = np.array([500, 0, 500, 0]), np.array([0, 500, 0, 500])
    assert js_divergence(one, other) == 1.0
    assert stability_index(one, other) > 5


def test_index_is_the_textbook_sum_where_every_bin_is_full() -> None:
    one, other = np.array([40_000, 30_000, 30_000]), np.array([30_000, 30_000, 40_000])
    p, q = one / one.sum(), other / other.sum()
    textbook = float(np.sum((p - q) * np.log(p / q)))
    assert stability_index(one, other) == pytest.approx(textbook, abs=1e-4)


@pytest.mark.parametrize(("reference_rows", "rows"), [(1_000, 1_000), (20_000, 1_000), (20_000, 5_000)])
def test_bias_of_unchanged_data_is_taken_away(reference_rows: int, rows: int) -> None:
    source = np.random.default_rng(7)
    chances = source.dirichlet(np.full(28, 5.0))
    found = [
        stability_index(source.multinomial(reference_rows, chances), source.multinomial(rows, chances))
        for _ in range(400)
    ]
    uncorrected = 27 * (1 / reference_rows + 1 / rows)
    assert np.mean(found) < 0.35 * uncorrected  # what is left is cut off at 0, so its mean is above it
    assert np.quantile(found, 0.99) < 0.06


@pytest.mark.parametrize(
    ("one", "other"), [([1, 2], [1, 2, 3]), ([0, 0], [1, 2]), ([1, 2], [0, 0]), ([[1, 2]], [[1, 2]])]
)
def test_histograms_that_cannot_be_compared_are_refused(one: list[int], other: list[int]) -> None:
    for measure in (js_divergence, stability_index):
        with pytest.raises(HistogramMismatch):
            measure(np.array(one), np.array(other))
