"""A small model of host metrics: it flags a host whose tasks exceed a bound."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tests.support.tiny_models import Shelf, model_bytes
from vedette.models.golden import Golden
from vedette.models.host import HOST_SCHEMA
from vedette.models.profile import ReferenceProfile
from vedette.models.release import Build, Release, TensorSpec, Tolerance

LABELS = ("healthy", "crowded")
WIDTH = len(HOST_SCHEMA)
_DRIVER = HOST_SCHEMA.index("tasks")


def host_onnx(bound: float, *, notes: dict[str, str] | None = None) -> bytes:
    """Return a model that gives 1 above ``bound`` tasks, and falls off below; other columns may be null."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Gather", ["features", "driver"], ["tasks"], axis=1),
        node("Sub", ["tasks", "bound"], ["over"]),
        node("Sigmoid", ["over"], ["score"]),
        node("Sub", ["unit", "score"], ["rest"]),
        node("Unsqueeze", ["rest", "one"], ["q"]),
        node("Unsqueeze", ["score", "one"], ["p"]),
        node("Concat", ["q", "p"], ["probabilities"], axis=1),
        node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [
        value("score", TensorProto.FLOAT, ["n"]),
        value("label", TensorProto.INT64, ["n"]),
        value("probabilities", TensorProto.FLOAT, ["n", 2]),
    ]
    constants = {
        "driver": np.array(_DRIVER, np.int64),
        "bound": np.array(bound, np.float32),
        "unit": np.array(1.0, np.float32),
        "one": np.array([1], np.int64),
    }
    made = onnx.load_from_string(
        model_bytes(nodes, [value("features", TensorProto.FLOAT, ["n", WIDTH])], outputs, constants)
    )
    helper.set_model_props(made, notes or {})
    return bytes(made.SerializeToString())


def answers(features: npt.NDArray[np.float32], bound: float) -> dict[str, npt.NDArray[np.generic]]:
    """Return what :func:`host_onnx` gives, computed by numpy."""
    score = (1.0 / (1.0 + np.exp(-np.clip(features[:, _DRIVER] - np.float32(bound), -80, 80)))).astype(np.float32)
    probabilities = np.stack([1.0 - score, score], axis=1).astype(np.float32)
    return {"score": score, "label": probabilities.argmax(axis=1).astype(np.int64), "probabilities": probabilities}


def host_release(shelf: Shelf, *, bound: float = 1.0) -> Release:
    """Return a release that flags a host with more than ``bound`` tasks; its blobs are put on the shelf."""
    rows = np.random.default_rng(3).uniform(0, 1, (64, WIDTH)).astype(np.float32)
    outputs = answers(rows, bound)
    reference = ReferenceProfile.fit(HOST_SCHEMA.names, rows, outputs["score"], outputs["score"] >= 0.5)
    golden = Golden({"features": rows}, outputs)
    return Release(
        model="host-health",
        version=1,
        created=datetime(2026, 11, 20, tzinfo=UTC),
        kind="host",
        schema=HOST_SCHEMA,
        inputs=(TensorSpec("features", "float32", (-1, WIDTH)),),
        outputs=(
            TensorSpec("score", "float32", (-1,)),
            TensorSpec("label", "int64", (-1,)),
            TensorSpec("probabilities", "float32", (-1, 2)),
        ),
        labels=LABELS,
        threshold=0.5,
        builds=(Build("onnx-fp32", shelf.put(host_onnx(bound)), Tolerance(1e-5, 1e-5)),),
        golden=shelf.put(golden.to_bytes()),
        reference=shelf.put(reference.to_bytes()),
    )
