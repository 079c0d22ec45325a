"""Claims about the fan-out: what sinks share, and that none of them slows what feeds it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.captures import capture_datagrams
from tests.support.clock import FakeClock
from tests.support.promlint import problems
from tests.support.receivers import hanging_receiver, unused_port
from tests.support.verdicts import verdicts
from tests.unit.agent.test_pipeline import CAPTURE, Numpy
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sinks.fanout import Fanout, QueuedSink, Verdicts, families_sinks
from vedette.agent.domain.metrics import render
from vedette.agent.domain.windows import Windows
from vedette.agent.rooms.sinks import build_sinks
from vedette.agent.settings import Settings, read_settings


class Gate(QueuedSink):
    """A sink that hands over only while its gate is open."""

    name = "gate"
    lost_at = ("end",)

    def __init__(self, *, emits_all: bool = True, queue_bytes: int = 10**6) -> None:
        super().__init__(emits_all=emits_all, queue_bytes=queue_bytes, on_problem=self._told)
        self.told: list[str | None] = []
        self.is_open = threading.Event()
        self.got: list[bytes] = []

    def _told(self, problem: str | None) -> None:
        self.told.append(problem)

    def _deliver(self, verdicts: Verdicts) -> None:
        self.is_open.wait()
        self.got += verdicts.lines

    def _let_go(self) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    made.start()
    yield made
    made.is_open.set()
    made.close(20.0)


def test_each_sink_gets_what_it_wants(gate: Gate) -> None:
    flagged = Gate(emits_all=False)
    flagged.start()
    fanout = Fanout([gate, flagged])
    assert fanout.emits_all
    for each in (gate, flagged):
        each.is_open.set()
    fanout.write(verdicts("1", "2", "3", flagged=[True, False, True]))
    fanout.write(verdicts("4", flagged=[False]))
    fanout.close(20.0)
    assert gate.got == [b"1\n", b"2\n", b"3\n", b"4\n"]
    assert flagged.got == [b"1\n", b"3\n"]


def test_only_the_flagged_ones_keep_all_that_is_said_of_them() -> None:
    mixed = verdicts(
        "1", "2", flagged=[False, True], sources=["10.0.0.1", "10.0.0.2"], labels=["benign", "scan"], scores=[0.1, 0.9],
        exporters=["a", "b"],
    )  # fmt: skip
    only = mixed.only_flagged()
    assert (only.lines, only.labels, only.exporters) == ([b"2\n"], ["scan"], ["b"])
    assert only.flows["src_lo"].tolist() == mixed.flows["src_lo"].tolist()[1:]
    assert (only.scores.tolist(), only.flagged.tolist(), only.by) == ([0.9], [True], mixed.by)


def test_a_sink_that_hangs_costs_its_own_verdicts_alone(gate: Gate) -> None:
    stuck = Gate(queue_bytes=10)
    stuck.start()
    gate.is_open.set()
    fanout = Fanout([stuck, gate])
    for _ in range(100):
        fanout.write(verdicts("12345"))
    assert gate.flush(20.0)
    assert len(gate.got) == 100
    assert 100 - 1 - 1 <= stuck.counters.lost["queue"] <= 100 - 1
    assert fanout.counters()["verdicts_lost"] == stuck.counters.lost["queue"]
    page = render(families_sinks(fanout)).decode()
    assert f'vedette_agent_sink_lost_total{{sink="gate",where="queue"}} {stuck.counters.lost["queue"]}' in page
    stuck.is_open.set()
    fanout.close(20.0)


def test_a_sink_that_hangs_at_the_end_is_left_behind_in_time(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    gate.write(verdicts("1"))
    gate.write(verdicts("2", "3"))
    gate.close(0.05)
    assert "verdicts were not handed to the gate sink" in caplog.text


def test_a_sink_that_hangs_without_a_word_is_told_until_its_queue_was_empty(gate: Gate) -> None:
    full = Gate(queue_bytes=20)
    full.start()
    for _ in range(100):
        full.write(verdicts("12345"))
    assert full.problem is not None
    assert "sink.gate.queue is full" in full.problem
    full.is_open.set()
    assert full.flush(20.0)
    assert full.problem is None
    assert [problem is None for problem in full.told] == [False, True], "once each"
    assert len(full.got) + full.counters.lost["queue"] == 100
    full.close(20.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_unasked_is_named(gate: Gate) -> None:
    class Failing(Gate):
        name = "failing"

        def _deliver(self, verdicts: Verdicts) -> None:
            raise SystemExit

    failing = Failing()
    fanout = Fanout([gate, failing])
    failing.start()
    assert fanout.broken is None
    fanout.write(verdicts("1"))
    failing.join(20.0)
    assert fanout.broken == "failing"


def _settings(folder: Path, text: str) -> Settings:
    (folder / "agent.toml").write_text(f'state_dir = "{folder}"\n{text}')
    return read_settings(folder / "agent.toml")


async def test_inference_goes_on_at_its_pace_whatever_receivers_do(tmp_path: Path) -> None:
    """Pass all flows of a capture through while the syslog receiver reads nothing and the webhook answers nothing."""
    with hanging_receiver() as syslog, hanging_receiver() as webhook:
        settings = _settings(
            tmp_path,
            f'''
            sink.json.path = "{tmp_path}/verdicts.jsonl"
            sink.json.emit = "all"
            sink.syslog.address = "tcp://127.0.0.1:{syslog}"
            sink.syslog.emit = "all"
            sink.syslog.queue = "64KiB"
            sink.webhook.url = "http://127.0.0.1:{webhook}/"
            sink.webhook.emit = "all"
            sink.webhook.queue = "64KiB"
            sink.webhook.batch = 1
            ''',
        )
        fanout = build_sinks(settings, lambda name, problem: None)
        fanout.start()
        clock = FakeClock()
        pipeline = FlowPipeline(
            Numpy("flow-threat"), fanout, Windows(clock), clock, host="edge-7", emit_all=True, evidence_per_s=0
        )
        datagrams = capture_datagrams(CAPTURE)
        while fanout.sinks[1].counters.lost["queue"] < 1000 or fanout.sinks[2].counters.lost["queue"] < 1000:
            before = pipeline.counters.rows_scored
            pipeline.take(datagrams)
            pipeline.flush()
            async with asyncio.timeout(60):
                await pipeline.score_waiting()
            assert pipeline.counters.rows_scored > before
        assert fanout.sinks[0].flush(60.0)
        told = {each["sink"]: each for each in fanout.report()}
        assert told["json"]["written"] == pipeline.counters.rows_scored
        assert sum(told["json"]["lost"].values()) == 0
        for name in ("syslog", "webhook"):
            assert told[name]["waiting_bytes"] <= 64 * 1024
            assert told[name]["lost"]["queue"] >= 1000
        assert problems(render(families_sinks(fanout)).decode()) == []
        fanout.close(0.1)


def test_a_sink_that_failed_is_told_by_name_and_all_are_reopened(tmp_path: Path) -> None:
    said: list[tuple[str, str | None]] = []
    told = threading.Semaphore(0)

    def on_problem(name: str, problem: str | None) -> None:
        said.append((name, problem))
        told.release()

    settings = _settings(tmp_path, f'sink.json.path = ""\nsink.syslog.address = "tcp://127.0.0.1:{unused_port()}"')
    fanout = build_sinks(settings, on_problem)
    assert [sink.name for sink in fanout.sinks] == ["syslog"]
    fanout.start()
    fanout.write(verdicts("{}"))
    assert told.acquire(timeout=20.0)
    fanout.reopen()
    fanout.close(20.0)
    assert said[0][0] == "syslog"
    assert "Connection refused" in str(said[0][1])


def test_with_no_sink_there_is_nothing_to_tell() -> None:
    fanout = Fanout(())
    assert (fanout.counters(), fanout.report(), fanout.emits_all, fanout.broken) == ({}, [], False, None)
