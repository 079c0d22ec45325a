"""Fitted models as ONNX: LightGBM alone, a cascade of two, an isolation forest.

Every model reads ``features`` float32 [rows, width]. What each writes is in its function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from vedette.controller.conversion.errors import ConversionError
from vedette.controller.conversion.graph import Constants, assemble, node, port
from vedette.controller.conversion.trees import Trees, isolation_trees, lightgbm_trees, mean_path
from vedette.models.recipes import Cascade, Matrix

Outputs = Mapping[str, npt.NDArray[Any]]
Predict = Callable[[Matrix], Outputs]
"""Gives outputs by name; ``undecided`` among them marks rows too close to a decision to be compared beyond scores."""

THRESHOLD = 0.5
"""Of every score written here: the operating point is moved there."""

_CLOSE = 1e-4  # of raw margins: what float32 sums of some hundred leaves may be off by
_BELOW = np.nextafter(np.float32(THRESHOLD), np.float32(0))
_FEATURES = "features"


def cascade_to_onnx(cascade: Cascade) -> bytes:
    """Return a cascade as one graph without subgraphs: the model of kinds runs on the rows that pass the gate only.

    Outputs:
        score: float32 [rows]; at or above 0.5 exactly when the row is flagged. The gate's odds over those at its
            margin: what its probability would be if flagging at the margin were a fair bet (Elkan, The Foundations of
            Cost-Sensitive Learning, IJCAI 2001).
        label: int64 [rows]; index into the classes, 0 when not flagged.
        probabilities: float32 [rows, classes]; not flagged: all on class 0; flagged: of the kinds, 0 for class 0.

    Raises:
        ConversionError: The boosters do not fit the classes or hold what cannot be written.
    """
    width, kinds = _check_cascade(cascade)
    passes, constants = _gate_nodes(lightgbm_trees(cascade.gate), cascade.margin)
    constants["class_count"] = np.array([kinds], np.int64)
    naming = _kind_nodes(lightgbm_trees(cascade.kinds)) if cascade.kinds is not None else _one_kind_nodes()
    return assemble(
        "cascade",
        [*passes, *naming],
        [port(_FEATURES, "float32", width)],
        [port("score", "float32"), port("label", "int64"), port("probabilities", "float32", kinds + 1)],
        constants,
        inner=[port("passed", "float32", width, rows="passed_rows")] if cascade.kinds is not None else [],
    )


def cascade_reference(cascade: Cascade) -> Predict:
    """Return what :func:`cascade_to_onnx`'s graph must give, computed by LightGBM in float64."""
    classes = len(cascade.classes)

    def predict(rows: Matrix) -> Outputs:
        margin = cascade.gate.predict(rows, raw_score=True, num_threads=1)
        flagged = margin >= cascade.margin
        raw = np.ones((len(rows), 1))
        if cascade.kinds is not None:
            raw = cascade.kinds.predict(rows, raw_score=True, num_threads=1)
        kinds = np.exp(raw - raw.max(axis=1, keepdims=True))
        kinds /= kinds.sum(axis=1, keepdims=True)
        probabilities = np.zeros((len(rows), classes))
        probabilities[:, 0] = ~flagged
        probabilities[flagged, 1:] = kinds[flagged]
        best = np.sort(raw, axis=1)
        tie = (best[:, -1] - best[:, -2] < _CLOSE) if classes > 2 else np.zeros(len(rows), np.bool_)
        return {
            "score": 1.0 / (1.0 + np.exp(np.clip(cascade.margin - margin, -700, 700))),
            "label": np.where(flagged, 1 + raw.argmax(axis=1), 0),
            "probabilities": probabilities,
            "undecided": (np.abs(margin - cascade.margin) < _CLOSE) | (flagged & tie),
        }

    return predict


def lightgbm_to_onnx(booster: Any) -> bytes:
    """Return a LightGBM booster of any of the objectives below.

    Outputs:
        binary: score float32 [rows], probability of class 1; label int64 [rows], 1 from 0.5 on; probabilities.
        multiclass: score float32 [rows], 1 - probability of class 0; label int64 [rows], the likeliest; probabilities.
        regression and others without a link: score float32 [rows].

    Raises:
        ConversionError: The objective is another, or the trees hold what cannot be written.
    """
    trees, width = lightgbm_trees(booster), int(booster.num_feature())
    objective = _objective(booster)
    one = [port(_FEATURES, "float32", width)]
    constants: dict[str, npt.NDArray[Any]] = {"flat": np.array([-1], np.int64)}
    if objective == "regression":
        nodes = [trees.as_node(_FEATURES, "raw"), node("Reshape", ["raw", "flat"], "score")]
        return assemble("lightgbm", nodes, one, [port("score", "float32")], constants)
    if objective == "binary":
        nodes, classes = _binary_nodes(trees, constants), 2
    else:
        nodes, classes = _multiclass_nodes(trees, constants), trees.targets
    outputs = [port("score", "float32"), port("label", "int64"), port("probabilities", "float32", classes)]
    return assemble("lightgbm", nodes, one, outputs, constants)


def lightgbm_reference(booster: Any) -> Predict:
    """Return what :func:`lightgbm_to_onnx`'s graph must give, computed by LightGBM."""
    objective = _objective(booster)

    def predict(rows: Matrix) -> Outputs:
        made = booster.predict(rows, num_threads=1)
        if objective == "regression":
            return {"score": made}
        probabilities = np.stack([1.0 - made, made], axis=1) if objective == "binary" else made
        best = np.sort(probabilities, axis=1)
        return {
            "score": 1.0 - probabilities[:, 0],
            "label": probabilities.argmax(axis=1),
            "probabilities": probabilities,
            "undecided": best[:, -1] - best[:, -2] < _CLOSE,
        }

    return predict


def isolation_forest_to_onnx(forest: Any) -> bytes:
    """Return a fitted scikit-learn IsolationForest as one tree node of path lengths.

    Outputs:
        score: float32 [rows], 0 to 1, higher is stranger: minus what ``score_samples`` gives.
    """
    scale = -math.log(2.0) / (len(forest.estimators_) * mean_path(int(forest.max_samples_)))
    nodes = [
        isolation_trees(forest).as_node(_FEATURES, "paths"),
        node("Mul", ["paths", "scale"], "log_score"),
        node("Exp", ["log_score"], "column"),
        node("Reshape", ["column", "flat"], "score"),
    ]
    constants: Constants = {"scale": np.array(scale, np.float32), "flat": np.array([-1], np.int64)}
    width = int(forest.n_features_in_)
    return assemble(
        "isolation-forest", nodes, [port(_FEATURES, "float32", width)], [port("score", "float32")], constants
    )


def isolation_forest_reference(forest: Any) -> Predict:
    """Return what :func:`isolation_forest_to_onnx`'s graph must give, computed by scikit-learn."""
    return lambda rows: {"score": -forest.score_samples(rows)}


def thresholds_of(fitted: Any) -> Mapping[int, npt.NDArray[np.float32]]:
    """Return by column what the trees of a fitted model ask for: rows beside these show a converter's rounding.

    Raises:
        ConversionError: It is none of the models above, or holds what cannot be written.
    """
    if isinstance(fitted, Cascade):
        parts = [lightgbm_trees(part).thresholds() for part in (fitted.gate, fitted.kinds) if part is not None]
    elif hasattr(fitted, "dump_model"):
        parts = [lightgbm_trees(fitted).thresholds()]
    elif hasattr(fitted, "estimators_features_"):
        parts = [isolation_trees(fitted).thresholds()]
    else:
        raise ConversionError(f"a {type(fitted).__name__} has no trees that are known here")
    columns = sorted({column for part in parts for column in part})
    return {column: np.unique(np.concatenate([part[column] for part in parts if column in part])) for column in columns}


def _check_cascade(cascade: Cascade) -> tuple[int, int]:
    """Return the width of the input and the number of kinds."""
    width, kinds = int(cascade.gate.num_feature()), len(cascade.classes) - 1
    if kinds < 1 or not math.isfinite(cascade.margin):
        raise ConversionError(f"a cascade has {kinds} kinds and margin {cascade.margin}; it needs one kind at least")
    if _objective(cascade.gate) != "binary":
        raise ConversionError(f"the gate's objective is {_objective(cascade.gate)}, it must be binary")
    if cascade.kinds is None:
        found, same_width = 1, True
    else:
        found, same_width = int(cascade.kinds.num_model_per_iteration()), int(cascade.kinds.num_feature()) == width
    if found != kinds or not same_width:
        raise ConversionError(f"the model of kinds knows {found} kinds, the cascade {kinds}; or their widths differ")
    return width, kinds


def _objective(booster: Any) -> str:
    """Return binary, multiclass or regression: how raw scores become answers."""
    text = str(booster.dump_model(num_iteration=1).get("objective", ""))
    name, *rest = text.split() or [""]
    if name == "binary" and "sigmoid:1" in rest:
        return "binary"
    if name == "multiclass":
        return "multiclass"
    if (
        name in ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank")
        and "sqrt" not in rest
    ):
        return "regression"
    raise ConversionError(f"objective {text!r} is not one of binary with sigmoid:1, multiclass and plain regression")


def _gate_nodes(trees: Trees, margin: float) -> tuple[list[NodeProto], dict[str, npt.NDArray[Any]]]:
    constants: dict[str, npt.NDArray[Any]] = {
        "flat": np.array([-1], np.int64),
        "margin": np.array(margin, np.float32),
        "half": np.array(THRESHOLD, np.float32),
        "below_half": np.array(_BELOW, np.float32),
    }
    nodes = [
        trees.as_node(_FEATURES, "gate"),
        node("Reshape", ["gate", "flat"], "raw"),
        node("GreaterOrEqual", ["raw", "margin"], "flagged"),
        node("Sub", ["raw", "margin"], "over"),
        node("Sigmoid", ["over"], "smooth"),
        # The runtime's sigmoid is an approximation: the score must not contradict the label by its last bit.
        node("Max", ["smooth", "half"], "at_least_half"),
        node("Min", ["smooth", "below_half"], "at_most_below"),
        node("Where", ["flagged", "at_least_half", "at_most_below"], "score"),
        node("Not", ["flagged"], "harmless"),
        node("Cast", ["harmless"], "harmless_mass", to=1),
        node("Unsqueeze", ["harmless_mass", "flat"], "harmless_column"),
    ]
    return nodes, constants


def _kind_nodes(trees: Trees) -> list[NodeProto]:
    """Name the kinds of the rows that passed and scatter them back to their places."""
    return [
        node("NonZero", ["flagged"], "places"),  # [1, passed rows]
        node("Reshape", ["places", "flat"], "place"),
        node("Gather", [_FEATURES, "place"], "passed", axis=0),
        trees.as_node("passed", "kinds"),
        node("ArgMax", ["kinds"], "best", axis=1, keepdims=0),
        node("Constant", [], "one", value_ints=[1]),
        node("Add", ["best", "one"], "named"),
        node("Shape", ["raw"], "row_count"),
        node("ConstantOfShape", ["row_count"], "nobody", value=_zero(np.int64)),
        node("ScatterElements", ["nobody", "place", "named"], "label", axis=0),
        node("Softmax", ["kinds"], "kind_mass", axis=1),
        node("Constant", [], "one_column_before", value_ints=[0, 1, 0, 0]),
        node("Pad", ["kind_mass", "one_column_before"], "passed_mass"),
        node("Concat", ["row_count", "class_count"], "kind_shape", axis=0),
        node("ConstantOfShape", ["kind_shape"], "no_kind", value=_zero(np.float32)),
        node("Concat", ["harmless_column", "no_kind"], "harmless_rows", axis=1),
        node("Constant", [], "column_shape", value_ints=[-1, 1]),
        node("Reshape", ["place", "column_shape"], "index"),
        node("ScatterND", ["harmless_rows", "index", "passed_mass"], "probabilities"),
    ]


def _one_kind_nodes() -> list[NodeProto]:
    return [
        node("Cast", ["flagged"], "label", to=7),
        node("Cast", ["flagged"], "flagged_mass", to=1),
        node("Unsqueeze", ["flagged_mass", "flat"], "flagged_column"),
        node("Concat", ["harmless_column", "flagged_column"], "probabilities", axis=1),
    ]


def _binary_nodes(trees: Trees, constants: dict[str, npt.NDArray[Any]]) -> list[NodeProto]:
    constants["zero"], constants["one"] = np.array(0, np.float32), np.array(1, np.float32)
    return [
        trees.as_node(_FEATURES, "raw"),
        node("Sigmoid", ["raw"], "second"),
        node("Sub", ["one", "second"], "first"),
        node("Concat", ["first", "second"], "probabilities", axis=1),
        node("Reshape", ["second", "flat"], "score"),
        node("Reshape", ["raw", "flat"], "margin"),
        node("Greater", ["margin", "zero"], "positive"),
        node("Cast", ["positive"], "label", to=7),
    ]


def _multiclass_nodes(trees: Trees, constants: dict[str, npt.NDArray[Any]]) -> list[NodeProto]:
    constants["first"], constants["one"] = np.array(0, np.int64), np.array(1, np.float32)
    return [
        trees.as_node(_FEATURES, "raw"),
        node("Softmax", ["raw"], "probabilities", axis=1),
        node("ArgMax", ["raw"], "label", axis=1, keepdims=0),
        node("Gather", ["probabilities", "first"], "harmless", axis=1),
        node("Sub", ["one", "harmless"], "score"),
    ]


def _zero(dtype: type[np.generic]) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.zeros(1, dtype))
