"""The life of an agent, recorded: the real program against a controller that notes what it is told."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, AskedDaemon, Daemon, active, enrolled, offer
from tests.support.powercut.recording import Recording
from tests.support.powercut.records import Record
from tests.support.powercut.told import ToldController
from vedette.models.release import Release

STATE = "s"


@dataclass(frozen=True)
class AgentLife:
    """What was recorded, and the controller whose keys and files a restarted agent needs."""

    records: list[Record] = field(repr=False)
    controller: ToldController


async def recorded_life(folder: Path) -> AgentLife:
    """Record an agent that enrols, installs, switches, refuses a bad build, rolls back, empties a slot and restarts."""
    root = folder / "disk"
    root.mkdir()
    recording = Recording(root, folder / "log")
    daemon = AskedDaemon(root)
    async with ToldController(recording.mark) as controller:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in recording.environment.items():
                environment.setenv(name, value)
            try:
                await _live(daemon, controller, recording)
            finally:
                if daemon.process is not None and daemon.process.returncode is None:
                    await daemon.stop(signal.SIGKILL)
    return AgentLife(recording.records(), controller)


async def _live(daemon: Daemon, controller: ToldController, recording: Recording) -> None:
    await enrolled(daemon, controller)
    recording.mark(enrolled=True)
    first, second, bad = (offer(controller, version, bias=-4.0 - version) for version in (1, 2, 3))
    bad = replace(bad, golden=second.golden)
    await daemon.start()
    await _assigned(daemon, controller, 1, first)
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["rows_scored"] > 0)
    await _assigned(daemon, controller, 2, second)
    controller.push(controller.assign(3, bad))
    await controller.until(lambda c: [result for result in c.results if result.sequence == 3])
    await daemon.stop(signal.SIGKILL)
    await daemon.start()
    await _assigned(daemon, controller, 4, first)
    await _batches(controller, 2)
    await daemon.stop()
    controller.lose_acknowledgements = 1
    await daemon.start()
    await _batches(controller, 2)
    controller.push(controller.assign(5))
    await controller.until(lambda c: [result for result in c.results if result.sequence == 5])
    await _assigned(daemon, controller, 6, second)
    await daemon.stop()


async def _assigned(daemon: Daemon, controller: ToldController, sequence: int, release: Release) -> None:
    controller.push(controller.assign(sequence, release))
    await controller.until(lambda c: [result for result in c.results if result.sequence == sequence])
    await daemon.until(lambda report: active(report) == release.version)


async def _batches(controller: ToldController, more: int) -> None:
    wanted = len(controller.committed) + more
    await controller.until(lambda c: len(c.committed) >= wanted)
