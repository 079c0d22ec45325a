"""Claims about log files as a source of a real agent: rotated, restarted and killed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.flow_logs import eve_lines, zeek_table
from tests.support.flows import T0_MS, record
from vedette.models.flows.records import FlowRecords

CLIENTS = 40_000  # ports that no server has


class Logged(Daemon):
    """An agent that follows an EVE log and a conn.log, and tells every verdict."""

    def __init__(self, folder: Path) -> None:
        self.eve, self.zeek = folder / "eve.json", folder / "conn.log"
        extra = f'sink.json.emit = "all"\nsource.eve.path = "{self.eve}"\nsource.zeek.path = "{self.zeek}"\n'
        super().__init__(folder, extra=extra)

    def told(self, path: Path) -> Counter[int]:
        """Return how often each flow of a file was told; a flow is known by its client's port."""
        return Counter(line["src_port"] - CLIENTS for line in self.lines() if line["flow"]["exporter"] == str(path))

    def source(self, name: str, report: dict[str, Any]) -> dict[str, Any]:
        return next(source for source in report["sources"] if source["source"] == name)

    def stored_offset(self) -> int:
        try:
            sources = json.loads((self.folder / "s/positions.json").read_text())["sources"]
        except FileNotFoundError:
            return 0
        return int(sources["eve"]["position"]["offset"]) if "eve" in sources else 0


@pytest.fixture
async def daemon(tmp_path: Path, controller: FakeController) -> AsyncIterator[Logged]:
    made = Logged(tmp_path)
    await enrolled(made, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop(signal.SIGKILL)


def flows(begin: int, end: int) -> FlowRecords:
    """Return one flow for each port, a hundred a second."""
    made = np.repeat(record(bidirectional=True, reverse_packets=3, reverse_bytes=300, reverse_flags=0x1B), end - begin)
    made["src_port"] = CLIENTS + np.arange(begin, end)
    made["export_ms"] = T0_MS + np.arange(begin, end) * 10
    return made


def append(path: Path, lines: list[bytes]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


async def test_flows_of_two_rotated_logs_are_told_once_over_a_restart(daemon: Logged) -> None:
    append(daemon.zeek, zeek_table(flows(1, 201)))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    append(daemon.eve, eve_lines(flows(1, 301)))
    await daemon.until(lambda r: daemon.source("eve", r)["records"] == 300)
    daemon.eve.rename(daemon.eve.with_name("eve.json.1"))
    append(daemon.eve, [*eve_lines(flows(301, 401)), b"\x00\xff"])
    await daemon.until(lambda r: daemon.source("eve", r)["records"] == 400)
    assert await daemon.stop() == 0
    append(daemon.eve, eve_lines(flows(401, 501)))
    daemon.eve.rename(daemon.eve.with_name("eve.json.2"))
    append(daemon.eve, eve_lines(flows(501, 601)))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    report = await daemon.until(lambda r: daemon.source("eve", r)["records"] == 200)
    assert daemon.source("eve", report)["gaps"] == 0
    assert await daemon.stop() == 0
    assert daemon.told(daemon.eve) == Counter(range(1, 601))
    scored = daemon.told(daemon.zeek)
    assert set(scored.values()) <= {1}
    assert set(scored) <= set(range(1, 201)), "what came before there was a model is counted as unscored"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["while it reads", "while it is quiet"])
async def test_a_killed_agent_misses_no_line_and_repeats_none_that_was_settled(daemon: Logged, how: str) -> None:
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    append(daemon.eve, eve_lines(flows(1, 1001)))
    settled = daemon.eve.stat().st_size
    await daemon.until(lambda r: daemon.stored_offset() == settled)
    append(daemon.eve, eve_lines(flows(1001, 9001)))
    if how == "while it reads":
        await daemon.until(lambda r: daemon.source("eve", r)["records"] > 1000)
    else:
        await daemon.until(lambda r: daemon.source("eve", r)["behind_bytes"] == 0)
    await daemon.stop(signal.SIGKILL)
    append(daemon.eve, eve_lines(flows(9001, 9101)))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    await daemon.until(lambda r: daemon.source("eve", r)["records"] == 8100)
    assert await daemon.stop() == 0
    told = daemon.told(daemon.eve)
    assert set(told) == set(range(1, 9101)), "at least once"
    assert {told[port] for port in range(1, 1001)} == {1}, "what was settled once"
    assert max(told.values()) <= 2
