"""What a model reads: the named features of one row, as a signed document both sides agree on.

A schema is small, canonical and addressed by its digest: the same features in the same order always give the same
bytes. Extraction, training, the manifest and the agent's check of a model all compare digests, never names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vedette.models.documents import DocumentError, Fields, canonical_json, digest_of, parse_json

MAX_SCHEMA_BYTES = 1 << 20
MAX_FEATURES = 4096
MAX_TEXT = 1024
Kind = Literal["flow", "host", "tensor"]
KINDS: tuple[Kind, ...] = ("flow", "host", "tensor")
DTYPES = (
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
)


class SchemaError(DocumentError):
    """A feature schema is not well formed, or says more than the limits allow."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a model's input."""

    name: str
    unit: str
    description: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.name:
            raise SchemaError("a feature has an empty name")
        for label, text in (("name", self.name), ("unit", self.unit), ("description", self.description)):
            if len(text) > MAX_TEXT:
                raise SchemaError(f"{label} of feature {self.name[:40]!r} has {len(text)} characters, limit {MAX_TEXT}")
        if self.dtype not in DTYPES:
            raise SchemaError(f"feature {self.name!r} has dtype {self.dtype!r}, known: {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The features of one row in their order; ``kind`` says who fills them: the flow
    extractor, the reader of host metrics, or the caller."""

    name: str
    features: tuple[Feature, ...]
    kind: Kind = "tensor"

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > MAX_TEXT:
            raise SchemaError(f"the schema's name has {len(self.name)} characters, allowed 1 to {MAX_TEXT}")
        if self.kind not in KINDS:
            raise SchemaError(f"schema {self.name!r} has kind {self.kind!r}, known: {', '.join(KINDS)}")
        if not 1 <= len(self.features) <= MAX_FEATURES:
            raise SchemaError(f"schema {self.name!r} has {len(self.features)} features, allowed 1 to {MAX_FEATURES}")
        repeated = _first_repeated(self.names)
        if repeated is not None:
            raise SchemaError(f"schema {self.name!r} names feature {repeated!r} twice")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the features' names in their order."""
        return tuple(feature.name for feature in self.features)

    @property
    def digest(self) -> str:
        """Return ``sha256:`` and the hexadecimal digest of the canonical bytes."""
        return digest_of(self.to_bytes())

    def index(self, name: str) -> int:
        """Return the column of a feature.

        Raises:
            SchemaError: There is no feature of that name.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise SchemaError(f"schema {self.name!r} has no feature {name!r}") from None

    def to_value(self) -> dict[str, Any]:
        """Return the schema as a JSON value, for its own bytes and inside a release."""
        return {
            "features": [
                {"description": f.description, "dtype": f.dtype, "name": f.name, "unit": f.unit} for f in self.features
            ],
            "kind": self.kind,
            "name": self.name,
        }

    def to_bytes(self) -> bytes:
        """Return the canonical form."""
        return canonical_json(self.to_value())

    @classmethod
    def from_value(cls, value: Any) -> FeatureSchema:
        """Return the schema of a parsed JSON value.

        Raises:
            DocumentError: It is none, or says more than the limits allow.
        """
        read = Fields(value, "schema", ("features", "kind", "name"))
        features = tuple(_feature(item) for item in read.items("features", most=MAX_FEATURES))
        return cls(read.text("name", most=MAX_TEXT), features, _kind(read.text("kind")))

    @classmethod
    def from_bytes(cls, raw: bytes) -> FeatureSchema:
        """Read a schema from its canonical bytes.

        Raises:
            DocumentError: The bytes are too many, are no schema, or are not in canonical form.
        """
        return cls.from_value(parse_json(raw, "schema", limit=MAX_SCHEMA_BYTES))


def _feature(value: Any) -> Feature:
    read = Fields(value, "schema.features", ("description", "dtype", "name", "unit"))
    return Feature(
        read.text("name", most=MAX_TEXT), read.get("unit", str), read.get("description", str), read.text("dtype")
    )


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text == kind:
            return kind
    raise SchemaError(f"schema kind is {text[:40]!r}, known: {', '.join(KINDS)}")


def _first_repeated(names: tuple[str, ...]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
