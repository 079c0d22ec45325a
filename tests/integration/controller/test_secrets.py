"""Where a token, a key or an admin's credential must never be seen."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from tests.support.controller_process import Client
from vedette.wire.v1 import admin_pb2


async def test_the_most_talkative_log_of_a_controller_holds_no_secret(config: Path, systemd: socket.socket):
    said, token = await log_of_a_day(config, systemd)

    assert "DEBUG" in said
    assert "agent edge connected" in said
    assert token not in said
    secrets = [*config.parent.glob("keys/*"), *config.parent.glob("tls/*.key"), config.parent / "admin.toml"]
    assert len(secrets) >= 4
    for path in secrets:
        for line in path.read_text().splitlines():
            assert len(line) < 40 or line not in said, path


async def log_of_a_day(config: Path, systemd: socket.socket) -> tuple[str, str]:
    """Return what a controller logs in which a token was made and an agent enrolled and connected; and the token."""
    words = ("-m", "vedette.controller", "serve", "--config", str(config), "--verbose")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NOTIFY_SOCKET": systemd.getsockname()},
    )  # fmt: skip
    try:
        assert (await asyncio.to_thread(systemd.recv, 1000)).startswith(b"READY=1\n")
        client = Client(config)
        async with client.admin() as admin:
            answer = await admin.CreateToken(admin_pb2.CreateTokenRequest(uses=1))
        edge = await client.enrolled("edge")
        async with edge.connected():
            pass
    finally:
        process.terminate()
        _, said = await process.communicate()
    return said.decode(), answer.token
