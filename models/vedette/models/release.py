"""The release: the signed description of one version of a model and of everything that may run of it.

Rules: immutable; complete (schema, tensors, labels, threshold, every build with its digest); small enough for a
message; what it names by digest lies in the blob store. Signed by a release key, never by the TLS or assignment key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from vedette.models.documents import (
    DocumentError,
    Fields,
    canonical_json,
    check_digest,
    digest_of,
    parse_json,
    plain,
    texts,
    time_text,
)
from vedette.models.schema import DTYPES, KINDS, FeatureSchema

RELEASE_TYPE = "application/vnd.vedette.release+json"
MAX_BLOB_BYTES = 2 * 1024**3
_FORMAT = 1
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_DTYPES = frozenset({*DTYPES, "bytes"})  # bytes: strings


def check_model_name(name: str) -> str:
    """Return a model's name unchanged when it may be one.

    Raises:
        DocumentError: It is not 1 to 64 of a-z 0-9 . _ - with a letter or digit at each end.
    """
    if not _NAME.fullmatch(name):
        raise DocumentError(f"model name {name[:80]!r} is not 1 to 64 of a-z 0-9 . _ - between letters or digits")
    return name


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in the content-addressed store."""

    digest: str
    size: int

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if not 1 <= self.size <= MAX_BLOB_BYTES:
            raise DocumentError(f"blob {self.digest[:19]} is {self.size} bytes, limits 1 and {MAX_BLOB_BYTES}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named input or output. ``shape`` has -1 where any length goes; dtype is numpy's name, ``bytes`` for strings."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise DocumentError(f"tensor {self.name[:80]!r} has dtype {self.dtype[:20]!r}, known are {sorted(_DTYPES)}")
        if len(self.shape) > 8 or any(size < -1 or size == 0 for size in self.shape):
            raise DocumentError(
                f"tensor {self.name[:80]!r} has shape {self.shape}: at most 8 sizes, each -1 or above 0"
            )


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a build's outputs may be from the golden ones: |got - golden| <= absolute + relative * |golden|."""

    absolute: float
    relative: float

    def __post_init__(self) -> None:
        if not (0 <= self.absolute < float("inf") and 0 <= self.relative <= 1):
            raise DocumentError(f"tolerance {self.absolute}, {self.relative} is not (0 or more, 0 to 1)")


@dataclass(frozen=True, slots=True)
class Build:
    """One runnable form of a version."""

    kind: str  # onnx-fp32 …
    blob: Blob
    tolerance: Tolerance
    requires: Mapping[str, str] = field(default_factory=dict)  # runtime -> version condition, as in packaging: ">=1.32"

    @property
    def digest(self) -> str:
        """The build's name everywhere: the digest of its bytes."""
        return self.blob.digest


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a model, whole."""

    model: str
    version: int
    created: datetime
    kind: str  # flow | host | tensor: who feeds it
    schema: FeatureSchema | None  # of a row of features; None where the tensors say all there is
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]  # by class index; the first is the harmless one
    threshold: float  # a row is flagged when its score is at or above it
    builds: tuple[Build, ...]
    golden: Blob
    reference: Blob | None = None  # profile of the training data
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    row_wise: bool = True  # each row is answered for itself: requests may be cut into batches and share them

    def __post_init__(self) -> None:
        check_model_name(self.model)
        if not 1 <= self.version <= 2**31:
            raise DocumentError(f"version of {self.model} is {self.version}, limits 1 and {2**31}")
        if self.kind not in KINDS:
            raise DocumentError(f"{self.name} is of kind {self.kind[:20]!r}, known are {KINDS}")
        if not self.builds or not self.inputs or not self.outputs:
            raise DocumentError(
                f"{self.name} has {len(self.builds)} builds, {len(self.inputs)} inputs and "
                f"{len(self.outputs)} outputs; each needs at least 1"
            )
        digests = [build.digest for build in self.builds]
        if len(set(digests)) != len(digests):
            raise DocumentError(f"{self.name} names one build twice")

    @property
    def name(self) -> str:
        """MODEL:VERSION, as people write it."""
        return f"{self.model}:{self.version}"

    @property
    def digest(self) -> str:
        """The digest of the canonical bytes: what an assignment names."""
        return digest_of(self.to_bytes())

    def build(self, digest: str) -> Build | None:
        """Return the build of that digest, or None."""
        return next((build for build in self.builds if build.digest == digest), None)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything the release names in the blob store."""
        reference = (self.reference,) if self.reference else ()
        return (*(build.blob for build in self.builds), self.golden, *reference)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes; ``row_wise`` is named only where it is not so, as releases before it had none."""
        exception: dict[str, Any] = {} if self.row_wise else {"row_wise": False}
        return canonical_json(
            exception
            | {
                "format": _FORMAT,
                "model": self.model,
                "version": self.version,
                "created": time_text(self.created),
                "kind": self.kind,
                "schema": self.schema.to_value() if self.schema else None,
                "inputs": [_tensor_value(spec) for spec in self.inputs],
                "outputs": [_tensor_value(spec) for spec in self.outputs],
                "labels": list(self.labels),
                "threshold": self.threshold,
                "builds": [_build_value(build) for build in self.builds],
                "golden": _blob_value(self.golden),
                "reference": _blob_value(self.reference) if self.reference else None,
                "metrics": plain(self.metrics),
                "lineage": plain(self.lineage),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Release:
        """Return the release of canonical bytes.

        Raises:
            DocumentError: They are no release; the message names field, value and limit.
        """
        value = parse_json(data, "release")
        read = Fields(value, "release", _RELEASE_FIELDS)
        if (found := read.whole("format")) != _FORMAT:
            raise DocumentError(f"release.format is {found}, this version reads {_FORMAT}")
        return cls(
            model=read.text("model"),
            version=read.whole("version", least=1),
            created=read.time("created"),
            kind=read.text("kind"),
            schema=FeatureSchema.from_value(value["schema"]) if read.has("schema") else None,
            inputs=tuple(_tensor(item, "release.inputs") for item in read.items("inputs", most=64)),
            outputs=tuple(_tensor(item, "release.outputs") for item in read.items("outputs", most=64)),
            labels=texts(read.items("labels", most=1024), "release.labels"),
            threshold=read.get("threshold", float),
            builds=tuple(_build(item) for item in read.items("builds", most=64)),
            golden=_blob(read.get("golden", dict), "release.golden"),
            reference=_blob(value["reference"], "release.reference") if read.has("reference") else None,
            metrics=read.mapping("metrics", float, most=256),
            lineage=read.mapping("lineage", str, most=64),
            row_wise=read.get("row_wise", bool) if read.has("row_wise") else True,
        )


_RELEASE_FIELDS = (
    *("format", "model", "version", "created", "kind", "schema", "inputs", "outputs", "labels", "threshold"),
    *("builds", "golden", "reference", "metrics", "lineage", "row_wise"),
)


def _blob_value(blob: Blob) -> dict[str, Any]:
    return {"digest": blob.digest, "size": blob.size}


def _blob(value: Any, where: str) -> Blob:
    read = Fields(value, where, ("digest", "size"))
    return Blob(read.digest("digest"), read.whole("size", least=1, most=MAX_BLOB_BYTES))


def _tensor_value(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _tensor(value: Any, where: str) -> TensorSpec:
    read = Fields(value, where, ("name", "dtype", "shape"))
    shape = read.items("shape", most=8)
    if any(type(size) is not int for size in shape):
        kinds = ", ".join(type(size).__name__ for size in shape)
        raise DocumentError(f"{where}.shape is of {kinds}, not whole numbers")
    return TensorSpec(read.text("name"), read.text("dtype"), tuple(shape))


def _build_value(build: Build) -> dict[str, Any]:
    return {
        "kind": build.kind,
        "blob": _blob_value(build.blob),
        "tolerance": {"absolute": build.tolerance.absolute, "relative": build.tolerance.relative},
        "requires": plain(build.requires),
    }


def _build(value: Any) -> Build:
    read = Fields(value, "release.builds", ("kind", "blob", "tolerance", "requires"))
    tolerance = Fields(read.get("tolerance", dict), "release.builds.tolerance", ("absolute", "relative"))
    return Build(
        kind=read.text("kind"),
        blob=_blob(read.get("blob", dict), "release.builds.blob"),
        tolerance=Tolerance(tolerance.get("absolute", float), tolerance.get("relative", float)),
        requires=read.mapping("requires", str, most=16),
    )
