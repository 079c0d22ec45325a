"""The real agent is killed again and again at instants drawn by lot, while it does all that it stores anything of.

A life: two workers, flows by NetFlow, a log that is followed, telemetry, and a new version wanted in each round, every
second of which is bad. VEDETTE_KILLS says how many kills there are (`make soak`: 200); VEDETTE_LOT draws others.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
from dataclasses import replace

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.report import Report
from vedette.agent.domain.slots import MAX_SAVES
from vedette.models.release import Blob, Release
from vedette.wire.values import Outcome

KILLS = int(os.environ.get("VEDETTE_KILLS", "2"))
LOT = int(os.environ.get("VEDETTE_LOT", "5"))
LONGEST_S = 2.5
"""From the word of a new version to the kill: fetching, loading, testing and switching take about one second."""
BACK_WITHIN_S = 30.0


class Life:
    """What is expected of the agent, as it goes from kill to kill."""

    def __init__(self, daemon: Daemon, controller: FakeController) -> None:
        self.daemon = daemon
        self.controller = controller
        self.lot = random.Random(LOT)
        self.datagrams = capture_datagrams(CAPTURE)
        self.log = daemon.folder / "eve.json"
        self.sequence = 0
        self.good = offer(controller, 1)
        self.known = {1: self.good}

    def want(self, release: Release) -> None:
        self.sequence += 1
        self.known[release.version] = release
        self.controller.push(self.controller.assign(self.sequence, release))

    def feed(self) -> None:
        self.daemon.send(self.datagrams)
        with self.log.open("a") as log:
            log.write(json.dumps({"event_type": "stats", "of": self.sequence}) + "\n")

    async def round(self, number: int) -> None:
        """Want another version, kill the agent at some instant, look at its disk, and see it come back and answer."""
        self.feed()
        wanted = offer(self.controller, number + 1, bias=-4.0 - number / 1000)
        is_bad = number % 2 == 0
        if is_bad:
            wanted = replace(wanted, golden=self.good.golden)
        self.want(wanted)
        await asyncio.sleep(self.lot.uniform(0.0, LONGEST_S))
        assert await self.daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        at_rest = self.look({self.good.version} if is_bad else {self.good.version, wanted.version})
        self.daemon.verdicts.unlink(missing_ok=True)
        async with asyncio.timeout(BACK_WITHIN_S):
            await self.daemon.start()
            self.feed()
            await self.daemon.until(lambda report: self.answered)
        assert self.answered <= {at_rest, wanted.version}
        await self.settle(wanted, is_bad=is_bad)

    @property
    def answered(self) -> set[int]:
        """The versions whose verdicts have been written since the kill."""
        if not self.daemon.verdicts.exists():
            return set()
        whole = self.daemon.verdicts.read_bytes().rpartition(b"\n")[0]
        return {json.loads(line)["vedette"]["version"] for line in whole.splitlines()}

    async def settle(self, wanted: Release, *, is_bad: bool) -> None:
        """See the version that is wanted taken over, or a bad one refused and remembered."""
        async with asyncio.timeout(BACK_WITHIN_S):
            await self.controller.until(lambda c: [r for r in c.results if r.sequence == self.sequence])
            self.good = self.good if is_bad else wanted
            report = await self.daemon.until(lambda r: served(r) == self.good.version)
        outcomes = {r.outcome for r in self.controller.results if r.sequence == self.sequence}
        assert (outcomes == {Outcome.APPLIED}) is not is_bad
        assert (wanted.builds[0].digest in str(report["slots"]["flow-threat"]["quarantined"])) is is_bad

    def look(self, possible: set[int]) -> int:
        """Check what the kill left, with the agent's own parts; return the version that is active."""
        folder = self.daemon.settings.state_dir
        state = State(folder / "state.db")
        try:
            record = state.slots["flow-threat"]
        finally:
            state.close()
        assert record.active is not None
        assert record.active.version in possible
        assert record.saves < MAX_SAVES
        blobs = Blobs(folder / "blobs")
        for build in filter(None, (record.active, record.previous)):
            assert all(map(blobs.is_whole, files_of(self.known[build.version]))), (
                f"version {build.version} is not whole"
            )
        if (folder / "positions.json").exists():
            json.loads((folder / "positions.json").read_bytes())
        return record.active.version

    def check_end(self) -> None:
        """Check, once it has stopped in order, its disk against its report and what the controller was told."""
        folder = self.daemon.settings.state_dir
        known = {blob.digest.removeprefix("sha256:") for release in self.known.values() for blob in files_of(release)}
        assert {path.name for path in (folder / "blobs").rglob("*") if path.is_file()} <= known
        assert list((folder / "blobs/partial").iterdir()) == []
        (status,) = self.controller.statuses[-1].slots
        assert status.active is not None
        assert served(self.daemon.report()) == status.active.version == self.good.version
        told = sorted(self.controller.committed.values(), key=lambda batch: (batch.boot_epoch, batch.sequence))
        for before, batch in itertools.pairwise(told):
            same = before.boot_epoch == batch.boot_epoch
            assert batch.first == (before.sequence + 1 if same else 1), "a batch is told twice or not at all"


def served(report: Report) -> int:
    """Return the version that is active, whatever became of a later one."""
    slot = report["slots"].get("flow-threat")
    return int(slot["active"]["version"]) if slot and slot["active"] else 0


def files_of(release: Release) -> list[Blob]:
    return [blob for blob in (release.builds[0].blob, release.golden, release.reference) if blob is not None]


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * KILLS)
async def test_killed_at_any_instant_it_comes_back_whole_serves_and_counts_nothing_twice(
    daemon: Daemon, controller: FakeController
) -> None:
    log = daemon.folder / "eve.json"
    log.touch()
    daemon.config.write_text(
        f'{daemon.config.read_text()}inference.workers = 2\nsink.json.emit = "all"\nsource.eve.path = "{log}"\n'
    )
    await enrolled(daemon, controller)
    life = Life(daemon, controller)
    life.want(life.good)
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    for number in range(1, KILLS + 1):
        await life.round(number)
    await daemon.stop()
    life.check_end()
