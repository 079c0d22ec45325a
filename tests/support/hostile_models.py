"""Models that mean harm or are broken, one for each row of the failure tables: what the gate and the agent say to each.

The golden samples of each are honest: inputs and outputs that an honest model of that shape would have. Those that
change their ways after the self-test are at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from tests.support import onnx_models as made
from tests.support.onnx_models import FLOATS, Spec, constant
from vedette.agent.domain.errors import InstallCode
from vedette.models.release import TensorSpec

REFUSED, CRASHED, LATE = InstallCode.MODEL_REFUSED, InstallCode.WORKER_CRASHED, InstallCode.WORKER_TIMEOUT
BLOATED, WRONG = InstallCode.OUT_OF_MEMORY, InstallCode.SELF_TEST_FAILED

X: list[Spec] = [("x", FLOATS, ["N", 4])]
Y: list[Spec] = [("y", FLOATS, ["N", 4])]
_ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@dataclass(frozen=True)
class Hostile:
    """One of them.

    Attributes:
        name: What it does.
        data: The file.
        gate: The rule by which it is refused at registration; or, in words, why no reading of the file could.
        agent: How its installation ends where the gate was gone round; None: it serves, and does no harm.
        inputs, outputs: The golden sample.
    """

    name: str
    data: Callable[[], bytes]
    gate: str
    agent: tuple[InstallCode, ...]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]

    @property
    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs as its release tells them."""
        first, second = ([_spec(n, a) for n, a in side.items()] for side in (self.inputs, self.outputs))
        return tuple(first), tuple(second)


def _spec(name: str, array: Any) -> TensorSpec:
    return TensorSpec(name, "bytes" if array.dtype == object else str(array.dtype), (-1, *array.shape[1:]))


def row(
    name: str,
    data: Callable[[], ModelProto | bytes],
    gate: str,
    *agent: InstallCode,
    y: Any = _ROWS,
    x: Any = _ROWS,
) -> Hostile:
    def raw() -> bytes:
        built = data()
        return built if isinstance(built, bytes) else bytes(built.SerializeToString())

    return Hostile(name, raw, gate, agent, {"x": x}, {"y": y})


def external(location: str, offset: int = 0) -> ModelProto:
    """Return a model that wants 64 bytes of another file as its weights."""
    # MatMul: of most others onnxruntime 1.32 looks at the weights while it optimises, and trips before it reads.
    model = made.model([helper.make_node("MatMul", ["x", "w"], ["y"])], X, Y, [constant("w", np.zeros((4, 4)))])
    _outside(model.graph.initializer[0], location, offset)
    return model


def external_attribute(location: str) -> ModelProto:
    """Return the same, asking from an attribute."""
    weights = constant("c", np.zeros((4, 4)))
    _outside(weights, location, 0)
    nodes = [helper.make_node("Constant", [], ["c"], value=weights), helper.make_node("MatMul", ["x", "c"], ["y"])]
    return made.model(nodes, X, Y)


def _outside(tensor: TensorProto, location: str, offset: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "64")):
        tensor.external_data.add(key=key, value=value)


def through(nodes: list[NodeProto], *constants: TensorProto) -> ModelProto:
    """Return a model of nodes from x to a scalar ``s``, which it adds to x."""
    return made.model([*nodes, helper.make_node("Add", ["x", "s"], ["y"])], X, Y, list(constants))


def looped(body: list[NodeProto], trips: int, start: TensorProto, *constants: TensorProto) -> ModelProto:
    """Return a model with a Loop whose body makes ``next`` from ``carried``."""
    graph = made.graph_of(
        [helper.make_node("Identity", ["going"], ["still"]), *body],
        [("i", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), ("carried", FLOATS, None)],
        [("still", TensorProto.BOOL, []), ("next", FLOATS, None)],
    )
    nodes = [
        helper.make_node("Loop", ["trips", "", "start"], ["looped"], body=graph),
        helper.make_node("ReduceSum", ["looped"], ["s"], keepdims=0),
    ]
    trip = constant("trips", trips, np.int64)
    start.name = "start"
    return through(nodes, trip, start, *constants)


def endless() -> ModelProto:
    """Return a loop of 2^62 trips."""
    return looped([helper.make_node("Add", ["carried", "tiny"], ["next"])], 2**62, constant("", [0.0]), TINY)


TINY = constant("tiny", [1e-30])


def swelling() -> ModelProto:
    """Return a loop that takes one more MiB each trip."""
    body = [helper.make_node("Concat", ["carried", "slab"], ["next"], axis=0)]
    return looped(body, 1 << 20, constant("", np.zeros(1)), constant("slab", np.zeros(1 << 18)))


def product(side: int) -> ModelProto:
    """Return one MatMul of two square matrices, from a file of a few hundred bytes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["m"]),
        helper.make_node("MatMul", ["m", "m"], ["p"]),
        helper.make_node("ReduceSum", ["p"], ["s"], keepdims=0),
    ]
    return through(nodes, constant("shape", [side, side], np.int64))


def drag() -> ModelProto:
    """Return a MatMul whose sides are 1,300 times the rows, so that nothing is computed while it is loaded."""
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Mul", ["rows", "many"], ["side"]),
        helper.make_node("Concat", ["side", "side"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["m"]),
        helper.make_node("MatMul", ["m", "m"], ["p"]),
        helper.make_node("ReduceSum", ["p"], ["s"], keepdims=0),
    ]
    return through(nodes, constant("many", [1_300], np.int64))


def filled(elements: int) -> ModelProto:
    """Return a tensor of that many floats, from nothing."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["m"]),
        helper.make_node("ReduceSum", ["m"], ["s"], keepdims=0),
    ]
    return through(nodes, constant("shape", [elements], np.int64))


def gathered() -> ModelProto:
    """Return a look outside of a table, at a place that no optimiser sees."""
    nodes = [
        helper.make_node("Shape", ["x"], ["place"], start=0, end=1),
        helper.make_node("Mul", ["place", "far"], ["beyond"]),
        helper.make_node("Gather", ["w", "beyond"], ["s"]),
    ]
    return through(nodes, constant("far", [10**9], np.int64), constant("w", [0.0]))


def nested(depth: int) -> ModelProto:
    """Return branches within branches."""
    leaf = [helper.make_node("Identity", ["zero"], ["b0"])]
    for level in range(1, depth + 1):
        deeper = made.graph_of(leaf, [], [(f"b{level - 1}", FLOATS, [1])])
        other = made.graph_of([helper.make_node("Identity", ["zero"], [f"e{level}"])], [], [(f"e{level}", FLOATS, [1])])
        leaf = [helper.make_node("If", ["sure"], [f"b{level}"], then_branch=deeper, else_branch=other)]
    leaf[0].output[0] = "s"
    return through(leaf, constant("sure", True, np.bool_), constant("zero", [0.0]))


def line(nodes: int) -> ModelProto:
    """Return that many nodes one after the other."""
    steps = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(nodes)]
    steps[0].input[0], steps[-1].output[0] = "x", "y"
    return made.model(steps, X, Y)


def with_weights(change: Callable[[TensorProto], object]) -> ModelProto:
    """Return an honest model with one tensor changed."""
    model = made.model([helper.make_node("Add", ["x", "w"], ["y"])], X, Y, [constant("w", np.zeros(4))])
    change(model.graph.initializer[0])
    return model


def _dims(*dims: int) -> ModelProto:
    def change(tensor: TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return with_weights(change)


def of_opset(version: int) -> ModelProto:
    """Return an honest model that names an operator set of the future."""
    return made.model([helper.make_node("Relu", ["x"], ["y"])], X, Y, opsets={"": version})


def cycle() -> ModelProto:
    """Return two nodes that wait for each other."""
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    return made.model([*nodes, helper.make_node("Neg", ["b"], ["y"])], X, Y)


def outgrown() -> ModelProto:
    """Return an output of 40 million elements that the file declares as N x 4."""
    nodes = [helper.make_node("Tile", ["x", "times"], ["y"])]
    return made.model(nodes, X, Y, [constant("times", [1_000_000, 1], np.int64)])


def text_bomb(times: int) -> ModelProto:
    """Return a string of a kilobyte, as often as the model likes."""
    word = helper.make_tensor("w", TensorProto.STRING, [1, 1], [b"x" * 1024])
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "times"], ["size"], axis=0),
        helper.make_node("Expand", ["w", "size"], ["y"]),
    ]
    outputs: list[Spec] = [("y", TensorProto.STRING, ["N", times])]
    return made.model(nodes, X, outputs, [word, constant("times", [times], np.int64)])


def no_numbers() -> ModelProto:
    """Return a model that answers nothing but not-a-number."""
    return made.model([helper.make_node("Mul", ["x", "w"], ["y"])], X, Y, [constant("w", [np.nan])])


def _honest() -> bytes:
    return bytes(made.model([helper.make_node("Relu", ["x"], ["y"])], X, Y).SerializeToString())


def _trees(**changes: Any) -> Callable[[], ModelProto]:
    return lambda: made.tree_model(**changes)


_TREE = {"y": np.ones((3, 1), np.float32)}
_FINE = "what it does shows when it runs; it is run at 1, 2 and 17 rows in a child with limits"
_MEMORY_MARKER = "*/_ORT_MEM_ADDR_/*"


def asking_for_files(canary: str, linked: str) -> list[Hostile]:
    """Return those that read the host: of a canary by its whole path, and of a link to it beside the worker."""
    places = {
        "by a path up": "../" * 40 + canary.lstrip("/"),
        "by its path": canary,
        "in the working directory": "beside",
        "in the working directory, deeper": "etc/passwd",
        "by a symbolic link": "symbolic",
        "by a hard link": linked,
        "through the address marker": _MEMORY_MARKER,
    }
    asked = [row(f"a file, {how}", lambda at=at: external(at), "external-data", REFUSED) for how, at in places.items()]
    deep = [row(f"a file, in an attribute, {how}", lambda at=at: external_attribute(at), "external-data", REFUSED)
            for how, at in places.items()]  # fmt: skip
    marker = row("an address of the process", lambda: external(_MEMORY_MARKER, 4096), "external-data", REFUSED)
    return [*asked, *deep, marker, row("a file, at 2^40", lambda: external("beside", 2**40), "external-data", REFUSED)]


BROKEN = [
    row("truncated", lambda: _honest()[:-30], "not-onnx", REFUSED),
    row("garbage", lambda: b"\x93garbage" * 99, "not-onnx", REFUSED),
    row("zeros", lambda: b"\0" * 4096, "not-onnx", REFUSED),
    row("raw data short", lambda: with_weights(lambda t: setattr(t, "raw_data", t.raw_data[:-1])), "tensor", REFUSED),
    row("negative dimensions", lambda: _dims(-4), "tensor", REFUSED),
    row("dimensions that lie", lambda: _dims(1 << 20), "tensor", REFUSED),
    row("dimensions that overflow", lambda: _dims(1 << 32, 1 << 32), "tensor", REFUSED, BLOATED),
    row("a cycle", cycle, "order", REFUSED),
    row("operator set 99", lambda: of_opset(99), "opset", REFUSED),
    row("an unknown operator", lambda: made.model([helper.make_node("RunShell", ["x"], ["y"])], X, Y), "operator",
        REFUSED),
    row("tree: target 99,999", _trees(target_ids=[0, 99_999]), "tree-targets", REFUSED, **_TREE),
    row("tree: feature -5", _trees(nodes_featureids=[-5, 0, 0]), "tree-features", REFUSED, **_TREE),
    row("tree: feature beyond the width", _trees(nodes_featureids=[99, 0, 0]), "tree-features", WRONG, **_TREE),
    row("tree: node is its own child", _trees(nodes_truenodeids=[0, 0, 0]), "tree-shape", REFUSED, **_TREE),
    row("tree: missing child", _trees(nodes_truenodeids=[7, 0, 0]), "tree-ids", REFUSED, **_TREE),
]  # fmt: skip

HOSTILE = [
    row("tree: 30,000 deep", _trees(**made.chain(30_000)), "tree-depth", CRASHED, **_TREE),
    row("a loop of 2^62 trips", endless, "subgraph", LATE),
    row("takes more memory bit by bit", swelling, "subgraph", BLOATED, LATE),
    row("a product of 9,000 x 9,000", lambda: product(9_000), _FINE, BLOATED),
    row("a product of rows, 3,900 x 3,900", drag, _FINE, LATE),
    row("64 GiB of zeros", lambda: filled(1 << 34), _FINE, BLOATED),
    row("4 GiB of zeros", lambda: filled(1 << 30), _FINE, BLOATED),
    row("a look outside of a table", gathered, _FINE, WRONG),
    row("If within If, 30 deep", lambda: nested(30), "subgraph"),
    row("an output far larger than declared", outgrown, _FINE, WRONG),
    row("strings without end", lambda: text_bomb(1 << 20), _FINE, BLOATED, WRONG,
        y=np.full((3, 1 << 20), b"", object)),
    row("nothing but not-a-number", no_numbers, _FINE, WRONG),
]  # fmt: skip

SLOW = [row("60,000 nodes in a line", lambda: line(60_000), "nodes", LATE)]
"""Takes seconds of a core to load, then serves; with a short time to load it does not."""


def slow_at(rows: int) -> ModelProto:
    """Return a model that answers at once, and never when it is asked for so many rows."""
    body = made.graph_of(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Add", ["carried", "tiny"], ["next"])],
        [("i", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), ("carried", FLOATS, [1])],
        [("still", TensorProto.BOOL, []), ("next", FLOATS, [1])],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Equal", ["rows", "those"], ["now"]),
        helper.make_node("Where", ["now", "many", "none"], ["trips_1"]),
        helper.make_node("Squeeze", ["trips_1"], ["trips"]),
        helper.make_node("Loop", ["trips", "", "start"], ["s"], body=body),
    ]
    numbers = {"those": rows, "many": 2**62, "none": 0}
    constants = [constant(name, [value], np.int64) for name, value in numbers.items()]
    return through(nodes, *constants, constant("start", [0.0]), TINY)
