"""What a model reads: the named features of one row, as a signed document both sides agree on.

A schema is small, canonical and addressed by its digest: the same features in the same order always give the same
bytes. Extraction, training, the manifest and the agent's check of a model all compare digests, never names alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from vedette.models.errors import ModelsError

MAX_SCHEMA_BYTES = 1 << 20
MAX_FEATURES = 4096
MAX_TEXT = 1024
KINDS = ("flow", "tensor")
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

Kind = Literal["flow", "tensor"]


class SchemaError(ModelsError):
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
    """The features of one row in their order; ``kind`` says who fills them: the flow extractor or the caller."""

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
        return "sha256:" + hashlib.sha256(self.to_bytes()).hexdigest()

    def index(self, name: str) -> int:
        """Return the column of a feature.

        Raises:
            SchemaError: There is no feature of that name.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise SchemaError(f"schema {self.name!r} has no feature {name!r}") from None

    def to_bytes(self) -> bytes:
        """Return the canonical form: JSON in UTF-8, keys sorted, no spaces."""
        document = {
            "features": [
                {"description": f.description, "dtype": f.dtype, "name": f.name, "unit": f.unit} for f in self.features
            ],
            "kind": self.kind,
            "name": self.name,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> FeatureSchema:
        """Read a schema from its canonical bytes.

        Raises:
            SchemaError: The bytes are too many, are no schema, or are not in canonical form.
        """
        if len(raw) > MAX_SCHEMA_BYTES:
            raise SchemaError(f"schema is {len(raw)} bytes, limit {MAX_SCHEMA_BYTES} (MAX_SCHEMA_BYTES)")
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise SchemaError(f"schema of {len(raw)} bytes is not JSON: {exc}") from exc
        schema = _schema_from(document)
        if schema.to_bytes() != raw:
            raise SchemaError(f"schema {schema.name!r} is not in canonical form (sorted keys, no spaces, UTF-8)")
        return schema


def _schema_from(document: Any) -> FeatureSchema:
    members = _members(document, ("features", "kind", "name"), "schema")
    rows = members["features"]
    if not isinstance(rows, list) or len(rows) > MAX_FEATURES:
        raise SchemaError(f"schema features must be a list of at most {MAX_FEATURES}")
    texts = ("description", "dtype", "name", "unit")
    features = tuple(
        Feature(**{key: _text(m[key], key) for key in texts}) for m in (_members(r, texts, "feature") for r in rows)
    )
    return FeatureSchema(_text(members["name"], "name"), features, _kind(members["kind"]))


def _members(value: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or sorted(value) != list(names):
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise SchemaError(f"a {what} must have exactly the members {', '.join(names)}; found {str(found)[:200]}")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"member {key} must be text, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise SchemaError(f"member {key} holds characters that UTF-8 cannot carry") from exc
    return value


def _kind(value: Any) -> Kind:
    if value == "flow":
        return "flow"
    if value == "tensor":
        return "tensor"
    raise SchemaError(f"schema kind is {str(value)[:40]!r}, known: {', '.join(KINDS)}")


def _first_repeated(names: tuple[str, ...]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
