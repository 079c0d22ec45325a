"""Data, runs, versions and drift through a real server over mTLS: what the CLI will do, call by call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import onnx_models as made
from tests.support.controller import Running, code_of, prepare, running
from tests.support.learning import CAPTURES
from vedette.wire.v1 import admin_pb2

CHUNK = 65_536


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Any]:
    async with running(prepare(tmp_path / "data")) as served, served.admin() as stub:
        yield stub


def upload(kind: Any, content: bytes | Path, **header: Any) -> Iterator[Any]:
    raw = content.read_bytes() if isinstance(content, Path) else content
    yield kind(header=kind.Header(total_bytes=len(raw), **header))
    for at in range(0, len(raw), CHUNK):
        yield kind(data=raw[at : at + CHUNK])


async def data(admin: Any, path: Path, dataset: str = "lab") -> admin_pb2.DataImport:
    header = {"dataset": dataset, "format": "flows", "file_name": path.name}
    done: admin_pb2.DataImport = await admin.ImportData(upload(admin_pb2.ImportDataRequest, path, **header))
    return done


async def labels(admin: Any, path: Path) -> admin_pb2.LabelImport:
    header = {"dataset": "lab", "file_name": path.name}
    done: admin_pb2.LabelImport = await admin.ImportLabels(upload(admin_pb2.ImportLabelsRequest, path, **header))
    return done


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), code_of(caught.value)


async def test_session_from_capture_to_registered_version(admin: Any) -> None:
    done = await data(admin, CAPTURES / "base/softflowd-v9.pcap.gz")
    assert done.rows == 32_289
    assert (await labels(admin, CAPTURES / "base/labels.json")).windows > 5
    snapshot = await admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(dataset="lab"))
    assert snapshot.snapshot == "lab@1"
    assert await admin.GetSnapshot(admin_pb2.GetSnapshotRequest(name="lab@1")) == snapshot

    quick = {"rounds": "5", "kind_rounds": "2", "folds": "2"}
    started = await admin.StartRun(
        admin_pb2.StartRunRequest(recipe="flow-threat", snapshot="lab@1", parameters=quick)
    )  # fmt: skip
    seen = [run async for run in admin.WatchRun(admin_pb2.GetRunRequest(run=started.run))]
    assert (seen[-1].state, seen[-1].version) == (admin_pb2.RUN_STATE_SUCCEEDED, "flow-threat:1"), seen[-1].error

    version = await admin.GetVersion(admin_pb2.GetVersionRequest(version="flow-threat:1"))
    assert (version.kind, version.labels[0]) == ("flow", "benign")
    assert version.lineage["snapshot"] == "lab@1"
    assert [v.version for v in (await admin.ListVersions(admin_pb2.ListVersionsRequest())).versions] == [
        "flow-threat:1"
    ]
    assert [r.run for r in (await admin.ListRuns(admin_pb2.ListRunsRequest())).runs] == [started.run]
    overview = await admin.GetOverview(admin_pb2.GetOverviewRequest())
    assert [(m.model, m.newest_version) for m in overview.models] == [("flow-threat", 1)]
    drift = await admin.GetDrift(admin_pb2.GetDriftRequest(model="flow-threat"))
    assert [(v.version, v.verdict) for v in drift.versions] == [("flow-threat:1", "not enough rows")]


async def test_dataset_is_shown_and_listed_with_its_imports(admin: Any) -> None:
    await data(admin, CAPTURES / "shifted/softflowd-v9.pcap.gz")
    assert (await data(admin, CAPTURES / "shifted/softflowd-v9.pcap.gz")).already_there
    whole = await admin.GetDataset(admin_pb2.GetDatasetRequest(name="lab"))
    assert [item.file_name for item in whole.imports] == ["softflowd-v9.pcap.gz"]
    (short,) = (await admin.ListDatasets(admin_pb2.ListDatasetsRequest())).datasets
    assert short == whole


async def test_bare_onnx_is_registered_and_a_hostile_one_refused(admin: Any) -> None:
    def register(raw: bytes) -> Any:
        return admin.RegisterModel(upload(admin_pb2.RegisterModelRequest, raw, model="plain", file_name="plain.onnx"))

    version = await register(made.linear().SerializeToString())
    assert (version.version, version.kind, len(version.signed_by)) == ("plain:1", "tensor", 1)
    hostile = made.tree_model(**made.chain(30_000)).SerializeToString()
    assert await refused(register(hostile)) == (grpc.StatusCode.FAILED_PRECONDITION, "model-tree-depth")


async def test_errors_come_as_their_status_and_code(admin: Any) -> None:
    headless = iter([admin_pb2.ImportDataRequest(data=b"x")])
    twice = iter([admin_pb2.ImportDataRequest(header={"dataset": "lab", "format": "csv", "file_name": "f"})] * 2)
    invalid, absent = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    assert await refused(admin.ImportData(headless)) == (invalid, "upload-headless")
    assert await refused(admin.ImportData(iter([]))) == (invalid, "upload-headless")
    assert await refused(admin.ImportData(twice)) == (invalid, "upload-headless")
    assert await refused(admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(dataset="n"))) == (
        absent,
        "dataset-unknown",
    )
    assert await refused(admin.GetVersion(admin_pb2.GetVersionRequest(version="n:1"))) == (absent, "model-unknown")
    assert await refused(admin.GetRun(admin_pb2.GetRunRequest(run="r7"))) == (absent, "run-unknown")
    assert await refused(admin.GetDrift(admin_pb2.GetDriftRequest(model="n"))) == (absent, "model-unknown")


async def test_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async with running(prepare(tmp_path / "data")) as served, served.admin() as stub:
        call = stub.ImportData()
        await call.write(admin_pb2.ImportDataRequest(header={"dataset": "lab", "format": "csv", "file_name": "f"}))
        await call.write(admin_pb2.ImportDataRequest(data=b"a,b\n1,2\n" * 1000))
        call.cancel()
        assert await idle(served)
    assert list((tmp_path / "data/staging").iterdir()) == []


async def idle(served: Running) -> bool:
    """Ask something that goes through the same server, after the broken call."""
    async with served.admin() as stub:
        return not (await stub.ListDatasets(admin_pb2.ListDatasetsRequest())).datasets


def test_the_server_loads_no_library_of_training_parsing_or_inference() -> None:
    heavy = ("lightgbm", "sklearn", "scipy", "onnx", "onnxruntime", "pyarrow", "onnxmltools", "skl2onnx")
    code = f"import sys, vedette.controller.app; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
