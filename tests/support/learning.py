"""A dataset service, and what comes after it, over real stores in a temporary folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vedette.controller.adapters.blobs import BlobStore
from vedette.controller.adapters.children import Children
from vedette.controller.adapters.recipes_loader import RecipeShelf
from vedette.controller.adapters.sqlite import datasets as dataset_store
from vedette.controller.adapters.sqlite import registry as registry_store
from vedette.controller.adapters.sqlite import runs as run_store
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.adapters.uploads import receive
from vedette.controller.services.datasets import DatasetService
from vedette.controller.services.registry import RegistryService
from vedette.controller.services.runs import RunService
from vedette.controller.services.workshop import Workshop
from vedette.models.signing import SigningKey
from vedette.wire.views import DataImport, LabelImport, Version

CAPTURES = Path(__file__).parents[2] / "controller/vedette/controller/data/captures"


KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
"""Fixed, so that what one process signed another proves."""

SHELF = RecipeShelf(Path(__file__).parent / "recipes")


class StepClock:
    """A clock that moves a second at each question, so that no two facts have one date."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)

    def now(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now

    def monotonic(self) -> float:
        return self.now().timestamp()


@dataclass
class DataRoom:
    """The stores and the service of one controller's data."""

    database: Database
    shop: Workshop
    service: DatasetService
    registry: RegistryService
    versions: registry_store.RegistryStore
    runs: RunService
    root: Path

    @property
    def blobs(self) -> BlobStore:
        return BlobStore(self.root / "blobs")

    @property
    def store(self) -> dataset_store.DatasetStore:
        return dataset_store.DatasetStore(self.database)

    async def data(self, dataset: str, content: bytes | Path, file_format: str, name: str = "") -> DataImport:
        raw = _raw(content)
        label = name or (content.name if isinstance(content, Path) else "upload")
        return await self.service.import_data(dataset, file_format, label, len(raw), pieces(raw))

    async def model(self, name: str, content: bytes, file_name: str = "model.onnx", schema: str = "") -> Version:
        return await self.registry.register(name, file_name, len(content), pieces(content), schema=schema)

    async def labels(self, dataset: str, content: bytes | Path) -> LabelImport:
        raw = _raw(content)
        return await self.service.import_labels(dataset, "labels.json", len(raw), pieces(raw))

    def leftovers(self) -> list[Path]:
        """Return what jobs left in the staging folder."""
        return list((self.root / "staging").iterdir())

    @staticmethod
    def text(path: Path) -> str:
        return path.read_text()


def _raw(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


async def pieces(raw: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for at in range(0, len(raw), size):
        yield raw[at : at + size]
        await asyncio.sleep(0)


@contextmanager
def data_room(
    root: Path, *, max_upload_bytes: int = 64 << 20, runs: type[run_store.RunStore] | None = None
) -> Iterator[DataRoom]:
    """Open the stores under a folder; closed when the block ends, whatever happened."""
    for name in ("staging", "runs"):
        (root / name).mkdir(parents=True, exist_ok=True)
    database = Database(root / "controller.db")
    try:
        for migrations in (dataset_store.MIGRATIONS, run_store.MIGRATIONS, registry_store.MIGRATIONS):
            database.migrate(migrations)
        shop = Workshop(
            runner=database,
            blobs=BlobStore(root / "blobs"),
            children=Children(),
            trainers=Children(at_once=1),
            receive=receive,
            staging=root / "staging",
            runs=root / "runs",
            clock=StepClock(),
        )
        store = registry_store.RegistryStore(database, KEY)
        service = DatasetService(shop, dataset_store.DatasetStore(database), max_upload_bytes=max_upload_bytes)
        registry = RegistryService(shop, store)
        trained = RunService(shop, service, registry, SHELF, (runs or run_store.RunStore)(database))
        yield DataRoom(database, shop, service, registry, store, trained, root)
    finally:
        database.close()
