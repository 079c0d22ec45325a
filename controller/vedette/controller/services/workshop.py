"""What the services of data, runs and versions share: where blobs lie, who does the work, what time it is."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vedette.controller.domain.clock import Clock
from vedette.controller.domain.disk import typed_os_errors
from vedette.controller.domain.jobs import ChildLimits, Log
from vedette.controller.services.ports import Runner
from vedette.models.release import Blob

Pieces = AsyncIterator[bytes]
"""An upload, in order."""

Follow = Callable[[float, str], None]
"""Told in the event loop how far a job is, 0 to 1, and what it does now."""

Receive = Callable[[Pieces, Path, int, int], Awaitable[str]]
"""Writes an upload to a new file and returns the digest of its bytes: (pieces, path, bytes announced, limit).

Raises TooLarge over the limit, InvalidInput when nothing or not what was announced came, DiskFull without room.
"""


class Blobs(Protocol):
    """The content-addressed store. Usable from any thread; writing what is there changes nothing."""

    def put_file(self, path: Path) -> Blob:
        """Store a copy of a file and return its name.

        Raises:
            TooLarge: It is over the limit of a blob.
            DiskFull: There is no room.
        """
        ...

    def path(self, digest: str) -> Path:
        """Return where a blob lies, for a child to read."""
        ...

    def read(self, digest: str, *, limit: int) -> bytes:
        """Return a blob's bytes, verified.

        Raises:
            NotFound: There is none.
            StoreFailed: The bytes are not those that were stored.
        """
        ...


class Jobs(Protocol):
    """Runs jobs in child processes. For the event loop's thread."""

    async def run(
        self,
        module: str,
        folder: Path,
        arguments: Mapping[str, Any],
        *,
        limits: ChildLimits,
        follow: Follow | None = None,
        log: Log | None = None,
    ) -> dict[str, Any]:
        """Run a job to its end and return its result; cancelled, it returns when the child is gone.

        Raises:
            ControllerError: Whatever the job refused or failed with.
            JobCrashed: It died, or passed its deadline.
        """
        ...


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where the work is done. All of it belongs to the controller's event loop.

    Attributes:
        runner: Runs store work.
        blobs: Takes parts, builds, golden samples and reference profiles.
        children: Runs imports, snapshots and looks into model files.
        trainers: Runs trainings, which wait for each other and never hold up an import.
        receive: Takes uploads.
        staging: An existing folder for uploads and jobs; what a crash left there is of no use to anyone.
        runs: An existing folder that keeps a folder for each run.
        clock: Dates what is stored.
    """

    runner: Runner
    blobs: Blobs
    children: Jobs
    trainers: Jobs
    receive: Receive
    staging: Path
    runs: Path
    clock: Clock

    @contextmanager
    def job_folder(self) -> Iterator[Path]:
        """Hold a folder of one job's own; it is gone when the block ends.

        Raises:
            DiskFull: There is no room for it.
            StoreFailed: It cannot be made.
        """
        with typed_os_errors(self.staging):
            folder = tempfile.TemporaryDirectory(dir=self.staging, prefix="job-")
        with folder as path:
            yield Path(path)
