"""Claims about the whole agent: the real program, its workers, a real link, real packets."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from vedette.agent.app import current_report
from vedette.agent.domain.report import Report
from vedette.agent.settings import read_settings
from vedette.models.release import Release
from vedette.wire.values import Outcome

from tests.support.captures import capture_datagrams
from tests.support.fake_controller import FakeController
from tests.support.flow_models import flow_onnx, flow_release
from tests.support.tiny_models import Shelf

CAPTURE = "base/softflowd-v9"


class Daemon:
    """The real program on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "agent.toml"
        self.verdicts = folder / "log/verdicts.jsonl"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config.write_text(
            f'state_dir = "{folder}/s"\nname = "edge-7"\nlink.retry_cap_s = 1\n'
            f'source.netflow.listen = "127.0.0.1:{self.port}"\nsource.netflow.batch_ms = 20\n'
            f'sink.json.path = "{self.verdicts}"\nmetrics.listen = ""\ntelemetry.interval_s = 0.5\n'
        )
        self.settings = read_settings(self.config)
        self.process: asyncio.subprocess.Process | None = None

    async def command(self, *arguments: str) -> int:
        """Run a command of the program to its end."""
        process = await self._spawn(*arguments)
        return await process.wait()

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

    async def until(self, holds: Callable[[Report], Any]) -> Report:
        """Return a report of which something holds; the test's time-out ends the wait."""
        while True:
            report = await asyncio.to_thread(self.report)
            if holds(report):
                return report
            assert self.process is None or self.process.returncode is None, "the agent ended"
            await asyncio.sleep(0.05)

    def send(self, datagrams: list[Any]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            for datagram in datagrams:
                exporter.sendto(datagram.payload, ("127.0.0.1", self.port))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.verdicts.read_text().splitlines()]

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        with (self.folder / "agent.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vedette.agent", *arguments, "--config", str(self.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with FakeController() as started:
        yield started


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop(signal.SIGKILL)


def _offer(controller: FakeController, version: int, **changes: Any) -> Release:
    shelf = Shelf()
    release = flow_release(shelf, version, **changes)
    controller.blobs |= shelf.blobs
    return release


async def _enrolled(daemon: Daemon, controller: FakeController) -> None:
    assert await daemon.command("enroll", "--token", controller.token().encode()) == 0


def _active(report: Report) -> int:
    slot = report["slots"].get("flow-threat")
    return int(slot["active"]["version"]) if slot and slot["active"] and slot["state"] == "active" else 0


async def test_a_token_a_model_and_packets_become_verdicts_and_telemetry(
    daemon: Daemon, controller: FakeController
) -> None:
    await daemon.start()
    assert (await daemon.until(lambda r: r["conditions"]))["conditions"][0]["code"] == "not-enrolled"
    await _enrolled(daemon, controller)  # while it runs: it takes the identity up by itself
    await controller.until(lambda c: c.hellos)
    controller.chunk_bytes = 4096
    controller.push(controller.assign(1, _offer(controller, 1)))
    await controller.until(lambda c: [r for r in c.results if r.sequence == 1 and r.outcome is Outcome.APPLIED])
    daemon.send(capture_datagrams(CAPTURE))
    report = await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
    assert report["counters"]["rows_scored"] > 0
    windows = await controller.until(
        lambda c: [w for b in c.committed.values() for w in b.windows if w.slot == "flow-threat" and w.flagged]
    )
    assert windows[0].version == 1
    assert windows[0].profile
    assert await daemon.stop() == 0
    lines = daemon.lines()
    assert {line["host"] for line in lines} == {"edge-7"}
    assert all(line["vedette"]["flagged"] for line in lines)
    assert not daemon.report()["running"]


async def test_the_last_good_model_serves_after_a_kill_with_no_controller(
    daemon: Daemon, controller: FakeController
) -> None:
    await _enrolled(daemon, controller)
    controller.desired = controller.assign(1, _offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)
    await daemon.stop(signal.SIGKILL)
    await controller.stop()
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
    await daemon.until(lambda r: "controller-unreachable" in [c["code"] for c in r["conditions"]])


async def test_a_new_version_takes_over_and_a_bad_one_does_not(daemon: Daemon, controller: FakeController) -> None:
    await _enrolled(daemon, controller)
    controller.desired = controller.assign(1, _offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)
    controller.push(controller.assign(2, _offer(controller, 2, bias=-6.0)))
    await daemon.until(lambda r: _active(r) == 2)
    bad = _offer(controller, 3, bias=-7.0)
    other = flow_onnx(-7.5)  # another model, as long, under the signed digest
    assert len(other) == bad.builds[0].blob.size
    controller.blobs[bad.builds[0].digest] = other
    controller.push(controller.assign(3, bad))
    failed = await controller.until(lambda c: [r for r in c.results if r.sequence == 3])
    assert (failed[0].outcome, failed[0].code) == (Outcome.FAILED, "digest-mismatch")
    report = await daemon.until(lambda r: r["sequences"]["failed"] == 3)
    assert report["slots"]["flow-threat"]["active"]["version"] == 2
    assert report["sequences"]["running"] == 2


async def test_an_unsigned_release_and_an_older_sequence_are_refused(
    daemon: Daemon, controller: FakeController
) -> None:
    await _enrolled(daemon, controller)
    first, second = _offer(controller, 1), _offer(controller, 2, bias=-6.0)
    controller.desired = controller.assign(5, first)
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)
    controller.push(controller.assign(4, second))
    refused = await controller.until(lambda c: [r for r in c.results if r.sequence == 4])
    assert (refused[0].outcome, refused[0].code) == (Outcome.REFUSED, "old-sequence")
    controller.release_key = controller.assignment_key  # one key for both is not enough
    controller.push(controller.assign(6, second))
    unsigned = await controller.until(lambda c: [r for r in c.results if r.sequence == 6])
    assert (unsigned[0].outcome, unsigned[0].code) == (Outcome.REFUSED, "signature-invalid")
    assert _active(daemon.report()) == 1


async def test_a_slot_that_is_wanted_no_more_is_emptied(daemon: Daemon, controller: FakeController) -> None:
    await _enrolled(daemon, controller)
    controller.desired = controller.assign(1, _offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)
    controller.push(controller.assign(2))
    await daemon.until(lambda r: "flow-threat" not in r["slots"])
    await controller.until(lambda c: [r for r in c.results if r.sequence == 2 and r.outcome is Outcome.APPLIED])


async def test_a_killed_agent_goes_on_with_the_assignment_it_was_applying(
    daemon: Daemon, controller: FakeController
) -> None:
    await _enrolled(daemon, controller)
    controller.stall_after_bytes = 4000
    controller.desired = controller.assign(1, _offer(controller, 1))
    await daemon.start()
    await controller.stalled.wait()
    await daemon.stop(signal.SIGKILL)
    controller.stall_after_bytes = None
    controller.desired = None  # it has to remember by itself
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)


async def test_rotating_the_verdict_file_loses_no_line(daemon: Daemon, controller: FakeController) -> None:
    await _enrolled(daemon, controller)
    controller.desired = controller.assign(1, _offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)
    datagrams = capture_datagrams(CAPTURE)
    daemon.send(datagrams[: len(datagrams) // 2])
    before = await daemon.until(lambda r: r["counters"]["verdicts_written"] > 20)
    rotated = daemon.verdicts.with_suffix(".1")
    daemon.verdicts.rename(rotated)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    daemon.send(datagrams[len(datagrams) // 2 :])
    report = await daemon.until(
        lambda r: (
            r["counters"]["verdicts_written"] > before["counters"]["verdicts_written"] + 20 and daemon.verdicts.exists()
        )
    )
    assert await daemon.stop() == 0
    total = len(daemon.lines()) + len(rotated.read_text().splitlines())
    assert total >= report["counters"]["verdicts_written"]


async def test_two_agents_do_not_share_a_state_folder(daemon: Daemon) -> None:
    await daemon.start()
    assert await daemon.command("run") == 4
    assert (await daemon.until(lambda r: True))["running"]


async def test_the_main_process_never_loads_a_runtime(daemon: Daemon, controller: FakeController) -> None:
    await _enrolled(daemon, controller)
    controller.desired = controller.assign(1, _offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: _active(r) == 1)
    assert daemon.process is not None
    mapped = await asyncio.to_thread(Path(f"/proc/{daemon.process.pid}/maps").read_text)
    assert "onnxruntime" not in mapped
