"""The real agent program on a folder of its own, and what a test asks of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.fake_controller import FakeController
from tests.support.flow_models import flow_release
from tests.support.tiny_models import Shelf
from vedette.agent.app import current_report
from vedette.agent.domain.report import Report
from vedette.agent.settings import read_settings
from vedette.models.release import Release

CAPTURE = "base/softflowd-v9"


class Daemon:
    """The real program on a folder of its own."""

    def __init__(self, folder: Path, *, extra: str = "") -> None:
        self.folder = folder
        self.config = folder / "agent.toml"
        self.verdicts = folder / "log/verdicts.jsonl"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config.write_text(
            f'state_dir = "{folder}/s"\nname = "edge-7"\nlink.retry_cap_s = 1\n'
            f'source.netflow.listen = "127.0.0.1:{self.port}"\nsource.netflow.batch_ms = 20\n'
            f'sink.json.path = "{self.verdicts}"\nmetrics.listen = ""\ntelemetry.interval_s = 0.5\n{extra}'
        )
        self.settings = read_settings(self.config)
        self.process: asyncio.subprocess.Process | None = None

    async def command(self, *arguments: str) -> int:
        """Run a command of the program to its end; it is killed when it is waited for no longer."""
        process = await self._spawn(*arguments)
        try:
            return await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise

    async def start(self) -> None:
        """Start ``run`` and wait until it answers."""
        self.process = await self._spawn("run")
        await self.until(lambda report: report["running"])

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return await self.process.wait()

    def report(self) -> Report:
        return current_report(self.settings)

    def metrics(self) -> dict[str, float]:
        """Return the samples of ``/metrics`` by name and labels."""
        samples = (line.rpartition(" ") for line in self.metrics_page().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def metrics_page(self) -> str:
        """Return ``/metrics``, asked for over the daemon's own socket."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            made.settimeout(5)
            made.connect(str(self.settings.status_sockets[-1]))
            connection.sock = made
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()

    async def until(self, holds: Callable[[Report], Any]) -> Report:
        """Return a report of which something holds; the test's time-out ends the wait."""
        while True:
            with suppress(TimeoutError):  # a loaded machine answers late: asked again until the test's time is over
                if holds(report := await asyncio.to_thread(self.report)):
                    return report
            assert self.process is None or self.process.returncode is None, "the agent ended"
            await asyncio.sleep(0.05)

    def send(self, datagrams: list[Any]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            for datagram in datagrams:
                exporter.sendto(datagram.payload, ("127.0.0.1", self.port))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.verdicts.read_text().splitlines()]

    async def run_doomed(self, *doom: str) -> int:
        """Start ``run`` as ``tests.support.killed_agent`` does, and wait for its end."""
        process = await self._spawn("run", module=("tests.support.killed_agent", *doom))
        return await process.wait()

    def log(self) -> str:
        """Return what the program has written so far."""
        return (self.folder.parent / f"{self.folder.name}.log").read_text()

    async def _spawn(self, *arguments: str, module: tuple[str, ...] = ("vedette.agent",)) -> asyncio.subprocess.Process:
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *module, *arguments, "--config", str(self.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


class AskedDaemon(Daemon):
    """Asks nobody but the program how it stands: its disk is never opened from here."""

    def report(self) -> Report:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.settings.status_sockets[0])) != 0:
                return {"running": False}
        return super().report()


def offer(controller: FakeController, version: int, **changes: Any) -> Release:
    """Return a release whose blobs the controller has."""
    shelf = Shelf()
    release = flow_release(shelf, version, **changes)
    controller.blobs |= shelf.blobs
    return release


async def enrolled(daemon: Daemon, controller: FakeController) -> None:
    """Enrol the agent with the program's own command."""
    assert await daemon.command("enroll", "--token", controller.token().encode()) == 0


def active(report: Report) -> int:
    """Return the version that serves flows; 0 for none."""
    slot = report["slots"].get("flow-threat")
    return int(slot["active"]["version"]) if slot and slot["active"] and slot["state"] == "active" else 0
