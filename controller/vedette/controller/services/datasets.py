"""Datasets as a service: uploads, label files, snapshots.

An upload is staged in the blob store first (its digest says whether it is known), parsed in a child, and only then
becomes part of its dataset: a crash at any point leaves at most an unused blob.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from vedette.controller.domain import datasets, labels
from vedette.controller.domain.datasets import Contents, Counted, Form, Manifest, Part
from vedette.controller.domain.errors import InvalidInput
from vedette.controller.domain.jobs import ChildLimits
from vedette.controller.domain.labels import LabelWindow
from vedette.controller.services.workshop import Pieces, Workshop
from vedette.models.documents import digest_of
from vedette.wire.views import DataImport, Dataset, LabelImport, Snapshot

MAX_UPLOAD_BYTES = 2 << 30
_MAX_FILE_NAME = 256
_PART_FILE = "part.parquet"


class Datasets(Protocol):
    """Keeps datasets. Methods run in the database's thread; each is one transaction."""

    def form(self, dataset: str) -> Form | None:
        """Return the form of a dataset, or None while there is none of that name."""
        ...

    def find_import(self, dataset: str, file_digest: str) -> DataImport | None:
        """Return what an earlier import of the same bytes gave, marked as already there."""
        ...

    def add_import(self, dataset: str, form: Form, part: Part, reasons: Mapping[str, int], now: datetime) -> DataImport:
        """Store an import, and the dataset with its first one. The same bytes again add nothing.

        Raises:
            Refused: It does not have the dataset's form, or there are too many already.
        """
        ...

    def add_labels(
        self, dataset: str, file_name: str, file_digest: str, windows: Sequence[LabelWindow], now: datetime
    ) -> LabelImport:
        """Store a label file's windows; they add to those of earlier files. The same bytes again add nothing.

        Raises:
            NotFound: There is no such dataset.
            Refused: The dataset is a table.
            LabelFileError: The dataset would have too many windows.
        """
        ...

    def contents(self, dataset: str) -> Contents:
        """Return what a snapshot taken now would hold.

        Raises:
            NotFound: There is no such dataset.
        """
        ...

    def add_snapshot(self, manifest: Manifest, now: datetime) -> Snapshot:
        """Store a snapshot and return it; the same content is the snapshot it already was."""
        ...

    def snapshot(self, dataset: str, number: int) -> tuple[Snapshot, Manifest]:
        """Return a snapshot as people see it and its manifest.

        Raises:
            NotFound: There is none of that name.
        """
        ...

    def datasets(self) -> tuple[Dataset, ...]:
        """Return all datasets by name, in short."""
        ...

    def dataset(self, name: str) -> Dataset:
        """Return one dataset, whole.

        Raises:
            NotFound: There is none of that name.
        """
        ...


class DatasetService:
    """Everything the CLI does with data. All methods belong to the controller's event loop.

    Args:
        workshop: Where the work is done.
        store: Keeps what is known of datasets.
        limits: Of one child.
        max_upload_bytes: Of one file, as uploaded and decompressed.
    """

    def __init__(
        self,
        workshop: Workshop,
        store: Datasets,
        *,
        limits: ChildLimits | None = None,
        max_upload_bytes: int = MAX_UPLOAD_BYTES,
    ) -> None:
        self._shop = workshop
        self._store = store
        self._limits = limits or ChildLimits(memory_bytes=1536 << 20, memory_setting="import.memory", deadline_s=3600)
        self._max_upload_bytes = max_upload_bytes

    async def import_data(
        self, dataset: str, file_format: str, file_name: str, total: int, pieces: Pieces
    ) -> DataImport:
        """Add a file to a dataset; the first one makes it. The same bytes again add nothing and say so.

        Args:
            dataset: Its name.
            file_format: ``flows``, ``csv`` or ``parquet``.
            file_name: Becomes the provenance of its rows.
            total: Bytes announced; a limit is judged before they are read.
            pieces: The file, in order.

        Raises:
            InvalidInput: A name or format is wrong, or the file is not what its format says.
            TooLarge: It is over the limit.
            Refused: It does not have the form of the dataset.
            DiskFull: There is no room.
        """
        datasets.check_dataset_name(dataset)
        datasets.check_format(file_format)
        name = safe_file_name(file_name)
        with self._shop.job_folder() as folder:
            upload = folder / "upload"
            digest = await self._shop.receive(pieces, upload, total, self._max_upload_bytes)
            known = await self._shop.runner.run(self._store.find_import, dataset, digest)
            if known is not None:
                return known
            said = await self._parse(dataset, file_format, name, upload)
            blob = await asyncio.to_thread(self._shop.blobs.put_file, folder / _PART_FILE)
        exporters = tuple(said["exporters"])
        part = Part(name, digest, blob.digest, blob.size, said["rows"], said["first_ms"], said["last_ms"], exporters)
        form = Form(said["kind"], tuple((column, kind) for column, kind in said["columns"]), file_format)
        now = self._shop.clock.now()
        return await self._shop.runner.run(self._store.add_import, dataset, form, part, said["reasons"], now)

    async def _parse(self, dataset: str, file_format: str, name: str, upload: Path) -> dict[str, Any]:
        form = await self._shop.runner.run(self._store.form, dataset)
        arguments = {
            "file": str(upload),
            "format": file_format,
            "file_name": name,
            "dataset": dataset,
            "kind": form.kind if form else None,
            "columns": form.columns if form else None,
            "max_bytes": self._max_upload_bytes,
        }
        job = "vedette.controller.jobs.import_data"
        return await self._shop.children.run(job, upload.parent, arguments, limits=self._limits)

    async def import_labels(self, dataset: str, file_name: str, total: int, pieces: Pieces) -> LabelImport:
        """Add the windows of a label file to a dataset.

        Raises:
            LabelFileError: It is no label file.
            NotFound: There is no such dataset.
            Refused: The dataset is a table.
            TooLarge: It is over the limit.
        """
        with self._shop.job_folder() as folder:
            upload = folder / "upload"
            await self._shop.receive(pieces, upload, total, labels.MAX_LABEL_FILE_BYTES)
            data = upload.read_bytes()
        windows = labels.parse_label_file(data)
        now, name = self._shop.clock.now(), safe_file_name(file_name)
        return await self._shop.runner.run(self._store.add_labels, dataset, name, digest_of(data), windows, now)

    async def create_snapshot(self, dataset: str) -> Snapshot:
        """Fix what a dataset holds now; the same content gives the snapshot it already was.

        Raises:
            NotFound: There is no such dataset.
        """
        contents = await self._shop.runner.run(self._store.contents, dataset)
        arguments = {
            "kind": contents.form.kind,
            "parts": [[str(self._shop.blobs.path(part.digest)), part.file_name] for part in contents.parts],
            "windows": [window.to_value() for window in contents.windows],
        }
        with self._shop.job_folder() as folder:
            job = "vedette.controller.jobs.count_labels"
            said = await self._shop.children.run(job, folder, arguments, limits=self._limits)
        counted = Counted.from_value(said)
        manifest = Manifest(
            dataset=dataset,
            kind=contents.form.kind,
            columns=contents.form.columns,
            parts=contents.parts,
            windows=contents.windows,
            labels=counted.labels,
            findings=datasets.findings(counted, contents.windows, labels.BENIGN),
        )
        return await self._shop.runner.run(self._store.add_snapshot, manifest, self._shop.clock.now())

    async def snapshot(self, name: str) -> tuple[Snapshot, Manifest]:
        """Return a snapshot by ``DATASET@N``.

        Raises:
            InvalidInput: The name has another form.
            NotFound: There is none of that name.
        """
        return await self._shop.runner.run(self._store.snapshot, *datasets.parse_snapshot_name(name))

    async def dataset(self, name: str) -> Dataset:
        """Return one dataset, whole.

        Raises:
            NotFound: There is none of that name.
        """
        return await self._shop.runner.run(self._store.dataset, name)

    async def datasets(self) -> tuple[Dataset, ...]:
        """Return all datasets by name, in short."""
        return await self._shop.runner.run(self._store.datasets)


def safe_file_name(text: str) -> str:
    """Return the last part of a path as a client wrote it: only its name is provenance.

    Raises:
        InvalidInput: It is empty, too long or holds what cannot be printed.
    """
    name = text.replace("\\", "/").rpartition("/")[2]
    if not 1 <= len(name) <= _MAX_FILE_NAME or not name.isprintable():
        why = f"{text[:80]!r} has a name of {len(name)} characters, allowed 1 to {_MAX_FILE_NAME} printable ones"
        raise InvalidInput("bad-name", "the file's name is refused", why)
    return name
