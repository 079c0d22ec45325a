"""How far live data is from what a version was trained on, and when that is worth a word.

Both sides are counts in the same bins (``vedette.models.profile``), of rows that the model did not flag: an attack is
an alarm, not a change of what is usual. Two measures a feature: the population stability index, the usual one, and the
Jensen-Shannon divergence, which has a fixed scale. Drift proposes; it never judges a model worse (measured: estimates
without labels fail exactly when attackers change).

The verdict: ``not enough rows`` below :data:`ENOUGH_ROWS`; ``shifted`` when the median feature's index is above
:data:`SHIFTED`, so that it is the mix that moved and not one counter; else ``quiet``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.profile import DataProfile, ReferenceProfile
from vedette.wire.views import AgentDrift, FeatureDrift, VersionDrift

ENOUGH_ROWS = 1_000
"""Not flagged. Below it the index's own noise is of the size of what it should show."""

SHIFTED = 0.25
"""Of the median feature. Measured on the benign flows of the shared captures, reference softflowd of both base mixes:
the same mix .00 as a whole and .05 to .13 in windows of 1,000 rows, by any exporter; the shifted mix .34 to .44."""

MAX_AGENTS = 20
"""Shown for a feature, the furthest first: a fleet's whole list would not fit a message."""

QUIET, MOVED, TOO_FEW = "quiet", "shifted", "not enough rows"
_SMOOTHING = 0.5  # of a row in every bin in use (Jeffreys' prior): an empty bin is rare, not impossible

Counts = npt.NDArray[Any]


class HistogramMismatch(ValueError):
    """Two histograms have other shapes, or one counts nothing."""


def js_divergence(reference: Counts, observed: Counts) -> float:
    """Return how far two histograms differ, in bits.

    Args:
        reference: Bin counts from training data, shape (bins,).
        observed: Bin counts from the live window, shape (bins,), same edges.

    Returns:
        Jensen-Shannon divergence: 0.0 when proportional, 1.0 when disjoint.

    Raises:
        HistogramMismatch: Shapes differ, or one side counts nothing.

    Source: Lin, Divergence Measures Based on the Shannon Entropy,
        IEEE Transactions on Information Theory 37(1), 1991.
    """
    p, q = _checked(reference, observed)
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return float(min(max((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2, 0.0), 1.0))


def _relative_entropy(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Return the relative entropy in bits; where p is 0 it adds nothing."""
    some = p > 0
    return float(np.sum(p[some] * np.log2(p[some] / q[some])))


def stability_index(reference: Counts, observed: Counts) -> float:
    """Return the population stability index of two histograms, less its bias when nothing has changed.

    Args:
        reference: Bin counts from training data, shape (bins,).
        observed: Bin counts from the live window, shape (bins,), same edges.

    Returns:
        0.0 or more; about 0 when both are samples of one distribution.

    Raises:
        HistogramMismatch: Shapes differ, or one side counts nothing.

    Source: sum (p - q) ln (p / q); its expectation without change, (bins - 1) (1/n + 1/m), is that of a chi-square:
        Yurdakul and Naranjo, Statistical Properties of the Population Stability Index, Journal of Risk Model
        Validation 14(4), 2020.
    """
    p, q = _checked(reference, observed)
    used = (p + q) > 0
    bias = (used.sum() - 1) * (1 / p.sum() + 1 / q.sum())
    p, q = p[used] + _SMOOTHING, q[used] + _SMOOTHING
    p, q = p / p.sum(), q / q.sum()
    return max(float(np.sum((p - q) * np.log(p / q)) - bias), 0.0)


def _checked(reference: Counts, observed: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    p, q = np.asarray(reference, np.float64), np.asarray(observed, np.float64)
    if p.shape != q.shape or p.ndim != 1:
        raise HistogramMismatch(f"histograms have shapes {p.shape} and {q.shape}")
    if p.sum() <= 0 or q.sum() <= 0:
        raise HistogramMismatch(f"histograms count {p.sum():.0f} and {q.sum():.0f} rows, each needs 1")
    return p, q


@dataclass(frozen=True, slots=True)
class Observed:
    """What agents saw of one version: a merged profile for each, by the agent's name."""

    version: str
    reference: ReferenceProfile
    agents: Mapping[str, DataProfile]

    def fleet(self) -> DataProfile:
        """Return the profile of all agents together."""
        merged = DataProfile(self.reference)
        for profile in self.agents.values():
            merged.merge(profile)
        return merged


def judge(observed: Observed) -> VersionDrift:
    """Return the drift of one version: over the fleet and, where they have rows enough, at each agent."""
    fleet, reference = observed.fleet(), observed.reference
    features: tuple[FeatureDrift, ...] = ()
    verdict = TOO_FEW
    if fleet.usual >= ENOUGH_ROWS and reference.rows > reference.flagged:
        features = tuple(_feature(place, name, fleet, observed) for place, name in enumerate(reference.columns))
        inputs = [feature.psi for feature in features[:-1]]  # the score, behind them, is an answer
        verdict = MOVED if inputs and float(np.median(inputs)) > SHIFTED else QUIET
    return VersionDrift(
        version=observed.version,
        rows=fleet.rows,
        flagged_share=_share(fleet.flagged, fleet.rows),
        reference_flagged_share=_share(reference.flagged, reference.rows),
        features=tuple(sorted(features, key=lambda feature: -feature.psi)),
        verdict=verdict,
        rows_needed=max(ENOUGH_ROWS - fleet.usual, 0),
    )


def _feature(place: int, name: str, fleet: DataProfile, observed: Observed) -> FeatureDrift:
    usual = observed.reference.counts[place]
    agents = [
        AgentDrift(agent=agent, psi=stability_index(usual, profile.counts[place]), rows=profile.rows)
        for agent, profile in observed.agents.items()
        if profile.usual >= ENOUGH_ROWS
    ]
    furthest = sorted(agents, key=lambda item: (-item.psi, item.agent))[:MAX_AGENTS]
    seen = fleet.counts[place]
    return FeatureDrift(
        feature=name,
        psi=stability_index(usual, seen),
        js_bits=js_divergence(usual, seen),
        agents=tuple(furthest),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
