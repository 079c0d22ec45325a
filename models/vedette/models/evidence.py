"""Which features drove a verdict: how far the score falls when each is set to what is usual.

Occlusion one group at a time: cheap (a flagged row becomes as many rows as there are groups and goes through the same
model), the same for every kind of model, and honest about what it is: the effect of each group alone. Groups that can
stand in for each other share their effect poorly; that is the known weakness of one-at-a-time occlusion.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4 (occlusion);
    Robnik-Šikonja and Kononenko, Explaining Classifications for Individual Instances, IEEE TKDE 20(5), 2008 (one
    feature at a time, in log-odds).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vedette.models.errors import ModelsError
from vedette.models.verdict import Evidence

MAX_ROWS = 4_096
"""Rows that one flagged row may become: the greatest number of features of a schema."""

_LEAST = 1e-6  # scores nearer to 0 or 1 have odds that float32 cannot tell apart

Matrix = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


class EvidenceError(ModelsError):
    """A row, what is usual, groups and scores do not fit together."""


def occlusion_rows(row: Matrix, usual: Matrix, groups: Sequence[Sequence[int]] | None = None) -> Matrix:
    """Return the row itself and, for each group, the row with that group set to what is usual.

    Args:
        row: The flagged row, shape (features,).
        usual: Medians of the reference, shape (features,).
        groups: Columns that are replaced together; each column alone when None.

    Returns:
        Shape (1 + groups, features), to be scored by the model in this order.

    Raises:
        EvidenceError: Shapes differ, a column does not exist, or there are more than :data:`MAX_ROWS` groups.
    """
    if row.ndim != 1 or row.shape != usual.shape:
        raise EvidenceError(f"the row has shape {row.shape}, what is usual {usual.shape}; both must be one row")
    count = len(row) if groups is None else len(groups)
    if count > MAX_ROWS:
        raise EvidenceError(f"{count} groups would make as many rows, limit {MAX_ROWS} (evidence.MAX_ROWS)")
    rows = np.tile(row, (1 + count, 1)).astype(np.float32, copy=False)
    if groups is None:
        rows[np.arange(1, 1 + count), np.arange(count)] = usual
        return rows
    for place, columns in enumerate(groups, start=1):
        wrong = [column for column in columns if not 0 <= column < len(row)]
        if wrong:
            raise EvidenceError(f"group {place - 1} names column {wrong[0]}, the row has {len(row)}")
        rows[place, list(columns)] = usual[list(columns)]
    return rows


def weights(scores: npt.NDArray[np.floating]) -> Floats:
    """Return what each group adds to the score's log-odds, as a share of all that add. Shape (groups,).

    Args:
        scores: The model's scores of :func:`occlusion_rows`, 0 to 1, shape (1 + groups,).

    Returns:
        0 to 1, adding up to 1 unless no group adds anything; 0 for groups without which the score would be higher.

    Raises:
        EvidenceError: There is no score of the row itself, or one is not finite.
    """
    if scores.ndim != 1 or len(scores) < 1 or not np.isfinite(scores).all():
        raise EvidenceError(f"scores of shape {scores.shape} must be finite, the row's own first")
    clipped = np.clip(scores.astype(np.float64), _LEAST, 1.0 - _LEAST)
    odds = np.log(clipped) - np.log1p(-clipped)
    drop: Floats = np.maximum(odds[0] - odds[1:], 0.0)
    whole = float(drop.sum())
    return np.divide(drop, whole) if whole > 0 else drop


def rank(
    row: Matrix, usual: Matrix, scores: npt.NDArray[np.floating], names: Sequence[str], *, top: int = 5
) -> tuple[Evidence, ...]:
    """Return the features that drove a row's score, the strongest first.

    Args:
        row: The flagged row, shape (features,).
        usual: Medians of the reference, shape (features,).
        scores: Of :func:`occlusion_rows` without groups, shape (1 + features,).
        names: Of the features.
        top: How many at most; features that add nothing are left out.

    Raises:
        EvidenceError: The numbers of features, names and scores differ.
    """
    if not len(row) == len(usual) == len(names) == len(scores) - 1:
        raise EvidenceError(
            f"{len(row)} features, {len(usual)} usual values, {len(names)} names and {len(scores)} scores do not fit"
        )
    shares = weights(scores)
    strongest = np.argsort(-shares, kind="stable")[:top]
    return tuple(
        Evidence(names[at], float(row[at]), float(usual[at]), float(shares[at])) for at in strongest if shares[at] > 0
    )
