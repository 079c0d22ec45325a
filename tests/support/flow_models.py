"""A small real model of flows, on the product's own features and captures, with all that a release names."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from tests.support.captures import capture_datagrams
from tests.support.flow_training import capture_training, flow_threat
from tests.support.tiny_models import Shelf, model_bytes
from vedette.controller.conversion.models import cascade_to_onnx
from vedette.controller.conversion.parity import open_session
from vedette.models.flows.extract import FLOW_SCHEMA, FlowExtractor
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.golden import Golden
from vedette.models.profile import ReferenceProfile
from vedette.models.release import Build, Release, TensorSpec, Tolerance

LABELS = ("benign", "scan")
WIDTH = len(FLOW_SCHEMA)
_DRIVER = FLOW_SCHEMA.index("source_failed_10s")


@cache
def capture_features(name: str) -> npt.NDArray[np.float32]:
    """Return the features of all flows of a capture, extracted in one go."""
    extractor = FlowExtractor()
    batches = [extractor.push(FlowDecoder().decode_many(capture_datagrams(name)), now_ms=0), extractor.flush()]
    return np.concatenate([batch.features for batch in batches if batch is not None])


def weights() -> npt.NDArray[np.float32]:
    """Return weights that look at one feature alone: failed connections of the source in ten seconds."""
    made = np.zeros(WIDTH, np.float32)
    made[_DRIVER] = 1.0
    return made


def logistic(features: npt.NDArray[np.float32], bias: float) -> dict[str, npt.NDArray[np.generic]]:
    """Return what :func:`flow_onnx` gives, computed by numpy."""
    p = (1.0 / (1.0 + np.exp(-np.clip(features @ weights() + np.float32(bias), -80, 80)))).astype(np.float32)
    probabilities = np.stack([1.0 - p, p], axis=1).astype(np.float32)
    return {"score": p, "label": probabilities.argmax(axis=1).astype(np.int64), "probabilities": probabilities}


def flow_onnx(bias: float) -> bytes:
    """Return a logistic model over :data:`FLOW_SCHEMA`."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("MatMul", ["features", "w"], ["dot"]),
        node("Add", ["dot", "b"], ["sum"]),
        node("Sigmoid", ["sum"], ["p"]),
        node("Squeeze", ["p", "one"], ["score"]),
        node("Sub", ["unit", "p"], ["q"]),
        node("Concat", ["q", "p"], ["probabilities"], axis=1),
        node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [
        value("score", TensorProto.FLOAT, ["n"]),
        value("label", TensorProto.INT64, ["n"]),
        value("probabilities", TensorProto.FLOAT, ["n", 2]),
    ]
    constants = {
        "w": weights()[:, None],
        "b": np.array([bias], np.float32),
        "one": np.array([1], np.int64),
        "unit": np.array([1.0], np.float32),
    }
    return model_bytes(nodes, [value("features", TensorProto.FLOAT, ["n", WIDTH])], outputs, constants)


def flow_release(shelf: Shelf, version: int = 1, *, bias: float = -5.0) -> Release:
    """Return a release that flags flows of sources with many failed connections; its blobs are put on the shelf."""
    features = capture_features("base/softflowd-v9")
    outputs = logistic(features, bias)
    scores = outputs["score"].astype(np.float32)
    reference = ReferenceProfile.fit(FLOW_SCHEMA.names, features, scores, scores >= 0.5)
    golden = Golden({"features": features[:32]}, {name: array[:32] for name, array in outputs.items()})
    return flow_release_of(shelf, version, LABELS, onnx=flow_onnx(bias), golden=golden, reference=reference)


def trained_release(shelf: Shelf, *captures: str) -> Release:
    """Return a release of what the flow-threat recipe, with its defaults, learns from some captures."""
    recipe = flow_threat()
    trained = recipe.train(capture_training(*captures), recipe.spec.resolve({}), lambda *_: None)
    onnx = cascade_to_onnx(trained.fitted)
    session, names = open_session(onnx), ["score", "label", "probabilities"]

    def given(rows: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.generic]]:
        return dict(zip(names, session.run(names, {"features": rows}), strict=True))

    usual = trained.reference_rows
    scores = given(usual)["score"].astype(np.float32)
    reference = ReferenceProfile.fit(FLOW_SCHEMA.names, usual, scores, scores >= trained.threshold)
    golden = Golden({"features": trained.golden_rows}, given(trained.golden_rows))
    return flow_release_of(shelf, 1, trained.classes, onnx=onnx, golden=golden, reference=reference)


def flow_release_of(
    shelf: Shelf,
    version: int,
    labels: tuple[str, ...],
    *,
    onnx: bytes,
    golden: Golden,
    reference: ReferenceProfile,
) -> Release:
    """Return a release of a flow model; its blobs are put on the shelf."""
    return Release(
        model="flow-threat",
        version=version,
        created=datetime(2026, 11, 20, tzinfo=UTC),
        kind="flow",
        schema=FLOW_SCHEMA,
        inputs=(TensorSpec("features", "float32", (-1, WIDTH)),),
        outputs=(
            TensorSpec("score", "float32", (-1,)),
            TensorSpec("label", "int64", (-1,)),
            TensorSpec("probabilities", "float32", (-1, len(labels))),
        ),
        labels=labels,
        threshold=0.5,
        builds=(Build("onnx-fp32", shelf.put(onnx), Tolerance(1e-5, 1e-5)),),
        golden=shelf.put(golden.to_bytes()),
        reference=shelf.put(reference.to_bytes()),
    )
