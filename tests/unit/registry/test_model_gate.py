"""Each hostile or broken model of the failure tables meets its refusal, and real models pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from tests.support import onnx_models as made
from tests.support.onnx_models import FLOATS
from vedette.controller.domain.model_gate import GateLimits, ModelRefused, check_model, check_size, check_tree_nodes


def judge(model: ModelProto, limits: GateLimits | None = None) -> None:
    check_model(model, limits)
    check_tree_nodes(model, limits)


def external(**entries: str) -> ModelProto:
    model = made.linear()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weights.external_data.add(key=key, value=value)
    return model


def external_in_constant() -> ModelProto:
    model = made.model(
        [helper.make_node("Constant", [], ["c"], name="c", value=made.constant("c", [1.0])),
         helper.make_node("Add", ["x", "c"], ["y"])],
        [("x", FLOATS, ["N", 1])], [("y", FLOATS, ["N", 1])],
    )  # fmt: skip
    model.graph.node[0].attribute[0].t.external_data.add(key="location", value="../x")
    return model


def graph_attribute(operator: str, disguised: bool = False) -> ModelProto:
    body = made.graph_of([helper.make_node("Identity", ["a"], ["b"])], [("a", FLOATS, [1])], [("b", FLOATS, [1])])
    node = helper.make_node(operator, ["x"], ["y"], name="inner", body=body)
    if disguised:
        node.attribute[0].type = 1  # says FLOAT
    return made.model([node], [("x", FLOATS, ["N", 1])], [("y", FLOATS, ["N", 1])])


def one_node(operator: str, domain: str = "", **more: object) -> ModelProto:
    node = helper.make_node(operator, ["x"], ["y"], name="n1", domain=domain, **more)
    return made.model([node], [("x", FLOATS, ["N", 4])], [("y", FLOATS, ["N", 4])])


def cycle() -> ModelProto:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
    ]
    return made.model(nodes, [("x", FLOATS, ["N", 1])], [("b", FLOATS, ["N", 1])])


def unmade_output() -> ModelProto:
    node = helper.make_node("Relu", ["x"], ["z"])
    return made.model([node], [("x", FLOATS, ["N"])], [("y", FLOATS, ["N"])])


def short_weights() -> ModelProto:
    model = made.linear()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]
    return model


def lying_dims(*dims: int) -> ModelProto:
    model = made.linear()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


def with_function() -> ModelProto:
    model = made.linear()
    model.functions.add(name="F", domain="custom")
    return model


def opset(domain: str, version: int) -> ModelProto:
    model = made.linear()
    model.opset_import.add(domain=domain, version=version)
    return model


def fixed_batch() -> ModelProto:
    return made.model([helper.make_node("Relu", ["x"], ["y"])], [("x", FLOATS, [1, 4])], [("y", FLOATS, [1, 4])])


def identity_of(kind: int) -> ModelProto:
    return made.model([helper.make_node("Identity", ["x"], ["y"])], [("x", kind, ["N"])], [("y", kind, ["N"])])


def map_output() -> ModelProto:
    model = made.linear()
    value = model.graph.output[0].type
    value.Clear()
    value.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    return model


def line(nodes: int) -> ModelProto:
    steps = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(nodes)]
    return made.model(steps, [("v0", FLOATS, ["N", 1])], [(f"v{nodes}", FLOATS, ["N", 1])])


def unknown_width() -> ModelProto:
    trees = made.tree_node()
    trees.input[0] = "h"
    return made.model(
        [helper.make_node("Identity", ["x"], ["h"]), trees], [("x", FLOATS, ["N", 4])], [("y", FLOATS, ["N", 1])]
    )


def variable_columns() -> ModelProto:
    spec = [("x", FLOATS, ["N", "F"])], [("y", FLOATS, ["N", "F"])]
    return made.model([helper.make_node("Relu", ["x"], ["y"])], *spec)


def twice_named() -> ModelProto:
    model = terms()
    model.graph.node[0].attribute.append(helper.make_attribute("max_skip_count", 1))
    return model


def sized(*shape: int) -> ModelProto:
    return made.model([helper.make_node("Relu", ["x"], ["y"])], [("x", FLOATS, [*shape])], [("y", FLOATS, [*shape])])


def missing_strings() -> ModelProto:
    held = TensorProto(name="w", data_type=TensorProto.STRING, dims=[3], string_data=[b"a"])
    return made.model([helper.make_node("Identity", ["w"], ["y"])], [("x", FLOATS, [1])], [("y", 8, [3])], [held])


def of_text(operator: str, domain: str = "", **attributes: object) -> ModelProto:
    given = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(operator, ["x"], ["y"], name="text", domain=domain, **given)
    opsets = {"": 20, "com.microsoft": 1}
    return made.model([node], [("x", TensorProto.STRING, ["N"])], [("y", FLOATS, ["N", "M"])], opsets=opsets)


def terms(**changes: object) -> ModelProto:
    plain: dict[str, object] = {
        **{"mode": "TF", "min_gram_length": 1, "max_gram_length": 1, "max_skip_count": 0},
        **{"ngram_counts": [0], "ngram_indexes": [0, 1], "pool_strings": ["cat", "dog"]},
    }
    return of_text("TfIdfVectorizer", **plain | changes)


def splitter(**attributes: object) -> ModelProto:
    return of_text("Tokenizer", "com.microsoft", mark=0, mincharnum=1, pad_value="#", **attributes)


def normaliser(locale: str | None) -> ModelProto:
    return of_text("StringNormalizer", case_change_action="LOWER", locale=locale)


HOSTILE: list[tuple[str, str, Callable[[], ModelProto]]] = [
    ("external data up the tree", "external-data", lambda: external(location="../x")),
    ("external data at an absolute path", "external-data", lambda: external(location="/etc/passwd")),
    ("external data, in-memory address marker", "external-data", lambda: external(location="*/_ORT_MEM_ADDR_/*")),
    ("external data at 2^40", "external-data", lambda: external(location="w", offset=str(1 << 40))),
    ("external data declared without entries", "external-data", external),
    ("external data in a Constant", "external-data", external_in_constant),
    ("a Loop", "subgraph", lambda: graph_attribute("Loop")),
    ("a Scan", "subgraph", lambda: graph_attribute("Scan")),
    ("a graph under a lying attribute type", "subgraph", lambda: graph_attribute("If", disguised=True)),
    ("a Loop without its graph", "operator", lambda: one_node("Loop")),
    ("random numbers", "operator", lambda: one_node("RandomNormalLike")),
    ("an unknown operator", "operator", lambda: one_node("RunShell")),
    ("an unknown domain of a node", "operator", lambda: one_node("Relu", "org.example")),
    ("an allowed operator in another's domain", "operator", lambda: one_node("Relu", "ai.onnx.ml")),
    ("a domain not imported", "opset", lambda: one_node("FastGelu", "com.microsoft")),
    ("an unknown domain imported", "domain", lambda: opset("org.example", 1)),
    ("operator set 99", "opset", lambda: opset("ai.onnx.ml", 99)),
    ("functions", "functions", with_function),
    ("a cycle", "order", cycle),
    ("an output nobody makes", "order", unmade_output),
    ("short weights", "tensor", short_weights),
    ("negative dimensions", "tensor", lambda: lying_dims(-4, -2)),
    ("dimensions that lie", "tensor", lambda: lying_dims(1 << 20, 2)),
    ("dimensions that overflow", "tensor", lambda: lying_dims(1 << 32, 1 << 32)),
    ("dimensions without end", "tensor", lambda: lying_dims(*[2] * 17)),
    ("an attribute named twice", "attribute", twice_named),
    ("an input that is too large for golden samples", "ports", lambda: sized(1, 3, 4096, 4096)),
    ("strings that are not there", "tensor", missing_strings),
    ("text: fewer places than terms", "text-terms", lambda: terms(ngram_indexes=[0])),
    ("text: a vector without end", "text-terms", lambda: terms(ngram_indexes=[0, 1 << 31])),
    ("text: a place below zero", "text-terms", lambda: terms(ngram_indexes=[0, -1])),
    ("text: skips without end", "text-terms", lambda: terms(max_skip_count=1 << 40)),
    ("text: counts beyond the pool", "text-terms", lambda: terms(ngram_counts=[5])),
    ("text: counts below zero", "text-terms", lambda: terms(ngram_counts=[-3])),
    ("text: terms without end", "text-terms", lambda: terms(max_gram_length=1 << 40)),
    ("text: half a term", "text-terms", lambda: terms(ngram_counts=[0, 1], ngram_indexes=[0], max_gram_length=2)),
    ("text: weights differ", "text-terms", lambda: terms(weights=[1.0])),
    ("text: no pool", "text-terms", lambda: terms(pool_strings=None)),
    ("text: two pools", "text-terms", lambda: terms(pool_int64s=[1, 2])),
    ("text: a pattern without end", "text-pattern", lambda: splitter(separators=["x" * 2000])),
    ("text: patterns without end", "text-pattern", lambda: splitter(separators=["x"] * 65)),
    ("text: a locale that hosts lack", "text-locale", lambda: normaliser("tr_TR.UTF-8")),
    ("a sequence of strings", "operator", lambda: one_node("SplitToSequence")),
    ("places that another input names", "operator", lambda: one_node("MaxUnpool")),
    ("complex numbers", "ports", lambda: identity_of(TensorProto.COMPLEX64)),
    ("a sequence of maps", "ports", map_output),
    ("10,001 nodes in a line", "nodes", lambda: line(10_001)),
    ("no nodes", "nodes", lambda: made.model([], [("x", FLOATS, ["N"])], [("x", FLOATS, ["N"])])),
    ("a file format of the future", "ir-version", lambda: made.model([], [], [], ir_version=99)),
    ("tree: target beyond", "tree-targets", lambda: made.tree_model(target_ids=[0, 99_999])),
    ("tree: negative target", "tree-targets", lambda: made.tree_model(target_ids=[0, -1])),
    ("tree: negative feature", "tree-features", lambda: made.tree_model(nodes_featureids=[-5, 0, 0])),
    ("tree: feature beyond the width", "tree-features", lambda: made.tree_model(nodes_featureids=[4, 0, 0])),
    ("tree: missing child", "tree-ids", lambda: made.tree_model(nodes_truenodeids=[7, 0, 0])),
    ("tree: node is its own child", "tree-shape", lambda: made.tree_model(nodes_truenodeids=[0, 0, 0])),
    ("tree: child twice", "tree-shape", lambda: made.tree_model(nodes_truenodeids=[2, 0, 0])),
    ("tree: 1,001 deep", "tree-depth", lambda: made.tree_model(**made.chain(1_000))),
    ("tree: 30,000 deep", "tree-depth", lambda: made.tree_model(**made.chain(30_000))),
    ("tree: node twice", "tree-ids", lambda: made.tree_model(nodes_nodeids=[0, 1, 1])),
    ("tree: lists differ", "tree-nodes", lambda: made.tree_model(nodes_values=[0.5])),
    ("tree: strange mode", "tree-modes", lambda: made.tree_model(nodes_modes=["JUMP", "LEAF", "LEAF"])),
    ("tree: weights for no node", "tree-ids", lambda: made.tree_model(target_nodeids=[1, 9])),
    ("tree: weights differ", "tree-weights", lambda: made.tree_model(target_weights=[1.0])),
    ("tree: not a number", "tree-values", lambda: made.tree_model(nodes_values=[float("nan"), 0, 0])),
    ("tree: no targets", "tree-targets", lambda: made.tree_model(n_targets=None)),
    ("tree: width unknown", "tree-width", unknown_width),
    ("tree: no nodes", "tree-nodes", lambda: made.tree_model(nodes_treeids=None)),
]


@pytest.mark.parametrize(("code", "build"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_hostile_model_is_refused_by_the_rule_that_names_it(code: str, build: Callable[[], ModelProto]) -> None:
    with pytest.raises(ModelRefused) as caught:
        judge(build())
    assert caught.value.code == code


def test_refusal_names_node_and_operator() -> None:
    with pytest.raises(ModelRefused, match=r"node 'trees' \(ai\.onnx\.ml\.TreeEnsembleRegressor\).*99999") as caught:
        judge(made.tree_model(target_ids=[0, 99_999]))
    assert (caught.value.node, caught.value.operator) == ("trees", "ai.onnx.ml.TreeEnsembleRegressor")


def test_disconnected_cycle_beside_a_good_tree_is_found() -> None:
    changes = {
        "nodes_treeids": [0, 0, 0, 1, 1, 1],
        "nodes_nodeids": [0, 1, 2, 0, 1, 2],
        "nodes_featureids": [0] * 6,
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF", "LEAF", "BRANCH_LEQ", "BRANCH_LEQ"],
        "nodes_values": [0.0] * 6,
        "nodes_truenodeids": [1, 0, 0, 0, 2, 1],
        "nodes_falsenodeids": [2, 0, 0, 0, 2, 1],
    }
    with pytest.raises(ModelRefused) as caught:
        judge(made.tree_model(**changes))
    assert caught.value.code == "tree-shape"


@pytest.mark.parametrize("size", [0, (256 << 20) + 1])
def test_size_is_judged_before_reading(size: int) -> None:
    with pytest.raises(ModelRefused, match=str(size)):
        check_size(size)


def test_honest_models_pass_and_say_what_they_are() -> None:
    passed = check_model(made.linear(width=4, outputs=2))
    assert [(p.name, p.dtype, p.shape) for p in (*passed.inputs, *passed.outputs)] == [
        ("x", "float32", (-1, 4)),
        ("y", "float32", (-1, 2)),
    ]
    assert passed.initializer_bytes == (8 + 2) * 4
    judge(made.tree_model())
    judge(made.tree_model(**made.chain(998)))


def test_trees_as_tensors_are_read_like_lists() -> None:
    tensor = made.constant("v", [0.5, 0.0, np.inf])
    with pytest.raises(ModelRefused, match="not finite"):
        judge(made.tree_model(nodes_values=None, nodes_values_as_tensor=tensor))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_a_damaged_model_passes_or_is_refused_and_nothing_else(noise: bytes, at: int) -> None:
    raw = made.tree_model().SerializeToString()
    at = at % len(raw)
    try:
        model = ModelProto.FromString(raw[:at] + noise + raw[at + len(noise) :])
    except Exception:  # protobuf itself refused it; its error class is not public
        return
    try:
        judge(model)
    except ModelRefused:
        return


@pytest.mark.parametrize(
    "build",
    [fixed_batch, variable_columns, terms, lambda: splitter(separators=[" ", "[.,;]"]), lambda: normaliser(None),
     lambda: normaliser("en_GB.UTF-8"), lambda: normaliser("C.UTF-8"), sized, lambda: sized(1, 3, 224, 224)],
)  # fmt: skip
def test_what_is_no_table_of_numbers_is_let_through(build: Callable[[], ModelProto]) -> None:
    judge(build())


def test_a_model_of_strings_is_let_through() -> None:
    passed = check_model(identity_of(TensorProto.STRING))
    assert [(port.name, port.dtype, port.shape) for port in passed.inputs] == [("x", "bytes", (-1,))]
