"""Flow models for rollouts: real ONNX files in an instant, of any size."""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.flow_models import LABELS, flow_onnx

_BALLAST_SEED = 4


def flow_model(bias: float = -5.0, size_bytes: int = 0) -> bytes:
    """Return a flow model as ``vedette model register`` takes it.

    It flags sources with many failed connections: more of them the higher the bias is (at 0 and above every flow).

    Args:
        bias: Makes versions differ.
        size_bytes: How large the file shall at least be; filled with weights that cannot be compressed.
    """
    model = onnx.load_from_string(flow_onnx(bias))
    told = {"vedette.kind": "flow", "vedette.labels": json.dumps(LABELS), "vedette.threshold": "0.5"}
    helper.set_model_props(model, told)
    if size_bytes:
        _weigh_down(model.graph, size_bytes)
    return bytes(model.SerializeToString())


def _weigh_down(graph: onnx.GraphProto, size_bytes: int) -> None:
    """Add the first number of a large table, which is 0, to the score."""
    table = np.random.default_rng(_BALLAST_SEED).random(size_bytes // 4, np.float32)
    table[0] = 0.0
    graph.initializer.append(numpy_helper.from_array(table, "ballast"))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "ballast_place"))
    squeeze = next(node for node in graph.node if "score" in node.output)
    squeeze.output[0] = "light_score"
    graph.node.append(helper.make_node("Gather", ["ballast", "ballast_place"], ["nothing"]))
    graph.node.append(helper.make_node("Add", ["light_score", "nothing"], ["score"]))
