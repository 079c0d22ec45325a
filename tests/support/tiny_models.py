"""Tiny ONNX models, good and bad, with the release that describes them; made without any trainer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vedette.models.assignment import SlotAssignment
from vedette.models.documents import digest_of
from vedette.models.golden import Golden
from vedette.models.release import Blob, Build, Release, TensorSpec, Tolerance
from vedette.models.schema import Feature, FeatureSchema

FEATURES = 4
LABELS = ("benign", "odd")
FLOW_INPUTS = (TensorSpec("features", "float32", (-1, FEATURES)),)
FLOW_OUTPUTS = (
    TensorSpec("score", "float32", (-1,)),
    TensorSpec("label", "int64", (-1,)),
    TensorSpec("probabilities", "float32", (-1, 2)),
)
_WEIGHTS = np.array([0.5, -0.25, 0.125, 1.0], np.float32)


def model_bytes(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Mapping[str, Any] | None = None
) -> bytes:
    """Return an ONNX file of opset 17, IR 8."""
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def flow_model(bias: float = 0.0) -> bytes:
    """Return a logistic model of the flow kind; ``bias`` tells versions apart by their scores."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["features", "w"], ["dot"]),
        node("Add", ["dot", "b"], ["sum"]),
        node("Sigmoid", ["sum"], ["p"]),
        node("Squeeze", ["p", "one"], ["score"]),
        node("Sub", ["unit", "p"], ["q"]),
        node("Concat", ["q", "p"], ["probabilities"], axis=1),
        node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    constants = {
        "w": _WEIGHTS[:, None],
        "b": np.array([bias], np.float32),
        "one": np.array([1], np.int64),
        "unit": np.array([1.0], np.float32),
    }
    value = helper.make_tensor_value_info
    return model_bytes(
        nodes,
        [value("features", TensorProto.FLOAT, ["n", FEATURES])],
        [
            value("score", TensorProto.FLOAT, ["n"]),
            value("label", TensorProto.INT64, ["n"]),
            value("probabilities", TensorProto.FLOAT, ["n", 2]),
        ],
        constants,
    )


def forgetful_flow_model(bias: float = 0.0) -> bytes:
    """Return :func:`flow_model` that answers the first sixteen rows alone, though its file says all."""
    made = onnx.load_from_string(flow_model(bias))
    ends = {"from": 0, "to": 16}
    made.graph.initializer.extend(numpy_helper.from_array(np.array([v], np.int64), k) for k, v in ends.items())
    first = helper.make_node("Slice", ["features", "from", "to"], ["kept"])
    made.graph.node[0].input[0] = "kept"
    nodes = [first, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return bytes(made.SerializeToString())


def flow_outputs(features: npt.NDArray[np.float32], bias: float = 0.0) -> dict[str, npt.NDArray[Any]]:
    """Return what :func:`flow_model` should give, computed by numpy in float64."""
    p = 1.0 / (1.0 + np.exp(-(features.astype(np.float64) @ _WEIGHTS.astype(np.float64) + bias)))
    probabilities = np.stack([1.0 - p, p], axis=1).astype(np.float32)
    return {
        "score": p.astype(np.float32),
        "label": probabilities.argmax(axis=1).astype(np.int64),
        "probabilities": probabilities,
    }


def flow_rows(rows: int, seed: int = 7) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


_MLP_WIDTHS = (40, 128, 64, 5)


def mlp_specs() -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs of :func:`mlp_model`."""
    first, last = _MLP_WIDTHS[0], _MLP_WIDTHS[-1]
    return (TensorSpec("features", "float32", (-1, first)),), (TensorSpec("probabilities", "float32", (-1, last)),)


def mlp_rows(rows: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(rows).normal(size=(rows, _MLP_WIDTHS[0])).astype(np.float32)


def mlp_model() -> bytes:
    """Return a perceptron of 40-128-64-5 with random weights, for benchmarks."""
    value, node = helper.make_tensor_value_info, helper.make_node
    random = np.random.default_rng(1)
    nodes, constants, at = [], {}, "features"
    for layer, (wide, narrow) in enumerate(itertools.pairwise(_MLP_WIDTHS)):
        constants[f"w{layer}"] = random.normal(size=(wide, narrow), scale=wide**-0.5).astype(np.float32)
        constants[f"b{layer}"] = np.zeros(narrow, np.float32)
        nodes.append(node("Gemm", [at, f"w{layer}", f"b{layer}"], [f"g{layer}"]))
        nodes.append(node("Relu", [f"g{layer}"], [f"r{layer}"]))
        at = f"r{layer}"
    nodes.append(node("Softmax", [at], ["probabilities"], axis=1))
    return model_bytes(
        nodes,
        [value("features", TensorProto.FLOAT, ["n", _MLP_WIDTHS[0]])],
        [value("probabilities", TensorProto.FLOAT, ["n", _MLP_WIDTHS[-1]])],
        constants,
    )


TREE_FEATURES = 30
TREE_INPUTS = (TensorSpec("features", "float32", (-1, TREE_FEATURES)),)
TREE_OUTPUTS = (TensorSpec("score", "float32", (-1, 1)),)


def tree_model(trees: int = 100) -> bytes:
    """Return an ensemble of trees of 31 leaves, as LightGBM makes them, with random splits; for benchmarks."""
    random = np.random.default_rng(1)
    table: dict[str, list[Any]] = {name: [] for name in ("tree", "node", "feature", "mode", "value", "yes", "no")}
    leaves: dict[str, list[Any]] = {"tree": [], "node": [], "weight": []}
    for tree in range(trees):
        for node in range(1, 62):  # as in a heap: 1 to 30 split, 31 to 61 are leaves
            splits = node <= 30
            row = (tree, node, int(random.integers(TREE_FEATURES)), b"BRANCH_LT" if splits else b"LEAF")
            row += (float(random.normal()), 2 * node if splits else 0, 2 * node + 1 if splits else 0)
            for name, cell in zip(table, row, strict=True):
                table[name].append(cell)
            if not splits:
                for name, cell in zip(leaves, (tree, node, float(random.normal())), strict=True):
                    leaves[name].append(cell)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["score"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=table["tree"],
        nodes_nodeids=table["node"],
        nodes_featureids=table["feature"],
        nodes_modes=table["mode"],
        nodes_values=table["value"],
        nodes_truenodeids=table["yes"],
        nodes_falsenodeids=table["no"],
        target_treeids=leaves["tree"],
        target_nodeids=leaves["node"],
        target_ids=[0] * len(leaves["tree"]),
        target_weights=leaves["weight"],
    )
    value = helper.make_tensor_value_info
    inputs = [value("features", TensorProto.FLOAT, ["n", TREE_FEATURES])]
    graph = helper.make_graph([node], "trees", inputs, [value("score", TensorProto.FLOAT, ["n", 1])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def tripwire_model() -> bytes:
    """Return a flow-like model (x -> y, doubled) whose work depends on its input ``kind``, one int64.

    0 answers at once; 1 loops for ever; 2 asks for 4 GiB; 3 looks outside of its table and gets an error;
    4 begins one operator of several seconds and 400 MB, which onnxruntime does not interrupt.
    """
    value, node = helper.make_tensor_value_info, helper.make_node
    forever = helper.make_graph(
        [node("Identity", ["going"], ["still"]), node("Add", ["carried", "step"], ["next"])],
        "forever",
        [
            value("i", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("carried", TensorProto.FLOAT, [1]),
        ],
        [value("still", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([1e-9], np.float32), "step")],
    )
    nodes = [
        node("Equal", ["kind", "k1"], ["hangs"]),
        node("Equal", ["kind", "k2"], ["bloats"]),
        node("Equal", ["kind", "k3"], ["errs"]),
        node("Equal", ["kind", "k4"], ["drags"]),
        node("Where", ["hangs", "many", "none"], ["trips_1"]),
        node("Squeeze", ["trips_1"], ["trips"]),
        node("Loop", ["trips", "", "zero"], ["looped"], body=forever),
        node("Where", ["bloats", "huge", "small"], ["size"]),
        node("ConstantOfShape", ["size"], ["filled"]),
        node("ReduceSum", ["filled"], ["sum"], keepdims=0),
        node("Where", ["drags", "wide", "small"], ["width"]),
        node("Concat", ["width", "width"], ["square"], axis=0),
        node("ConstantOfShape", ["square"], ["matrix"]),
        node("MatMul", ["matrix", "matrix"], ["product"]),
        node("ReduceSum", ["product"], ["dragged"], keepdims=0),
        node("Where", ["errs", "far", "near"], ["place"]),
        node("Gather", ["table", "place"], ["got"]),
        node("Add", ["x", "x"], ["doubled"]),
        node("Add", ["doubled", "looped"], ["a"]),
        node("Add", ["a", "sum"], ["b"]),
        node("Add", ["b", "dragged"], ["c"]),
        node("Add", ["c", "got"], ["y"]),
    ]
    constants = {
        **{f"k{n}": np.array([n], np.int64) for n in (1, 2, 3, 4)},
        "many": np.array([2**62], np.int64),
        "none": np.array([0], np.int64),
        "zero": np.array([0.0], np.float32),
        "huge": np.array([2**30], np.int64),
        "wide": np.array([7000], np.int64),
        "small": np.array([1], np.int64),
        "far": np.array([99], np.int64),
        "near": np.array([0], np.int64),
        "table": np.array([0.0], np.float32),
    }
    return model_bytes(
        nodes,
        [value("x", TensorProto.FLOAT, ["n"]), value("kind", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, ["n"])],
        constants,
    )


TRIPWIRE_INPUTS = (TensorSpec("x", "float32", (-1,)), TensorSpec("kind", "int64", (1,)))
TRIPWIRE_OUTPUTS = (TensorSpec("y", "float32", (-1,)),)


def row_tripwire_model() -> bytes:
    """Return a model of rows alone (x, kind -> y = 2x) that one row spoils for all that share its batch.

    A kind of 9 is an error of the runtime; 4 begins one operator of several seconds that is not interrupted.
    """
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [
        node("ReduceMax", ["kind"], ["peak"], keepdims=1),
        node("Equal", ["peak", "four"], ["drags"]),
        node("Where", ["drags", "wide", "small"], ["width"]),
        node("Concat", ["width", "width"], ["square"], axis=0),
        node("ConstantOfShape", ["square"], ["matrix"]),
        node("MatMul", ["matrix", "matrix"], ["product"]),
        node("ReduceSum", ["product"], ["dragged"], keepdims=0),
        node("Gather", ["table", "kind"], ["got"]),
        node("Add", ["x", "x"], ["doubled"]),
        node("Add", ["doubled", "got"], ["a"]),
        node("Add", ["a", "dragged"], ["y"]),
    ]
    constants = {
        "four": np.array([4], np.int64),
        "wide": np.array([7000], np.int64),
        "small": np.array([1], np.int64),
        "table": np.zeros(5, np.float32),
    }
    inputs = [value("x", TensorProto.FLOAT, ["n"]), value("kind", TensorProto.INT64, ["n"])]
    return model_bytes(nodes, inputs, [value("y", TensorProto.FLOAT, ["n"])], constants)


ROW_TRIPWIRE_INPUTS = (TensorSpec("x", "float32", (-1,)), TensorSpec("kind", "int64", (-1,)))


def echo_model(specs: Sequence[TensorSpec]) -> bytes:
    """Return a model that gives each input back as ``NAME_out``; ``bytes`` is a tensor of strings."""
    kinds = {"bytes": TensorProto.STRING}

    def info(name: str, spec: TensorSpec) -> Any:
        kind = kinds.get(spec.dtype) or helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        sizes = [f"d{axis}" if size == -1 else size for axis, size in enumerate(spec.shape)]
        return helper.make_tensor_value_info(name, kind, sizes)

    return model_bytes(
        [helper.make_node("Identity", [spec.name], [f"{spec.name}_out"]) for spec in specs],
        [info(spec.name, spec) for spec in specs],
        [info(f"{spec.name}_out", spec) for spec in specs],
    )


def echoed(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the outputs of :func:`echo_model`."""
    return tuple(TensorSpec(f"{spec.name}_out", spec.dtype, spec.shape) for spec in specs)


def ragged_model() -> bytes:
    """Return a model whose output claims the rows of its input and has others: those above zero."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [node("Greater", ["x", "zero"], ["keep"]), node("Compress", ["x", "keep"], ["y"], axis=0)]
    tensors = [value(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    return model_bytes(nodes, tensors[:1], tensors[1:], {"zero": np.array([0.0], np.float32)})


def filter_model() -> bytes:
    """Return a model that keeps the rows where ``keep`` is true: its output has rows of its own."""
    value = helper.make_tensor_value_info
    return model_bytes(
        [helper.make_node("Compress", ["x", "keep"], ["y"], axis=0)],
        [value("x", TensorProto.FLOAT, ["n", "m"]), value("keep", TensorProto.BOOL, ["n"])],
        [value("y", TensorProto.FLOAT, ["k", "m"])],
    )


FILTER_INPUTS = (TensorSpec("x", "float32", (-1, -1)), TensorSpec("keep", "bool", (-1,)))
FILTER_OUTPUTS = (TensorSpec("y", "float32", (-1, -1)),)


def deep_tree_model(depth: int = 60_000) -> bytes:
    """Return a decision tree that is one long chain: onnxruntime 1.32 dies of it while loading (FAILURES.md, 6)."""
    count = 2 * depth + 1
    odd = np.arange(count) % 2
    inner = (odd == 0) & (np.arange(count) < count - 1)
    ids = np.arange(count)
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["score"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * count,
        nodes_nodeids=ids.tolist(),
        nodes_featureids=[0] * count,
        nodes_modes=["BRANCH_LEQ" if i else "LEAF" for i in inner],
        nodes_values=[float(i) for i in ids],
        nodes_truenodeids=np.where(inner, ids + 1, 0).tolist(),
        nodes_falsenodeids=np.where(inner, ids + 2, 0).tolist(),
        target_treeids=[0] * int((~inner).sum()),
        target_nodeids=ids[~inner].tolist(),
        target_ids=[0] * int((~inner).sum()),
        target_weights=[1.0] * int((~inner).sum()),
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [tree],
        "deep",
        [value("features", TensorProto.FLOAT, ["n", FEATURES])],
        [value("score", TensorProto.FLOAT, ["n", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def external_model(location: str) -> bytes:
    """Return a model whose constant lies in another file."""
    value = helper.make_tensor_value_info
    made = onnx.load_from_string(
        model_bytes(
            [helper.make_node("Add", ["x", "c"], ["y"])],
            [value("x", TensorProto.FLOAT, ["n"])],
            [value("y", TensorProto.FLOAT, ["n"])],
            {"c": np.zeros(1, np.float32)},
        )
    )
    constant = made.graph.initializer[0]
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value=location)
    constant.external_data.add(key="length", value="4")
    return bytes(made.SerializeToString())


class Shelf:
    """A publisher's store: blobs by digest, and releases made of them."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def put(self, data: bytes) -> Blob:
        blob = Blob(digest_of(data), len(data))
        self.blobs[blob.digest] = data
        return blob

    def flow_release(
        self, version: int, *, bias: float | None = None, model: bytes | None = None, lie: float = 0.0, **changes: Any
    ) -> Release:
        """Return a release of :func:`flow_model`; ``lie`` is added to its golden scores."""
        bias = float(version) if bias is None else bias
        rows = flow_rows(16, seed=version)
        outputs = flow_outputs(rows, bias)
        outputs["score"] = outputs["score"] + np.float32(lie)
        build = Build("onnx-fp32", self.put(model or flow_model(bias)), Tolerance(1e-5, 1e-5))
        schema = FeatureSchema("tiny", tuple(Feature(f"f{i}", "", "") for i in range(FEATURES)), "flow")
        made: dict[str, Any] = {
            "model": "flow-threat",
            "version": version,
            "created": datetime(2026, 11, 1, tzinfo=UTC),
            "kind": "flow",
            "schema": schema,
            "inputs": FLOW_INPUTS,
            "outputs": FLOW_OUTPUTS,
            "labels": LABELS,
            "threshold": 0.5,
            "builds": (build,),
            "golden": self.put(Golden({"features": rows}, outputs).to_bytes()),
        }
        return Release(**(made | changes))

    async def fetch_to(self, folder: Path, blob: Blob) -> Path:
        """Write a blob where the agent keeps it, as a download would end."""
        self.fetched.append(blob.digest)
        path = folder / "sha256" / blob.digest.removeprefix("sha256:")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.blobs[blob.digest])
        return path


def assigned(release: Release, slot: str = "flow-threat") -> SlotAssignment:
    """Return the assignment of a release's first build to a slot."""
    return SlotAssignment(slot, release.model, release.version, release.digest, release.builds[0].digest)
