"""Claims about log files as a source of flows: what is handed on, what is stored when, and what is said of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.clock import FakeClock
from tests.support.flow_logs import eve_lines, zeek_header, zeek_table
from tests.support.flows import T0_MS, record
from tests.support.promlint import problems
from vedette.agent.adapters.sources import follow
from vedette.agent.adapters.sources.logs import (
    POLL_S,
    SAVE_EVERY_S,
    SETTLE_S,
    LogSource,
    LogSources,
    families_log_sources,
)
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.metrics import render
from vedette.models.flows.eve import EveParser
from vedette.models.flows.log_lines import MAX_LINE_BYTES
from vedette.models.flows.records import FlowRecords, joined
from vedette.models.flows.zeek import ZeekParser
from vedette.wire.values import Severity


class Taken:
    """A pipeline that keeps what it is given; each record is a flow, and is told when the test says so."""

    def __init__(self) -> None:
        self.records: list[FlowRecords] = []
        self.queued_flows = 0
        self.finished_flows = 0
        self.advances = 0

    def take_records(self, records: FlowRecords) -> None:
        self.records.append(records)
        self.queued_flows += len(records)

    def advance(self) -> None:
        self.advances += 1

    async def room(self) -> None:
        return

    @property
    def ports(self) -> list[int]:
        return joined(self.records)["src_port"].tolist() if self.records else []


class Bench:
    """Log sources on one folder, which may be made again as a new process makes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "eve.json"
        self.clock = FakeClock()
        self.conditions = Conditions(self.clock)
        self.start()

    def start(self, parser: EveParser | ZeekParser | None = None) -> LogSource:
        self.flows = Taken()
        self.logs = LogSources(self.folder / "positions.json", self.conditions, self.clock)
        self.source = LogSource(
            "eve",
            self.path,
            parser or EveParser(),
            exporter=7,
            flows=self.flows,
            clock=self.clock,
            stored=self.logs.stored("eve"),
        )
        self.logs.sources.append(self.source)
        return self.source

    def log(self, *lines: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))

    def read(self) -> None:
        while self.source.step():
            pass

    async def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds / POLL_S)):
            await self.clock.advance(POLL_S)
            self.read()

    @property
    def stored(self) -> Any:
        return json.loads((self.folder / "positions.json").read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.logs.close()


def lines(*ports: int) -> list[bytes]:
    return eve_lines(joined([record(bidirectional=True, src_port=p, export_ms=T0_MS + p) for p in ports]))


async def test_lines_become_records_of_their_own_exporter(bench: Bench) -> None:
    bench.log(*lines(1, 2), b"rubbish", *lines(3))
    with bench.path.open("ab") as file:
        file.write(lines(4)[0][:50])
    bench.read()
    assert bench.flows.ports == [1, 2, 3]
    assert set(joined(bench.flows.records)["exporter"].tolist()) == {7}
    with bench.path.open("ab") as file:
        file.write(lines(4)[0][50:] + b"\n")
    bench.read()
    assert bench.flows.ports == [1, 2, 3, 4]
    assert bench.source.bad == {"not-json": 1}


async def test_what_waits_is_let_go_for_as_long_as_a_second_takes_to_close(bench: Bench) -> None:
    bench.log(*lines(1))
    bench.read()
    await bench.pass_s(60)
    assert SETTLE_S / POLL_S <= bench.flows.advances <= SETTLE_S / POLL_S + 2


async def test_a_place_is_settled_only_when_all_before_it_has_been_told(bench: Bench) -> None:
    bench.log(*lines(1, 2))
    bench.read()
    first = bench.source.place()
    await bench.pass_s(SETTLE_S - POLL_S)
    assert bench.source.settled is None, "its second may not have closed"
    bench.log(*lines(3))
    await bench.pass_s(5 * SETTLE_S)
    assert bench.source.settled is None, "it was queued and is not scored"
    bench.flows.finished_flows = bench.flows.queued_flows
    bench.read()
    assert bench.source.settled == first
    await bench.pass_s(2 * SETTLE_S)
    assert bench.source.settled == bench.source.place()


async def test_a_place_is_not_settled_before_its_second_can_have_closed(bench: Bench) -> None:
    bench.flows.finished_flows = 10**9
    bench.log(*lines(1))
    bench.read()
    await bench.pass_s(SETTLE_S - POLL_S)
    assert bench.source.settled is None
    await bench.pass_s(2 * POLL_S)
    assert bench.source.settled is not None


async def test_a_process_that_dies_repeats_only_what_was_not_settled(bench: Bench) -> None:
    bench.log(*lines(1, 2))
    await bench.pass_s(1)
    bench.flows.finished_flows = 99
    await bench.pass_s(2 * SETTLE_S)
    bench.logs.save(is_all_told=False)
    bench.log(*lines(3))
    await bench.pass_s(1)
    bench.start()
    bench.log(*lines(4))
    bench.read()
    assert bench.flows.ports == [3, 4]


async def test_a_stop_in_order_repeats_nothing_not_even_half_a_line(bench: Bench) -> None:
    half = lines(3)[0]
    bench.log(*lines(1, 2))
    with bench.path.open("ab") as file:
        file.write(half[:40])
    bench.read()
    bench.logs.save(is_all_told=True)
    with bench.path.open("ab") as file:
        file.write(half[40:] + b"\n")
    bench.start()
    bench.read()
    assert bench.flows.ports == [3]


async def test_the_middle_of_a_line_over_the_limit_is_skipped_by_the_next_process_too(bench: Bench) -> None:
    with bench.path.open("ab") as file:
        file.write(b"x" * (MAX_LINE_BYTES + 10))
    bench.read()
    bench.logs.save(is_all_told=True)
    assert bench.source.bad == {"too-long": 1}
    bench.start()
    bench.log(b"end of it", *lines(1))
    bench.read()
    assert (bench.flows.ports, bench.source.bad) == ([1], {})


async def test_a_table_goes_on_behind_its_header_and_a_rotated_one_has_its_own(bench: Bench) -> None:
    table = zeek_table(joined([record(bidirectional=True, src_port=p) for p in range(1, 5)]))
    header, rows = table[: len(zeek_header())], table[len(zeek_header()) : -1]
    bench.start(ZeekParser())
    bench.log(*header, rows[0])
    bench.read()
    bench.logs.save(is_all_told=True)
    bench.start(ZeekParser())
    bench.log(rows[1])
    bench.read()
    assert (bench.flows.ports, bench.source.bad) == ([2], {})
    bench.path.rename(bench.path.with_name("eve.json.1"))
    bench.log(rows[2])
    await bench.pass_s(3)
    assert bench.source.bad == {"no-header": 1}, "a new file is not read by the header of the old one"
    bench.log(*header, rows[3])
    bench.read()
    assert bench.flows.ports == [2, 4]


async def test_a_first_start_in_the_middle_of_a_table_reads_its_header(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = zeek_table(joined([record(bidirectional=True, src_port=p) for p in range(1, 100)]))
    monkeypatch.setattr(follow, "FIRST_BYTES", 2000)
    bench.start(ZeekParser())
    bench.log(*table)
    bench.read()
    assert bench.source.bad == {}
    assert bench.flows.ports == list(range(100 - len(bench.flows.ports), 100))
    assert 3 < len(bench.flows.ports) < 20


async def test_a_last_line_without_an_end_is_read_when_its_file_is_over(bench: Bench) -> None:
    bench.path.write_bytes(lines(1)[0])
    bench.read()
    bench.path.rename(bench.path.with_name("eve.json.1"))
    bench.log(*lines(2))
    await bench.pass_s(3)
    assert bench.flows.ports == [1, 2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: b"",
        lambda d: b"\x00" * 100,
        lambda d: b"[" * 100_000,
        lambda d: json.dumps(d | {"form": 9}).encode(),
        lambda d: json.dumps({"form": 1, "sources": {"eve": d["sources"]["eve"] | {"parser": {}}}}).encode(),
        lambda d: json.dumps({"form": 1, "sources": {"eve": d["sources"]["eve"] | {"position": 1}}}).encode(),
        lambda d: json.dumps({"form": 1, "sources": {"eve": d["sources"]["eve"] | {"more": 1}}}).encode(),
    ],
)
async def test_stored_positions_that_are_none_are_told_and_begin_anew(
    bench: Bench, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench.log(*lines(1))
    bench.read()
    bench.logs.save(is_all_told=True)
    (bench.folder / "positions.json").write_bytes(spoil(bench.stored))
    with caplog.at_level(logging.WARNING):
        bench.start()
    assert "not used" in caplog.text
    bench.read()
    assert bench.flows.ports == [1]


async def test_a_position_of_another_path_is_not_used_and_one_of_a_source_that_is_off_is_kept(bench: Bench) -> None:
    bench.log(*lines(1))
    bench.read()
    bench.logs.save(is_all_told=True)
    bench.path = bench.folder / "other.json"
    bench.log(*lines(2))
    bench.start()
    bench.read()
    assert bench.flows.ports == [2]
    bench.source.name = "zeek"
    bench.logs.save(is_all_told=True)
    assert sorted(bench.stored["sources"]) == ["eve", "zeek"]


async def test_positions_are_saved_at_most_every_ten_seconds_and_only_when_they_moved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[float] = []
    monkeypatch.setattr(os, "fsync", lambda _: saved.append(bench.clock.monotonic()))
    bench.flows.finished_flows = 10**9
    tasks = [asyncio.create_task(task) for task in bench.logs.tasks()]
    for second in range(60):
        bench.log(*lines(second)) if second < 30 else None
        for _ in range(2):
            await bench.clock.advance(POLL_S)
            for _ in range(4):
                await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    times = sorted(set(saved))
    assert 2 <= len(times) <= 5
    assert np.diff(times).min() >= SAVE_EVERY_S
    assert bench.stored["sources"]["eve"]["position"]["offset"] == bench.path.stat().st_size


async def test_a_file_that_is_not_read_is_a_condition_until_it_is(bench: Bench) -> None:
    tasks = [asyncio.create_task(task) for task in bench.logs.tasks()]

    async def half_a_second() -> None:
        await asyncio.sleep(0)
        await bench.clock.advance(POLL_S)
        for _ in range(4):
            await asyncio.sleep(0)

    await half_a_second()
    (held,) = bench.conditions.current()
    assert (held.code, held.severity) == ("source-failed", Severity.WARNING)
    assert f"{bench.path} is not there" in held.text
    (report,) = bench.logs.report()
    assert report["problem"] == held.text
    os.mkfifo(bench.path)
    for _ in range(2):
        await half_a_second()
    (held,) = bench.conditions.current()
    assert held.severity is Severity.ERROR
    bench.path.unlink()
    bench.log(*lines(1))
    for _ in range(2):
        await half_a_second()
    assert bench.conditions.current() == ()
    assert bench.flows.ports == [1]
    for task in tasks:
        task.cancel()


async def test_figures_and_report_say_what_was_read_and_what_was_not(bench: Bench) -> None:
    bench.log(*lines(1, 2), b"rubbish", b'{"event_type":"alert"}')
    bench.source.step()
    bench.log(*lines(3))
    page = render(families_log_sources(bench.logs)).decode()
    assert problems(page) == []
    for said in (
        'lines_total{source="eve"} 4',
        'records_total{source="eve"} 2',
        'lines_other_total{source="eve"} 1',
        'lines_bad_total{source="eve",reason="not-json"} 1',
        f'behind_bytes{{source="eve"}} {len(lines(3)[0]) + 1}',
        'failed{source="eve"} 0',
    ):
        assert f"vedette_agent_source_{said}\n" in page
    assert bench.logs.counters() == {"log_records": 2, "log_lines_bad": 1, "log_gaps": 0}
    (report,) = bench.logs.report()
    assert (report["lines"], report["records"], report["bad"]) == (4, 2, {"not-json": 1})
