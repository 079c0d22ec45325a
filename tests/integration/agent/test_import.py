"""Claims about bundles on the real agent: running, at rest, cut off, killed, refused."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.bundles import bundle_of
from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from vedette.models.release import Release
from vedette.wire.values import DesiredState


def waiting(daemon: Daemon) -> list[Path]:
    return list((daemon.folder / "s/import").glob("ready-*"))


@pytest.fixture
async def island(daemon: Daemon, controller: FakeController) -> Daemon:
    """An enrolled agent whose controller is gone for good; the fake one only signs."""
    await enrolled(daemon, controller)
    await controller.stop()
    return daemon


class Carrier:
    """Who exports at the controller and carries the files."""

    def __init__(self, controller: FakeController, daemon: Daemon) -> None:
        self._controller = controller
        self._daemon = daemon

    def desired(self, version: int, *, sequence: int = 0) -> DesiredState:
        return self._controller.assign(sequence or version, offer(self._controller, version, bias=-5.0 - version))

    def file(self, data: bytes) -> Path:
        path = self._daemon.folder / "usb.bundle"
        path.write_bytes(data)
        return path

    def bundle(self, version: int, *, sequence: int = 0) -> Path:
        word = self.desired(version, sequence=sequence)
        return self.file(bundle_of(word, blobs=self._controller.blobs.values()))


@pytest.fixture
def carrier(controller: FakeController, daemon: Daemon) -> Carrier:
    return Carrier(controller, daemon)


async def test_a_running_agent_with_a_dead_link_serves_what_came_in_a_file(island: Daemon, carrier: Carrier) -> None:
    await island.start()
    assert await island.command("import", str(carrier.bundle(1))) == 0
    assert active(await island.until(active)) == 1
    assert "flow-threat: nothing → flow-threat:1" in island.log()
    assert await island.command("import", str(carrier.bundle(2))) == 0
    assert active(island.report()) == 2
    assert "flow-threat: flow-threat:1 → flow-threat:2" in island.log()
    assert island.report()["sequences"]["running"] == 2


async def test_the_same_file_again_changes_nothing(island: Daemon, carrier: Carrier) -> None:
    await island.start()
    bundle = carrier.bundle(1)
    assert await island.command("import", str(bundle)) == 0
    assert await island.command("import", str(bundle)) == 0
    assert "Nothing to do: assignment 1 runs already." in island.log()


async def test_what_was_imported_at_rest_is_applied_at_the_next_start(island: Daemon, carrier: Carrier) -> None:
    assert await island.command("import", str(carrier.bundle(1))) == 0
    assert "The agent does not run and applies it when it starts" in island.log()
    await island.start()
    await island.until(lambda r: active(r) == 1)
    await island.until(lambda _: not waiting(island))
    assert all(path.stat().st_nlink == 1 for path in (island.folder / "s/blobs/sha256").iterdir())


async def test_what_was_imported_survives_a_kill_before_it_is_applied(island: Daemon, carrier: Carrier) -> None:
    await island.start()
    assert await island.command("import", "--no-wait", str(carrier.bundle(1))) == 0
    await island.stop(signal.SIGKILL)
    await island.start()
    await island.until(lambda r: active(r) == 1)


INSTANTS_S = [0.3, 0.45, 0.6]
"""After the start of the command, which takes half a second: python's start, then reading, writing, handing over."""


async def test_an_import_killed_at_any_instant_leaves_nothing_and_is_done_by_the_next(
    island: Daemon, carrier: Carrier
) -> None:
    await island.start()
    await island.until(lambda report: report["running"])
    for version, instant_s in enumerate(INSTANTS_S, 1):
        bundle = carrier.bundle(version)
        with suppress(TimeoutError):
            await asyncio.wait_for(island.command("import", str(bundle)), instant_s)
        assert await island.command("import", str(bundle)) == 0
        assert active(island.report()) == version
        assert island.report()["slots"]["flow-threat"]["quarantined"] == []
    await island.until(lambda _: not waiting(island))
    assert {path.name for path in (island.folder / "s/import").iterdir()} == {"lock"}
    assert list((island.folder / "s/blobs/partial").iterdir()) == []


async def test_a_file_ends_the_wait_of_an_assignment_whose_download_was_cut(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    release = offer(controller, 1)
    controller.stall_after_bytes = 0
    controller.desired = controller.assign(1, release)
    await daemon.start()
    await controller.stalled.wait()
    await controller.stop()
    bundle = daemon.folder / "usb.bundle"
    bundle.write_bytes(bundle_of(controller.desired, blobs=controller.blobs.values()))
    assert await daemon.command("import", str(bundle)) == 0
    assert active(daemon.report()) == 1


async def test_a_controller_that_comes_back_sends_nothing_again(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    port, enrol_port = controller.port, controller.enrol_port
    await controller.stop()
    word = controller.assign(1, offer(controller, 1))
    bundle = daemon.folder / "usb.bundle"
    bundle.write_bytes(bundle_of(word, blobs=controller.blobs.values()))
    await daemon.start()
    assert await daemon.command("import", str(bundle)) == 0
    controller.desired = word
    await controller.start(port, enrol_port)
    hello = (await controller.until(lambda c: c.hellos))[0]
    assert hello.highest_sequence == 1
    assert hello.applied_digest
    assert controller.bytes_sent == 0


async def test_a_pipe_will_do(island: Daemon, carrier: Carrier) -> None:
    pipe = island.folder / "pipe"
    os.mkfifo(pipe)
    importing = asyncio.create_task(island.command("import", str(pipe)))
    data = carrier.bundle(1).read_bytes()
    await asyncio.to_thread(pipe.write_bytes, data)
    assert await importing == 0


@pytest.mark.parametrize("state", ["running", "at rest"])
async def test_what_may_not_run_here_is_refused_and_leaves_nothing(
    state: str, island: Daemon, carrier: Carrier, controller: FakeController
) -> None:
    assert await island.command("import", str(carrier.bundle(5))) == 0
    await island.start()
    await island.until(lambda r: active(r) == 5)
    await island.until(lambda _: not waiting(island))
    if state == "at rest":
        await island.stop()
    releases = DesiredState(releases=carrier.desired(6).releases)
    foreign = FakeController(controller.authority)
    word, blobs = carrier.desired(7), controller.blobs.values()
    refused = {
        "it holds a model and says for no appliance to run it": bundle_of(releases, blobs=blobs),
        "the bundle is not for this appliance": bundle_of(word, blobs=blobs, agents={0: "agent-2"}),
        "signature-invalid": bundle_of(foreign.assign(7, offer(foreign, 7)), blobs=foreign.blobs.values()),
        "old-sequence": bundle_of(carrier.desired(4), blobs=blobs),
        "sequence-reused": bundle_of(carrier.desired(9, sequence=5), blobs=blobs),
        "release-missing": bundle_of(replace(word, releases=()), blobs=blobs),
        "the bundle does not hold all it needs": bundle_of(word),
    }
    for why, data in refused.items():
        assert await island.command("import", str(carrier.file(data))) == 4, why
        assert why in island.log()
    assert {path.name for path in (island.folder / "s/import").iterdir()} == {"lock"}
    assert active(island.report()) == 5


async def test_a_damaged_or_cut_file_is_told_from_a_refused_one(island: Daemon, carrier: Carrier) -> None:
    whole = carrier.bundle(1).read_bytes()
    for data in (whole[:-1], whole[:40], b"", b"no bundle at all" * 10, whole[:-9] + b"x" + whole[-8:], whole + b"x"):
        assert await island.command("import", str(carrier.file(data))) == 2
    assert await island.command("import", str(island.folder / "none")) == 3
    assert {path.name for path in (island.folder / "s/import").iterdir()} <= {"lock"}


async def test_an_appliance_without_identity_says_so(daemon: Daemon, carrier: Carrier) -> None:
    assert await daemon.command("import", str(carrier.bundle(1))) == 4
    assert "this appliance belongs to no controller" in daemon.log()


async def test_a_build_that_fails_its_test_is_told_and_what_served_serves_on(
    island: Daemon, carrier: Carrier, controller: FakeController
) -> None:
    await island.start()
    assert await island.command("import", str(carrier.bundle(1))) == 0
    good: Release = offer(controller, 2, bias=-9.0)
    lying = replace(good, golden=offer(controller, 3, bias=3.0).golden)
    word = controller.assign(2, lying)
    assert await island.command("import", str(carrier.file(bundle_of(word, blobs=controller.blobs.values())))) == 1
    assert "assignment 2 failed: self-test-failed" in island.log()
    assert island.report()["slots"]["flow-threat"]["active"]["version"] == 1
    await island.until(lambda _: not waiting(island))
