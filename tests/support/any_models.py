"""Models as data scientists bring them, one of each kind that is not a table of floats, with something to ask each.

Every one is small, made by hand of the operators that the usual exporters write, and numerically exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from tests.support.onnx_models import constant, model

FLOAT, HALF, TEXT, INT64, BOOL, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.STRING,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.UINT8,
)
OPSETS = {"": 17, "ai.onnx.ml": 3, "com.microsoft": 1}
node = helper.make_node
Arrays = Mapping[str, npt.NDArray[Any]]


def text(*words: str, shape: tuple[int, ...] = (-1,)) -> npt.NDArray[Any]:
    """Return strings as the protocol has them."""
    made = np.empty(len(words), object)
    made[:] = [word.encode() for word in words]
    return made.reshape(shape)


@dataclass(frozen=True, slots=True)
class Case:
    """A model, what it is asked, what it must answer, and what registration must learn of it."""

    make: Callable[[], ModelProto]
    asked: Arrays
    wanted: Arrays
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    row_wise: bool


def categories() -> ModelProto:
    """Return a scikit-learn pipeline: one-hot strings beside a scaled number, into a logistic regression."""
    ml = "ai.onnx.ml"
    nodes = [
        node("OneHotEncoder", ["protocol"], ["hot3"], name="hot", domain=ml,
             cats_strings=["tcp", "udp", "icmp"], zeros=1),
        node("Reshape", ["hot3", "flat"], ["hot"], name="flatten"),
        node("LabelEncoder", ["zone"], ["place"], name="zone", domain=ml, keys_strings=["lan", "dmz"],
             values_floats=[1.0, 2.0], default_float=0.0),
        node("Scaler", ["bytes"], ["scaled"], name="scale", domain=ml, offset=[100.0], scale=[0.5]),
        node("Concat", ["hot", "place", "scaled"], ["row"], name="join", axis=1),
        node("LinearClassifier", ["row"], ["label", "probabilities"], name="logistic", domain=ml,
             classlabels_strings=["benign", "scan"], coefficients=[-1.0, 0, 0, 0, -1.0, 1.0, 0, 0, 0, 1.0],
             intercepts=[0.0, 0.0], post_transform="NONE"),
    ]  # fmt: skip
    inputs = [("protocol", TEXT, ["N", 1]), ("zone", TEXT, ["N", 1]), ("bytes", FLOAT, ["N", 1])]
    outputs: list[Any] = [("label", TEXT, ["N"]), ("probabilities", FLOAT, ["N", 2])]
    return model(nodes, inputs, outputs, [constant("flat", [-1, 3], np.int64)], opsets=OPSETS)


def words() -> ModelProto:
    """Return a text model: lower case, words, TF-IDF over one and two of them, label and probabilities."""
    vectorise = {
        **{"mode": "TFIDF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 0},
        **{"ngram_counts": [0, 3], "ngram_indexes": [0, 1, 2, 3], "weights": [1.0, 2.0, 0.5, 4.0]},
        "pool_strings": ["login", "failed", "ok", "login", "failed"],
    }
    nodes = [
        node("StringNormalizer", ["message"], ["lower"], name="lower", case_change_action="LOWER", is_case_sensitive=1),
        node("Tokenizer", ["lower"], ["words"], name="split", domain="com.microsoft", mark=0, mincharnum=1,
             pad_value="#", separators=[" "]),
        node("TfIdfVectorizer", ["words"], ["terms"], name="count", **vectorise),
        node("Gemm", ["terms", "w"], ["scores"], name="dense"),
        node("Softmax", ["scores"], ["probabilities"], name="softmax", axis=1),
        node("ArgMax", ["scores"], ["label"], name="best", axis=1, keepdims=0),
    ]  # fmt: skip
    weights = constant("w", [[0, 1], [0, 1], [1, 0], [0, 2]])
    outputs: list[Any] = [("label", INT64, ["N"]), ("probabilities", FLOAT, ["N", 2])]
    return model(nodes, [("message", TEXT, ["N"])], outputs, [weights], opsets=OPSETS)


def image(kind: int = FLOAT) -> ModelProto:
    """Return a convolution over one image of 3 x 32 x 32, with the batch of 1 that exporters write by default."""
    dtype = np.float16 if kind == HALF else np.float32
    weights = constant("w", np.ones((2, 3, 3, 3)) / 32, dtype)
    nodes = [
        node("Conv", ["image", "w"], ["maps"], name="conv", kernel_shape=[3, 3]),
        node("GlobalAveragePool", ["maps"], ["pooled"], name="pool"),
        node("Flatten", ["pooled"], ["scores"], name="flat"),
    ]
    return model(nodes, [("image", kind, [1, 3, 32, 32])], [("scores", kind, [1, 2])], [weights])


def sequence() -> ModelProto:
    """Return a recurrent network over sequences of any length, in batches of any size."""
    nodes = [
        node("Transpose", ["steps"], ["by_time"], name="turn", perm=[1, 0, 2]),
        node("RNN", ["by_time", "w", "r"], ["", "last"], name="rnn", hidden_size=2, activations=["Relu"]),
        node("Squeeze", ["last", "zero"], ["state"], name="one"),
    ]
    made = [constant("w", [np.eye(2, 3)]), constant("r", [np.eye(2)]), constant("zero", [0], np.int64)]
    return model(nodes, [("steps", FLOAT, ["N", "T", 3])], [("state", FLOAT, ["N", 2])], made)


def signal() -> ModelProto:
    """Return a running sum along the first axis: its rows are steps of time, none stands for itself."""
    made = [constant("axis", 0, np.int64)]
    nodes = [node("CumSum", ["samples", "axis"], ["level"], name="sum")]
    return model(nodes, [("samples", FLOAT, ["T", 2])], [("level", FLOAT, ["T", 2])], made)


def several() -> ModelProto:
    """Return a model of several inputs and outputs of several types, one of them without rows."""
    nodes = [
        node("Cast", ["picture"], ["bright"], name="cast", to=FLOAT),
        node("ReduceMean", ["bright"], ["mean"], name="mean", axes=[1], keepdims=0),
        node("Where", ["mask", "mean", "level"], ["chosen"], name="choose"),
        node("Mul", ["chosen", "gain"], ["value"], name="gain"),
        node("Add", ["count", "count"], ["twice"], name="twice"),
        node("Not", ["mask"], ["hidden"], name="not"),
    ]
    inputs: list[Any] = [
        ("picture", UINT8, ["N", 4]), ("count", INT64, ["N"]), ("mask", BOOL, ["N"]), ("level", FLOAT, ["N"]),
        ("gain", FLOAT, []),
    ]  # fmt: skip
    outputs: list[Any] = [("value", FLOAT, ["N"]), ("twice", INT64, ["N"]), ("hidden", BOOL, ["N"])]
    return model(nodes, inputs, outputs)


def detector() -> ModelProto:
    """Return what ends a detector: as many boxes as are over the score, of one picture."""
    nodes = [
        node("Greater", ["score", "least"], ["good"], name="over"),
        node("Compress", ["boxes", "good"], ["found"], name="take", axis=0),
    ]
    inputs: list[Any] = [("boxes", FLOAT, [8, 4]), ("score", FLOAT, [8]), ("least", FLOAT, [])]
    return model(nodes, inputs, [("found", FLOAT, ["M", 4])])


def filter_rows() -> ModelProto:
    """Return rows whose first number is above zero: fewer come out than go in, which no shape says."""
    nodes = [
        node("Gather", ["x", "first"], ["head"], name="head", axis=1),
        node("Greater", ["head", "zero"], ["good"], name="over"),
        node("Compress", ["x", "good"], ["kept"], name="take", axis=0),
    ]
    made = [constant("first", 0, np.int64), constant("zero", 0.0)]
    return model(nodes, [("x", FLOAT, ["N", 2])], [("kept", FLOAT, ["N", 2])], made)


def lying_label() -> ModelProto:
    """Return a classifier whose label says it is one element, as onnxmltools writes LightGBM's."""
    nodes = [
        node("Gemm", ["x", "w"], ["probabilities"], name="dense"),
        node("ArgMax", ["probabilities"], ["label"], name="best", axis=1, keepdims=0),
    ]
    outputs: list[Any] = [("label", INT64, [1]), ("probabilities", FLOAT, ["N", 2])]
    return model(nodes, [("x", FLOAT, ["N", 2])], outputs, [constant("w", np.eye(2))])


def single() -> ModelProto:
    """Return a model of one number that is no list of any."""
    return model([node("Mul", ["x", "two"], ["y"], name="mul")], [("x", FLOAT, [])], [("y", FLOAT, [])],
                 [constant("two", 2.0)])  # fmt: skip


_PIXELS = np.ones((1, 3, 32, 32), np.float32)
_STEPS = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
_BOXES = np.arange(32, dtype=np.float32).reshape(8, 4)
_OF = np.array([0.1, 0.9, 0.2, 0.8, 0, 0, 0, 0], np.float32)

CASES: dict[str, Case] = {
    "categories": Case(
        categories,
        {"protocol": text("tcp", "gre", shape=(-1, 1)), "zone": text("dmz", "lan", shape=(-1, 1)),
         "bytes": np.array([[104], [96]], np.float32)},
        {"label": text("scan", "benign"), "probabilities": np.array([[-3, 3], [2, -2]], np.float32)},
        {"protocol": (-1, 1), "zone": (-1, 1), "bytes": (-1, 1)}, {"label": (-1,), "probabilities": (-1, 2)}, True,
    ),
    "words": Case(
        words,
        {"message": text("LOGIN failed", "all ok ok")},
        {"label": np.array([1, 0]), "probabilities": np.array([[np.exp(-11), 1], [np.exp(1), 1]]) / np.array(
            [[1 + np.exp(-11)], [1 + np.exp(1)]])},
        {"message": (-1,)}, {"label": (-1,), "probabilities": (-1, 2)}, True,
    ),
    "image": Case(image, {"image": _PIXELS}, {"scores": np.full((1, 2), 27 / 32, np.float32)},
                  {"image": (1, 3, 32, 32)}, {"scores": (1, 2)}, False),
    "half": Case(lambda: image(HALF), {"image": _PIXELS.astype(np.float16)},
                 {"scores": np.full((1, 2), 27 / 32, np.float16)},
                 {"image": (1, 3, 32, 32)}, {"scores": (1, 2)}, False),
    "sequence": Case(sequence, {"steps": _STEPS}, {"state": np.array([[18, 22]], np.float32)},
                     {"steps": (-1, -1, 3)}, {"state": (-1, 2)}, True),
    "signal": Case(signal, {"samples": np.ones((3, 2), np.float32)},
                   {"level": np.array([[1, 1], [2, 2], [3, 3]], np.float32)},
                   {"samples": (-1, 2)}, {"level": (-1, 2)}, False),
    "several": Case(
        several,
        {"picture": np.array([[0, 200, 0, 200], [255] * 4], np.uint8), "count": np.array([3, -4]),
         "mask": np.array([True, False]), "level": np.array([7, 9], np.float32), "gain": np.array(0.5, np.float32)},
        {"value": np.array([50, 4.5], np.float32), "twice": np.array([6, -8]), "hidden": np.array([False, True])},
        {"picture": (-1, 4), "count": (-1,), "mask": (-1,), "level": (-1,), "gain": ()},
        {"value": (-1,), "twice": (-1,), "hidden": (-1,)}, False,
    ),
    "detector": Case(detector, {"boxes": _BOXES, "score": _OF, "least": np.array(0.5, np.float32)},
                     {"found": _BOXES[[1, 3]]}, {"boxes": (8, 4), "score": (8,), "least": ()},
                     {"found": (-1, 4)}, False),
    "filter": Case(filter_rows, {"x": np.array([[1, 2], [-1, 3], [4, 5]], np.float32)},
                   {"kept": np.array([[1, 2], [4, 5]], np.float32)}, {"x": (-1, 2)}, {"kept": (-1, 2)}, False),
    "label": Case(lying_label, {"x": np.array([[1, 0], [0, 1], [0, 2]], np.float32)},
                  {"label": np.array([0, 1, 1]), "probabilities": np.array([[1, 0], [0, 1], [0, 2]], np.float32)},
                  {"x": (-1, 2)}, {"label": (-1,), "probabilities": (-1, 2)}, True),
    "single": Case(single, {"x": np.array(21, np.float32)}, {"y": np.array(42, np.float32)},
                   {"x": ()}, {"y": ()}, False),
}  # fmt: skip
"""By the name the model is registered under."""
