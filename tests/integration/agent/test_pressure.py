"""The real agent under more flows than its budget of processor time can score."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from vedette.agent.adapters.host.usage import cpu_seconds

_HEADER = struct.Struct(">HHIIIIBBH")
_RECORD = struct.Struct(">IIIHHIIIIHHBBBBHHBBH")
_FLOWS_PER_S = 20_000
_TICK_S = 0.05
_MEASURED_S = 15.0


def datagrams(second: float, count: int, random: np.random.Generator) -> Iterator[bytes]:
    """Return NetFlow v5 of flows between two thousand hosts, exported at a second of the day."""
    ends = random.integers(0, 2000, (count, 2)).tolist()
    whole, fraction = divmod(second, 1)
    for begin in range(0, count, 30):
        part = ends[begin : begin + 30]
        head = _HEADER.pack(5, len(part), 10**7, int(whole), int(fraction * 1e9), 0, 0, 0, 0)
        body = [
            _RECORD.pack(
                *(0x0A000000 + a, 0x0A010000 + b, 0, 0, 0, 5, 500, 10**7 - 900, 10**7 - 100),
                *(1024 + (a * 7 + begin) % 60_000, 443, 0, 0x1B, 6, 0, 0, 0, 0, 0, 0),
            )
            for a, b in part
        ]
        yield head + b"".join(body)


async def send(port: int, seconds: float) -> None:
    """Send flows at a steady rate; what the machine is late with is sent as soon as it can."""
    random, begun, sent = np.random.default_rng(2), time.monotonic(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        while (passed := time.monotonic() - begun) < seconds:
            for datagram in datagrams(time.time(), int(passed * _FLOWS_PER_S) - sent, random):
                exporter.sendto(datagram, ("127.0.0.1", port))
            sent = int(passed * _FLOWS_PER_S)
            await asyncio.sleep(_TICK_S)


def spent(daemon: Daemon) -> float:
    assert daemon.process is not None
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(cpu_seconds(one) or 0.0 for one in (pid, *map(int, children)))


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_under_too_many_flows_the_agent_keeps_to_its_budget_and_tells_the_share(tmp_path: Path) -> None:
    async with FakeController() as controller:
        daemon = Daemon(tmp_path, extra="budget.cpu_percent = 20\n")
        controller.desired = controller.assign(1, offer(controller, 1))
        await enrolled(daemon, controller)
        await daemon.start()
        try:
            await daemon.until(active)
            sending = asyncio.create_task(send(daemon.port, 120.0))
            await daemon.until(lambda report: report["counters"]["flows_shed"] > 0)
            await daemon.until(lambda _: daemon.metrics()['vedette_agent_strain_ratio{measure="cpu"}'] < 1)
            before, at = spent(daemon), time.monotonic()
            await asyncio.sleep(_MEASURED_S)  # for the measurement, not for anything to happen
            share = (spent(daemon) - before) / (time.monotonic() - at) / 0.2
            report, metrics = daemon.report(), daemon.metrics()
            sending.cancel()
            assert share <= 1.15
            counters = report["counters"]
            assert 0 < counters["rows_scored"] < counters["flows"]
            assert counters["rows_scored"] + counters["flows_shed"] >= 0.9 * counters["flows"]
            assert metrics["vedette_agent_pressure_level"] == 4
            assert "under-pressure" in {held["code"] for held in report["conditions"]}
        finally:
            await daemon.stop()
