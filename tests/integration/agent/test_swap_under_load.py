"""The real agent switches versions for ever while programs ask and flows come as fast as they can.

Each answer and each verdict proves by its values which version gave it: see :mod:`tests.support.proving_models`. A test
run takes seconds of it; ``make soak`` a minute, and there nothing may be given up either.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import triton_calls
from tests.support.daemon import Daemon, active, enrolled
from tests.support.fake_controller import FakeController
from tests.support.flow_models import WIDTH
from tests.support.oip import ClientProcess
from tests.support.proving_models import RECORDS, TCP, marked_datagrams, proving_release, score_of
from tests.support.tiny_models import Shelf
from vedette.models.release import Release
from vedette.wire.values import Outcome

_SECONDS = float(os.environ.get("SWAP_SECONDS", "8"))
_IS_SOAK = _SECONDS >= 60
_SWITCH_S = 2.0
_FLOWS_PER_S = 20_000
_TICK_S = 0.02
_PROGRAMS = 2


class _Load:
    """Flows at a steady rate until it is told to stop; what the machine is late with is sent as soon as it can."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.datagrams = 0
        self.stopping = asyncio.Event()

    async def send(self) -> None:
        begun, made = time.monotonic(), marked_datagrams()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            while not self.stopping.is_set():
                due = int((time.monotonic() - begun) * _FLOWS_PER_S / RECORDS)
                while self.datagrams < due:
                    exporter.sendto(next(made), ("127.0.0.1", self._port))
                    self.datagrams += 1
                await asyncio.sleep(_TICK_S)


class _Switches:
    """A controller that wants another version every two seconds: a new one, the first again, a newer one, …"""

    def __init__(self, controller: FakeController) -> None:
        self._controller = controller
        self._shelf = Shelf()
        self._releases: dict[int, Release] = {}
        self.wanted: list[int] = []

    def want(self) -> None:
        number = len(self.wanted)
        version = 1 if number % 2 == 0 else number // 2 + 2
        release = self._releases.setdefault(version, proving_release(self._shelf, version))
        self._controller.blobs |= self._shelf.blobs
        self.wanted.append(version)
        self._controller.push(self._controller.assign(len(self.wanted), release))

    async def applied(self) -> None:
        """Return once the newest was applied."""
        wanted = len(self.wanted)
        await self._controller.until(lambda at: any(result.sequence == wanted for result in at.results))

    async def go_on(self, seconds: float) -> None:
        """Switch every two seconds, counted from switch to switch; one that takes longer holds the next up."""
        end = time.monotonic() + seconds
        while (begun := time.monotonic()) < end:
            self.want()
            await self.applied()
            await asyncio.sleep(max(begun + _SWITCH_S - time.monotonic(), 0))


async def _kill_workers(daemon: Daemon) -> None:
    """SIGKILL one of the serving build's workers between any two switches."""
    while True:
        await asyncio.sleep(_SWITCH_S * 0.85)  # in time it moves through the two seconds
        slot = (await asyncio.to_thread(daemon.report))["slots"].get("flow-threat") or {}
        for worker in list(slot.get("workers", ()))[:1]:
            with suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)


def _lost(counters: dict[str, int]) -> int:
    """Return flows that the agent says it gave up."""
    return counters["flows_shed"] + counters["flows_dropped"] + counters["datagrams_dropped"] * RECORDS


async def _settled(daemon: Daemon, load: _Load) -> dict[str, Any]:
    """Return the counters once every flow sent is accounted for."""
    sent = load.datagrams * RECORDS

    def is_settled(report: dict[str, Any]) -> bool:
        now = report["counters"]
        return now["datagrams"] == load.datagrams and now["rows_scored"] + now["rows_failed"] + _lost(now) >= sent

    return (await daemon.until(is_settled))["counters"]


async def _told(controller: FakeController, rows: int) -> Counter[int]:
    """Return flagged flows by version as the telemetry tells them, once it tells of all rows."""

    def windows(at: FakeController) -> list[Any]:
        return [window for batch in at.committed.values() for window in batch.windows if window.slot == "flow-threat"]

    await controller.until(lambda at: sum(window.rows for window in windows(at)) == rows)
    told: Counter[int] = Counter()
    for window in windows(controller):
        told[window.version] += window.flagged
    return told


@pytest.mark.slow
@pytest.mark.timeout(int(_SECONDS * 4) + 120)
@pytest.mark.parametrize(
    ("workers", "is_killed"),
    [
        pytest.param(1, False, marks=pytest.mark.skipif(not _IS_SOAK, reason="make soak runs all of them")),
        pytest.param(2, False, marks=pytest.mark.skipif(not _IS_SOAK, reason="make soak runs all of them")),
        (2, True),
    ],
)
async def test_switches_under_load_lose_mix_and_fail_nothing(
    tmp_path: Path, controller: FakeController, workers: int, is_killed: bool
) -> None:
    extra = f"inference.workers = {workers}\nbudget.cpu_percent = 400\n"
    daemon, switches = Daemon(tmp_path, extra=extra), _Switches(controller)
    controller.chunk_bytes = 64 * 1024
    load, end = _Load(daemon.port), tmp_path / "end"
    programs = [ClientProcess() for _ in range(_PROGRAMS)]
    await enrolled(daemon, controller)
    await daemon.start()
    try:
        switches.want()
        await switches.applied()
        await daemon.until(active)
        asked = (f"unix:{daemon.folder}/s/inference.sock", "flow-threat", str(end), TCP, WIDTH)
        asking = [asyncio.create_task(program.run(triton_calls.prove, *asked)) for program in programs]
        sending = asyncio.create_task(load.send())
        killing = asyncio.create_task(_kill_workers(daemon)) if is_killed else None
        await switches.go_on(_SECONDS)
        if killing is not None:
            killing.cancel()
        load.stopping.set()
        await sending
        end.touch()
        found = [await each for each in asking]
        counters = await _settled(daemon, load)
        told = await _told(controller, counters["rows_scored"])
        assert await daemon.stop() == 0
    finally:
        end.touch()
        for program in programs:
            program.close()
        if daemon.process is not None and daemon.process.returncode is None:
            await daemon.stop(signal.SIGKILL)
    # Every assignment was applied, and programs saw every version that had time to be asked.
    assert [result.outcome for result in controller.results] == [Outcome.APPLIED] * len(switches.wanted)
    for alone, streamed, wrong in found:
        assert wrong == []
        for seen in (alone, streamed):
            assert {1, 2} < set(seen) <= set(switches.wanted)
    assert counters["requests_refused"] == 0
    assert counters["requests_answered"] == sum(
        sum(alone.values()) + sum(streamed.values()) for alone, streamed, _ in found
    )
    # Every flow was received, and then scored once or counted as given up.
    assert (counters["rows_failed"], counters["rows_invalid"], counters["batches_failed"]) == (0, 0, 0)
    assert counters["flows_unscored"] == counters["sequence_gaps"] == 0
    assert counters["rows_scored"] + _lost(counters) == load.datagrams * RECORDS
    if _IS_SOAK:
        assert _lost(counters) == 0, [line for line in daemon.log().splitlines() if "pressure" in line]
    _check_verdicts(daemon, load, counters, told)


def _check_verdicts(daemon: Daemon, load: _Load, counters: dict[str, int], told: Counter[int]) -> None:
    """Hold each line against its version, all against the telemetry, and find every flagged flow once."""
    lines = daemon.lines()
    for line in lines:
        assert line["vedette"]["score"] == round(score_of(line["vedette"]["version"]), 6)
    numbers = [line["flow"]["pkts_toserver"] for line in lines]
    assert len(numbers) == len(set(numbers)) == counters["rows_flagged"]
    assert set(numbers) <= set(range(1, load.datagrams + 1))
    assert load.datagrams - len(numbers) <= _lost(counters)
    assert Counter(line["vedette"]["version"] for line in lines) == told
