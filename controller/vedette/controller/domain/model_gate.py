"""The gate every model passes before any runtime sees it: a pure function of the parsed file.

Rules of this file:

* Only what is written in the file is judged; nothing is loaded, run or opened.
* A model is refused by its first fault; the refusal names the node, its operator, the value and the limit.
* Checks that guard others come first: no later one may be slow or deep because an earlier one was not made.
* A model that passes can still be wrong; it is then run in a child with limits (``jobs.inspect_model``).

What each rule stops, and what runtimes did without it, is measured in docs/models.md. The protobuf classes of ``onnx``
are only named for the type checker: the server process never imports them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from vedette.controller.domain.model_operators import ALLOWED, IR_VERSIONS, OPSETS, domain_of
from vedette.controller.domain.model_text import TEXT_OPERATORS, check_text
from vedette.controller.domain.model_trees import TREE_OPERATORS, NodeFault, check_trees

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

_ELEMENT_BITS = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    16: 16,
    21: 4,
    22: 4,
}
"""Bits of an element by TensorProto.DataType (onnx.proto); types not listed are refused."""
_STRING = 8  # TensorProto.STRING, whose elements have no one size
_STRING_BYTES = 32  # that a runtime spends on each, beside its text
_TYPED_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}
"""Where elements lie when not in ``raw_data``; every other type uses ``int32_data``."""
_IO_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "bytes",
    9: "bool",
} | {
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""Types an input or output may have: those both numpy and the agent's ring carry."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What a model may weigh. The defaults hold for the default memory budget of an agent, 512 MiB."""

    file_bytes: int = 256 << 20
    nodes: int = 10_000  # 60,000 in a line took onnxruntime 5 s and 236 MB to load
    initializer_bytes: int = 256 << 20
    elements: int = 1 << 28  # of one tensor, declared
    input_elements: int = 1 << 23  # of one input, or of a row of it: golden samples of it are kept with the version
    tensors: int = 64  # inputs, and outputs
    name_characters: int = 512
    tree_depth: int = 1_000  # a chain of 30,000 overflows onnxruntime's stack
    tree_nodes: int = 4_000_000


class ModelRefused(Exception):
    """The model must not run here.

    Attributes:
        code: Which rule, as docs/models.md lists them.
        node: The node's name, or its first output when it has none; empty when the fault is no node's.
        operator: The node's operator with its domain; empty when the fault is no node's.
    """

    def __init__(self, code: str, text: str, node: str = "", operator: str = "") -> None:
        super().__init__(f"node {node!r} ({operator}): {text}" if operator else text)
        self.code = code
        self.node = node
        self.operator = operator


@dataclass(frozen=True, slots=True)
class Port:
    """One declared input or output: dtype as numpy names it, -1 where a dimension is variable."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Passed:
    """What the file declares, once it has passed."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    initializer_bytes: int
    notes: Mapping[str, str]  # the file's metadata_props


def check_size(size: int, limits: GateLimits | None = None) -> None:
    """Judge a file's size before it is read.

    Raises:
        ModelRefused: It is empty or above ``limits.file_bytes``.
    """
    limits = limits or GateLimits()
    if not 0 < size <= limits.file_bytes:
        raise ModelRefused(
            "size", f"the file is {size} bytes, allowed 1 to {limits.file_bytes} (GateLimits.file_bytes)"
        )


def check_model(model: ModelProto, limits: GateLimits | None = None) -> Passed:
    """Judge all of a model but its trees, whose input widths may need shape inference first.

    Raises:
        ModelRefused: A rule is broken.
    """
    limits = limits or GateLimits()
    _check_header(model)
    nodes = model.graph.node
    if not 1 <= len(nodes) <= limits.nodes:
        raise ModelRefused("nodes", f"the graph has {len(nodes)} nodes, allowed 1 to {limits.nodes} (GateLimits.nodes)")
    imported = {domain_of(item.domain) for item in model.opset_import}
    for node in nodes:
        _check_node(node, imported, limits)
    weight = sum(_check_tensor(tensor, limits) for tensor in _tensors(model))
    if weight > limits.initializer_bytes:
        raise ModelRefused("weights", f"its tensors hold {weight} bytes, limit {limits.initializer_bytes} (GateLimits)")
    if model.graph.sparse_initializer:
        raise ModelRefused("sparse", f"{len(model.graph.sparse_initializer)} sparse initializers; store them dense")
    _check_order(model.graph)
    inputs, outputs = _check_ports(model.graph, limits)
    return Passed(inputs, outputs, len(nodes), weight, {item.key: item.value for item in model.metadata_props})


def check_tree_nodes(model: ModelProto, limits: GateLimits | None = None) -> None:
    """Judge the decision trees of a model that passed :func:`check_model` and carries inferred shapes.

    Raises:
        ModelRefused: A tree is malformed, too deep, or reads a column that its input does not have.
    """
    limits = limits or GateLimits()
    widths = _widths(model.graph)
    for node in model.graph.node:
        if node.op_type not in TREE_OPERATORS:
            continue
        width = widths.get(node.input[0])
        if width is None:
            raise _at(node, "tree-width", f"the width of its input {node.input[0]!r} is not known; declare its shape")
        try:
            check_trees(_attributes(node), width, max_depth=limits.tree_depth, max_nodes=limits.tree_nodes)
        except NodeFault as exc:
            raise _at(node, exc.code, str(exc)) from exc


def _at(node: NodeProto, code: str, text: str) -> ModelRefused:
    name = node.name or (node.output[0] if node.output else "")
    return ModelRefused(code, text, name[:200], f"{domain_of(node.domain) or 'ai.onnx'}.{node.op_type}"[:200])


def _check_header(model: ModelProto) -> None:
    low, high = IR_VERSIONS
    if not low <= model.ir_version <= high:
        raise ModelRefused("ir-version", f"IR version {model.ir_version}, allowed {low} to {high}")
    if model.functions:
        raise ModelRefused("functions", f"{len(model.functions)} functions of its own; inline them before export")
    if model.training_info:
        raise ModelRefused("training", "it carries training graphs; export for inference")
    if not model.opset_import:
        raise ModelRefused("opset", "it names no operator set")
    for item in model.opset_import:
        domain = domain_of(item.domain)
        if domain not in OPSETS:
            raise ModelRefused(
                "domain", f"operator domain {item.domain[:200]!r}, known: {', '.join(map(repr, OPSETS))}"
            )
        low, high = OPSETS[domain]
        if not low <= item.version <= high:
            raise ModelRefused("opset", f"opset {item.version} of domain {domain!r}, allowed {low} to {high}")


def _check_node(node: NodeProto, imported: set[str], limits: GateLimits) -> None:
    domain = domain_of(node.domain)
    for attribute in node.attribute:
        # by content, not by the declared type: a lying type must not hide a graph
        if attribute.HasField("g") or attribute.graphs:
            raise _at(node, "subgraph", f"attribute {attribute.name[:100]!r} holds a graph of its own")
        if attribute.ref_attr_name:
            raise _at(node, "functions", f"attribute {attribute.name[:100]!r} refers to a function's argument")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise _at(node, "sparse", f"attribute {attribute.name[:100]!r} is a sparse tensor; store it dense")
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names):
        raise _at(node, "attribute", "an attribute is named twice: which of them holds is the reader's choice")
    if node.op_type not in ALLOWED.get(domain, ()):
        raise _at(node, "operator", "this operator is not on the allow list (docs/models.md)")
    if domain not in imported:
        raise _at(node, "opset", f"the file imports no operator set of domain {domain!r}")
    longest = max((len(name) for name in (node.name, *node.input, *node.output)), default=0)
    if longest > limits.name_characters:
        raise _at(node, "name", f"a name of {longest} characters, limit {limits.name_characters}")
    if node.op_type in TREE_OPERATORS and (domain != "ai.onnx.ml" or not node.input or not node.input[0]):
        raise _at(node, "tree-input", "it has no input")
    if node.op_type in TEXT_OPERATORS:
        try:
            check_text(node.op_type, _attributes(node))
        except NodeFault as exc:
            raise _at(node, exc.code, str(exc)) from exc


def _tensors(message: Any) -> Iterator[TensorProto]:
    """Yield every tensor anywhere in a message: initializers, attributes, whatever a new field may hold."""
    waiting = [message]
    while waiting:
        current = waiting.pop()
        if current.DESCRIPTOR.full_name == "onnx.TensorProto":
            yield current
        for field, value in current.ListFields():
            if field.message_type is None:
                continue
            waiting.extend([value] if hasattr(value, "DESCRIPTOR") else value)


def _check_tensor(tensor: TensorProto, limits: GateLimits) -> int:
    """Return the bytes a tensor holds; what it declares and what it holds must agree."""
    name = tensor.name[:200]
    if tensor.data_location != 0 or tensor.external_data:
        places = ", ".join(f"{e.key}={e.value[:100]!r}" for e in list(tensor.external_data)[:4])
        raise ModelRefused("external-data", f"tensor {name!r} lies outside the file ({places}); save it in one file")
    if tensor.HasField("segment"):
        raise ModelRefused("tensor", f"tensor {name!r} is one segment of a larger one")
    bits = _ELEMENT_BITS.get(tensor.data_type)
    if bits is None and tensor.data_type != _STRING:
        raise ModelRefused("tensor", f"tensor {name!r} has element type {tensor.data_type}, not one of this gate's")
    if len(tensor.dims) > 16 or any(d < 0 for d in tensor.dims) or prod(tensor.dims) > limits.elements:
        dims = list(tensor.dims)[:16]
        raise ModelRefused("tensor", f"tensor {name!r} declares shape {dims}, limit 16 dimensions of 0 or more and "
                           f"{limits.elements} elements (GateLimits.elements)")  # fmt: skip
    if bits is None:
        return _check_strings(tensor, name, prod(tensor.dims))
    return _check_elements(tensor, name, bits, prod(tensor.dims))


def _check_strings(tensor: TensorProto, name: str, elements: int) -> int:
    held = len(tensor.string_data)
    if held != elements or tensor.HasField("raw_data"):
        raise ModelRefused("tensor", f"tensor {name!r} declares {elements} strings and holds {held}")
    return sum(map(len, tensor.string_data)) + _STRING_BYTES * held


def _check_elements(tensor: TensorProto, name: str, bits: int, elements: int) -> int:
    if tensor.HasField("raw_data"):
        held, needed, unit = len(tensor.raw_data), (elements * bits + 7) // 8, "bytes"
    else:
        held = len(getattr(tensor, _TYPED_FIELDS.get(tensor.data_type, "int32_data")))
        needed, unit = (-(-elements // 2) if bits == 4 else elements), "entries"
    if held != needed:
        raise ModelRefused(
            "tensor", f"tensor {name!r} declares {elements} elements and holds {held} {unit}, not {needed}"
        )
    return max(held, (elements * bits + 7) // 8)


def _check_order(graph: GraphProto) -> None:
    """Every node reads only what stands before it, and no name is made twice: no cycle is left."""
    made = {item.name for item in graph.initializer}
    for value in graph.input:
        made.add(value.name)
    for node in graph.node:
        missing = next((name for name in node.input if name and name not in made), None)
        if missing is not None:
            raise _at(node, "order", f"it reads {missing[:200]!r}, which nothing before it makes")
        for name in node.output:
            if name and name in made:
                raise _at(node, "order", f"it makes {name[:200]!r}, which is already made")
            made.add(name)
    unmade = next((value.name for value in graph.output if value.name not in made), None)
    if unmade is not None:
        raise ModelRefused("order", f"output {unmade[:200]!r} is made by no node")


def _check_ports(graph: GraphProto, limits: GateLimits) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    constants = {item.name for item in graph.initializer}
    inputs = tuple(_port(v, "input", limits) for v in graph.input if v.name not in constants)
    outputs = tuple(_port(v, "output", limits) for v in graph.output)
    for what, ports in (("inputs", inputs), ("outputs", outputs)):
        if not 1 <= len(ports) <= limits.tensors:
            raise ModelRefused(
                "ports", f"it has {len(ports)} {what}, allowed 1 to {limits.tensors} (GateLimits.tensors)"
            )
        if len({port.name for port in ports}) != len(ports):
            raise ModelRefused("ports", f"two of its {what} share a name")
    for port in inputs:
        least = prod(length for length in port.shape if length != -1)
        if least > limits.input_elements:
            raise ModelRefused("ports", f"input {port.name!r} declares shape {list(port.shape)}, at least {least} "
                               f"elements, limit {limits.input_elements} (GateLimits.input_elements)")  # fmt: skip
    return inputs, outputs


def _port(value: ValueInfoProto, what: str, limits: GateLimits) -> Port:
    name = value.name
    if not name or len(name) > limits.name_characters or "\0" in name:
        raise ModelRefused(
            "name", f"{what} name {name[:100]!r} has {len(name)} characters, limit {limits.name_characters}"
        )
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelRefused("ports", f"{what} {name!r} is a {kind}, not a tensor (turn zipmap off when exporting)")
    tensor = value.type.tensor_type
    dtype = _IO_TYPES.get(tensor.elem_type)
    if dtype is None:
        raise ModelRefused("ports", f"{what} {name!r} has element type {tensor.elem_type}, known: {sorted(_IO_TYPES)}")
    if what == "input" and not tensor.HasField("shape"):
        raise ModelRefused("ports", f"input {name!r} declares no shape")
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    if len(shape) > 8 or any(d != -1 and not 0 < d <= limits.elements for d in shape):
        raise ModelRefused(
            "ports",
            f"{what} {name!r} declares shape {list(shape)[:16]}, 8 of 1 to {limits.elements} at most",
        )
    return Port(name, dtype, shape)


def _widths(graph: GraphProto) -> dict[str, int]:
    """Return the last dimension of every value whose shape is known and has two dimensions."""
    known: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 2 and dims[1].HasField("dim_value"):
            known[value.name] = dims[1].dim_value
    return known


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: item for item in node.attribute}
