"""What the controller refuses is counted by method and code; nothing of it harms the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.integration.training.test_admin_verbs import upload
from tests.support import onnx_models as made
from tests.support.clock import FakeClock
from tests.support.controller import Appliance, Running, code_of, prepare, running
from vedette.wire.limits import MAX_MESSAGE_BYTES
from vedette.wire.v1 import admin_pb2, enrolment_pb2, enrolment_pb2_grpc, telemetry_pb2


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def served(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Running]:
    async with running(prepare(tmp_path / "data"), clock=clock) as made_running:
        yield made_running


async def counted(served: Running) -> dict[str, float]:
    lines = (await served.controller._metrics()).body.splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


async def refused(call: Any) -> str:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return code_of(caught.value)


async def test_tokens_that_are_wrong_used_revoked_or_expired_are_counted_apart(
    served: Running, clock: FakeClock
) -> None:
    token = await served.token()
    assert await refused(served.enrol(Appliance(served), replace(token, secret="x" * 43))) == "token-unknown"
    await served.enrol(Appliance(served), token)
    assert await refused(served.enrol(Appliance(served), token)) == "token-used"
    revoked = await served.token()
    async with served.admin() as admin:
        await admin.RevokeToken(admin_pb2.RevokeTokenRequest(id=revoked.token_id))
    assert await refused(served.enrol(Appliance(served), revoked)) == "token-revoked"
    expired = await served.token(expires_s=60)
    clock.step_wall(timedelta(seconds=60))
    assert await refused(served.enrol(Appliance(served), expired)) == "token-expired"
    metrics = await counted(served)
    for code in ("token-unknown", "token-used", "token-revoked", "token-expired", "ok"):
        assert metrics[f'vedette_controller_calls_total{{code="{code}",method="Enrolment/Enrol"}}'] == 1


async def test_messages_over_the_limit_are_counted_though_no_handler_sees_them(served: Running) -> None:
    edge = await served.enrolled("edge")
    huge = b"x" * (MAX_MESSAGE_BYTES + 1)
    async with served.channel(served.controller.enrol_port, served.keys.authority.pem) as channel:
        stub: Any = enrolment_pb2_grpc.EnrolmentStub(channel)
        with pytest.raises(aio.AioRpcError, match=str(MAX_MESSAGE_BYTES)) as caught:
            await stub.Enrol(enrolment_pb2.EnrolRequest(certificate_request=huge))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with edge.telemetry() as telemetry:
        window = telemetry_pb2.Window(profile=huge)
        with pytest.raises(aio.AioRpcError, match=str(MAX_MESSAGE_BYTES)):
            await telemetry.Report(telemetry_pb2.TelemetryBatch(windows=[window]))
        assert await refused(telemetry.Report(telemetry_pb2.TelemetryBatch())) == "telemetry-invalid"
    async with edge.connected():
        pass
    metrics = await counted(served)
    assert sum("message-unread" in name for name in metrics) == 2
    for method in ("Enrolment/Enrol", "Telemetry/Report"):
        assert metrics[f'vedette_controller_calls_total{{code="message-unread",method="{method}"}}'] == 1
    assert metrics['vedette_controller_calls_total{code="telemetry-invalid",method="Telemetry/Report"}'] == 1
    assert metrics['vedette_controller_calls_total{code="ok",method="Enrolment/Enrol"}'] == 1


async def test_files_and_models_that_are_refused_are_counted(served: Running) -> None:
    hostile = made.tree_model(**made.chain(30_000)).SerializeToString()
    garbage = {"dataset": "lab", "format": "flows", "file_name": "x.pcap"}
    async with served.admin() as admin:
        model = upload(admin_pb2.RegisterModelRequest, hostile, model="deep", file_name="deep.onnx")
        assert await refused(admin.RegisterModel(model)) == "model-tree-depth"
        file = upload(admin_pb2.ImportDataRequest, b"no capture at all" * 100, **garbage)
        assert await refused(admin.ImportData(file)) != "internal"
        assert not (await admin.ListDatasets(admin_pb2.ListDatasetsRequest())).datasets
    metrics = await counted(served)
    assert metrics['vedette_controller_calls_total{code="model-tree-depth",method="Admin/RegisterModel"}'] == 1
    refusals = [name for name in metrics if "Admin/ImportData" in name]
    assert len(refusals) == 1
    assert "internal" not in refusals[0]
