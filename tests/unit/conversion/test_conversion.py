"""What runs on an appliance gives the numbers that were validated, also where float32 and float64 part."""

from __future__ import annotations

import re
from typing import Any

import lightgbm
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest

from vedette.controller.conversion.errors import ConversionError, ParityError
from vedette.controller.conversion.models import (
    cascade_reference,
    cascade_to_onnx,
    isolation_forest_reference,
    isolation_forest_to_onnx,
    lightgbm_reference,
    lightgbm_to_onnx,
    thresholds_of,
)
from vedette.controller.conversion.parity import check_parity, parity_rows
from vedette.controller.conversion.trees import lightgbm_trees, mean_path, snap_down
from vedette.controller.domain.model_gate import check_model
from vedette.models.recipes import Cascade, Matrix
from vedette.models.release import Tolerance

WIDTH = 6
TOLERANCE = Tolerance(2e-5, 1e-5)
CLASSES = ("benign", "brute", "scan", "tunnel")


def _rows(count: int, seed: int = 1) -> Matrix:
    """Return rows of counters and times: magnitudes where neighbouring float32 are 64 apart."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, WIDTH)).astype(np.float32)
    rows[:, 0] = rng.integers(1_700_000_000, 1_700_000_900, count)
    rows[:, 1] = rng.integers(0, 1 << 40, count)
    rows[:, 2] = rng.integers(0, 5, count)
    return rows


def _kind(rows: Matrix) -> np.ndarray[Any, np.dtype[np.int64]]:
    hot = (rows[:, 0] > 1_700_000_400) & (rows[:, 3] > 0)
    return np.where(hot, 1 + rows[:, 2].astype(np.int64) % 3, 0)


def _train(rows: Matrix, labels: Any, objective: str, rounds: int = 20, **more: Any) -> lightgbm.Booster:
    settings = {
        "objective": objective, "num_leaves": 15, "min_data_in_leaf": 5, "num_threads": 1, "verbose": -1, "seed": 1,
        "deterministic": True, "force_row_wise": True,
    } | more  # fmt: skip
    return lightgbm.train(settings, lightgbm.Dataset(rows, labels), rounds)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    rows = _rows(4_000)
    kinds = _kind(rows)
    attacks = kinds > 0
    return Cascade(
        gate=_train(rows, attacks.astype(int), "binary"),
        kinds=_train(rows[attacks], kinds[attacks] - 1, "multiclass", num_class=3),
        margin=0.7,
        classes=CLASSES,
    )


def _run(model: bytes, rows: Matrix) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"features": rows}), strict=True))


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(16_777_217.0, 16_777_216.0)
@example(1e-46, 0.0)
@example(-1e-46, 0.0)
@example(-3.5e38, -3.4e38)
def test_a_snapped_threshold_sends_every_float32_the_same_way(threshold: float, value: float) -> None:
    snapped = snap_down(threshold)
    assert float(np.float32(snapped)) == snapped
    if value > -float(np.finfo(np.float32).max):
        assert (value <= snapped) == (value <= threshold)


def test_nearest_rounding_would_have_flipped_rows(cascade: Cascade) -> None:
    model = cascade.gate.dump_model()["tree_info"][0]["tree_structure"]
    column, threshold = model["split_feature"], float(model["threshold"])
    assert float(np.float32(threshold)) != threshold
    assert column in (0, 1)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 1024])
def test_cascade_repeats_lightgbm_at_any_number_of_rows(cascade: Cascade, count: int) -> None:
    rows = _rows(1024, seed=2)[:count]
    got, wanted = _run(cascade_to_onnx(cascade), rows), dict(cascade_reference(cascade)(rows)) if count else {}
    assert got["score"].shape == got["label"].shape == (count,)
    assert got["probabilities"].shape == (count, len(CLASSES))
    for name, expected in wanted.items():
        if name != "undecided":
            np.testing.assert_allclose(got[name], expected, atol=2e-5)


@pytest.mark.parametrize(("margin", "share"), [(-1e6, 1.0), (1e6, 0.0)])
def test_cascade_answers_when_all_rows_pass_and_when_none_does(cascade: Cascade, margin: float, share: float) -> None:
    model = cascade_to_onnx(Cascade(cascade.gate, cascade.kinds, margin, CLASSES))
    for count in (1, 2, 17, 1024):
        got = _run(model, _rows(count, seed=3))
        assert (got["label"] > 0).mean() == share
        assert (got["score"] >= 0.5).mean() == share
        assert (got["probabilities"][:, 0] == 1.0 - share).all()


def test_score_label_and_probabilities_never_contradict_each_other(cascade: Cascade) -> None:
    rows = _rows(3_000, seed=4)
    raw = cascade.gate.predict(rows, raw_score=True)
    at = float(np.float32(np.sort(raw)[-300]))  # rows stand exactly on the margin
    got = _run(cascade_to_onnx(Cascade(cascade.gate, cascade.kinds, at, CLASSES)), rows)
    assert ((got["score"] >= 0.5) == (got["label"] > 0)).all()
    assert (got["probabilities"].argmax(axis=1) == got["label"]).all()
    np.testing.assert_allclose(got["probabilities"].sum(axis=1), 1.0, atol=1e-6)
    assert 0 < (got["label"] > 0).sum() < len(rows)


def test_cascade_of_one_kind_needs_no_second_model(cascade: Cascade) -> None:
    single = Cascade(cascade.gate, None, cascade.margin, ("benign", "attack"))
    report = check_parity(cascade_to_onnx(single), cascade_reference(single), _rows(500), TOLERANCE)
    assert report.rows == 500


def test_cascade_keeps_parity_on_rows_that_break_converters(cascade: Cascade) -> None:
    thresholds = thresholds_of(cascade)
    rows = parity_rows(_rows(200), thresholds)
    assert {0, 1} <= set(thresholds)
    alone = lightgbm_trees(cascade.gate).thresholds()
    assert sum(map(len, thresholds.values())) > sum(map(len, alone.values()))
    assert set(rows.about.tolist()) == {-1, *range(WIDTH)}
    report = check_parity(cascade_to_onnx(cascade), cascade_reference(cascade), rows, TOLERANCE)
    assert report.undecided < 0.02 * report.rows
    assert report.worst["label"] == 0.0


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_plain_lightgbm_keeps_parity(kind: str) -> None:
    rows = _rows(2_000)
    labels = {"binary": _kind(rows) > 0, "multiclass": _kind(rows), "regression": rows[:, 3] * 2}[kind]
    booster = _train(rows, labels, kind, **({"num_class": 4} if kind == "multiclass" else {}))
    wide = parity_rows(_rows(200), lightgbm_trees(booster).thresholds())
    check_parity(lightgbm_to_onnx(booster), lightgbm_reference(booster), wide, TOLERANCE)


def test_null_goes_the_way_lightgbm_sends_it_also_when_trained_with_nulls() -> None:
    rows = _rows(2_000)
    rows[::3, 3] = np.nan
    labels = np.isnan(rows[:, 3]) ^ (rows[:, 4] > 0)
    booster = _train(rows, labels.astype(int), "binary")
    wide = parity_rows(rows[:200], lightgbm_trees(booster).thresholds())
    assert np.isnan(wide.rows).any()
    check_parity(lightgbm_to_onnx(booster), lightgbm_reference(booster), wide, TOLERANCE)


@pytest.mark.parametrize("columns", [1.0, 0.5])
def test_isolation_forest_repeats_scikit_learn_and_is_one_tree_node(columns: float) -> None:
    rows = _rows(1_000)
    forest = IsolationForest(n_estimators=40, max_samples=200, max_features=columns, random_state=1).fit(rows)
    model = isolation_forest_to_onnx(forest)
    wide = parity_rows(rows[:200], thresholds_of(forest), nulls=False)
    report = check_parity(model, isolation_forest_reference(forest), wide, Tolerance(1e-6, 1e-6))
    assert report.worst["score"] < 1e-6
    operators = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert operators.count("TreeEnsembleRegressor") == 1
    assert len(operators) < 6


def test_mean_path_is_that_of_the_paper() -> None:
    assert [mean_path(n) for n in (0, 1, 2)] == [0.0, 0.0, 1.0]
    harmonic = sum(1 / i for i in range(1, 256))
    assert mean_path(256) == pytest.approx(2 * harmonic - 2 * 255 / 256, abs=0.01)


@pytest.mark.parametrize("form", ["cascade", "binary", "forest"])
def test_models_are_normalised_and_pass_the_gate(cascade: Cascade, form: str) -> None:
    made = {
        "cascade": lambda: cascade_to_onnx(cascade),
        "binary": lambda: lightgbm_to_onnx(cascade.gate),
        "forest": lambda: isolation_forest_to_onnx(IsolationForest(n_estimators=5, random_state=1).fit(_rows(300))),
    }[form]()
    model = onnx.load_from_string(made)
    assert model.ir_version == 8
    assert {item.domain: item.version for item in model.opset_import} == {"": 17, "ai.onnx.ml": 3}
    assert not any(node.op_type in ("ZipMap", "If", "Loop", "Scan") for node in model.graph.node)
    passed = check_model(model)
    assert [(item.name, item.shape) for item in passed.inputs] == [("features", (-1, WIDTH))]


def test_conversion_is_deterministic(cascade: Cascade) -> None:
    assert cascade_to_onnx(cascade) == cascade_to_onnx(cascade)


def _broken(model: bytes, change: Any) -> bytes:
    parsed = onnx.load_from_string(model)
    change(parsed)
    return bytes(parsed.SerializeToString())


def _nudge_a_threshold(model: Any) -> None:
    gate = next(node for node in model.graph.node if node.output[0] == "gate")
    values = next(item for item in gate.attribute if item.name == "nodes_values")
    values.floats[:] = [np.nextafter(np.float32(value), np.float32(np.inf)) for value in values.floats]


def test_parity_finds_thresholds_one_float_too_high_and_names_rows_and_columns(cascade: Cascade) -> None:
    thresholds = lightgbm_trees(cascade.gate).thresholds()
    rows = parity_rows(_rows(200), thresholds)
    model = _broken(cascade_to_onnx(cascade), _nudge_a_threshold)
    with pytest.raises(ParityError) as found:
        check_parity(model, cascade_reference(cascade), rows, TOLERANCE)
    assert re.search(r"output 'score' differs on \d+ of .* rows \[\d+.* about columns \[", found.value.why)
    assert set(found.value.columns) <= {-1, *thresholds}
    assert len(found.value.rows) == len(found.value.columns) > 0


def test_parity_refuses_declared_shapes_that_lie(cascade: Cascade) -> None:
    def declare_one_row(model: Any) -> None:
        model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 1

    model = _broken(cascade_to_onnx(cascade), declare_one_row)
    with pytest.raises(ParityError) as found:
        check_parity(model, cascade_reference(cascade), _rows(50), TOLERANCE)
    assert found.value.why == "output 'label' declares [1] and has (2,) at 2 rows"


def test_parity_asks_for_every_output_of_the_original(cascade: Cascade) -> None:
    def wants_more(rows: Matrix) -> Any:
        return dict(cascade_reference(cascade)(rows)) | {"margin": np.zeros(len(rows))}

    with pytest.raises(ParityError) as found:
        check_parity(cascade_to_onnx(cascade), wants_more, _rows(20), TOLERANCE)
    assert "no output 'margin'" in found.value.why


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        ("category", {"categorical_feature": [2]}),
        ("binary", {"zero_as_missing": True}),
        ("forest", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
        ("linear", {"linear_tree": True}),
        ("poisson", {"objective": "poisson"}),
    ],
)
def test_what_cannot_be_written_is_refused(labels: str, settings: dict[str, Any]) -> None:
    rows = _rows(600)
    wanted = np.isin(rows[:, 2], (0, 3)) if labels == "category" else np.abs(rows[:, 3])
    objective = settings.pop("objective", "regression")
    categories = settings.pop("categorical_feature", "auto")
    parameters = {"objective": objective, "num_threads": 1, "verbose": -1, "min_data_in_leaf": 5} | settings
    columns = rows if labels != "category" else rows[:, [2, 3]]
    categories = [0] if labels == "category" else categories
    if labels == "binary":
        columns = np.where(columns > 0.5, columns, 0.0)
    booster = lightgbm.train(parameters, lightgbm.Dataset(columns, wanted, categorical_feature=categories), 3)
    with pytest.raises(ConversionError):
        lightgbm_to_onnx(booster)


def test_thresholds_of_anything_else_are_refused() -> None:
    with pytest.raises(ConversionError):
        thresholds_of(object())


def test_a_cascade_whose_parts_do_not_fit_is_refused(cascade: Cascade) -> None:
    for wrong in (
        Cascade(cascade.gate, cascade.kinds, 0.0, CLASSES[:3]),
        Cascade(cascade.kinds, cascade.kinds, 0.0, CLASSES),
        Cascade(cascade.gate, None, 0.0, CLASSES),
        Cascade(cascade.gate, cascade.kinds, float("nan"), CLASSES),
        Cascade(cascade.gate, None, 0.0, CLASSES[:1]),
    ):
        with pytest.raises(ConversionError):
            cascade_to_onnx(wrong)
