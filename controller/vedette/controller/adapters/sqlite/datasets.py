"""Where datasets, their imports, label files and snapshots are kept: one transaction a fact."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from vedette.controller.adapters.sqlite.database import Database, Migration, script
from vedette.controller.adapters.sqlite.rows import digests_in
from vedette.controller.domain import labels
from vedette.controller.domain.datasets import (
    FLOWS,
    LABEL_COLUMN,
    MAX_IMPORTS,
    Contents,
    Form,
    Manifest,
    Part,
    check_same_form,
)
from vedette.controller.domain.errors import NotFound, Refused
from vedette.controller.domain.labels import LabelWindow
from vedette.wire.views import DataImport, Dataset, LabelImport, Snapshot

MIGRATIONS: tuple[Migration, ...] = (
    script(
        "datasets-1",
        """
        CREATE TABLE datasets (
            name TEXT PRIMARY KEY, kind TEXT NOT NULL, format TEXT NOT NULL, columns TEXT NOT NULL,
            created TEXT NOT NULL
        );
        CREATE TABLE data_imports (
            id INTEGER PRIMARY KEY, dataset TEXT NOT NULL REFERENCES datasets (name), file_digest TEXT NOT NULL,
            part TEXT NOT NULL, rejected INTEGER NOT NULL, reasons TEXT NOT NULL, imported TEXT NOT NULL,
            UNIQUE (dataset, file_digest)
        );
        CREATE TABLE label_files (
            id INTEGER PRIMARY KEY, dataset TEXT NOT NULL REFERENCES datasets (name), file_digest TEXT NOT NULL,
            file_name TEXT NOT NULL, windows TEXT NOT NULL, imported TEXT NOT NULL, UNIQUE (dataset, file_digest)
        );
        CREATE TABLE snapshots (
            dataset TEXT NOT NULL REFERENCES datasets (name), number INTEGER NOT NULL, digest TEXT NOT NULL,
            manifest BLOB NOT NULL, created TEXT NOT NULL, PRIMARY KEY (dataset, number), UNIQUE (dataset, digest)
        );
        """,
    ),
)

LISTED_IMPORTS = 100
"""Of each dataset in a list of all: they must fit a message together."""


class DatasetStore:
    """Datasets over one :class:`Database`; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def form(self, dataset: str) -> Form | None:
        """Return the form of a dataset, or None while there is none of that name."""
        with self._database.transaction() as connection:
            return _form(connection, dataset)

    def named_blobs(self) -> set[str]:
        """Return every digest that an import or a snapshot names."""
        with self._database.transaction() as connection:
            found = connection.execute("SELECT part FROM data_imports UNION ALL SELECT manifest FROM snapshots")
            return {digest for (text,) in found for digest in digests_in(text)}

    def find_import(self, dataset: str, file_digest: str) -> DataImport | None:
        """Return what an earlier import of the same bytes gave, marked as already there."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT * FROM data_imports WHERE dataset = ? AND file_digest = ?", (dataset, file_digest)
            ).fetchone()
        return _import(row, already_there=True) if row is not None else None

    def add_import(self, dataset: str, form: Form, part: Part, reasons: Mapping[str, int], now: datetime) -> DataImport:
        """Store an import, and the dataset with its first one. The same bytes again add nothing.

        Raises:
            Refused: It does not have the dataset's form, or there are :data:`MAX_IMPORTS` already.
        """
        with self._database.transaction() as connection:
            known = _form(connection, dataset)
            if known is None:
                values = (dataset, form.kind, form.file_format, json.dumps(form.columns), now.isoformat())
                connection.execute("INSERT INTO datasets VALUES (?, ?, ?, ?, ?)", values)
            else:
                check_same_form(dataset, known.kind, known.columns, form.kind, form.columns)
            count = connection.execute("SELECT count(*) FROM data_imports WHERE dataset = ?", (dataset,)).fetchone()[0]
            if count >= MAX_IMPORTS:
                raise Refused("dataset-full", f"dataset {dataset} takes no more files", f"it has {count}, the limit")
            added = connection.execute(
                "INSERT INTO data_imports (dataset, file_digest, part, rejected, reasons, imported)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (
                    *(dataset, part.file_digest, json.dumps(part.to_value()), sum(reasons.values())),
                    *(json.dumps(dict(reasons)), now.isoformat()),
                ),
            ).rowcount
            row = connection.execute(
                "SELECT * FROM data_imports WHERE dataset = ? AND file_digest = ?", (dataset, part.file_digest)
            ).fetchone()
            return _import(row, already_there=not added)

    def add_labels(
        self, dataset: str, file_name: str, file_digest: str, windows: Sequence[LabelWindow], now: datetime
    ) -> LabelImport:
        """Store a label file's windows; they add to those of earlier files. The same bytes again add nothing.

        Raises:
            NotFound: There is no such dataset.
            Refused: The dataset is a table.
            LabelFileError: The dataset would have too many windows.
        """
        with self._database.transaction() as connection:
            form = _require(connection, dataset)
            if form.kind != FLOWS:
                why = f"dataset {dataset} is a table; label windows are for flows"
                raise Refused("labels-unusable", "the labels cannot be used", why, f"a column {LABEL_COLUMN!r}")
            labels.merge([*_windows(connection, dataset), windows])
            connection.execute(
                "INSERT INTO label_files (dataset, file_digest, file_name, windows, imported)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (dataset, file_digest, file_name, json.dumps([w.to_value() for w in windows]), now.isoformat()),
            )
        counts: dict[str, int] = {}
        for window in windows:
            counts[window.label] = counts.get(window.label, 0) + 1
        return LabelImport(dataset=dataset, windows=len(windows), windows_by_label=counts)

    def contents(self, dataset: str) -> Contents:
        """Return what a snapshot taken now would hold.

        Raises:
            NotFound: There is no such dataset.
        """
        with self._database.transaction() as connection:
            form = _require(connection, dataset)
            rows = connection.execute("SELECT part FROM data_imports WHERE dataset = ? ORDER BY id", (dataset,))
            parts = tuple(Part.from_value(json.loads(row["part"])) for row in rows)
            return Contents(form, parts, labels.merge(_windows(connection, dataset)))

    def add_snapshot(self, manifest: Manifest, now: datetime) -> Snapshot:
        """Store a snapshot and return it; the same content is the snapshot it already was.

        Raises:
            NotFound: There is no such dataset.
        """
        with self._database.transaction() as connection:
            _require(connection, manifest.dataset)
            row = _snapshot_row(connection, manifest.dataset, "digest = ?", manifest.digest)
            if row is None:
                connection.execute(
                    "INSERT INTO snapshots SELECT ?, coalesce(max(number), 0) + 1, ?, ?, ? FROM snapshots"
                    " WHERE dataset = ?",
                    (manifest.dataset, manifest.digest, manifest.to_bytes(), now.isoformat(), manifest.dataset),
                )
                row = _snapshot_row(connection, manifest.dataset, "digest = ?", manifest.digest)
            return _snapshot(row)

    def snapshot(self, dataset: str, number: int) -> tuple[Snapshot, Manifest]:
        """Return a snapshot as people see it and its manifest.

        Raises:
            NotFound: There is none of that name.
        """
        with self._database.transaction() as connection:
            row = _snapshot_row(connection, dataset, "number = ?", number)
            if row is None:
                newest = connection.execute(
                    "SELECT max(number) FROM snapshots WHERE dataset = ?", (dataset,)
                ).fetchone()[0]
                why = f"the newest is {dataset}@{newest}" if newest else f"dataset {dataset} has none"
                remedy = f"vedette data snapshot {dataset}"
                raise NotFound("snapshot-unknown", f"there is no snapshot {dataset}@{number}", why, remedy)
            return _snapshot(row), Manifest.from_bytes(row["manifest"])

    def datasets(self) -> tuple[Dataset, ...]:
        """Return all datasets by name, each with its newest snapshot and at most :data:`LISTED_IMPORTS` imports."""
        with self._database.transaction() as connection:
            names = [row["name"] for row in connection.execute("SELECT name FROM datasets ORDER BY name")]
            return tuple(_dataset(connection, name, full=False) for name in names)

    def dataset(self, name: str) -> Dataset:
        """Return one dataset, whole.

        Raises:
            NotFound: There is none of that name.
        """
        with self._database.transaction() as connection:
            _require(connection, name)
            return _dataset(connection, name, full=True)


def _form(connection: sqlite3.Connection, dataset: str) -> Form | None:
    row = connection.execute("SELECT * FROM datasets WHERE name = ?", (dataset,)).fetchone()
    if row is None:
        return None
    return Form(row["kind"], tuple((name, kind) for name, kind in json.loads(row["columns"])), row["format"])


def _require(connection: sqlite3.Connection, dataset: str) -> Form:
    form = _form(connection, dataset)
    if form is None:
        known = [row["name"] for row in connection.execute("SELECT name FROM datasets ORDER BY name LIMIT 5")]
        why = f"known are {', '.join(known)}" if known else "there are no datasets yet"
        remedy = f"vedette data import FILE --dataset {dataset}"
        raise NotFound("dataset-unknown", f"there is no dataset {dataset}", why, remedy)
    return form


def _windows(connection: sqlite3.Connection, dataset: str) -> list[list[LabelWindow]]:
    rows = connection.execute("SELECT windows FROM label_files WHERE dataset = ? ORDER BY id", (dataset,))
    return [[LabelWindow.from_value(item) for item in json.loads(row["windows"])] for row in rows]


def _snapshot_row(connection: sqlite3.Connection, dataset: str, where: str, value: str | int) -> sqlite3.Row | None:
    query = f"SELECT * FROM snapshots WHERE dataset = ? AND {where}"  # noqa: S608  `where` is one of our own words
    row: sqlite3.Row | None = connection.execute(query, (dataset, value)).fetchone()
    return row


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _import(row: sqlite3.Row, *, already_there: bool = False) -> DataImport:
    part = Part.from_value(json.loads(row["part"]))
    return DataImport(
        dataset=row["dataset"],
        file_name=part.file_name,
        digest=part.file_digest,
        rows=part.rows,
        rejected=row["rejected"],
        reject_reasons=json.loads(row["reasons"]),
        already_there=already_there,
        first=_time(part.first_ms),
        last=_time(part.last_ms),
    )


def _snapshot(row: sqlite3.Row | None) -> Snapshot:
    if row is None:
        raise NotFound("snapshot-unknown", "the snapshot is gone")
    manifest = Manifest.from_bytes(row["manifest"])
    return Snapshot(
        snapshot=f"{row['dataset']}@{row['number']}",
        digest=row["digest"],
        rows=manifest.rows,
        bytes=sum(part.bytes for part in manifest.parts),
        schema_digest=manifest.schema_digest,
        created=datetime.fromisoformat(row["created"]),
        sources=tuple(part.file_name for part in manifest.parts),
        labels=manifest.labels,
        findings=manifest.findings,
    )


def _dataset(connection: sqlite3.Connection, name: str, *, full: bool) -> Dataset:
    row = connection.execute("SELECT * FROM datasets WHERE name = ?", (name,)).fetchone()
    imports = connection.execute("SELECT * FROM data_imports WHERE dataset = ? ORDER BY id", (name,)).fetchall()
    snapshots = connection.execute("SELECT * FROM snapshots WHERE dataset = ? ORDER BY number", (name,)).fetchall()
    found = tuple(_import(item) for item in imports)
    return Dataset(
        name=name,
        format=row["format"],
        rows=sum(item.rows for item in found),
        imports=found if full else found[-LISTED_IMPORTS:],
        snapshots=tuple(_snapshot(item) for item in (snapshots if full else snapshots[-1:])),
        label_windows=len(labels.merge(_windows(connection, name))),
    )
