"""Valid documents for tests to start from and to spoil."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from vedette.models.assignment import Assignment, AtDeadline, SlotAssignment
from vedette.models.documents import digest_of
from vedette.models.release import Blob, Build, Release, TensorSpec, Tolerance
from vedette.models.schema import Feature, FeatureSchema

NOW = datetime(2026, 11, 23, 10, 57, 41, 120000, tzinfo=UTC)
LATER = datetime(2027, 11, 23, tzinfo=UTC)


def blob(content: bytes) -> Blob:
    """Return the name of bytes in the store."""
    return Blob(digest_of(content), len(content))


def release(**changes: Any) -> Release:
    """Return a small flow release."""
    whole: dict[str, Any] = {
        "model": "flow-threat",
        "version": 3,
        "created": NOW,
        "kind": "flow",
        "schema": FeatureSchema("flow/1", (Feature("bytes", "B", "bytes of the flow"),), "flow"),
        "inputs": (TensorSpec("features", "float32", (-1, 1)),),
        "outputs": (TensorSpec("score", "float32", (-1,)),),
        "labels": ("benign", "brute"),
        "threshold": 0.5,
        "builds": (Build("onnx-fp32", blob(b"model"), Tolerance(1e-5, 0.0), {"onnxruntime": ">=1.32"}),),
        "golden": blob(b"golden"),
        "reference": blob(b"reference"),
        "metrics": {"recall": 0.9},
        "lineage": {"snapshot": "lab@1"},
    }
    return Release(**(whole | changes))


def assignment(*releases: Release, **changes: Any) -> Assignment:
    """Return an assignment of the first build of each release."""
    whole: dict[str, Any] = {
        "agent_id": "a1",
        "sequence": 7,
        "issued": NOW,
        "not_after": LATER,
        "at_deadline": AtDeadline.KEEP,
        "slots": tuple(
            SlotAssignment(item.model, item.model, item.version, item.digest, item.builds[0].digest)
            for item in releases
        ),
    }
    return Assignment(**(whole | changes))
