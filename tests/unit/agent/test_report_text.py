"""Claims about what ``status`` and ``models`` show at a terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vedette.agent.domain.report import Report, models_text, status_report, status_text
from vedette.agent.domain.words import ago, milliseconds, plural, size, span
from vedette.wire.values import BuildRef, Condition, Severity, SlotState, SlotStatus, Status

_NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def build(version: int) -> BuildRef:
    return BuildRef(model="flow-threat", version=version, build="sha256:" + f"{version}" * 64)


def report(*conditions: Condition, is_running: bool = True, **changes: Any) -> Report:
    """Return the report of an agent that serves version 2."""
    slot = SlotStatus(
        slot="flow-threat",
        state=SlotState.ACTIVE,
        active=build(2),
        previous=build(1),
        rows=52_104,
        latency_p50_ms=0.9134,
        latency_p99_ms=1.92,
        worker_restarts=1,
    )
    running: dict[str, Any] = {
        "counters": {"flows": 9, "datagrams": 3, "rows_scored": 9, "rows_flagged": 1},
        "process": {"pid": 1, "up_s": 7300.0},
        "models": {"flow-threat": {"workers": [{"pid": 4711, "memory_bytes": 61_234_000}], "self_test_s_ago": 7200.0}},
        "flows": {
            "listen": "[::]:2055",
            "exporters_known": 2,
            "exporters": [{"address": "10.4.0.1", "heard_s_ago": 190.0}, {"address": "fd00::1", "heard_s_ago": 62.0}],
        },
        "spool": {"waiting_bytes": 1_230_000, "budget_bytes": 67_108_864},
        "quarantine": {"sha256:" + "ab" * 32: "three crashes"},
    }
    settings: dict[str, Any] = {"counters": {}} if not is_running else running
    return status_report(
        is_running=is_running,
        name="edge-7",
        agent_id="a1",
        version="0.1",
        link={"state": "connected", "address": "ctl.example:7443"},
        status=Status(slots=(slot,), conditions=conditions, agent_time=_NOW),
        **settings | changes,
    )


_HELD = Condition(
    code="clock-wrong",
    severity=Severity.WARNING,
    text="38 s behind " + "and so on " * 12,
    since=_NOW - timedelta(minutes=4),
)


def test_models_shows_what_serves_what_it_costs_and_how_it_was_tested() -> None:
    assert models_text(report(), 160).splitlines() == [
        "SLOT         STATE   ACTIVE                  PREVIOUS                ROWS    P50       P99      WORKER   "
        "TESTED   REPLACED  PID",
        "flow-threat  active  flow-threat:2 22222222  flow-threat:1 11111111  52,104  0.913 ms  1.92 ms  61.2 MB  "
        "2 h ago  1 ×       4711",
        "build abababababab is not tried again: three crashes",
    ]


@pytest.mark.parametrize(
    ("columns", "cut"), [(130, ""), (120, "PID, REPLACED"), (80, "PID, REPLACED, TESTED, PREVIOUS")]
)
def test_a_narrow_terminal_loses_the_least_useful_columns_and_is_told_which(columns: int, cut: str) -> None:
    lines = models_text(report(), columns).splitlines()
    assert max(map(len, lines)) <= columns
    told = [line for line in lines if line.startswith("Not shown")]
    assert told == ([f"Not shown in {columns} columns: {cut}"] if cut else [])
    assert all(word in lines[0] for word in ("SLOT", "STATE", "ACTIVE", "P99"))


def test_status_tells_times_relative_and_what_must_be_acted_on_last() -> None:
    text = status_text(report(_HELD), 80)
    assert text.startswith("edge-7 (a1)   vedette-agent 0.1   up 2 h\n")
    assert "exporters 2 on UDP [::]:2055 · last packet 1 min ago from fd00::1" in text
    assert "telemetry 1.23 MB waiting of 67.1 MB" in text
    assert "(for 4 min)" in text.splitlines()[-1]
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_wrong_is_said_and_not_left_blank() -> None:
    assert status_text(report()).splitlines()[-1] == "Nothing is wrong. Look closer: vedette-agent doctor"
    assert "exporters none yet on UDP [::]:2055" in status_text(report(flows={"listen": "[::]:2055", "exporters": []}))
    assert "Nothing is wrong" not in status_text(report(is_running=False))


def test_an_agent_that_does_not_run_shows_what_is_stored() -> None:
    text = status_text(report(is_running=False), 60)
    assert "NOT RUNNING" in text.splitlines()[0]
    assert "systemctl start vedette-agent" in text.replace("\n", " ")
    assert "flow-threat:2" in text
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (span(0.25), "250 ms"),
        (span(59.9), "59 s"),
        (span(60), "1 min"),
        (span(86_399), "23 h"),
        (span(200_000), "2 d"),
        (ago(4.9), "now"),
        (ago(61), "1 min ago"),
        (size(0), "0 B"),
        (size(999.6), "1 kB"),
        (size(61_234_000), "61.2 MB"),
        (size(999_999_999), "1 GB"),
        (size(5e15), "5,000 TB"),
        (milliseconds(0.9134), "0.913 ms"),
        (milliseconds(12_345.6), "12,346 ms"),
        (plural(1, "packet"), "1 packet"),
        (plural(1204, "packet"), "1,204 packets"),
        (plural(0, "batch", "batches"), "0 batches"),
    ],
)
def test_numbers_have_units_and_three_figures(shown: str, expected: str) -> None:
    assert shown == expected
