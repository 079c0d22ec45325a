"""A bit flips in the model that serves: the real program falls back, says so and mends itself."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from vedette.agent.domain.report import Report
from vedette.models.release import Release


async def installed(daemon: Daemon, controller: FakeController) -> tuple[Release, Release]:
    """Let the first version serve, then the second."""
    first, second = offer(controller, 1), offer(controller, 2, bias=-6.0)
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, first)
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    controller.push(controller.assign(2, second))
    await daemon.until(lambda r: active(r) == 2)
    return first, second


def blob_path(daemon: Daemon, release: Release) -> Path:
    return daemon.settings.state_dir / "blobs/sha256" / release.builds[0].digest.removeprefix("sha256:")


def flip(path: Path) -> None:
    """Flip a bit in place, as a disk does: same size, same name, same file."""
    file = os.open(path, os.O_RDWR)
    try:
        at = os.fstat(file).st_size // 2
        os.pwrite(file, bytes([os.pread(file, 1, at)[0] ^ 1]), at)
    finally:
        os.close(file)


def codes(report: Report) -> set[str]:
    return {condition["code"] for condition in report["conditions"]}


async def test_a_damaged_file_at_start_makes_the_previous_serve_and_is_fetched_again(
    daemon: Daemon, controller: FakeController
) -> None:
    _, second = await installed(daemon, controller)
    await daemon.stop(signal.SIGKILL)
    flip(blob_path(daemon, second))
    ports = (controller.port, controller.enrol_port)
    await controller.stop()

    await daemon.start()
    report = await daemon.until(lambda r: active(r) == 1)  # no controller: the previous one, and it says why
    assert "model-damaged" in codes(report)
    assert report["slots"]["flow-threat"]["quarantined"] == []

    controller.desired = None  # it remembers by itself what is wanted
    await controller.start(*ports)
    report = await daemon.until(lambda r: active(r) == 2)
    assert "model-damaged" not in codes(report)
    assert daemon.metrics()["vedette_agent_models_damaged_total"] == 1


async def test_a_damaged_file_found_while_serving_is_fetched_again(daemon: Daemon, controller: FakeController) -> None:
    _, second = await installed(daemon, controller)
    flip(blob_path(daemon, second))
    assert daemon.process is not None
    for worker in workers_of(daemon.process.pid):
        os.kill(worker, signal.SIGKILL)
    report = await daemon.until(
        lambda r: active(r) == 2 and is_whole(daemon, second) and "model-damaged" not in codes(r)
    )
    assert daemon.metrics()["vedette_agent_models_damaged_total"] == 1
    assert report["slots"]["flow-threat"]["quarantined"] == []
    assert "model-damaged" not in codes(report)


def is_whole(daemon: Daemon, release: Release) -> bool:
    try:
        found = hashlib.sha256(blob_path(daemon, release).read_bytes()).hexdigest()
    except FileNotFoundError:  # it is being fetched
        return False
    return f"sha256:{found}" == release.builds[0].digest


def workers_of(agent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
