"""What a crash leaves in the data directory is cleared away, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from tests.integration.training.test_admin_verbs import data, labels
from tests.support.controller import prepare, running
from tests.support.learning import CAPTURES
from vedette.controller.__main__ import main
from vedette.wire.v1 import admin_pb2


async def test_blobs_that_a_crash_orphaned_go_at_a_start_a_day_later_and_named_ones_never(tmp_path: Path) -> None:
    settings = prepare(tmp_path / "data")
    async with running(settings) as served, served.admin() as admin:
        await data(admin, CAPTURES / "shifted/softflowd-v9.pcap.gz")
        await labels(admin, CAPTURES / "shifted/labels.json")
        await admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(dataset="lab"))
        served.release()
        blobs = served.controller.rooms.blobs
        named = set(blobs.digests())
        old, young = blobs.put(b"left by a crash").digest, blobs.put(b"left just now").digest
        for digest in (*named, old):
            os.utime(blobs.path(digest), (0, 0))
    async with running(settings) as served:
        assert set(served.controller.rooms.blobs.digests()) == named | {young}


async def test_blobs_that_a_restored_backup_does_not_name_stay_for_a_while(tmp_path: Path) -> None:
    settings = prepare(tmp_path / "data")
    backup = str(tmp_path / "backup.tar")
    assert main(["backup", "--config", str(tmp_path / "data/controller.toml"), backup]) == 0
    async with running(settings) as served:
        served.release()
        blobs = served.controller.rooms.blobs
        named = set(blobs.digests())
        for digest in named:
            os.utime(blobs.path(digest), (0, 0))
    assert main(["restore", backup, "--data-dir", str(settings.data_dir), "--yes"]) == 0
    async with running(settings) as served:
        assert set(served.controller.rooms.blobs.digests()) == named
