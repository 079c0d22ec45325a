"""The real program on a state that it cannot read: it starts, says so, and serves as soon as anything allows it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, AskedDaemon, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.faults import Faults
from vedette.agent.domain.report import Report
from vedette.wire.values import Outcome


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    made = AskedDaemon(tmp_path)
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop(signal.SIGKILL)


def told(report: Report) -> dict[str, Any]:
    return {condition["code"]: condition for condition in report["conditions"]}


async def left_serving(daemon: Daemon, controller: FakeController) -> None:
    """Leave an appliance that served version 2 and told something."""
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    controller.push(controller.assign(2, offer(controller, 2, bias=-6.0)))
    await daemon.until(lambda r: active(r) == 2)
    await controller.until(lambda c: c.committed)
    assert await daemon.stop() == 0


def damaged(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 2000)


async def test_it_serves_the_last_model_with_no_controller_when_its_state_is_damaged(
    daemon: Daemon, controller: FakeController
) -> None:
    await left_serving(daemon, controller)
    await controller.stop()
    damaged(daemon.settings.state_dir / "state.db")
    damaged(daemon.settings.state_dir / "spool.db")
    assert await daemon.command("status") == 1
    await daemon.start()
    report = await daemon.until(lambda r: active(r) == 2 and "state-damaged" in told(r))
    condition = told(report)["state-damaged"]
    assert condition["severity"] == "warning"
    assert "nothing is lost" in condition["text"]
    assert "delete state.db.damaged-1, spool.db.damaged-1" in condition["text"]
    daemon.send(capture_datagrams(CAPTURE)[:200])
    await daemon.until(lambda r: r["counters"]["verdicts_written"] > 0)
    for name in ("state", "spool"):
        (daemon.settings.state_dir / f"{name}.db.damaged-1").unlink()
    await daemon.until(lambda r: "state-damaged" not in told(r))


@pytest.mark.parametrize("copy", [Path.unlink, damaged], ids=["gone", "damaged"])
async def test_without_a_copy_it_asks_the_controller_again_fetches_nothing_twice_and_telemetry_counts(
    daemon: Daemon, controller: FakeController, copy: Any
) -> None:
    await left_serving(daemon, controller)
    damaged(daemon.settings.state_dir / "state.db")
    copy(daemon.settings.state_dir / "state.db.copy")
    counted = {epoch for epoch, _ in controller.committed}
    read, results = len(controller.reads), len(controller.results)
    desired, controller.desired = controller.desired, None
    await daemon.start()
    report = await daemon.until(lambda r: "state-damaged" in told(r) and r["link"]["state"] == "connected")
    assert told(report)["state-damaged"]["severity"] == "error"
    assert "nothing is served until the controller answers" in told(report)["state-damaged"]["text"]
    assert active(report) == 0
    assert desired is not None
    controller.push(desired)
    await daemon.until(lambda r: active(r) == 2 and r["sequences"]["running"] == 2)
    await controller.until(lambda c: len(c.results) > results)
    assert [(r.sequence, r.outcome) for r in controller.results[results:]] == [(2, Outcome.APPLIED)]
    assert len(controller.reads) == read
    await controller.until(lambda c: {epoch for epoch, _ in c.committed} - counted)
    assert await daemon.stop() == 0
    await daemon.start()
    await daemon.until(lambda r: active(r) == 2)


async def test_it_serves_the_last_model_when_its_state_cannot_be_read(
    daemon: Daemon, controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await left_serving(daemon, controller)
    faults = Faults(daemon.settings.state_dir, tmp_path)
    for name, value in faults.environment.items():
        monkeypatch.setenv(name, value)
    faults.unreadable(daemon.settings.state_dir / "state.db")
    await daemon.start()
    report = await daemon.until(lambda r: active(r) == 2 and "state-damaged" in told(r))
    assert "cannot be read: [Errno 5] Input/output error" in told(report)["state-damaged"]["text"]
    assert "delete state.db.damaged-1" in told(report)["state-damaged"]["text"]
    assert "state-read-only" not in told(report)


async def test_a_spool_that_cannot_be_read_is_set_aside_and_telemetry_goes_on(
    daemon: Daemon, controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await left_serving(daemon, controller)
    faults = Faults(daemon.settings.state_dir, tmp_path)
    for name, value in faults.environment.items():
        monkeypatch.setenv(name, value)
    faults.unreadable(daemon.settings.state_dir / "spool.db")
    counted = set(controller.committed)
    await daemon.start()
    report = await daemon.until(lambda r: "state-damaged" in told(r))
    assert "delete spool.db.damaged-1" in told(report)["state-damaged"]["text"]
    await controller.until(lambda c: {epoch for epoch, _ in c.committed.keys() - counted} == {2})
    assert "state-read-only" not in told(daemon.report())
