"""Decision trees as the flat lists that a TreeEnsemble node of ONNX holds.

Written from the models' own dumps rather than through onnxmltools and skl2onnx: those keep LightGBM's float64
thresholds as the nearest float32 (7 % of the classes flip on rows of times and byte counters, measured with onnxmltools
1.16 on the rows of tests/unit/conversion), declare a label for one row, and spread an isolation forest over some
thousand nodes.

Source: TreeEnsembleRegressor, https://onnx.ai/onnx/operators/ (domain ai.onnx.ml, version 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from vedette.controller.conversion.errors import ConversionError

_MAX_FLOAT = float(np.finfo(np.float32).max)


def snap_down(threshold: float) -> float:
    """Return the greatest float32 that is not above ``threshold``.

    For every float32 x, ``x <= threshold`` and ``x <= snap_down(threshold)`` then agree: nothing lies between. Beyond
    the range of float32 the outermost finite numbers stand in.
    """
    if not -_MAX_FLOAT <= threshold <= _MAX_FLOAT:
        return math.copysign(_MAX_FLOAT, threshold)
    near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))


class Node(NamedTuple):
    """A branch that asks ``x[feature] <= value``, or a leaf that adds ``weight`` to ``target``."""

    tree: int
    node: int
    feature: int = 0
    value: float = 0.0
    yes: int = 0
    no: int = 0
    null_is_yes: bool = False
    target: int = -1  # -1: a branch
    weight: float = 0.0


@dataclass(slots=True)
class Trees:
    """The nodes of some trees, which add up to ``targets`` sums."""

    targets: int
    nodes: list[Node] = field(default_factory=list)

    def add(self, node: Node) -> None:
        """Add a node; the value of a branch is rounded down to float32."""
        self.nodes.append(node if node.target >= 0 else node._replace(value=snap_down(node.value)))

    def thresholds(self) -> Mapping[int, npt.NDArray[np.float32]]:
        """Return the different thresholds of each feature that is asked for."""
        inner = [node for node in self.nodes if node.target < 0]
        features = np.array([node.feature for node in inner], np.int64)
        values = np.array([node.value for node in inner], np.float32)
        return {int(name): np.unique(values[features == name]) for name in np.unique(features)}

    def as_node(self, source: str, result: str) -> NodeProto:
        """Return one node that adds up the leaves: float32 [rows, features] to float32 [rows, targets]."""
        leaves = [node for node in self.nodes if node.target >= 0]
        return helper.make_node(
            "TreeEnsembleRegressor",
            [source],
            [result],
            name=result,
            domain="ai.onnx.ml",
            n_targets=self.targets,
            aggregate_function="SUM",
            post_transform="NONE",
            nodes_treeids=[node.tree for node in self.nodes],
            nodes_nodeids=[node.node for node in self.nodes],
            nodes_featureids=[node.feature for node in self.nodes],
            nodes_modes=["BRANCH_LEQ" if node.target < 0 else "LEAF" for node in self.nodes],
            nodes_values=[node.value for node in self.nodes],
            nodes_truenodeids=[node.yes for node in self.nodes],
            nodes_falsenodeids=[node.no for node in self.nodes],
            nodes_missing_value_tracks_true=[int(node.null_is_yes) for node in self.nodes],
            target_treeids=[node.tree for node in leaves],
            target_nodeids=[node.node for node in leaves],
            target_ids=[node.target for node in leaves],
            target_weights=[node.weight for node in leaves],
        )


def lightgbm_trees(booster: Any) -> Trees:
    """Return the trees of a LightGBM booster; their sums are its raw scores.

    Raises:
        ConversionError: It splits on categories or on missing zeros, averages its trees, or has linear leaves.
    """
    model = booster.dump_model()
    if model.get("average_output"):
        raise ConversionError("a LightGBM random forest averages its trees")
    classes = int(model["num_tree_per_iteration"])
    trees = Trees(targets=classes)
    for number, info in enumerate(model["tree_info"]):
        _walk(trees, number, number % classes, info["tree_structure"])
    if not trees.nodes:
        raise ConversionError("the booster has no trees")
    return trees


def _walk(trees: Trees, tree: int, target: int, root: Mapping[str, Any]) -> None:
    for node, body, children in _numbered(root):
        if "leaf_coeff" in body:
            raise ConversionError(f"tree {tree} has linear leaves")
        if children is None:
            trees.add(Node(tree, node, target=target, weight=float(body["leaf_value"])))
            continue
        value = float(body["threshold"]) if body["decision_type"] == "<=" else math.nan
        missing = body["missing_type"]
        if body["decision_type"] != "<=" or missing == "Zero":
            what = f"decides by {body['decision_type']!r} with missing type {missing!r}"
            raise ConversionError(f"tree {tree} {what}; only '<=' with 'None' or 'NaN' can be written")
        # Without a null in training LightGBM reads null as 0.0, else it goes the way the training chose.
        null_is_yes = bool(body["default_left"]) if missing == "NaN" else value >= 0.0
        trees.add(Node(tree, node, int(body["split_feature"]), value, *children, null_is_yes))


def _numbered(root: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any], tuple[int, int] | None]]:
    """Yield each node with a number and its children's, without recursion: trees of untrusted origin may be deep."""
    waiting, free = [(0, root)], 1
    while waiting:
        number, body = waiting.pop()
        if "split_feature" not in body:
            yield number, body, None
            continue
        children = (free, free + 1)
        free += 2
        waiting += [(children[1], body["right_child"]), (children[0], body["left_child"])]
        yield number, body, children


def isolation_trees(forest: Any) -> Trees:
    """Return the trees of a fitted scikit-learn IsolationForest; their sum is the path length over all trees.

    A leaf weighs its depth and the mean path that the samples left in it would still have made.

    Source: Liu, Ting and Zhou, Isolation Forest, ICDM 2008, equation 1.
    """
    trees = Trees(targets=1)
    for number, (estimator, columns) in enumerate(zip(forest.estimators_, forest.estimators_features_, strict=True)):
        tree = estimator.tree_
        left, right = tree.children_left.tolist(), tree.children_right.tolist()
        depth = [0] * len(left)
        for node, (yes, no) in enumerate(zip(left, right, strict=True)):  # parents come before their children
            if yes < 0:
                rest = mean_path(int(tree.n_node_samples[node]))
                trees.add(Node(number, node, target=0, weight=depth[node] + rest))
                continue
            depth[yes] = depth[no] = depth[node] + 1
            feature = int(columns[tree.feature[node]])
            trees.add(Node(number, node, feature, float(tree.threshold[node]), yes, no))
    return trees


def mean_path(samples: int) -> float:
    """Return the mean length of an unsuccessful search in a binary search tree of ``samples`` keys.

    Source: Preiss, Data Structures and Algorithms, 1999, as cited by Liu, Ting and Zhou, ICDM 2008.
    """
    if samples <= 1:
        return 0.0
    if samples == 2:
        return 1.0
    return 2.0 * (math.log(samples - 1.0) + np.euler_gamma) - 2.0 * (samples - 1.0) / samples
