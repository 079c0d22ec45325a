"""Tiny ONNX models for tests, honest and hostile."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Spec = tuple[str, int, list[Any]]

FLOATS = TensorProto.FLOAT


def model(
    nodes: list[NodeProto],
    inputs: list[Spec],
    outputs: list[Spec],
    initializers: list[TensorProto] | None = None,
    *,
    opsets: dict[str, int] | None = None,
    ir_version: int = 8,
) -> ModelProto:
    """Return a model of these nodes; tensors are (name, element type, shape)."""
    graph = graph_of(nodes, inputs, outputs, initializers)
    imports = opsets if opsets is not None else {"": 17, "ai.onnx.ml": 3}
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in imports.items()])
    made.ir_version = ir_version
    return made


def graph_of(
    nodes: list[NodeProto], inputs: list[Spec], outputs: list[Spec], initializers: list[TensorProto] | None = None
) -> GraphProto:
    """Return the bare graph."""
    return helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        initializers or [],
    )


def constant(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    """Return an initializer."""
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def linear(width: int = 4, outputs: int = 2) -> ModelProto:
    """Return y = x W + b with fixed weights."""
    weights = np.arange(width * outputs).reshape(width, outputs) / 10
    return model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense")],
        [("x", FLOATS, ["N", width])],
        [("y", FLOATS, ["N", outputs])],
        [constant("w", weights), constant("b", np.ones(outputs))],
    )


def tree_node(**changes: Any) -> NodeProto:
    """Return a regressor of one tree with three nodes; ``changes`` replace attributes, None removes one."""
    attributes: dict[str, Any] = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_values": [0.5, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [1.0, -1.0],
        "n_targets": 1,
    }
    attributes |= changes
    kept = {key: value for key, value in attributes.items() if value is not None}
    return helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], name="trees", domain="ai.onnx.ml", **kept)


def tree_model(width: int = 4, **changes: Any) -> ModelProto:
    """Return a model of one :func:`tree_node`."""
    return model([tree_node(**changes)], [("x", FLOATS, ["N", width])], [("y", FLOATS, ["N", 1])])


def chain(depth: int) -> dict[str, Any]:
    """Return the attributes of one tree that is a chain of ``depth`` branches, each with a leaf beside it."""
    branches = list(range(depth))
    leaves = list(range(depth, 2 * depth + 1))
    return {
        "nodes_treeids": [0] * (2 * depth + 1),
        "nodes_nodeids": branches + leaves,
        "nodes_featureids": [0] * (2 * depth + 1),
        "nodes_modes": ["BRANCH_LEQ"] * depth + ["LEAF"] * (depth + 1),
        "nodes_values": [0.0] * (2 * depth + 1),
        "nodes_truenodeids": [*branches[1:], leaves[-1]] + [0] * (depth + 1),
        "nodes_falsenodeids": leaves[:-1] + [0] * (depth + 1),
        "target_treeids": [0] * (depth + 1),
        "target_nodeids": leaves,
        "target_ids": [0] * (depth + 1),
        "target_weights": [1.0] * (depth + 1),
    }
