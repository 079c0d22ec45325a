"""The k-th write of an agent's life fails, for any k: it serves, and goes on by itself.

A life: a start, version 1, version 2, telemetry. One that nothing fails in is counted; then a k is drawn from it for
each kind of fault, or every one is lived with FAULTS_SHARE=1. A write fails once, or all do from the k-th on until
there is room again.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, AskedDaemon, Daemon, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.faults import Faults
from vedette.agent.adapters.fleet.identity import IdentityStore
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.report import Report

KINDS = [(errno.ENOSPC, None), (errno.EIO, None), (errno.ENOSPC, 1), (errno.EIO, 1)]
DISK_CODES = {"state-read-only", "state-failed", "state-damaged", "spool-failed", "assignment-failed", "model-damaged"}


class HastyDaemon(AskedDaemon):
    """Runs with writes that may fail below its state, answers beside it, and notes what it served."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(folder, extra=f'status.socket = "{folder}/agent.sock"\n')
        self.seen: list[int] = []

    async def start(self) -> None:
        self.process = await self._spawn("run", module=("tests.support.hasty_agent",))
        await self.until(lambda report: report["running"])

    def report(self) -> Report:
        report = super().report()
        if report["running"]:
            self.seen.append(version(report))
        return report


def version(report: Report) -> int:
    """Return the version whose build is active; 0 for none."""
    slot = report["slots"].get("flow-threat")
    return int(slot["active"]["version"]) if slot and slot["active"] else 0


def disk_codes(report: Report) -> set[str]:
    return {condition["code"] for condition in report["conditions"]} & DISK_CODES


class Lives:
    """Lives one after another, each on a folder of its own, from one enrolment."""

    def __init__(self, place: Path, controller: FakeController, environment: pytest.MonkeyPatch) -> None:
        self._place = place
        self._controller = controller
        self._releases = [offer(controller, number, bias=-4.0 - number) for number in (1, 2)]
        self._root = place / "life/s"
        self.faults = Faults(self._root, place)
        environment.setattr("vedette.agent.app._REPORT_TIMEOUT_S", 60.0)  # lives are lived where much else goes on
        for name, value in self.faults.environment.items():
            environment.setenv(name, value)

    async def enrol(self) -> None:
        """Enrol once; every life begins with a copy."""
        daemon = HastyDaemon(self._place / "life")
        await enrolled(daemon, self._controller)
        shutil.copytree(self._root, self._place / "enrolled")
        shutil.rmtree(daemon.folder)

    async def live(self, first: int, error: int, most: int | None) -> int:
        """Live once, with a first call that fails; return how many calls there were."""
        daemon = HastyDaemon(self._place / "life")
        shutil.copytree(self._place / "enrolled", self._root)
        self.faults.begin(first, error, most=most)
        try:
            await self._lived(daemon)
        except BaseException:
            print(f"call {first}, {errno.errorcode[error]}, {most}: {self.faults.first}\n{daemon.log()[-6000:]}")
            raise
        finally:
            if daemon.process is not None and daemon.process.returncode is None:
                await daemon.stop(signal.SIGKILL)
            shutil.rmtree(daemon.folder)
            daemon.folder.with_name("life.log").unlink()
        return self.faults.calls

    async def _lived(self, daemon: HastyDaemon) -> None:
        controller, faults = self._controller, self.faults
        controller.results.clear()
        controller.committed.clear()
        controller.desired = controller.assign(1, self._releases[0])
        await daemon.start()
        report = await daemon.until(lambda r: version(r) == 1 or faults.failed)
        if version(report):
            await scores(daemon)
        controller.push(controller.assign(2, self._releases[1]))
        await controller.until(lambda c: [result for result in c.results if result.sequence == 2])
        if version(daemon.report()):
            await scores(daemon)
        faults.free()
        await daemon.until(lambda r: version(r) == r["sequences"]["running"] == 2 and not disk_codes(r))
        await scores(daemon)
        sent = len(controller.committed)
        await controller.until(lambda c: len(c.committed) > sent)
        assert await daemon.stop() == 0
        served = daemon.seen[daemon.seen.index(1) :] if 1 in daemon.seen else []
        assert served == sorted(served), f"what served fell back or was gone: {served}"
        with closing(State(self._root / "state.db")) as state:
            assert state.quarantine == {}
            assert state.sequences.running == 2


async def scores(daemon: Daemon) -> None:
    """Send flows and wait until they are scored."""
    before = daemon.report()["counters"]["rows_scored"]
    daemon.send(capture_datagrams(CAPTURE)[:200])
    await daemon.until(lambda r: r["counters"]["rows_scored"] > before)


def drawn(kind: int, calls: int) -> Iterator[int]:
    """Return the k to live for a kind of fault: one, or a share of all."""
    share = float(os.environ.get("FAULTS_SHARE", "0"))
    yield from random.Random(kind).sample(range(1, calls + 1), max(1, int(share * calls)))


@pytest.mark.slow
@pytest.mark.timeout(36000)  # all of them take hours
async def test_an_agent_of_whose_writes_any_fails_serves_and_goes_on_by_itself(
    tmp_path: Path, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = Lives(tmp_path, controller, monkeypatch)
    await lives.enrol()
    calls = await lives.live(2**40, errno.ENOSPC, None)
    assert calls > 100
    hits = 0
    for kind, (error, most) in enumerate(KINDS):
        for number in drawn(kind, calls):
            await lives.live(number, error, most)
            hits += bool(lives.faults.failed)
    assert hits, "no life was long enough to be hit"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
async def test_an_enrolment_of_whose_writes_any_fails_is_finished_by_the_same_command(
    tmp_path: Path, controller: FakeController, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    daemon = HastyDaemon(tmp_path / "life")
    faults = Faults(daemon.settings.state_dir, tmp_path)
    for name, value in faults.environment.items():
        monkeypatch.setenv(name, value)
    faults.begin(2**40, error)
    assert await daemon.command("enroll", "--token", controller.token("counted").encode()) == 0
    for number in drawn(error, faults.calls):
        shutil.rmtree(daemon.settings.state_dir)
        token = controller.token(f"t{number}").encode()
        faults.begin(number, error)
        failed = await daemon.command("enroll", "--token", token)
        assert "Traceback" not in daemon.log()
        assert failed == 0 or IdentityStore(daemon.settings.enrolment_dir).load() is None
        faults.free()
        assert await daemon.command("enroll", "--token", token) == 0
        assert IdentityStore(daemon.settings.enrolment_dir).load() is not None
