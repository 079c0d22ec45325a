"""Datasets, their parts and snapshots: names, forms and the manifest that fixes a snapshot.

A dataset is a line of imports. Every import becomes one part: a Parquet file, addressed by its content, of one kind
for the whole dataset: ``flows`` (flow records) or ``table`` (any typed columns). A snapshot fixes a set of parts and,
for flows, the label windows known then. Its manifest is canonical JSON, so the same content is the same digest; it
names no time of its own making.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.controller.domain.labels import LabelWindow
from vedette.models.documents import canonical_json, digest_of, parse_json
from vedette.wire.values import Severity
from vedette.wire.views import Finding

FORMATS = ("flows", "csv", "parquet")
FLOWS, TABLE = "flows", "table"
"""The two kinds of dataset."""

LABEL_COLUMN = "label"
"""Of a table: its rows' labels, when it has such a column."""

MAX_MANIFEST_BYTES = 16 << 20
MAX_IMPORTS = 10_000
"""Of one dataset."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_REFERENCE = re.compile(r"([a-z0-9._-]{1,64})@([1-9][0-9]{0,8})")
_MANIFEST_FORMAT = 1


def check_dataset_name(name: str) -> str:
    """Return a dataset's name unchanged when it may be one.

    Raises:
        InvalidInput: It is not 1 to 64 of a-z 0-9 . _ - with a letter or digit at each end.
    """
    if not _NAME.fullmatch(name):
        why = f"{name[:80]!r} is not 1 to 64 of a-z 0-9 . _ - between letters or digits"
        raise InvalidInput("bad-name", "the dataset's name is refused", why, "--dataset lab")
    return name


def check_format(text: str) -> str:
    """Return an import's format unchanged when it is known.

    Raises:
        InvalidInput: It is not.
    """
    if text not in FORMATS:
        why = f"{text[:40]!r} is not one of {', '.join(FORMATS)}"
        raise InvalidInput("unknown-format", "the format of the data is not known", why, "--format flows")
    return text


def parse_snapshot_name(text: str) -> tuple[str, int]:
    """Return dataset and number of ``DATASET@N``.

    Raises:
        InvalidInput: The text has another form.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidInput("bad-snapshot", f"{text[:80]!r} names no snapshot", "a snapshot is DATASET@N", "lab@1")
    return match[1], int(match[2])


@dataclass(frozen=True, slots=True)
class Part:
    """What one import became."""

    file_name: str
    file_digest: str  # of the bytes that were imported
    digest: str  # of the Parquet file
    bytes: int
    rows: int
    first_ms: int | None  # least and greatest record time; None where rows have no time
    last_ms: int | None
    exporters: tuple[str, ...] = ()

    def to_value(self) -> dict[str, Any]:
        """Return the part as JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"exporters": list(self.exporters)}

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Part:
        """Return the part of :meth:`to_value`'s form, as our own stores keep it."""
        return cls(**(dict(value) | {"exporters": tuple(value["exporters"])}))


Columns = tuple[tuple[str, str], ...]
"""Names and types of a table, in order."""


@dataclass(frozen=True, slots=True)
class Form:
    """What every import of a dataset must have."""

    kind: str
    columns: Columns
    file_format: str  # of the first import; later ones may differ


@dataclass(frozen=True, slots=True)
class Contents:
    """What a snapshot would hold now."""

    form: Form
    parts: tuple[Part, ...]
    windows: tuple[LabelWindow, ...]


def check_same_form(dataset: str, kind: str, columns: Columns, new_kind: str, new_columns: Columns) -> None:
    """Let an import join a dataset only when it has the form of what is there.

    Raises:
        Refused: Another kind, or other columns; the message names the first that differs.
    """
    remedy = "import it into a dataset of its own: --dataset OTHER"
    if kind != new_kind:
        why = f"dataset {dataset} holds {kind}, the file holds {new_kind}"
        raise Refused("other-kind", "the file does not fit the dataset", why, remedy)
    old, new = dict(columns), dict(new_columns)
    if columns != new_columns:
        wrong = next((name for name in (*old, *new) if old.get(name) != new.get(name)), None)
        why = f"the columns of dataset {dataset} stand in another order"
        if wrong is not None:
            there, here = old.get(wrong, "absent"), new.get(wrong, "absent")
            why = f"column {wrong!r} is {there} in dataset {dataset} and {here} in the file"
        raise Refused("other-columns", "the file does not fit the dataset", why, remedy)


@dataclass(frozen=True, slots=True)
class Counted:
    """What a pass over all parts found."""

    labels: Mapping[str, int]  # rows by label
    unmatched: tuple[int, ...]  # places of windows that claim no row
    null_shares: Mapping[str, float]  # of table columns
    clock_jumps: Mapping[str, int]  # by source: times a record clock jumped back more than a minute

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Counted:
        """Return the counts as the job reports them."""
        return cls(value["labels"], tuple(value["unmatched"]), value["null_shares"], value["clock_jumps"])


NULL_SHARE = 0.2
"""A table column with more nulls than this is a finding."""


def findings(counted: Counted, windows: Sequence[LabelWindow], benign: str) -> tuple[Finding, ...]:
    """Return what a person should know before training on a snapshot, the gravest first."""
    found: list[Finding] = []
    named = [label for label in counted.labels if label != benign]
    if not named:
        found.append(_warning("no-labels", "no row has a label; only unsupervised recipes can use it"))
    elif len(counted.labels) == 1:
        found.append(_warning("one-class", f"every row is {named[0]!r}; there is nothing to tell apart"))
    for place in counted.unmatched:
        window = windows[place]
        at = datetime.fromtimestamp(window.start_ms / 1000, UTC).isoformat(timespec="seconds")
        text = f"label {window.label!r} of {window.source} at {at} claims no row; is the capture of other minutes?"
        found.append(_warning("label-unmatched", text))
    for source, jumps in counted.clock_jumps.items():
        text = f"{source}: the record clock jumps back {jumps} times by more than a minute"
        found.append(_warning("clock-jump", text))
    for column, share in counted.null_shares.items():
        if share > NULL_SHARE:
            found.append(_warning("many-nulls", f"column {column!r} is empty in {share:.0%} of the rows"))
    return tuple(found)


def _warning(code: str, text: str) -> Finding:
    return Finding(severity=Severity.WARNING, code=code, text=text)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot, whole. Immutable; addressed by the digest of its bytes."""

    dataset: str
    kind: str
    columns: Columns
    parts: tuple[Part, ...]
    windows: tuple[LabelWindow, ...]
    labels: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def schema_digest(self) -> str:
        """The digest of kind and columns."""
        return digest_of(canonical_json({"kind": self.kind, "columns": [list(column) for column in self.columns]}))

    @property
    def digest(self) -> str:
        """The digest of the canonical bytes."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return canonical_json(
            {
                "format": _MANIFEST_FORMAT,
                "dataset": self.dataset,
                "kind": self.kind,
                "columns": [list(column) for column in self.columns],
                "parts": [part.to_value() for part in self.parts],
                "windows": [window.to_value() for window in self.windows],
                "labels": dict(self.labels),
                "findings": [{"severity": f.severity.value, "code": f.code, "text": f.text} for f in self.findings],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Return the manifest of canonical bytes that we wrote.

        Raises:
            DocumentError: Too large, or not canonical JSON.
        """
        value = parse_json(data, "snapshot manifest", limit=MAX_MANIFEST_BYTES)
        return cls(
            dataset=value["dataset"],
            kind=value["kind"],
            columns=tuple((name, kind) for name, kind in value["columns"]),
            parts=tuple(Part.from_value(item) for item in value["parts"]),
            windows=tuple(LabelWindow.from_value(item) for item in value["windows"]),
            labels=value["labels"],
            findings=tuple(
                Finding(severity=Severity(item["severity"]), code=item["code"], text=item["text"])
                for item in value["findings"]
            ),
        )
