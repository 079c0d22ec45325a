"""What a real agent holds after many sessions, dead workers and versions is what it held after a few."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from vedette.agent.adapters.host.usage import private_bytes

_SETTLED = 4
"""Rounds after which an agent has all that it keeps: both slots' builds, pools of threads, its warm process."""

_GROWN_BYTES = 16 * 2**20  # of counters and caches that have an end of their own, whatever the rounds


def held(daemon: Daemon) -> dict[str, Any]:
    """Return what the main process and those below it hold, by kind."""
    assert daemon.process is not None
    main = psutil.Process(daemon.process.pid)
    below = main.children(recursive=True)
    return {
        "open": Counter(map(_kind, _targets(main.pid))),
        "threads": main.num_threads(),
        "processes": len(below),
        "zombies": sum(each.status() == psutil.STATUS_ZOMBIE for each in below),
        "open below": sum(len(_targets(each.pid)) for each in below),
    }


def _targets(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def _kind(target: str) -> str:
    return "memfd" if target.startswith("/memfd:") else target.partition(":")[0]


def private(daemon: Daemon) -> int:
    assert daemon.process is not None
    return private_bytes(daemon.process.pid)


def maps(daemon: Daemon) -> str:
    assert daemon.process is not None
    return Path(f"/proc/{daemon.process.pid}/maps").read_text()


async def a_round(daemon: Daemon, controller: FakeController, number: int) -> None:
    """Switch to another version, kill its worker, and end the session; wait until each is made good."""
    controller.push(controller.assign(number, offer(controller, number, bias=-5.0 - number / 1000)))
    report = await daemon.until(lambda r: active(r) == number)
    (worker,) = report["slots"]["flow-threat"]["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    await daemon.until(lambda r: _worker(r) not in (0, worker["pid"]))
    said = len(controller.hellos)
    controller.drop_streams()
    await controller.until(lambda c: len(c.hellos) > said)
    await daemon.until(lambda r: r["link"]["state"] == "connected")


def _worker(report: dict[str, Any]) -> int:
    workers = report["slots"]["flow-threat"].get("workers", ())
    return int(workers[0]["pid"]) if workers else 0


async def nothing_grows(daemon: Daemon, controller: FakeController, rounds: int) -> None:
    await enrolled(daemon, controller)
    await daemon.start()
    for number in range(1, _SETTLED + 1):
        await a_round(daemon, controller, number)
    before, bytes_before = held(daemon), private(daemon)
    for number in range(_SETTLED + 1, _SETTLED + 1 + rounds):
        await a_round(daemon, controller, number)
    # An old worker drains and a channel closes a moment after the switch is told.
    await daemon.until(lambda _: not _grown(before, held(daemon)))
    print(f"private memory of the main process: {bytes_before} bytes, after {rounds} rounds {private(daemon)}")
    assert private(daemon) - bytes_before <= _GROWN_BYTES
    assert "onnxruntime" not in maps(daemon), "models run in processes of their own"


def _grown(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what is more than before."""
    more = {name: now[name] - before[name] for name in ("threads", "processes", "zombies") if now[name] > before[name]}
    more |= dict(now["open"] - before["open"])
    return more


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """An agent with all of its sources and the port for programs."""
    extra = (
        f'inference.socket = "{tmp_path}/oip.sock"\ninference.listen = "127.0.0.1:0"\nsource.host.interval_s = 1\n'
        f'source.eve.path = "{tmp_path}/eve.json"\nsource.zeek.path = "{tmp_path}/conn.log"\n'
    )
    made = Daemon(tmp_path, extra=extra)
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop(signal.SIGKILL)


@pytest.mark.slow
async def test_sessions_workers_and_versions_leave_nothing_open(daemon: Daemon, controller: FakeController) -> None:
    await nothing_grows(daemon, controller, 4)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_two_hundred_sessions_workers_and_versions_leave_nothing_open(
    daemon: Daemon, controller: FakeController
) -> None:
    await nothing_grows(daemon, controller, 200)
