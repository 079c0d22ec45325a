"""The real program while the disk of its state takes no writes, from the start or from some instant on."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.disks import FailingDisk, failing_disk
from tests.support.fake_controller import FakeController
from vedette.agent.domain.report import Report
from vedette.wire.values import Outcome

pytestmark = pytest.mark.root


@pytest.fixture
async def daemon(tmp_path: Path, disk: FailingDisk) -> AsyncIterator[Daemon]:
    """An agent that answers beside its state, as a packaged one does."""
    made = Daemon(tmp_path, extra=f'status.socket = "{tmp_path}/agent.sock"\n')
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop(signal.SIGKILL)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """The disk of the agent's state; its verdicts go to another."""
    with failing_disk(tmp_path / "s", "96M") as made:
        yield made


async def serving(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)


def codes(report: Report) -> set[str]:
    return {condition["code"] for condition in report["conditions"]}


def epochs(controller: FakeController) -> set[int]:
    return {epoch for epoch, _ in controller.committed}


async def verdicts_grow(daemon: Daemon, report: Report) -> None:
    """Send flows and wait until verdicts about them are in the file."""
    before = report["counters"]["verdicts_written"]
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["verdicts_written"] > before + 50)


async def test_it_starts_serves_and_reports_on_a_read_only_disk_and_goes_on_when_it_is_writable(
    daemon: Daemon, controller: FakeController, disk: FailingDisk
) -> None:
    await serving(daemon, controller)
    await controller.until(lambda c: c.committed)
    await daemon.stop(signal.SIGKILL)
    counted = epochs(controller)
    disk.unmount()
    disk.mount_read_only()
    controller.results.clear()

    await daemon.start()
    report = await daemon.until(lambda r: active(r) == 1 and "state-read-only" in codes(r))
    await verdicts_grow(daemon, report)
    await controller.until(lambda c: epochs(c) - counted)  # telemetry is sent, under an epoch never seen before
    (uncounted,) = epochs(controller) - counted
    await controller.until(lambda c: [r for r in c.results if r.sequence == 1])
    assert {r.outcome for r in controller.results} == {Outcome.APPLIED}  # what runs is not told as failed

    controller.push(controller.assign(2, offer(controller, 2, bias=-6.0)))
    failed = await controller.until(lambda c: [r for r in c.results if r.sequence == 2])
    assert (failed[0].outcome, failed[0].code) == (Outcome.FAILED, "state-failed")
    assert active(daemon.report()) == 1

    disk.remount("rw")
    await daemon.until(lambda r: active(r) == 2)  # by itself: nobody said it again
    await daemon.until(lambda r: not {"state-read-only", "state-failed", "assignment-failed"} & codes(r))
    assert await daemon.stop() == 0
    await daemon.start()
    await controller.until(lambda c: epochs(c) - counted - {uncounted})
    assert max(epochs(controller) - {uncounted}) < 2**62
    assert await daemon.stop() == 0


@pytest.mark.parametrize("fault", ["remount", "fail"])
async def test_it_serves_on_when_the_disk_fails_under_it_and_goes_on_when_it_is_mended(
    daemon: Daemon, controller: FakeController, disk: FailingDisk, fault: str
) -> None:
    await serving(daemon, controller)
    await controller.until(lambda c: c.committed)
    fails: dict[str, Any] = {"remount": lambda: disk.remount("abort"), "fail": disk.fail}
    fails[fault]()

    report = await daemon.until(lambda r: "state-read-only" in codes(r))
    await verdicts_grow(daemon, report)
    sent = len(controller.committed)
    await controller.until(lambda c: len(c.committed) > sent + 2)
    assert "spool-failed" not in codes(daemon.report())

    disk.mend()
    await daemon.until(lambda r: "state-read-only" not in codes(r))
    controller.push(controller.assign(2, offer(controller, 2, bias=-6.0)))
    await daemon.until(lambda r: active(r) == 2)
    # What had not been sent from the disk follows: no number is missing.
    await controller.until(lambda c: len(c.committed) == max(sequence for _, sequence in c.committed))
    assert len(epochs(controller)) == 1
    assert await daemon.stop() == 0


async def test_a_first_start_on_a_read_only_disk_waits_for_it(
    daemon: Daemon, controller: FakeController, disk: FailingDisk
) -> None:
    disk.unmount()
    disk.mount_read_only()
    await daemon.start()
    await daemon.until(lambda r: {"state-read-only", "not-enrolled"} <= codes(r))
    disk.remount("rw")
    await daemon.until(lambda r: "state-read-only" not in codes(r))
    await enrolled(daemon, controller)
    controller.push(controller.assign(1, offer(controller, 1)))
    await daemon.until(lambda r: active(r) == 1)
