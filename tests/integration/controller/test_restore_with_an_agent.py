"""The whole story with real programs: the disk dies, an old backup is put back, the appliance serves on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.training.test_admin_verbs import upload
from tests.support import onnx_models as made
from tests.support.controller_process import Client, program
from tests.support.daemon import Daemon
from vedette.agent.domain.report import Report
from vedette.controller.__main__ import main
from vedette.wire.v1 import admin_pb2


async def register(admin: Any, outputs: int) -> str:
    raw = made.linear(outputs=outputs).SerializeToString()
    done = await admin.RegisterModel(
        upload(admin_pb2.RegisterModelRequest, raw, model="plain", file_name=f"{outputs}.onnx")
    )
    return str(done.version)


async def roll_out(admin: Any, version: str) -> None:
    """Start a rollout and watch it to its end: while one moves an agent's slot, no other may."""
    request = admin_pb2.StartRolloutRequest(version=version, waves=["100%"], soak_s=0, timeout_s=60)
    started = await admin.StartRollout(request)
    async for last in admin.WatchRollout(admin_pb2.GetRolloutRequest(rollout=started.rollout)):
        seen = last
    assert seen.state == admin_pb2.ROLLOUT_STATE_SUCCEEDED


def serves(version: int) -> Any:
    def holds(report: Report) -> bool:
        slot = report["slots"].get("plain")
        return bool(slot and slot["state"] == "active" and slot["active"] and slot["active"]["version"] == version)

    return holds


async def conditions(admin: Any) -> list[str]:
    agents = await admin.ListAgents(admin_pb2.ListAgentsRequest())
    return [condition.code for agent in agents.agents if agent.conditions for condition in agent.conditions]


async def run(*words: object) -> int:
    return await asyncio.to_thread(main, [str(word) for word in words])


@pytest.mark.slow
async def test_a_dead_disk_and_an_old_backup_move_no_appliance_back(
    config: Path, systemd: socket.socket, tmp_path: Path
):
    data_dir, backups = config.parent, tmp_path / "backups"
    backups.mkdir()
    (tmp_path / "edge").mkdir()
    edge = Daemon(tmp_path / "edge")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_end, edge)
        async with program(config, systemd):
            client = Client(config)
            async with client.admin() as admin:
                assert await edge.command("enroll", "--token", (await client.token()).encode()) == 0
                await edge.start()
                await roll_out(admin, await register(admin, 2))
                await edge.until(serves(1))
                assert await run("backup", "--config", config, backups) == 0  # while it serves
                await roll_out(admin, await register(admin, 3))
                await edge.until(serves(2))
        shutil.rmtree(data_dir)

        (backup,) = backups.glob("*.tar")
        words = ["restore", backup, "--data-dir", data_dir, "--blobs-from", backups / "blobs", "--yes"]
        assert await run(*words) == 0
        assert await run("check", "--config", config) == 0

        async with program(config, systemd), Client(config).admin() as admin:
            while "held-after-restore" not in await conditions(admin):  # noqa: ASYNC110 - the time-out ends it
                await asyncio.sleep(0.1)
            assert serves(2)(edge.report())
            version = await register(admin, 4)
            assert version == "plain:102"  # nobody can say how many were given out after the backup
            await roll_out(admin, version)
            await edge.until(serves(102))
            while await conditions(admin):  # noqa: ASYNC110 - the time-out ends it
                await asyncio.sleep(0.1)


async def _end(edge: Daemon) -> None:
    if edge.process and edge.process.returncode is None:
        await edge.stop()
