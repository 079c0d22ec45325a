"""A serving agent on one folder, for tests."""

from __future__ import annotations

from pathlib import Path

from tests.support.clock import FakeClock
from tests.support.tiny_models import Shelf
from vedette.agent.adapters.inference.serving import Serving, ServingSettings
from vedette.agent.adapters.inference.worker import WorkerSettings
from vedette.agent.adapters.storage.state import State
from vedette.models.release import Blob

FAST = WorkerSettings(nice=0, deadline_s=1.0, grace_s=1.0, test_deadline_s=5.0, load_timeout_s=30.0)


class Appliance:
    """A serving agent on one folder, which may be started again on what the last one left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shelf = Shelf()
        self.clock = FakeClock()
        self.settings = ServingSettings(worker=FAST, drain_s=10.0, settle_s=20.0)
        self.state = State(folder / "state.db")
        self.serving = self._serving()

    def _serving(self) -> Serving:
        return Serving(self.state, self.blobs, self.settings, self.clock)

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    async def fetch(self, blob: Blob) -> Path:
        return await self.shelf.fetch_to(self.blobs, blob)

    def blob_path(self, digest: str) -> Path:
        return self.blobs / "sha256" / digest.removeprefix("sha256:")

    def use(self, settings: ServingSettings) -> None:
        """Serve with other settings from now on; before anything was installed only."""
        self.settings = settings
        self.serving = self._serving()

    async def restart(self) -> Serving:
        await self.close()
        self.state = State(self.folder / "state.db")
        self.serving = self._serving()
        await self.serving.start()
        return self.serving

    async def close(self) -> None:
        await self.serving.stop()
        self.state.close()
