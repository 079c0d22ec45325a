"""Whether the trees of a tree-ensemble node are trees: every step is numpy over all nodes at once.

onnxruntime walks trees by recursion when it loads them: a chain of 30,000 nodes is a crash there, and older versions
read a leaf's target or a node's feature outside their arrays. None of the format's own checkers looks.

Source: TreeEnsembleClassifier and TreeEnsembleRegressor, https://onnx.ai/onnx/operators/ (domain ai.onnx.ml, 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import AttributeProto

Ids = npt.NDArray[np.int64]

TREE_OPERATORS = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_BRANCHES = frozenset({b"BRANCH_LEQ", b"BRANCH_LT", b"BRANCH_GTE", b"BRANCH_GT", b"BRANCH_EQ", b"BRANCH_NEQ"})
_LEAF = b"LEAF"
_NODE_LISTS = ("nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids", "nodes_modes")


class NodeFault(Exception):
    """A node is not what it must be; ``code`` names the rule."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def check_trees(
    attributes: Mapping[str, AttributeProto], width: int, *, max_depth: int = 1_000, max_nodes: int = 4_000_000
) -> None:
    """Judge one tree-ensemble node.

    Args:
        attributes: The node's attributes by name.
        width: Columns of its input.
        max_depth: Most nodes from a root to a leaf.
        max_nodes: Most nodes of all trees together.

    Raises:
        NodeFault: Lists differ in length, an id has no node, a node has two parents or no way from its root, a tree is
            too deep, a feature or a target lies outside its array, or a number is not finite.
    """
    trees = _ints(attributes, "nodes_treeids")
    if not 1 <= len(trees) <= max_nodes:
        raise NodeFault(
            "tree-nodes", f"it has {len(trees)} tree nodes, allowed 1 to {max_nodes} (GateLimits.tree_nodes)"
        )
    nodes = _ints(attributes, "nodes_nodeids")
    _same_length(attributes, len(trees), nodes)
    keys = _Keys(trees, nodes)
    leaf = _leaves(attributes["nodes_modes"])
    _check_features(_ints(attributes, "nodes_featureids")[~leaf], width)
    children = np.stack(
        [
            keys.find(trees[~leaf], _ints(attributes, name)[~leaf], name)
            for name in ("nodes_truenodeids", "nodes_falsenodeids")
        ]
    )
    _check_shape(keys.trees, np.flatnonzero(~leaf), children, len(trees), max_depth)
    _check_weights(attributes, keys)
    _check_numbers(attributes)


class _Keys:
    """Finds nodes by (tree, node) id: both ids are numbered densely, so that one integer stands for a pair."""

    def __init__(self, trees: Ids, nodes: Ids) -> None:
        self._trees, tree_numbers = np.unique(trees, return_inverse=True)
        self._nodes, node_numbers = np.unique(nodes, return_inverse=True)
        keys = tree_numbers * len(self._nodes) + node_numbers
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        repeated = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(repeated):
            at = self._order[repeated[0]]
            raise NodeFault("tree-ids", f"node {nodes[at]} of tree {trees[at]} is described twice")

    @property
    def trees(self) -> int:
        """Return how many trees there are."""
        return len(self._trees)

    def find(self, trees: Ids, nodes: Ids, what: str) -> Ids:
        """Return the index of each (tree, node); a pair that no node has is a fault."""
        tree_numbers, tree_known = _place(self._trees, trees)
        node_numbers, node_known = _place(self._nodes, nodes)
        at, known = _place(self._sorted, tree_numbers * len(self._nodes) + node_numbers)
        lost = np.flatnonzero(~(tree_known & node_known & known))
        if len(lost):
            pair = f"node {nodes[lost[0]]} of tree {trees[lost[0]]}"
            raise NodeFault("tree-ids", f"{what} names {pair}, which does not exist")
        return np.asarray(self._order[at], np.int64)


def _place(known: Ids, wanted: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Return where each wanted number stands among sorted ones, and whether it does."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.asarray(at, np.int64), known[at] == wanted


def _ints(attributes: Mapping[str, AttributeProto], name: str) -> Ids:
    held = attributes.get(name)
    return np.zeros(0, np.int64) if held is None else np.asarray(held.ints, np.int64)


def _numbers(attributes: Mapping[str, AttributeProto], name: str) -> npt.NDArray[np.float64]:
    """Return a list of reals, written as floats or, since ai.onnx.ml 3, as one tensor."""
    held, tensor = attributes.get(name), attributes.get(f"{name}_as_tensor")
    if tensor is not None and tensor.HasField("t"):
        kinds = {1: np.float32, 11: np.float64}
        kind = kinds.get(tensor.t.data_type)
        if kind is None:
            raise NodeFault("tree-values", f"{name}_as_tensor has element type {tensor.t.data_type}, known: 1, 11")
        if tensor.t.HasField("raw_data"):
            return np.frombuffer(tensor.t.raw_data, np.dtype(kind).newbyteorder("<")).astype(np.float64)
        return np.asarray(tensor.t.float_data if kind is np.float32 else tensor.t.double_data, np.float64)
    return np.zeros(0) if held is None else np.asarray(held.floats, np.float64)


def _same_length(attributes: Mapping[str, AttributeProto], count: int, nodes: Ids) -> None:
    lengths = {"nodes_nodeids": len(nodes), "nodes_values": len(_numbers(attributes, "nodes_values"))}
    for name in _NODE_LISTS:
        held = attributes.get(name)
        lengths[name] = 0 if held is None else len(held.strings if name == "nodes_modes" else held.ints)
    for name in ("nodes_missing_value_tracks_true", "nodes_hitrates"):
        if name in attributes:
            lengths[name] = len(attributes[name].ints) + len(attributes[name].floats)
    wrong = next((name for name, length in lengths.items() if length != count), None)
    if wrong is not None:
        raise NodeFault("tree-nodes", f"{wrong} has {lengths[wrong]} entries, nodes_treeids has {count}")


def _leaves(modes: AttributeProto) -> npt.NDArray[np.bool_]:
    known = _BRANCHES | {_LEAF}
    strange = next((mode for mode in set(modes.strings) if mode not in known), None)
    if strange is not None:
        raise NodeFault("tree-modes", f"a node has mode {strange[:40]!r}, known: {sorted(known)}")
    return np.fromiter((mode == _LEAF for mode in modes.strings), np.bool_, len(modes.strings))


def _check_features(features: Ids, width: int) -> None:
    outside = features[(features < 0) | (features >= width)]
    if len(outside):
        raise NodeFault("tree-features", f"a node reads feature {outside[0]}, its input has columns 0 to {width - 1}")


def _check_shape(trees: int, branches: Ids, children: Ids, count: int, max_depth: int) -> None:
    """Walk all trees down together, one level a step: each node is reached once, within the depth."""
    parents = np.bincount(children.ravel(), minlength=count)
    if parents.max(initial=0) > 1:
        raise NodeFault("tree-shape", f"{int((parents > 1).sum())} nodes have more than one parent")
    slot = np.full(count, -1, np.int64)
    slot[branches] = np.arange(len(branches))
    frontier = np.flatnonzero(parents == 0)
    if len(frontier) > trees:
        raise NodeFault("tree-shape", f"{trees} trees have {len(frontier)} roots")
    reached = 0
    for _ in range(max_depth):
        reached += len(frontier)
        inner = slot[frontier]
        frontier = children[:, inner[inner >= 0]].ravel()
        if not len(frontier):
            break
    else:
        raise NodeFault("tree-depth", f"a tree is deeper than {max_depth} nodes (GateLimits.tree_depth)")
    if reached != count:
        raise NodeFault("tree-shape", f"{count - reached} of {count} nodes hang in a cycle, out of reach of any root")


def _check_weights(attributes: Mapping[str, AttributeProto], keys: _Keys) -> None:
    prefix = "class" if "class_ids" in attributes else "target"
    targets = _ints(attributes, f"{prefix}_ids")
    trees, nodes = _ints(attributes, f"{prefix}_treeids"), _ints(attributes, f"{prefix}_nodeids")
    weights = _numbers(attributes, f"{prefix}_weights")
    if not len(targets) == len(trees) == len(nodes) == len(weights):
        lengths = [len(targets), len(trees), len(nodes), len(weights)]
        raise NodeFault("tree-weights", f"{prefix} ids, tree ids, node ids and weights have {lengths} entries")
    keys.find(trees, nodes, f"{prefix}_nodeids")
    most = _outputs(attributes, prefix)
    outside = targets[(targets < 0) | (targets >= most)]
    if len(outside):
        raise NodeFault("tree-targets", f"a leaf adds to {prefix} {outside[0]}, known are 0 to {most - 1}")


def _outputs(attributes: Mapping[str, AttributeProto], prefix: str) -> int:
    if prefix == "target":
        targets = attributes["n_targets"].i if "n_targets" in attributes else 0
        if not 1 <= targets <= 65_536:
            raise NodeFault("tree-targets", f"n_targets is {targets}, allowed 1 to 65536")
        return int(targets)
    labels = [attributes[name] for name in ("classlabels_int64s", "classlabels_strings") if name in attributes]
    count = sum(len(item.ints) + len(item.strings) for item in labels)
    if not count:
        raise NodeFault("tree-targets", "it names no class labels")
    return count


def _check_numbers(attributes: Mapping[str, AttributeProto]) -> None:
    for name in ("nodes_values", "class_weights", "target_weights", "base_values"):
        numbers = _numbers(attributes, name)
        if not np.isfinite(numbers).all():
            raise NodeFault(
                "tree-values", f"{name} holds {int((~np.isfinite(numbers)).sum())} numbers that are not finite"
            )
