"""A real controller is killed at each thing it stores, just before and just after; the caller repeats what it asked.

Runs, rollouts and telemetry have tables of their own: ``training/test_runs.py``, ``rollouts/test_rollouts.py``,
``test_process.py``.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.integration.training.test_admin_verbs import data, labels, upload
from tests.support import onnx_models as made
from tests.support.controller import Appliance, Running, code_of, running
from tests.support.controller_process import Client, program
from tests.support.learning import CAPTURES
from vedette.controller.settings import ControllerSettings
from vedette.wire.v1 import admin_pb2

CAPTURE = CAPTURES / "shifted/softflowd-v9.pcap.gz"
Ask = Callable[[Running], Awaitable[Any]]


async def import_data(served: Running) -> None:
    async with served.admin() as admin:
        await data(admin, CAPTURE)


async def import_labels(served: Running) -> None:
    async with served.admin() as admin:
        await labels(admin, CAPTURES / "shifted/labels.json")


async def snapshot(served: Running) -> None:
    async with served.admin() as admin:
        await admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(dataset="lab"))


async def register(served: Running) -> None:
    raw = made.linear().SerializeToString()
    async with served.admin() as admin:
        await admin.RegisterModel(upload(admin_pb2.RegisterModelRequest, raw, model="plain", file_name="plain.onnx"))


async def token(served: Running) -> None:
    await served.token()


async def label(served: Running) -> None:
    async with served.admin() as admin:
        await admin.LabelAgent(admin_pb2.LabelAgentRequest(name="edge", set={"site": "s1"}))


async def revoke(served: Running) -> None:
    async with served.admin() as admin:
        await admin.RevokeAgent(admin_pb2.RevokeAgentRequest(name="edge"))


TABLE: dict[str, tuple[Ask, tuple[Ask, ...]]] = {
    "DatasetStore.add_import": (import_data, ()),
    "DatasetStore.add_labels": (import_labels, (import_data,)),
    "DatasetStore.add_snapshot": (snapshot, (import_data, import_labels)),
    "RegistryStore.add": (register, ()),
    "TokenStore.add": (token, ()),
    "AgentStore.set_labels": (label, ()),
    "AgentStore.revoke": (revoke, ()),
}


async def facts(served: Running) -> dict[str, Any]:
    """Return what admins see of it."""
    async with served.admin() as admin:
        datasets = (await admin.ListDatasets(admin_pb2.ListDatasetsRequest())).datasets
        versions = (await admin.ListVersions(admin_pb2.ListVersionsRequest())).versions
        agents = (await admin.ListAgents(admin_pb2.ListAgentsRequest())).agents
    return {
        "imports": [(item.file_name, item.rows) for d in datasets for item in d.imports],
        "labels": [d.label_windows for d in datasets],
        "snapshots": [(s.snapshot, s.digest) for d in datasets for s in d.snapshots],
        "versions": [(v.version, v.kind) for v in versions],
        "agents": [(a.name, dict(a.labels), a.state) for a in agents],
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stored", TABLE)
async def test_what_was_asked_and_is_repeated_after_a_kill_is_there_once_and_whole(
    config: Path, systemd: socket.socket, tmp_path: Path, stored: str, when: str
) -> None:
    ask, prepared = TABLE[stored]
    settings = ControllerSettings.load(config)
    async with running(settings) as served:
        await served.enrolled("edge")
        for each in prepared:
            await each(served)
    async with program(config, systemd, "tests.support.killed_controller", str(config), stored, when) as doomed:
        with pytest.raises(aio.AioRpcError) as caught:
            await ask(Client(config))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.wait_for(doomed.wait(), 20) == -signal.SIGKILL
    async with running(settings) as served:
        assert list((tmp_path / "data/staging").iterdir()) == []
        assert list((tmp_path / "data/blobs/incoming").iterdir()) == []
        await ask(served)
        once = await facts(served)
        if ask is not token:
            await ask(served)
        assert await facts(served) == once
        assert served.controller.database.damage() is None
        for digest in served.controller.rooms.blobs.digests():
            served.controller.rooms.blobs.verify(digest)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_token_spent_in_a_kill_makes_one_agent_of_who_repeats_and_none_of_another(
    config: Path, systemd: socket.socket, when: str
) -> None:
    settings = ControllerSettings.load(config)
    async with running(settings) as served:
        spent = await served.token()
    async with program(
        config, systemd, "tests.support.killed_controller", str(config), "TokenStore.enrol", when
    ) as doomed:
        client = Client(config)
        edge = Appliance(client)
        with pytest.raises(aio.AioRpcError):
            await client.enrol(edge, spent, name="edge")
        assert await asyncio.wait_for(doomed.wait(), 20) == -signal.SIGKILL
    async with running(settings) as served:
        edge._running = served
        await served.enrol(edge, spent, name="edge")
        with pytest.raises(aio.AioRpcError) as caught:
            await served.enrol(Appliance(served), spent)
        assert code_of(caught.value) == "token-used"
        assert [agent.name for agent in await served.controller.rooms.fleet.agents()] == ["edge"]
        async with edge.connected():
            pass
