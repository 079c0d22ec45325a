"""A real controller on a real disk without a byte left: it says so, serves on, and goes on when there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.integration.controller.test_telemetry import window
from tests.integration.training.test_admin_verbs import data, labels, refused, upload
from tests.support import onnx_models as made
from tests.support.controller import Appliance, Running, prepare, running
from tests.support.disks import BALLAST, full_disk
from tests.support.learning import CAPTURES
from vedette.controller.app import opened
from vedette.controller.domain.errors import DiskFull
from vedette.wire import convert
from vedette.wire.v1 import admin_pb2
from vedette.wire.values import TelemetryBatch

pytestmark = pytest.mark.root

FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "disk-full")
QUICK = {"rounds": "5", "kind_rounds": "2", "folds": "2"}


def register(admin: Any, name: str) -> Any:
    raw = made.linear().SerializeToString()
    return admin.RegisterModel(upload(admin_pb2.RegisterModelRequest, raw, model=name, file_name="plain.onnx"))


async def report(edge: Appliance, sequence: int) -> None:
    batch = TelemetryBatch(boot_epoch=1, sequence=sequence, windows=(window(),))
    async with edge.telemetry() as stub:
        await stub.Report(convert.BATCH.to_wire(batch))


async def test_every_verb_says_so_the_server_serves_on_and_all_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with full_disk(tmp_path, "160m") as fill:
        async with running(prepare(tmp_path / "data")) as served, served.admin() as admin:
            await play(served, admin, tmp_path, fill)


async def play(served: Running, admin: Any, disk: Path, fill: Any) -> None:
    edge = await served.enrolled("edge")
    token = await served.token()
    await data(admin, CAPTURES / "shifted/softflowd-v9.pcap.gz")
    fill()

    assert await refused(admin.CreateToken(admin_pb2.CreateTokenRequest())) == FULL
    assert await refused(served.enrol(Appliance(served), token)) == FULL
    assert await refused(report(edge, 1)) == FULL
    assert await refused(data(admin, CAPTURES / "base/softflowd-v9.pcap.gz")) == FULL
    assert await refused(labels(admin, CAPTURES / "shifted/labels.json")) == FULL
    assert await refused(admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(dataset="lab"))) == FULL
    assert await refused(register(admin, "plain")) == FULL
    assert (await admin.GetOverview(admin_pb2.GetOverviewRequest())).agents
    async with edge.connected():
        pass
    assert served.controller.database.failures["disk-full"] >= 3
    assert "disk-full" in (await served.controller._metrics()).body

    (disk / BALLAST).unlink()
    await report(edge, 1)
    assert (await served.enrolled("two")).name == "two"
    await data(admin, CAPTURES / "base/softflowd-v9.pcap.gz")
    await labels(admin, CAPTURES / "base/labels.json")
    assert (await register(admin, "plain")).version == "plain:1"
    snapshot = await admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(dataset="lab"))

    request = admin_pb2.StartRunRequest(recipe="flow-threat", snapshot=snapshot.snapshot, parameters=QUICK)
    started = await admin.StartRun(request)
    watched = admin.WatchRun(admin_pb2.GetRunRequest(run=started.run))
    async for run in watched:
        if run.state == admin_pb2.RUN_STATE_TRAINING:
            break
    fill()
    async for run in watched:
        last = run
        if "not stored" in run.step:
            (disk / BALLAST).unlink(missing_ok=True)
    (disk / BALLAST).unlink(missing_ok=True)
    assert (last.state, "no room" in last.error) == (admin_pb2.RUN_STATE_FAILED, True)
    assert list((disk / "data/staging").iterdir()) == []
    again = await admin.StartRun(request)
    ends = [run async for run in admin.WatchRun(admin_pb2.GetRunRequest(run=again.run))]
    assert ends[-1].state == admin_pb2.RUN_STATE_SUCCEEDED, ends[-1].error


async def test_every_start_on_a_full_disk_serves_and_refuses_what_needs_room(tmp_path: Path) -> None:
    with full_disk(tmp_path, "16m") as fill:
        settings = prepare(tmp_path / "data")
        async with running(settings) as served:
            edge = await served.enrolled("edge")
        for _ in range(3):
            fill()
            async with running(settings) as served, served.admin() as admin:
                fill()
                edge._running = served
                async with edge.connected():
                    assert await refused(register(admin, "plain")) == FULL
                    assert await refused(report(edge, 1)) == FULL
                    assert (await admin.GetOverview(admin_pb2.GetOverviewRequest())).agents == 1
        (tmp_path / BALLAST).unlink()
        async with running(settings) as served:
            edge._running = served
            await report(edge, 1)


async def test_without_a_reserve_a_start_on_a_full_disk_is_a_typed_error_and_works_when_there_is_room(
    tmp_path: Path,
) -> None:
    with full_disk(tmp_path, "8m") as fill:
        settings = prepare(tmp_path / "data")
        fill()
        with pytest.raises(DiskFull), opened(settings):
            pass
        (tmp_path / BALLAST).unlink()
        async with running(settings) as served:
            assert await served.token()
