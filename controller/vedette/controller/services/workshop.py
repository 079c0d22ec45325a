"""What the services of data, runs and versions share: one database, one blob store, one pool of children."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vedette.controller.adapters.blobs import BlobStore
from vedette.controller.adapters.children import Children
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.domain.clock import Clock


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where the work is done. All of it belongs to the controller's event loop.

    Attributes:
        database: With the migrations of datasets, runs and registry.
        blobs: Takes parts, builds, golden samples and reference profiles.
        children: Runs imports, snapshots and looks into model files.
        staging: An existing folder for uploads and jobs; what a crash left there is of no use to anyone.
        runs: An existing folder that keeps a folder for each run.
        clock: Dates what is stored.
    """

    database: Database
    blobs: BlobStore
    children: Children
    staging: Path
    runs: Path
    clock: Clock
