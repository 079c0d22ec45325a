"""What the agent costs an appliance that has it: memory, time to the first verdict, CPU at 1,000 flows a second.

The real program, enrolled nowhere, on a folder where this process installed small models. Its first flows are a shared
capture's, over UDP; those of the load a large network's (:mod:`tests.support.large_network`), mostly benign. Memory is
proportional (PSS) and of all its processes, CPU too.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon
from tests.support.flow_models import flow_release
from tests.support.large_network import due, large_network
from tests.support.tiny_models import Shelf
from vedette.agent.adapters.clock import SystemClock
from vedette.agent.adapters.host.usage import cpu_seconds, proportional_bytes
from vedette.agent.adapters.inference.serving import Serving, ServingSettings
from vedette.agent.adapters.storage.state import State
from vedette.models.assignment import SlotAssignment

_MODELS = (1, 8)
_SETTLE_S = 4.0
_CPU_S = 30.0
_NETWORKS = 135  # small ones, which make 1,000 flows a second together
_COUNTER = "vedette_agent_flows_total"


def run() -> dict[str, float]:
    """Return megabytes with one and eight models, seconds to the first verdict, and share of a core under load."""
    figures: dict[str, float] = {}
    for spare in ("auto", "off"):
        for models in _MODELS:
            with tempfile.TemporaryDirectory() as folder:
                figures |= asyncio.run(_measure(Path(folder), models, spare))
    with tempfile.TemporaryDirectory() as folder:
        return figures | asyncio.run(_loaded(Path(folder)))


async def _made(folder: Path, models: int, extra: str) -> Daemon:
    home = folder / "agent"
    (home / "log").mkdir(parents=True)
    (home / "s").mkdir(mode=0o700)
    await _install(home / "s", models)
    return Daemon(home, extra=extra)


async def _loaded(folder: Path) -> dict[str, float]:
    """Return what flows cost with the settings that an appliance has: flagged ones are written, batches of 200 ms."""
    settings = 'sink.json.emit = "flagged"\nsource.netflow.batch_ms = 200\ntelemetry.interval_s = 60\n'
    daemon = await _made(folder, 1, "")
    own = daemon.config.read_text().splitlines()
    kept = [line for line in own if not line.startswith(("source.netflow.batch_ms", "telemetry.interval_s"))]
    daemon.config.write_text("\n".join(kept) + f"\n{settings}")
    await daemon.start()
    try:
        await daemon.until(lambda report: report["slots"])
        await asyncio.sleep(_SETTLE_S)
        return await _under_load(daemon)
    finally:
        await daemon.stop()


async def _measure(folder: Path, models: int, spare: str) -> dict[str, float]:
    daemon = await _made(folder, models, f'sink.json.emit = "all"\ninference.spare = "{spare}"\n')
    what = f"{models} model{'s' if models > 1 else ''}, spare {spare}"
    figures = {f"{what}: start to first verdict s": await _first_verdict(daemon)}
    try:
        await asyncio.sleep(_SETTLE_S)
        figures[f"{what}: PSS of all processes MB"] = sum(map(proportional_bytes, _pids(daemon))) / 1e6
        figures[f"{what}: PSS of the main process MB"] = proportional_bytes(_pids(daemon)[0]) / 1e6
    finally:
        await daemon.stop()
    return figures


async def _install(state_dir: Path, models: int) -> None:
    shelf, state = Shelf(), State(state_dir / "state.db")
    serving = Serving(state, state_dir / "blobs", ServingSettings(), SystemClock())

    async def fetch(blob: object) -> Path:
        return await shelf.fetch_to(state_dir / "blobs", blob)

    for number in range(models):
        release = replace(flow_release(shelf, bias=-5.0 - number), model=f"threat-{number}")
        target = SlotAssignment(release.model, release.model, 1, release.digest, release.builds[0].digest)
        await serving.install(target, release, fetch)
    await serving.stop()
    state.close()


async def _first_verdict(daemon: Daemon) -> float:
    datagrams = capture_datagrams(CAPTURE)[:20]  # few: what queues up while it starts is no idle memory
    begun = time.perf_counter()
    daemon.process = await daemon._spawn("run")
    while not (daemon.verdicts.exists() and daemon.verdicts.stat().st_size):
        daemon.send(datagrams)
        await asyncio.sleep(0.1)
    return time.perf_counter() - begun


def _pids(daemon: Daemon) -> list[int]:
    if daemon.process is None:
        raise RuntimeError("the agent does not run")
    main = psutil.Process(daemon.process.pid)
    return [main.pid, *(child.pid for child in main.children(recursive=True))]


async def _under_load(daemon: Daemon) -> dict[str, float]:
    """Return what flows cost that come as a large network's exporter sends them, each at its own time."""
    datagrams = large_network(CAPTURE, _NETWORKS, int(_CPU_S) + 2)
    spent, flows, begun = _spent(daemon), _flows(daemon), time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        for after_s, payload in due(datagrams, time.time_ns()):
            if (wait_s := begun + after_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            if after_s > _CPU_S:
                break
            exporter.sendto(payload, ("127.0.0.1", daemon.port))
    took = time.monotonic() - begun
    return {
        "under load flows/s": (_flows(daemon) - flows) / took,
        "under load share of a core %": 100 * (_spent(daemon) - spent) / took,
    }


def _flows(daemon: Daemon) -> float:
    return sum(value for name, value in daemon.metrics().items() if name.split("{")[0] == _COUNTER)


def _spent(daemon: Daemon) -> float:
    return sum(cpu_seconds(pid) or 0.0 for pid in _pids(daemon))
