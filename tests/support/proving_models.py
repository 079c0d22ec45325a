"""Flow models whose every answer proves which version gave it, and flows whose every verdict can be told from others.

Version v scores a TCP flow 0.5 + v/128 exactly and any other 0. What a response or a verdict says of its version can so
be held against what the model computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from tests.support.flow_models import LABELS, WIDTH, capture_features, flow_release_of
from tests.support.flow_packets import V5_HEADER, V5_RECORDS
from tests.support.tiny_models import Shelf, model_bytes
from vedette.models.flows.extract import FLOW_SCHEMA
from vedette.models.golden import Golden
from vedette.models.profile import ReferenceProfile
from vedette.models.release import Release

MOST_VERSIONS = 60
TCP = FLOW_SCHEMA.index("tcp")
RECORDS = 30
"""Of a datagram; the first is the one that is flagged, and its packets are the datagram's number, from 1."""
_UPTIME_MS = 10_000_000


def score_of(version: int) -> float:
    """Return what a version scores a TCP flow."""
    return 0.5 + version / 128


def proof(features: npt.NDArray[np.float32], version: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return the outputs of a version."""
    score = (features[:, TCP] * np.float32(score_of(version))).astype(np.float32)
    probabilities = np.stack([1 - score, score], axis=1)
    return {"score": score, "label": probabilities.argmax(axis=1).astype(np.int64), "probabilities": probabilities}


def proving_release(shelf: Shelf, version: int) -> Release:
    """Return the release of a version; its blobs are put on the shelf."""
    features = capture_features("base/softflowd-v9")
    outputs = proof(features, version)
    score = outputs["score"].astype(np.float32)
    reference = ReferenceProfile.fit(FLOW_SCHEMA.names, features, score, score >= 0.5)
    golden = Golden({"features": features[:32]}, {name: array[:32] for name, array in outputs.items()})
    return flow_release_of(shelf, version, LABELS, onnx=_onnx(version), golden=golden, reference=reference)


def _onnx(version: int) -> bytes:
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("MatMul", ["features", "w"], ["p"]),
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
    weights = np.zeros((WIDTH, 1), np.float32)
    weights[TCP] = score_of(version)
    constants = {"w": weights, "one": np.array([1], np.int64), "unit": np.array([1.0], np.float32)}
    return model_bytes(nodes, [value("features", TensorProto.FLOAT, ["n", WIDTH])], outputs, constants)


def marked_datagrams() -> Iterator[bytes]:
    """Return NetFlow v5 for ever: in each datagram one TCP flow, the others UDP, all one way."""
    random, records = np.random.default_rng(2), np.zeros(RECORDS, V5_RECORDS)
    records["bytes"], records["first"], records["last"] = 900, _UPTIME_MS - 900, _UPTIME_MS - 100
    records["proto"], records["dst_port"] = 17, 53
    records["proto"][0], records["flags"][0], records["dst_port"][0] = 6, 0x02, 443
    number = 0
    while True:
        number += 1
        records["src"] = 0x0A000000 + random.integers(0, 2000, RECORDS)
        records["dst"] = 0x0A010000 + random.integers(0, 2000, RECORDS)
        records["src_port"] = random.integers(1024, 65_536, RECORDS)
        records["packets"] = 5
        records["packets"][0] = number
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        sequence = (number - 1) * RECORDS % 2**32
        yield V5_HEADER.pack(5, RECORDS, _UPTIME_MS, seconds, nanoseconds, sequence, 0, 0, 0) + records.tobytes()
