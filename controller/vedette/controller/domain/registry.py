"""Versions of models: their names, what a new one must be, and the release that describes it.

A version is a number in a line of models; numbers grow by one and are never used twice. What registers it (a run, an
uploaded file) is its source: the same source registered again is the version it already became.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.controller.domain.model_gate import Port
from vedette.models.documents import DocumentError
from vedette.models.flows.features import FLOW_SCHEMA
from vedette.models.host import HOST_SCHEMA
from vedette.models.release import Blob, Build, Release, TensorSpec, Tolerance, check_model_name
from vedette.models.schema import DTYPES, KINDS, MAX_FEATURES, Feature, FeatureSchema, Kind
from vedette.wire import views
from vedette.wire.limits import SCHEMA_CHARACTERS

ONNX_FP32 = "onnx-fp32"
REQUIRES = {"onnxruntime": ">=1.32"}
"""The oldest runtime seen to survive the hostile models of docs/models.md; older ones read files a model names."""

EXACT = Tolerance(absolute=1e-5, relative=1e-4)
"""For the same float32 graph on another processor: its kernels add in another order."""

HALF = Tolerance(absolute=4e-3, relative=1e-2)
"""For a graph that computes in float16, eleven bits of which some processors add up as they are, others in float32."""

ROW_INPUT, SCORE, LABEL, PROBABILITIES = "features", "score", "label", "probabilities"

ROW_SCHEMAS = {schema.kind: schema for schema in (FLOW_SCHEMA, HOST_SCHEMA)}
"""What agents feed models with, by the kind of model."""

_REFERENCE = re.compile(r"([a-z0-9._-]{1,64}):([1-9][0-9]{0,8})")
_KIND_NOTE, _LABELS_NOTE, _THRESHOLD_NOTE = "vedette.kind", "vedette.labels", "vedette.threshold"
_NOTE_OF = {"kind": _KIND_NOTE, "labels": _LABELS_NOTE, "threshold": _THRESHOLD_NOTE}
_MAX_LABELS = 1_024


def check_name(model: str) -> str:
    """Return a model's name unchanged when it may be one.

    Raises:
        InvalidInput: It may not.
    """
    try:
        return check_model_name(model)
    except DocumentError as exc:
        raise InvalidInput("bad-name", "the model's name is refused", str(exc), "--name plain") from exc


def parse_version_name(text: str) -> tuple[str, int]:
    """Return model and number of ``MODEL:N``.

    Raises:
        InvalidInput: The text has another form.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidInput("bad-version", f"{text[:80]!r} names no version", "a version is MODEL:N", "flow-threat:1")
    return match[1], int(match[2])


@dataclass(frozen=True, slots=True)
class Draft:
    """All of a release but its number and date."""

    model: str
    kind: str
    schema: FeatureSchema | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    threshold: float
    builds: tuple[Build, ...]
    golden: Blob
    reference: Blob | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    row_wise: bool = True

    def release(self, number: int, created: datetime) -> Release:
        """Return the release of that number."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Release(version=number, created=created, **values)


@dataclass(frozen=True, slots=True)
class RowClaim:
    """What a file says of itself when it wants rows that an agent makes."""

    kind: Kind
    labels: tuple[str, ...]
    threshold: float


def schema_notes(text: str) -> dict[str, str]:
    """Return as metadata of a model what a schema file says of it; nothing for an empty text.

    Raises:
        InvalidInput: It is no JSON object of kind, labels and threshold.
    """
    if not text:
        return {}
    remedy = '{"kind": "host", "labels": ["healthy", "ailing"], "threshold": 0.8}'
    try:
        said = json.loads(text) if len(text) <= SCHEMA_CHARACTERS else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or set(said) - set(_NOTE_OF) or not isinstance(said.get("kind"), str):
        why = f"its {len(text)} characters (limit {SCHEMA_CHARACTERS}) are no object of {', '.join(_NOTE_OF)}"
        raise InvalidInput("bad-schema", "the schema file is refused", why, remedy)
    return {_NOTE_OF[key]: value if key == "kind" else json.dumps(value) for key, value in said.items()}


def row_claim(notes: Mapping[str, str]) -> RowClaim | None:
    """Return what the file's metadata claims, or None when it is a plain tensor model.

    Raises:
        Refused: It claims a kind that does not exist, or one that agents feed without its labels or threshold.
    """
    kind = notes.get(_KIND_NOTE, "tensor")
    if kind == "tensor":
        return None
    if kind not in ROW_SCHEMAS:
        raise _unfit(f"its metadata says {_KIND_NOTE} = {kind[:40]!r}, known are {', '.join(KINDS)}")
    try:
        labels = json.loads(notes.get(_LABELS_NOTE, "null"))
        threshold = float(notes.get(_THRESHOLD_NOTE, "absent"))
    except (ValueError, RecursionError) as exc:
        raise _unfit(f"its metadata must have {_LABELS_NOTE} (a JSON list) and {_THRESHOLD_NOTE}: {exc}") from exc
    if not isinstance(labels, list) or not 2 <= len(labels) <= _MAX_LABELS or not _all_names(labels):
        raise _unfit(f"{_LABELS_NOTE} is not a list of 2 to {_MAX_LABELS} different texts of 1 to 128 characters")
    if not 0.0 <= threshold <= 1.0:
        raise _unfit(f"{_THRESHOLD_NOTE} is {threshold}, allowed 0 to 1")
    return RowClaim(ROW_SCHEMAS[kind].kind, tuple(labels), threshold)


def _all_names(labels: list[Any]) -> bool:
    return all(isinstance(label, str) and 1 <= len(label) <= 128 for label in labels) and len(set(labels)) == len(
        labels
    )


def _unfit(why: str) -> Refused:
    remedy = "docs/models.md says what models of flows and of hosts read and answer"
    return Refused("model-does-not-fit", "the model does not fit the schema of its rows", why, remedy)


def check_row_fit(
    inputs: Sequence[Port], outputs: Sequence[Port], labels: Sequence[str], schema: FeatureSchema
) -> None:
    """Judge whether tensors are those of a model that agents feed: what it is given and what it must answer.

    Raises:
        Refused: One is absent, or of another type or shape; names what was found and what is expected.
    """
    wanted_in = {ROW_INPUT: ("float32", (-1, len(schema)))}
    wanted_out = {SCORE: ("float32", (-1,)), LABEL: ("int64", (-1,)), PROBABILITIES: ("float32", (-1, len(labels)))}
    for what, ports, wanted in (("input", inputs, wanted_in), ("output", outputs, wanted_out)):
        found = {port.name: (port.dtype, port.shape) for port in ports}
        for name, (dtype, shape) in wanted.items():
            if found.get(name) != (dtype, shape):
                have = "absent" if name not in found else f"{found[name][0]}{list(found[name][1])}"
                raise _unfit(f"{what} {name!r} is {have}, expected {dtype}{list(shape)} (schema {schema.name})")
        strange = sorted(set(found) - set(wanted))
        if strange:
            raise _unfit(f"{what} {strange[0][:80]!r} is none of a {schema.kind} model's: {', '.join(wanted)}")


def specs(ports: Sequence[Port]) -> tuple[TensorSpec, ...]:
    """Return ports as a release names them."""
    return tuple(TensorSpec(port.name, port.dtype, port.shape) for port in ports)


def tolerance(is_half: bool) -> Tolerance:
    """Return how far a build may be from its golden samples on another processor."""
    return HALF if is_half else EXACT


def tensor_schema(model: str, inputs: Sequence[Port], row_wise: bool) -> FeatureSchema | None:
    """Return a schema with a feature for each column of the inputs, or None where that has no sense or is too much."""
    features: list[Feature] = []
    for port in inputs:
        width = port.shape[1] if len(port.shape) == 2 else 1
        has_columns = len(port.shape) <= 2 and width != -1 and port.dtype in DTYPES
        if not row_wise or not has_columns or len(features) + width > MAX_FEATURES:
            return None
        names = [f"{port.name}[{column}]" for column in range(width)] if len(port.shape) == 2 else [port.name]
        features += [Feature(name, "", f"column of input {port.name}", port.dtype) for name in names]
    return FeatureSchema(model, tuple(features), "tensor") if len(features) <= MAX_FEATURES else None


def view(release: Release, signed_by: tuple[str, ...]) -> views.Version:
    """Return a version as admins see it."""
    return views.Version(
        version=release.name,
        model=release.model,
        number=release.version,
        kind=release.kind,
        digest=release.digest,
        schema_digest=release.schema.digest if release.schema else "",
        created=release.created,
        builds=tuple(
            views.Build(digest=build.digest, kind=build.kind, bytes=build.blob.size, requires=build.requires)
            for build in release.builds
        ),
        metrics=release.metrics,
        lineage=release.lineage,
        labels=release.labels,
        threshold=release.threshold,
        signed_by=signed_by,
        inputs=_tensors(release.inputs),
        outputs=_tensors(release.outputs),
        row_wise=release.row_wise,
    )


def _tensors(found: Sequence[TensorSpec]) -> tuple[views.Tensor, ...]:
    return tuple(views.Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in found)
