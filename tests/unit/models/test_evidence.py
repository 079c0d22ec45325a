"""Evidence names what moved the score, and by how much of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vedette.models.evidence import MAX_ROWS, EvidenceError, occlusion_rows, rank, weights

_NAMES = ("a", "b", "c", "d")
_ROW = np.array([3.0, 1.0, 5.0, 2.0], np.float32)
_USUAL = np.array([1.0, 1.0, 1.0, 4.0], np.float32)


def _score(rows: Any) -> Any:
    """Score by a known model: log-odds 2a + c + d."""
    return 1 / (1 + np.exp(-(2 * rows[:, 0] + rows[:, 2] + rows[:, 3] - 11.0)))


def test_the_share_of_each_feature_is_its_share_of_the_log_odds() -> None:
    evidence = rank(_ROW, _USUAL, _score(occlusion_rows(_ROW, _USUAL)), _NAMES)
    assert [(item.feature, item.value, item.usual) for item in evidence] == [("a", 3.0, 1.0), ("c", 5.0, 1.0)]
    np.testing.assert_allclose([item.weight for item in evidence], [0.5, 0.5], atol=1e-9)


def test_top_limits_and_what_pulls_down_or_does_nothing_is_left_out() -> None:
    scores = _score(occlusion_rows(_ROW, _USUAL))
    assert [item.feature for item in rank(_ROW, _USUAL, scores, _NAMES, top=1)] == ["a"]
    assert rank(_USUAL, _USUAL, _score(occlusion_rows(_USUAL, _USUAL)), _NAMES) == ()


def test_groups_are_replaced_together() -> None:
    rows = occlusion_rows(_ROW, _USUAL, [(0, 2), (3,)])
    np.testing.assert_array_equal(rows, [[3, 1, 5, 2], [1, 1, 1, 2], [3, 1, 5, 4]])
    np.testing.assert_allclose(weights(_score(rows)), [1.0, 0.0])


@given(arrays(np.float32, st.integers(2, 40), elements=st.floats(0, 1, width=32)))
def test_weights_are_shares_whatever_the_scores(scores: Any) -> None:
    shares = weights(scores)
    assert (shares >= 0).all()
    assert np.isfinite(shares).all()
    assert shares.sum() == pytest.approx(1.0) or not shares.any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: occlusion_rows(_ROW, _USUAL[:2]),
        lambda: occlusion_rows(_ROW[None], _USUAL[None]),
        lambda: occlusion_rows(_ROW, _USUAL, [(4,)]),
        lambda: occlusion_rows(_ROW, _USUAL, [(-1,)]),
        lambda: occlusion_rows(np.zeros(MAX_ROWS + 1, np.float32), np.zeros(MAX_ROWS + 1, np.float32)),
        lambda: weights(np.zeros(0)),
        lambda: weights(np.array([0.5, np.nan])),
        lambda: rank(_ROW, _USUAL, np.zeros(3), _NAMES),
        lambda: rank(_ROW, _USUAL, np.zeros(5), _NAMES[:3]),
    ],
)
def test_what_does_not_fit_is_refused(call: Any) -> None:
    with pytest.raises(EvidenceError):
        call()
