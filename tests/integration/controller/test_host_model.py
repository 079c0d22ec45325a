"""A model of host metrics, from a file to verdicts about the appliance that runs it, with real programs."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.controller.test_restore_with_an_agent import conditions, roll_out
from tests.integration.training.test_admin_verbs import upload
from tests.support.controller_process import Client, program
from tests.support.daemon import Daemon
from tests.support.host_models import LABELS, host_onnx
from vedette.models.host import HOST_SCHEMA
from vedette.wire.v1 import admin_pb2

NOTES = {"vedette.kind": "host", "vedette.labels": json.dumps(LABELS), "vedette.threshold": "0.5"}


async def register(admin: Any, raw: bytes, **header: Any) -> Any:
    return await admin.RegisterModel(
        upload(admin_pb2.RegisterModelRequest, raw, model="host-health", file_name="host.onnx", **header)
    )


async def end(agent: Daemon) -> None:
    if agent.process and agent.process.returncode is None:
        await agent.stop()


@pytest.mark.slow
async def test_a_host_model_is_registered_rolled_out_and_judges_the_appliance(
    config: Path, systemd: socket.socket, tmp_path: Path
) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    agent = Daemon(folder, extra='source.host.interval_s = 1\nsink.json.emit = "all"\n')
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(end, agent)
        await stack.enter_async_context(program(config, systemd))
        client = Client(config)
        async with client.admin() as admin:
            version = await register(admin, host_onnx(1.0, notes=NOTES))
            assert (version.kind, version.schema_digest) == ("host", HOST_SCHEMA.digest)
            said = json.dumps({"kind": "host", "labels": LABELS, "threshold": 0.9})
            beside = await register(admin, host_onnx(1.0), schema=said)  # the same, from an exporter without metadata
            assert (beside.kind, list(beside.labels), beside.threshold) == ("host", list(LABELS), 0.9)
            assert beside.version == "host-health:2"
            assert (await register(admin, host_onnx(1.0), schema=said)).version == "host-health:2"
            token = await client.token()
            assert await agent.command("enroll", "--token", token.encode()) == 0
            await agent.start()
            await roll_out(admin, version.version)
            report = await agent.until(lambda r: r["counters"]["host_rows_flagged"] >= 2)
            assert await conditions(admin) == []
        assert report["counters"]["host_rows_failed"] == 0
        assert 'vedette_agent_model_rows_total{slot="host-health"}' in agent.metrics()
        assert await agent.stop() == 0
    line = agent.lines()[-1]
    assert line["host_metrics"].keys() == set(HOST_SCHEMA.names)
    assert line["host_metrics"]["tasks"] > 1
    assert (line["vedette"]["model"], line["vedette"]["verdict"], line["vedette"]["flagged"]) == (
        "host-health",
        "crowded",
        True,
    )
