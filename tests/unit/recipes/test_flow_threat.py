"""The recipe finds what it was shown, on flows it was not shown, and says how well."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.support.flow_training import capture_training, flow_threat
from vedette.controller.conversion.models import cascade_reference, cascade_to_onnx
from vedette.controller.conversion.parity import check_parity, parity_rows
from vedette.controller.conversion.trees import lightgbm_trees
from vedette.models.recipes import Recipe, TrainingData, TrainingDataError, TrainingResult
from vedette.models.release import Tolerance

_QUICK = {"rounds": 60, "kind_rounds": 8, "kind_rows": 500, "folds": 3, "block_s": 60}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return flow_threat()


@pytest.fixture(scope="module")
def base() -> TrainingData:
    return capture_training("base/softflowd-v9", "base/pmacct-v9")


@pytest.fixture(scope="module")
def trained(recipe: Recipe, base: TrainingData) -> TrainingResult:
    told: list[float] = []
    result = recipe.train(base, recipe.spec.resolve(_QUICK), lambda share, _: told.append(share))
    assert told == sorted(told)
    assert 0.0 <= told[0] <= told[-1] <= 1.0
    return result


def _module(recipe: Recipe) -> Any:
    return recipe.train.__globals__


def test_scans_and_floods_of_another_network_are_found_by_the_converted_model(trained: TrainingResult) -> None:
    unseen = capture_training("base2/softflowd-v9")
    session = onnxruntime.InferenceSession(cascade_to_onnx(trained.fitted), providers=["CPUExecutionProvider"])
    _, label, _ = session.run(["score", "label", "probabilities"], {"features": unseen.features})
    truth = np.array(unseen.classes)[unseen.labels]
    said = np.array(trained.classes)[label]
    for kind in ("scan_syn", "scan_connect", "sweep", "syn_burst"):
        assert (said[truth == kind] != "benign").mean() > 0.9, kind
    assert (said[truth == "syn_burst"] == "syn_burst").mean() > 0.9
    assert (said[truth == "benign"] != "benign").mean() < 0.002


def test_the_threshold_keeps_the_rate_it_was_asked_for(trained: TrainingResult) -> None:
    assert trained.metrics["false_per_10k_without_aftermath"] <= 5.0
    assert 5.0 < trained.metrics["false_per_10k_benign"] < 20.0  # with the minute after attacks, between their ends
    assert trained.metrics["episodes_found"] <= trained.metrics["episodes"]
    assert trained.threshold == 0.5
    assert all(math.isfinite(value) for value in trained.metrics.values())


def test_the_converted_model_keeps_parity(trained: TrainingResult) -> None:
    thresholds = lightgbm_trees(trained.fitted.gate).thresholds()
    rows = parity_rows(trained.golden_rows, thresholds, shuffled=300)
    check_parity(cascade_to_onnx(trained.fitted), cascade_reference(trained.fitted), rows, Tolerance(2e-5, 1e-5))
    assert 40 < len(trained.golden_rows) < 120


def test_training_is_repeatable_and_does_not_depend_on_threads(recipe: Recipe) -> None:
    data = capture_training("shifted/softflowd-v9")
    once, again = (
        recipe.train(data, recipe.spec.resolve(_QUICK | {"num_threads": threads}), lambda *_: None)
        for threads in (1, 2)
    )
    assert cascade_to_onnx(once.fitted) == cascade_to_onnx(again.fitted)
    assert once.metrics == again.metrics


def test_two_exporters_of_one_network_are_one_network(recipe: Recipe, base: TrainingData) -> None:
    networks_of = _module(recipe)["networks_of"]
    assert set(networks_of(base).tolist()) == {0}
    three = capture_training("base/softflowd-v9", "base2/softflowd-v9", "base2/pmacct-ipfix")
    by_site = [set(networks_of(three)[three.groups == site].tolist()) for site in range(3)]
    assert by_site[0] != by_site[1] == by_site[2]


def test_no_attack_stands_on_both_sides_and_a_block_is_held_out_in_all_its_sites(
    recipe: Recipe, base: TrainingData
) -> None:
    module = _module(recipe)
    networks = module["networks_of"](base)
    episodes = module["episodes_of"](base, networks)
    folds = module["folds_of"](base, networks, episodes, 5, 60)
    assert (episodes >= 0).sum() == (base.labels > 0).sum()
    for episode in range(episodes.max() + 1):
        assert len(np.unique(folds[episodes == episode])) == 1
        assert len(np.unique(base.labels[episodes == episode])) == 1
    start = base.times_ms.min() + 60_000  # the first minute goes round in smaller blocks
    benign = (base.labels == 0) & (base.times_ms >= start)
    block = base.times_ms[benign] // 60_000
    assert len(np.unique(np.stack([block, folds[benign]]), axis=1).T) == len(np.unique(block))
    assert len(np.unique(folds[benign])) == len(np.unique(folds[base.times_ms < start])) == 5


def test_aftermath_is_between_the_ends_of_an_attack_and_passes(recipe: Recipe, base: TrainingData) -> None:
    module = _module(recipe)
    near = module["aftermath_of"](base, module["networks_of"](base))
    assert 0 < near.sum() < 0.2 * (base.labels == 0).sum()
    assert not near[base.labels > 0].any()
    first_attack = base.times_ms[base.labels > 0].min()
    assert not near[base.times_ms < first_attack].any()


@pytest.mark.parametrize(("rate", "flagged"), [(0.0, 0), (5.0, 5), (10_000.0, 9_999)])
def test_margin_flags_no_more_than_was_asked_for(recipe: Recipe, rate: float, flagged: int) -> None:
    margins = np.r_[np.arange(1.0, 10_001.0), 20_000.0]
    benign = np.r_[np.ones(10_000, np.bool_), False]
    margin = _module(recipe)["margin_for"](margins, benign, rate)
    assert int((margins[benign] >= margin).sum()) == flagged
    assert margin == float(np.float32(margin))


def test_margin_stays_above_ties_and_never_flags_what_the_gate_holds_for_benign(recipe: Recipe) -> None:
    margin_for = _module(recipe)["margin_for"]
    ties = np.r_[np.full(100, 3.0), 3.0 + 1e-9]
    assert (ties[:100] < margin_for(ties, np.arange(101) < 100, 5.0)).all()
    low = -np.arange(1.0, 101.0)
    assert margin_for(low, np.ones(100, np.bool_), 5.0) == 0.0


def _only(data: TrainingData, rows: np.ndarray[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("features", "labels", "groups", "times_ms", "flows"):
        yield name, getattr(data, name)[rows]


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda d: d.labels == 0, "needs benign flows and those of one attack"),
        (lambda d: d.labels > 0, "needs benign flows and those of one attack"),
        (lambda d: d.labels != 1, "no flows of brute"),
    ],
)
def test_data_without_both_sides_is_refused_and_counted(
    recipe: Recipe, base: TrainingData, keep: Any, words: str
) -> None:
    data = dataclasses.replace(base, **dict(_only(base, keep(base))))
    with pytest.raises(TrainingDataError, match=words):
        recipe.train(data, recipe.spec.resolve(_QUICK), lambda *_: None)


def test_a_capture_too_short_to_hold_anything_out_is_refused(recipe: Recipe, base: TrainingData) -> None:
    first = base.times_ms[base.labels > 0].min()
    short = dataclasses.replace(base, **dict(_only(base, np.abs(base.times_ms - first) < 4_000)))
    present = np.unique(short.labels)
    short = dataclasses.replace(
        short, labels=np.searchsorted(present, short.labels), classes=tuple(base.classes[c] for c in present)
    )
    with pytest.raises(TrainingDataError, match="import a longer capture or set a smaller block_s"):
        recipe.train(short, recipe.spec.resolve(_QUICK | {"block_s": 3600}), lambda *_: None)


def test_a_training_can_be_stopped(recipe: Recipe, base: TrainingData) -> None:
    def stop(share: float, what: str) -> None:
        raise KeyboardInterrupt(what)

    with pytest.raises(KeyboardInterrupt):
        recipe.train(base, recipe.spec.resolve({}), stop)
