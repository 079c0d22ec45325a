"""The controller as a program of its own, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.controller import Running
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.context import AdminContext
from vedette.controller.settings import ControllerSettings
from vedette.models.toml_settings import parse_address


@contextlib.asynccontextmanager
async def program(
    config: Path, systemd: socket.socket, module: str = "vedette.controller", *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a controller, wait until it says it is ready, and leave nothing of it behind."""
    words = arguments or ("serve", "--config", str(config))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *words,
        env={**os.environ, "NOTIFY_SOCKET": systemd.getsockname()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert (await asyncio.to_thread(systemd.recv, 1000)).startswith(b"READY=1\nSTATUS=")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Client(Running):
    """Clients of a controller in another process."""

    def __init__(self, config: Path) -> None:
        settings = ControllerSettings.load(config)
        assert settings.enrol_listen
        self.controller: Any = _Ports(parse_address(settings.listen)[1], parse_address(settings.enrol_listen)[1])
        self.context = AdminContext.load(config.parent / "admin.toml")
        self.keys = KeyRing.load(config.parent)


@dataclass
class _Ports:
    port: int
    enrol_port: int
