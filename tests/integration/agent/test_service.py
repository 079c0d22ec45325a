"""Claims about the agent under a service manager: when it is ready, when it lives, how it starts once more."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController


class Manager:
    """The socket on which a service tells systemd how it stands, read at once as systemd does."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        self._messages.put_nowait(self._socket.recv(4096))

    async def told(self) -> dict[str, str]:
        """Return the next message."""
        data = await self._messages.get()
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    async def until(self, key: str) -> dict[str, str]:
        """Return the next message that has a key."""
        while key not in (message := await self.told()):
            pass
        return message

    async def falls_silent(self) -> bool:
        """Return once nothing was heard for ten times as long as the watchdog would wait."""
        with suppress(TimeoutError):
            while True:
                await asyncio.wait_for(self.told(), 2)
        return True

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


@pytest.fixture
async def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Manager]:
    """A service manager whose watchdog wants to hear something every tenth of a second."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{folder}:/another")
    return folder


def log_of(daemon: Daemon) -> str:
    return (daemon.folder.parent / f"{daemon.folder.name}.log").read_text()


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_ready_is_said_once_the_last_good_model_serves_and_needs_no_link(
    daemon: Daemon, controller: FakeController, manager: Manager
) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    assert await manager.until("READY") == {"READY": "1"}
    await daemon.until(lambda r: active(r) == 1)
    await daemon.stop(signal.SIGKILL)
    await controller.stop()

    daemon.process = await daemon._spawn("run")
    before = []
    while "READY" not in (message := await manager.told()):
        before.append(message)
    assert before[-1]["STATUS"] == "loading the last good models"
    assert (await manager.until("WATCHDOG"))["STATUS"].startswith("serves flow-threat:1; link ")


async def test_a_stop_is_told_and_ends_well(daemon: Daemon, manager: Manager) -> None:
    daemon.process = await daemon._spawn("run")
    await manager.until("WATCHDOG")
    assert await daemon.stop() == 0
    assert await manager.until("STOPPING") == {"STOPPING": "1"}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("collector", "the thread that takes flows has ended"),
        ("sink", "the thread that writes verdicts has ended"),
        ("scoring", "one batch of flows has been scored for"),
    ],
)
async def test_an_agent_that_does_its_job_no_more_says_why_and_ends(
    daemon: Daemon, controller: FakeController, manager: Manager, fault: str, why: str
) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    await daemon.stop()
    await manager.until("STOPPING")

    daemon.process = await daemon._spawn("run", module=("tests.support.ailing_agent", fault))
    await manager.until("READY")
    daemon.send(capture_datagrams(CAPTURE))

    assert await daemon.process.wait() == 1
    assert f"this agent works no more\n{why}" in log_of(daemon)


async def test_a_stuck_loop_starves_the_watchdog_whose_abort_tells_where_it_stood(
    daemon: Daemon, manager: Manager
) -> None:
    daemon.process = await daemon._spawn("run", module=("tests.support.ailing_agent", "loop"))
    await manager.until("WATCHDOG")
    daemon.process.send_signal(signal.SIGHUP)
    assert await manager.falls_silent()

    assert await daemon.stop(signal.SIGABRT) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in log_of(daemon)
    assert "block_on_hangup" not in log_of(daemon)  # that only set it up
    assert "_run_once" in log_of(daemon)


async def fail_to_start(daemon: Daemon) -> None:
    process = await daemon._spawn("run", module=("tests.support.ailing_agent", "start"))
    assert await process.wait() == 1


async def test_the_third_failure_in_a_row_makes_the_next_start_wait_and_a_stop_forgets_them(
    daemon: Daemon, manager: Manager, runtime: Path
) -> None:
    for failures in range(3):
        await fail_to_start(daemon)
        assert json.loads((runtime / "last-start.json").read_text())["failures"] == failures

    daemon.process = await daemon._spawn("run")
    waits = await manager.until("EXTEND_TIMEOUT_USEC")
    assert waits == {"STATUS": "3 failures in a row; next try in 5 s", "EXTEND_TIMEOUT_USEC": "15000000"}
    assert await daemon.stop() == 0
    assert "running" not in log_of(daemon)
    assert left_in(runtime) == []

    daemon.process = await daemon._spawn("run")
    assert (await manager.told())["STATUS"] == "loading the last good models"


async def test_a_stop_before_the_loop_takes_signals_is_no_failure_either(
    daemon: Daemon, manager: Manager, runtime: Path
) -> None:
    await fail_to_start(daemon)
    process = await daemon._spawn("run", module=("tests.support.ailing_agent", "stopped"))
    assert await process.wait() == 0
    assert left_in(runtime) == []


async def test_a_run_that_ends_well_forgets_the_failures_before_it(
    daemon: Daemon, manager: Manager, runtime: Path
) -> None:
    await fail_to_start(daemon)
    daemon.process = await daemon._spawn("run")
    await manager.until("READY")
    assert await daemon.stop() == 0
    assert left_in(runtime) == []


@pytest.mark.parametrize("found", ["", "{", "[]", '{"failures": "many"}', "9" * 2000])
async def test_a_damaged_count_holds_no_start_up(daemon: Daemon, manager: Manager, runtime: Path, found: str) -> None:
    (runtime / "last-start.json").write_text(found)
    daemon.process = await daemon._spawn("run")
    assert (await manager.told())["STATUS"] == "loading the last good models"
