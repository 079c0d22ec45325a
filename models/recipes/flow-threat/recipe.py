"""Supervised threat detection in flows: LightGBM, a binary gate on every flow and a model of kinds on what passes.

How it stays honest:

- Held out together is a block of time of one network, as all its exporters saw it: sites that report the same flows are
  found by their flows, not by their names.
- An attack's flows are never on both sides: an episode is held out with the block it began in.
- The threshold is read from flows that the predicting model was not trained on. What is reported as found was found
  there, too; the model that leaves is then trained on everything.
- Benign flows between the two ends of an attack, up to a minute after it, do not move the threshold: what they share
  with the attack is all that context can show. They are counted as false alarms all the same.

Same data, parameters and library versions: the same model, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from vedette.models.flows.hashing import destination_keys, join, source_keys
from vedette.models.flows.records import FlowRecords
from vedette.models.recipes import Cascade, Codes, Matrix, Progress, TrainingData, TrainingDataError, TrainingResult

THRESHOLD = 0.5  # of the converted score: conversion moves the operating margin there
EPISODE_MS = 60_000
START_MS, START_BLOCK_MS = 60_000, 10_000
SAME_NETWORK = 0.2
"""Share of the smaller site's flows that the other must know: exporters of one network agree on 0.9 and more."""

_GOLDEN_ROWS = 64
_REFERENCE_ROWS = 20_000
_UNDECIDED = 0.05  # of raw margin: golden rows must not change sides with the last bit of a sum

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Predictions for every row by models that did not see it; NaN and -1 where no such model could be trained."""

    margins: Floats
    kinds: Codes


def train(data: TrainingData, parameters: Mapping[str, Any], progress: Progress) -> TrainingResult:
    """Train a cascade and measure it on held-out blocks.

    Raises:
        TrainingDataError: There is no benign row, no attack, or no way to hold one out and learn from another.
    """
    _check(data)
    networks = networks_of(data)
    episodes = episodes_of(data, networks)
    folds = folds_of(data, networks, episodes, int(parameters["folds"]), int(parameters["block_s"]))
    held_out = _hold_out(data, folds, parameters, progress)
    plain = (data.labels == 0) & ~aftermath_of(data, networks)
    margin = margin_for(held_out.margins, plain, float(parameters["false_per_10k"]))
    progress(0.8, "training on everything")
    everything = np.ones(len(data), np.bool_)
    gate = _fit_gate(data, everything, parameters)
    kinds = _fit_kinds(data, everything, parameters)
    progress(0.95, "measuring")
    metrics, evaluation = _measure(data, held_out, margin, episodes, plain)
    evaluation["gain"] = _gains(gate, data.schema.names)
    margins = _raw(gate, data.features, parameters)
    benign = data.features[data.labels == 0]
    return TrainingResult(
        fitted=Cascade(gate, kinds, margin, data.classes),
        classes=data.classes,
        threshold=THRESHOLD,
        metrics=metrics,
        golden_rows=data.features[_golden(margins, data.labels, margin)],
        reference_rows=benign[_evenly(len(benign), _REFERENCE_ROWS)],
        usual=np.median(benign, axis=0).astype(np.float32),
        evaluation=evaluation,
    )


def networks_of(data: TrainingData) -> Codes:
    """Return for each row the number of its network: sites that report the same flows are one. Shape (rows,)."""
    site_network = np.arange(len(data.sites))
    if data.flows is not None:
        keys = [np.unique(_flow_keys(data.flows[data.groups == site])) for site in range(len(data.sites))]
        for one in range(len(keys)):
            for other in range(one):
                common = len(np.intersect1d(keys[one], keys[other], assume_unique=True))
                if common > SAME_NETWORK * min(len(keys[one]), len(keys[other])):
                    site_network[site_network == site_network[one]] = site_network[other]
    dense: Codes = np.unique(site_network, return_inverse=True)[1].astype(np.int64)
    return dense[data.groups]


def episodes_of(data: TrainingData, networks: Codes) -> Codes:
    """Return for each row the number of its attack episode, -1 for benign ones. Shape (rows,).

    An episode is one kind in one network without a gap of more than :data:`EPISODE_MS`.
    """
    attacks = np.flatnonzero(data.labels > 0)
    order = attacks[np.lexsort((data.times_ms[attacks], data.labels[attacks], networks[attacks]))]
    gap = np.diff(data.times_ms[order]) > EPISODE_MS
    other = (np.diff(data.labels[order]) != 0) | (np.diff(networks[order]) != 0)
    episodes = np.full(len(data), -1, np.int64)
    episodes[order] = np.cumsum(np.r_[0, gap | other])
    return episodes


def folds_of(data: TrainingData, networks: Codes, episodes: Codes, folds: int, block_s: int) -> Codes:
    """Return for each row the fold that holds it out. Shape (rows,).

    Blocks of one network go round the folds; the next network begins two further, so that one minute of all networks
    is not held out at once. The first minute of a network, when nothing is remembered yet, exists only once: it goes
    round in blocks of :data:`START_BLOCK_MS`, else whoever judges a start has never seen one.
    """
    times = data.times_ms.copy()
    attacks = np.flatnonzero(episodes >= 0)
    begins = np.full(int(episodes.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(begins, episodes[attacks], times[attacks])
    times[attacks] = begins[episodes[attacks]]
    starts = np.full(int(networks.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(starts, networks, data.times_ms)
    into = times - starts[networks]
    block = np.where(into < START_MS, into // START_BLOCK_MS, times // (block_s * 1000))
    held: Codes = (block + 2 * networks) % folds
    return held


def aftermath_of(data: TrainingData, networks: Codes) -> Mask:
    """Tell which benign rows lie between two addresses whose last attack flow is no older than :data:`EPISODE_MS`."""
    near = np.zeros(len(data), np.bool_)
    attack = data.labels > 0
    if data.flows is None or not attack.any():
        return near
    ends = source_keys(data.flows) + destination_keys(data.flows)  # the same whoever is the client
    pairs = np.unique(join(ends, networks), return_inverse=True)[1].astype(np.int64)
    since = data.times_ms - data.times_ms.min()
    span = int(since.max()) + EPISODE_MS + 1
    last = np.sort((pairs * span + since)[attack])
    rows = np.flatnonzero(~attack)
    at = pairs[rows] * span + since[rows]
    before = last[np.maximum(np.searchsorted(last, at, "right") - 1, 0)]
    near[rows] = (before <= at) & (at - before <= EPISODE_MS) & (before // span == pairs[rows])
    return near


def margin_for(margins: Floats, plain: Mask, false_per_10k: float) -> float:
    """Return the least margin that flags no more than so many of 10,000 held-out ``plain`` rows, as a float32.

    It lies half-way to the next higher row, benign or not, so that a small change flags no more, and never below 0:
    where the model itself holds a flow for benign, no rate is worth flagging it.
    """
    known = np.isfinite(margins)
    benign = np.sort(margins[known & plain])[::-1]
    allowed = min(int(len(benign) * false_per_10k / 1e4), len(benign) - 1)
    highest = benign[allowed]
    above = margins[known & (margins > highest)]
    between = (highest + above.min()) / 2 if len(above) else highest + 1.0
    # Half-way may round onto the benign row itself: the next float32 does not.
    return float(max(np.float32(between), np.nextafter(np.float32(highest), np.float32(np.inf)), np.float32(0)))


def _check(data: TrainingData) -> None:
    counts = np.bincount(data.labels, minlength=len(data.classes))
    if len(data.classes) < 2 or counts[0] == 0 or counts[1:].sum() == 0:
        held = ", ".join(f"{name} {count}" for name, count in zip(data.classes, counts.tolist(), strict=True))
        raise TrainingDataError(f"flow-threat needs benign flows and those of one attack at least; rows: {held}")
    missing = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if count == 0]
    if missing:
        raise TrainingDataError(f"there are no flows of {', '.join(missing)}; leave classes without rows out")


def _flow_keys(flows: FlowRecords) -> npt.NDArray[np.uint64]:
    """Return a key of protocol and both ends, the same whoever of them is the client."""
    left = join(source_keys(flows), flows["src_port"])
    right = join(destination_keys(flows), flows["dst_port"])
    return join(left + right, flows["proto"])


def _hold_out(data: TrainingData, folds: Codes, parameters: Mapping[str, Any], progress: Progress) -> _HeldOut:
    margins, kinds = np.full(len(data), np.nan), np.full(len(data), -1, np.int64)
    names = np.unique(folds)
    for done, fold in enumerate(names):
        progress(0.8 * done / len(names), f"held-out part {done + 1} of {len(names)}")
        rest, out = folds != fold, np.flatnonzero(folds == fold)
        held = np.unique(data.labels[rest])
        if len(held) < 2 or held[0] != 0:
            continue
        gate = _fit_gate(data, rest, parameters)
        margins[out] = _raw(gate, data.features[out], parameters)
        kinds[out] = _predict_kinds(data, rest, out, parameters)
    if not np.isfinite(margins[data.labels == 0]).any():
        raise TrainingDataError(
            f"none of {len(names)} parts with blocks of {parameters['block_s']} s can be held out and leave both "
            "attacks and benign flows: import a longer capture or set a smaller block_s"
        )
    return _HeldOut(margins, kinds)


def _settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_leaves": parameters["leaves"],
        "learning_rate": parameters["learning_rate"],
        "min_data_in_leaf": 20,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 1.0,
        "seed": parameters["seed"],
        "num_threads": parameters["num_threads"],
        "deterministic": True,
        "force_row_wise": True,  # the choice LightGBM else makes by timing changes the order of sums
        "verbose": -1,
    }


def _fit_gate(data: TrainingData, rows: Mask, parameters: Mapping[str, Any]) -> lightgbm.Booster:
    labels = data.labels[rows]
    counts = np.bincount(labels, minlength=len(data.classes)).astype(float)
    present = np.count_nonzero(counts[1:])
    # All kinds together weigh as much as the benign rows, each as much as the other, up to the cap.
    weights = np.minimum(counts[0] / present / np.maximum(counts, 1.0), parameters["weight_cap"])
    weights[0] = 1.0
    rows_of = lightgbm.Dataset(data.features[rows], (labels > 0).astype(np.int8), weight=weights[labels])
    # Thresholds drawn at random rather than fitted: what separates one capture to the byte misses the next. Over two
    # seeds: held out 32 of 32 windows instead of 31, false alarms on the shifted mix 1 instead of 0 to 6.
    settings = _settings(parameters) | {"objective": "binary", "extra_trees": True, "feature_fraction": 0.8}
    return lightgbm.train(settings, rows_of, int(parameters["rounds"]))


def _fit_kinds(data: TrainingData, rows: Mask, parameters: Mapping[str, Any]) -> lightgbm.Booster | None:
    """Return a model of kinds, None when all rows are of one; kinds are numbered as ``classes[1:]`` present in rows."""
    present = np.unique(data.labels[rows & (data.labels > 0)])
    if len(present) < 2:
        return None
    chosen = [np.flatnonzero(rows & (data.labels == kind)) for kind in present]
    chosen = [of_kind[_evenly(len(of_kind), int(parameters["kind_rows"]))] for of_kind in chosen]
    which = np.concatenate(chosen)
    weights = np.repeat([len(which) / len(chosen) / len(of_kind) for of_kind in chosen], [len(c) for c in chosen])
    labels = np.searchsorted(present, data.labels[which])
    settings = _settings(parameters) | {"objective": "multiclass", "num_class": len(present), "min_data_in_leaf": 5}
    return lightgbm.train(
        settings, lightgbm.Dataset(data.features[which], labels, weight=weights), int(parameters["kind_rounds"])
    )


def _predict_kinds(data: TrainingData, rest: Mask, out: Codes, parameters: Mapping[str, Any]) -> Codes:
    """Return the likeliest kind of each row of ``out`` by a model of the other rows."""
    present = np.unique(data.labels[rest & (data.labels > 0)])
    model = _fit_kinds(data, rest, parameters)
    if model is None:
        return np.full(len(out), present[0])
    named: Codes = present[_raw(model, data.features[out], parameters).argmax(axis=1)]
    return named


def _raw(model: lightgbm.Booster, rows: Matrix, parameters: Mapping[str, Any]) -> Floats:
    return np.asarray(model.predict(rows, raw_score=True, num_threads=int(parameters["num_threads"])), np.float64)


def _measure(
    data: TrainingData, held_out: _HeldOut, margin: float, episodes: Codes, plain: Mask
) -> tuple[dict[str, float], dict[str, Any]]:
    known = np.isfinite(held_out.margins)
    flagged = known & (np.nan_to_num(held_out.margins, nan=-np.inf) >= margin)
    benign = known & (data.labels == 0)
    kinds = {
        name: _measure_kind(known & (data.labels == code), flagged, held_out.kinds == code, episodes)
        for code, name in enumerate(data.classes)
        if code
    }
    found, all_of = (sum(kind[name] for kind in kinds.values()) for name in ("episodes_found", "episodes"))
    false = int((flagged & benign).sum())
    metrics = {
        "threshold_margin": margin,
        "held_out_benign": float(benign.sum()),
        "held_out_false": float(false),
        "false_per_10k_benign": _share(false * 1e4, int(benign.sum())),
        "false_per_10k_without_aftermath": _share(float((flagged & plain).sum()) * 1e4, int((benign & plain).sum())),
        "episodes": float(all_of),
        "episodes_found": float(found),
        "mean_recall": float(np.mean([kind["recall"] for kind in kinds.values()])),
        "false_episodes": float(_false_episodes(data, flagged & benign)),
        "auc": _auc(held_out.margins[known & (data.labels > 0)], held_out.margins[benign]),
    }
    sites = {
        site: {
            "benign": int((benign & (data.groups == code)).sum()),
            "false": int((flagged & benign & (data.groups == code)).sum()),
            "attack": int((known & (data.labels > 0) & (data.groups == code)).sum()),
            "flagged": int((flagged & (data.labels > 0) & (data.groups == code)).sum()),
        }
        for code, site in enumerate(data.sites)
    }
    return metrics, {"kinds": kinds, "sites": sites}


def _measure_kind(rows: Mask, flagged: Mask, named: Mask, episodes: Codes) -> dict[str, Any]:
    hits = rows & flagged
    return {
        "rows": int(rows.sum()),
        "recall": _share(int(hits.sum()), int(rows.sum())),
        "named_right": _share(int((hits & named).sum()), int(hits.sum())),
        "episodes": len(np.unique(episodes[rows])),
        "episodes_found": len(np.unique(episodes[hits])),
    }


def _false_episodes(data: TrainingData, wrong: Mask) -> int:
    """Count false alarms of one source at one site within :data:`EPISODE_MS` as one; 0 without the flows."""
    rows = np.flatnonzero(wrong)
    if data.flows is None or len(rows) == 0:
        return 0
    keys = join(source_keys(data.flows[rows]), data.groups[rows])
    order = np.lexsort((data.times_ms[rows], keys))
    far = np.diff(data.times_ms[rows][order]) > EPISODE_MS
    return 1 + int(np.count_nonzero(far | (np.diff(keys[order]) != 0)))


def _auc(attacks: Floats, benign: Floats) -> float:
    """Return the probability that an attack's margin is above a benign one's, ties counting half.

    Source: Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, Radiology 143(1), 1982.
    """
    if len(attacks) == 0 or len(benign) == 0:
        return 0.5
    ordered = np.sort(benign)
    below = np.searchsorted(ordered, attacks, "left") + np.searchsorted(ordered, attacks, "right")
    return float(below.mean() / 2 / len(benign))


def _gains(gate: lightgbm.Booster, names: tuple[str, ...]) -> dict[str, float]:
    gain = gate.feature_importance("gain")
    whole = float(gain.sum()) or 1.0
    return {names[i]: round(float(gain[i]) / whole, 4) for i in np.argsort(-gain, kind="stable")[:20]}


def _golden(margins: Floats, labels: Codes, margin: float) -> Codes:
    """Choose rows over the whole range of margins and of every class, none so close to the margin that it may tip."""
    clear = np.flatnonzero(np.abs(margins - margin) > _UNDECIDED)
    by_margin = clear[np.argsort(margins[clear], kind="stable")]
    spread = by_margin[_evenly(len(by_margin), _GOLDEN_ROWS)]
    of_each = [clear[labels[clear] == code][:2] for code in np.unique(labels[clear])]
    chosen: Codes = np.unique(np.concatenate([spread, *of_each]))
    return chosen


def _evenly(count: int, most: int) -> Codes:
    """Return at most ``most`` of ``count`` positions, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
