"""The registry as a service: files become versions, versions are listed and read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from vedette.controller.domain import registry
from vedette.controller.domain.errors import Refused
from vedette.controller.domain.jobs import ChildLimits, JobCrashed
from vedette.controller.domain.model_gate import GateLimits, Port
from vedette.controller.domain.registry import Draft
from vedette.controller.services.datasets import safe_file_name
from vedette.controller.services.workshop import Pieces, Workshop
from vedette.models.documents import digest_of
from vedette.models.release import Build
from vedette.wire.systemd import fields
from vedette.wire.views import Version

logger = logging.getLogger(__name__)


class Versions(Protocol):
    """Keeps versions. Methods run in the database's thread; each is one transaction."""

    def add(self, draft: Draft, source: str, now: datetime) -> Version:
        """Give a draft its number, sign it and store it; a source that is registered returns what it became.

        Raises:
            Refused: The model has versions of another kind.
        """
        ...

    def version(self, name: str) -> Version:
        """Return a version by ``MODEL:N``.

        Raises:
            InvalidInput: The name has another form.
            NotFound: There is none of that name.
        """
        ...

    def versions(self, model: str = "") -> tuple[Version, ...]:
        """Return the versions of a model, or of all, newest first within each.

        Raises:
            NotFound: There is no model of that name.
        """
        ...


class RegistryService:
    """Everything the CLI does with versions. All methods belong to the controller's event loop.

    Args:
        workshop: Where the work is done.
        store: Keeps and signs versions.
        limits: Of the child that tries a model; about what an agent gives its worker.
    """

    def __init__(self, workshop: Workshop, store: Versions, *, limits: ChildLimits | None = None) -> None:
        self._shop = workshop
        self._store = store
        self._limits = limits or ChildLimits(memory_bytes=1 << 30, memory_setting="registry.memory", deadline_s=60)

    async def register(self, model: str, file_name: str, total: int, pieces: Pieces, *, schema: str = "") -> Version:
        """Make an uploaded ``.onnx`` the next version of a model; the same file again is the version it became.

        Args:
            model: Its name.
            file_name: For the lineage.
            total: Bytes announced.
            pieces: The file, in order.
            schema: JSON that says in place of the file's metadata what rows it reads; "" leaves that to the file.

        Raises:
            InvalidInput: The name or the schema is wrong, or the upload is not whole.
            TooLarge: It is over the gate's limit.
            Refused: The gate refuses it, it crashes or passes its limits, or it does not fit what it claims.
        """
        registry.check_name(model)
        notes = registry.schema_notes(schema)
        name = safe_file_name(file_name)
        with self._shop.job_folder() as folder:
            upload = folder / "upload"
            digest = await self._shop.receive(pieces, upload, total, GateLimits().file_bytes)
            said = await self._inspect(upload, notes)
            build, golden = await asyncio.gather(
                asyncio.to_thread(self._shop.blobs.put_file, folder / "model.onnx"),
                asyncio.to_thread(self._shop.blobs.put_file, folder / "golden.bin"),
            )
        inputs, outputs = ports(said["inputs"]), ports(said["outputs"])
        rows = said["rows"]
        lineage = {"origin": "upload", "file": name, "file_digest": digest}
        if said["repaired"]:
            lineage["repaired_outputs"] = ", ".join(said["repaired"])[:200]
        if said["moved"]:
            lineage["repaired_locale"] = f"C.UTF-8 in {', '.join(said['moved'])}"[:200]
        draft = Draft(
            model=model,
            kind=rows["kind"] if rows else "tensor",
            schema=registry.ROW_SCHEMAS[rows["kind"]]
            if rows
            else registry.tensor_schema(model, inputs, said["row_wise"]),
            inputs=registry.specs(inputs),
            outputs=registry.specs(outputs),
            labels=tuple(rows["labels"]) if rows else (),
            threshold=rows["threshold"] if rows else 0.0,
            builds=(Build(registry.ONNX_FP32, build, registry.tolerance(said["half"]), registry.REQUIRES),),
            golden=golden,
            lineage=lineage,
            row_wise=said["row_wise"],
        )
        told = f":{digest_of(schema.encode())}" if schema else ""
        return await self.add(draft, f"file:{model}:{digest}{told}")

    async def add(self, draft: Draft, source: str) -> Version:
        """Register a draft whose blobs are stored; the same source again is the version it became.

        Raises:
            Refused: The model has versions of another kind.
        """
        version = await self._shop.runner.run(self._store.add, draft, source, self._shop.clock.now())
        extra = fields(model=version.version, slot=draft.model)
        logger.info("version %s is registered (release %s)", version.version, version.digest, extra=extra)
        return version

    async def version(self, name: str) -> Version:
        """Return a version by ``MODEL:N``.

        Raises:
            InvalidInput: The name has another form.
            NotFound: There is none of that name.
        """
        return await self._shop.runner.run(self._store.version, name)

    async def versions(self, model: str = "") -> tuple[Version, ...]:
        """Return the versions of a model, or of all, newest first within each.

        Raises:
            NotFound: There is no model of that name.
        """
        return await self._shop.runner.run(self._store.versions, model)

    async def _inspect(self, upload: Path, notes: Mapping[str, str]) -> dict[str, Any]:
        job = "vedette.controller.jobs.inspect_model"
        try:
            arguments = {"file": str(upload), "notes": dict(notes)}
            return await self._shop.children.run(job, upload.parent, arguments, limits=self._limits)
        except JobCrashed as exc:
            limits = f"limits {self._limits.memory_bytes} bytes and {self._limits.deadline_s:g} s"
            why = f"the process that tried it {exc.what.partition(' ')[2]} ({limits})"
            raise Refused(
                "model-crashed", "the model is refused", why, "docs/models.md lists what a model may be"
            ) from exc


def ports(values: Sequence[Sequence[Any]]) -> tuple[Port, ...]:
    """Return ports as a job's result names them."""
    return tuple(Port(name, dtype, tuple(shape)) for name, dtype, shape in values)
