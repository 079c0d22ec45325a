"""Claims about what doctor makes of facts: a table of scenarios, each with its level, its words and its remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vedette.agent.app import running_ground
from vedette.agent.domain import doctor
from vedette.agent.domain.doctor import Check, Ground, Level, Reach, Reached, Sight
from vedette.models.version import __version__

_TODAY = datetime(2026, 11, 23, tzinfo=UTC)
_ENROLLED = doctor.IdentityFacts(name="edge-7", agent_id="a1", addresses=("ctl.example:7443",))


def slot(**changes: Any) -> dict[str, Any]:
    """Return a slot of a report, in which all is well."""
    return {
        "slot": "flow-threat",
        "state": "active",
        "active": {"model": "flow-threat", "version": 2, "build": "sha256:ab"},
        "reason": "",
        "workers": [{"pid": 7, "memory_bytes": 61_000_000}],
        "memory_budget_bytes": 256_000_000,
        "self_test_s_ago": 7300.0,
        "worker_restarts": 0,
    } | changes


def exporter(**changes: Any) -> dict[str, Any]:
    """Return an exporter that was just heard."""
    return {
        "address": "10.4.0.1",
        "heard_s_ago": 3.0,
        "clock_ahead_s": 0.1,
        "templates_missing": [],
    } | changes


def flows(*exporters: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the flow port of a report."""
    return {
        "listen": "0.0.0.0:2055",
        "buffer_asked_bytes": 4_194_304,
        "buffer_granted_bytes": 4_194_304,
        "dropped_kernel": 0,
        "dropped_queue": 0,
        "exporters_known": len(exporters),
        "exporters": list(exporters),
    } | changes


def source(**changes: Any) -> dict[str, Any]:
    """Return a file that is followed."""
    return {
        "source": "zeek",
        "path": "/z/conn.log",
        "records": 5,
        "bad": {},
        "behind_bytes": 0,
        "problem": None,
    } | changes


def ground(**changes: Any) -> Ground:
    """Return what is seen of a running agent in which all is well."""
    report: dict[str, Any] = {
        "version": "0.1",
        "process": {"pid": 12, "up_s": 7200.0, "clock_ahead_s": 0.0},
        "link": {"state": "connected", "address": "ctl.example:7443"},
        "slots": {"flow-threat": slot()},
        "quarantine": {},
        "conditions": [],
        "flows": flows(exporter()),
        "sinks": [{"sink": "json", "written": 5, "lost": {}, "waiting_bytes": 0, "problem": None}],
        "spool": {"waiting_bytes": 0, "budget_bytes": 1000, "batches_dropped": 0, "oldest_s_ago": None},
        "pressure": {"level": "none", "flow_share": 1.0},
    }
    return Ground(Sight.RUNNING, report | changes)


def disk(**changes: Any) -> doctor.DiskFacts:
    """Return a disk with room."""
    facts: dict[str, Any] = {
        "path": "/var/lib/vedette-agent",
        "what": "state",
        "free_bytes": 10**10,
        "total_bytes": 10**11,
        "free_inodes": 10**6,
        "wanted_bytes": 10**8,
    }
    return doctor.DiskFacts(**facts | changes)


def unit(**changes: str) -> doctor.UnitFacts:
    """Return a unit that runs."""
    shown = {"ActiveState": "active", "SubState": "running", "Result": "success", "UnitFileState": "enabled"}
    shown |= {"NRestarts": "0", "NeedDaemonReload": "no", "MemoryCurrent": "123000000", "MemoryMax": "1358954496"}
    return doctor.UnitFacts(shown | changes, wanted_bytes=1_358_954_496)


def link(*reaches: Reach, seen: Ground | None = None) -> list[Check]:
    return list(doctor.check_link(reaches, seen or ground(), _ENROLLED, _TODAY))


_FULLY = Reach("agents", "ctl.example:7443", Reached.FULLY, rtt_ms=31.4, tls="TLS 1.3")
_DEAD = Reach("agents", "ctl.example:7443", Reached.NOT, error="no answer", remedy="check the firewall")
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)

_OK, _WARN, _FAIL = Level.OK, Level.WARN, Level.FAIL
# scenario -> the checks, and of the worst of them: level, words
_TABLE: dict[str, tuple[Iterable[Check], Level, list[str]]] = {
    "runs": (doctor.check_agent(ground()), _OK, ["up 2 h", "12"]),
    "does not run": (
        doctor.check_agent(Ground(Sight.STOPPED, start="systemctl start vedette-agent")),
        _FAIL,
        ["not running", "systemctl start vedette-agent"],
    ),
    "may not be seen": (doctor.check_agent(Ground(Sight.HIDDEN, trouble="x")), _WARN, ["not seen", "sudo"]),
    "is another version": (
        doctor.check_agent(Ground(Sight.OTHER, trouble="0.0.9 runs, 0.1.0 is installed")),
        _FAIL,
        ["0.0.9 runs", "dpkg --configure -a"],
    ),
    "is mute": (doctor.check_agent(Ground(Sight.MUTE, trouble="timed out")), _FAIL, ["timed out", "journalctl"]),
    "unit active": (doctor.check_unit(unit()), _OK, ["123 MB of 1.36 GB", "0 restarts"]),
    "unit without limits": (doctor.check_unit(unit(MemoryMax="infinity")), _OK, ["no limit"]),
    "unit failed": (doctor.check_unit(unit(ActiveState="failed", Result="exit-code")), _FAIL, ["failed", "exit-code"]),
    "unit disabled": (doctor.check_unit(unit(UnitFileState="disabled")), _WARN, ["systemctl enable"]),
    "unit changed": (doctor.check_unit(unit(NeedDaemonReload="yes")), _WARN, ["daemon-reload"]),
    "unit too small": (doctor.check_unit(unit(MemoryMax="500000000")), _WARN, ["500 MB", "configure"]),
    "enrolled": (doctor.check_identity(_ENROLLED), _OK, ["edge-7", "ctl.example:7443"]),
    "not enrolled": (doctor.check_identity(doctor.IdentityFacts()), _WARN, ["no controller", "enroll"]),
    "enrolment damaged": (doctor.check_identity(doctor.IdentityFacts(trouble="t", remedy="r")), _FAIL, ["t", "r"]),
    "enrolment hidden": (doctor.check_identity(doctor.IdentityFacts(is_hidden=True)), _WARN, ["not seen", "sudo"]),
    "key exposed": (doctor.check_identity(doctor.IdentityFacts(name="e", exposure="others may")), _WARN, ["others"]),
    "clock right": (doctor.check_clock(doctor.ClockFacts(0.4, is_kept=True)), _OK, ["0.4 s", "kept by"]),
    "clock behind": (doctor.check_clock(doctor.ClockFacts(-38.2, is_kept=True)), _WARN, ["38 s behind", "chrony"]),
    "clock in 1970": (doctor.check_clock(doctor.ClockFacts(-1.8e9, is_kept=False)), _WARN, ["20833 d behind"]),
    "clock ahead": (doctor.check_clock(doctor.ClockFacts(7200, is_kept=None)), _WARN, ["2 h ahead of"]),
    "clock drifting": (doctor.check_clock(doctor.ClockFacts(0.1, is_kept=False)), _WARN, ["no time service"]),
    "clock unknown": (doctor.check_clock(doctor.ClockFacts(None, is_kept=None)), _OK, ["not compared"]),
    "name": (doctor.check_dns([doctor.NameFacts("c", ("10.0.0.1",), 0.0012)]), _OK, ["10.0.0.1", "1.2 ms"]),
    "no name": (doctor.check_dns([doctor.NameFacts("c", error="no such")]), _FAIL, ["no such", "getent ahosts c"]),
    "route": (doctor.check_route([doctor.RouteFacts("10.0.0.1", "10.0.0.5")]), _OK, ["from 10.0.0.5"]),
    "no route": (doctor.check_route([doctor.RouteFacts("::1", error="unreachable")]), _FAIL, ["ip route get ::1"]),
    "one route of two": (
        doctor.check_route([doctor.RouteFacts("::1", error="unreachable"), doctor.RouteFacts("10.0.0.1", "10.0.0.5")]),
        _WARN,
        ["unreachable"],
    ),
    "link": (link(_FULLY), _OK, ["TLS 1.3, 31.4 ms"]),
    "certificate": (
        link(replace(_FULLY, certificate_until=_TODAY + timedelta(days=20))),
        _OK,
        ["until 13 Dec 2026"],
    ),
    "certificate for ever": (link(replace(_FULLY, certificate_until=_NEVER)), _OK, ["without an end"]),
    "certificate ends": (
        link(replace(_FULLY, certificate_until=_TODAY + timedelta(days=3))),
        _WARN,
        ["until 26 Nov 2026", "enrol again"],
    ),
    "certificate over": (link(replace(_FULLY, certificate_until=_TODAY - timedelta(days=3))), _WARN, ["until"]),
    "link by proxy": (link(replace(_FULLY, proxy="proxy:3128")), _OK, ["by proxy proxy:3128"]),
    "no controller": (
        link(_DEAD, seen=ground(link={"state": "waiting", "address": ""})),
        _FAIL,
        ["no answer", "firewall"],
    ),
    "second address down": (link(_FULLY, _DEAD), _WARN, ["no answer"]),
    "enrolment port down": (link(_FULLY, replace(_DEAD, port="enrolment")), _WARN, ["no answer"]),
    "connected, yet no answer here": (link(_DEAD), _WARN, ["no answer"]),
    "agent waits, port open": (
        link(_FULLY, seen=ground(link={"state": "waiting", "address": ""})),
        _WARN,
        ["not connected", "restart"],
    ),
    "agent refused": (
        link(
            _FULLY,
            seen=ground(
                link={"state": "waiting", "address": ""},
                conditions=[{"code": "controller-refused", "severity": "warning", "text": "revoked", "since": "x"}],
            ),
        ),
        _FAIL,
        ["revoked"],
    ),
    "plain user's link": (
        link(Reach("agents", "c:1", Reached.UNSURE, rtt_ms=2)),
        _OK,
        ["TCP only, certificate not seen"],
    ),
    "disk": (doctor.check_disk([disk()]), _OK, ["10 GB free of 100 GB"]),
    "disk full": (doctor.check_disk([disk(free_bytes=10**6)]), _FAIL, ["1 MB free", "du -xh"]),
    "disk low": (doctor.check_disk([disk(free_bytes=5 * 10**7)]), _WARN, ["100 MB", "telemetry.spool"]),
    "disk read-only": (doctor.check_disk([disk(is_read_only=True)]), _FAIL, ["takes no writes", "dmesg"]),
    "no inodes": (doctor.check_disk([disk(free_inodes=0)]), _FAIL, ["0 inodes", "df -i"]),
    "few inodes": (doctor.check_disk([disk(free_inodes=999)]), _WARN, ["999 inodes"]),
    "uncounted inodes": (doctor.check_disk([disk(free_inodes=None)]), _OK, ["free"]),
    "reserve gone": (doctor.check_disk([disk(has_reserve=False)]), _WARN, ["reserve"]),
    "files": (doctor.check_files(9, [], []), _OK, ["9 paths"]),
    "files hidden": (doctor.check_files(1, ["/var/lib/x"], []), _WARN, ["/var/lib/x", "sudo"]),
    "wrong owner": (
        doctor.check_files(9, [], [doctor.FileFacts("/a", "belongs to user 0", "chown 7 /a", is_fatal=True)]),
        _FAIL,
        ["belongs to user 0", "chown 7 /a"],
    ),
    "flows": (doctor.check_flows(ground()), _OK, ["1 exporter on UDP 2055", "now from 10.4.0.1"]),
    "flows off": (doctor.check_flows(ground(flows={"listen": None, "exporters": []})), _OK, ["off"]),
    "14 min of silence": (
        doctor.check_flows(ground(flows=flows(exporter(heard_s_ago=850.0)))),
        _FAIL,
        ["no packet on UDP 2055 for 14 min", "Last exporter 10.4.0.1", "tcpdump -ni any udp port 2055"],
    ),
    "3 min of silence": (doctor.check_flows(ground(flows=flows(exporter(heard_s_ago=190.0)))), _WARN, ["3 min"]),
    "silence since a start just now": (
        doctor.check_flows(ground(flows=flows(), process={"pid": 1, "up_s": 20.0})),
        _WARN,
        ["20 s since the start"],
    ),
    "old templates of a fresh start": (
        doctor.check_flows(ground(flows=flows(exporter(heard_s_ago=None)), process={"pid": 1, "up_s": 900.0})),
        _FAIL,
        ["since the start"],
    ),
    "loopback only": (
        doctor.check_flows(ground(flows=flows(listen="127.0.0.1:2055"))),
        _FAIL,
        ["127.0.0.1 only", "source.netflow.listen"],
    ),
    "missing template": (
        doctor.check_flows(ground(flows=flows(exporter(templates_missing=[260, 261])))),
        _WARN,
        ["template 260, 261", "10.4.0.1", "refresh"],
    ),
    "kernel drops": (
        doctor.check_flows(ground(flows=flows(exporter(), dropped_kernel=9, buffer_granted_bytes=212_992))),
        _WARN,
        ["9 packets", "rmem_max=4194304"],
    ),
    "kernel drops with all granted": (
        doctor.check_flows(ground(flows=flows(exporter(), dropped_kernel=1))),
        _WARN,
        ["1 packet ", "receive_buffer"],
    ),
    "small buffer": (
        doctor.check_flows(ground(flows=flows(exporter(), buffer_granted_bytes=212_992))),
        _WARN,
        ["213 kB", "4.19 MB", "sysctl"],
    ),
    "queue drops": (doctor.check_flows(ground(flows=flows(exporter(), dropped_queue=7))), _WARN, ["7 packets"]),
    "exporter's clock": (
        doctor.check_flows(ground(flows=flows(exporter(clock_ahead_s=-7300.0)))),
        _WARN,
        ["2 h behind", "NTP"],
    ),
    "model": (
        doctor.check_models(ground()),
        _OK,
        ["flow-threat:2, self-test passed 2 h ago, worker 61 MB of 256 MB"],
    ),
    "two workers": (
        doctor.check_models(ground(slots={"s": slot(workers=[{"pid": n, "memory_bytes": n * 10**6} for n in (5, 9)])})),
        _OK,
        ["2 workers, each up to 9 MB"],
    ),
    "no model": (doctor.check_models(ground(slots={})), _WARN, ["none yet", "vedette rollout start"]),
    "no worker": (doctor.check_models(ground(slots={"s": slot(workers=[])})), _WARN, ["no worker now"]),
    "replaced": (doctor.check_models(ground(slots={"s": slot(worker_restarts=2)})), _WARN, ["2 times", "VEDETTE_SLOT"]),
    "candidate failed": (
        doctor.check_models(ground(slots={"s": slot(reason="bad")})),
        _WARN,
        ["candidate failed: bad"],
    ),
    "downloading": (
        doctor.check_models(ground(slots={"s": slot(active=None, state="downloading")})),
        _WARN,
        ["downloading"],
    ),
    "empty slot": (
        doctor.check_models(ground(slots={"s": slot(active=None, state="failed", reason="self-test-failed")})),
        _FAIL,
        ["self-test-failed"],
    ),
    "quarantine": (
        doctor.check_models(ground(quarantine={"sha256:" + "ab" * 32: "three crashes"})),
        _WARN,
        ["abababababab is not tried again: three crashes"],
    ),
    "runtime": (
        doctor.check_runtime(doctor.RuntimeFacts(version="1.32.0", providers=("CPUExecutionProvider",))),
        _OK,
        ["onnxruntime 1.32.0 (CPU)"],
    ),
    "no runtime": (doctor.check_runtime(doctor.RuntimeFacts(error="ImportError: x")), _FAIL, ["ImportError: x"]),
    "gpu": (doctor.check_runtime(doctor.RuntimeFacts(version="1", gpus=("H200",))), _OK, ["H200"]),
    "gpu without driver": (
        doctor.check_runtime(doctor.RuntimeFacts(version="1", gpu_nodes=("/dev/nvidia0",))),
        _WARN,
        ["/dev/nvidia0", "nvidia-smi"],
    ),
    "gpu closed": (
        doctor.check_runtime(
            doctor.RuntimeFacts(version="1", gpu_nodes=("/dev/nvidia0",), closed_nodes=("/dev/nvidia0",))
        ),
        _WARN,
        ["may not be opened", "configure --gpu"],
    ),
    "sink": (doctor.check_sinks(ground()), _OK, ["json: 5 verdicts written"]),
    "sink lost": (
        doctor.check_sinks(ground(sinks=[{"sink": "syslog", "written": 1, "lost": {"queue": 3}, "problem": None}])),
        _WARN,
        ["3 lost (3 queue)"],
    ),
    "sink failed": (
        doctor.check_sinks(ground(sinks=[{"sink": "json", "written": 1, "lost": {"disk": 3}, "problem": "disk full"}])),
        _FAIL,
        ["disk full"],
    ),
    "source": (doctor.check_sources(ground(sources=[source()])), _OK, ["zeek /z/conn.log: 5 flows read"]),
    "source broken": (
        doctor.check_sources(ground(sources=[source(problem="no such file")])),
        _FAIL,
        ["no such file"],
    ),
    "source unreadable": (
        doctor.check_sources(ground(sources=[source(bad={"json": 2})])),
        _WARN,
        ["2 lines unreadable"],
    ),
    "spool": (doctor.check_spool(ground()), _OK, ["0 B of telemetry wait, of 1 kB"]),
    "spool half full": (
        doctor.check_spool(
            ground(spool={"waiting_bytes": 501, "budget_bytes": 1000, "batches_dropped": 0, "oldest_s_ago": None})
        ),
        _WARN,
        ["501 B"],
    ),
    "spool over": (
        doctor.check_spool(
            ground(spool={"waiting_bytes": 1, "budget_bytes": 1000, "batches_dropped": 1, "oldest_s_ago": 7300.0})
        ),
        _WARN,
        ["1 batch given up", "the oldest of 2 h ago"],
    ),
    "no pressure": (doctor.check_pressure(ground()), _OK, ["nothing is given up"]),
    "pressure": (doctor.check_pressure(ground(pressure={"level": "profiles", "flow_share": 1})), _WARN, ["profiles"]),
    "flows given up": (
        doctor.check_pressure(ground(pressure={"level": "flows", "flow_share": 0.25})),
        _WARN,
        ["25%", "budget.cpu_percent"],
    ),
    "another condition": (
        doctor.check_conditions(
            ground(conditions=[{"code": "state-damaged", "severity": "error", "text": "t", "since": "s"}])
        ),
        _FAIL,
        ["t", "since s"],
    ),
    "a warning": (
        doctor.check_conditions(
            ground(conditions=[{"code": "model-damaged", "severity": "warning", "text": "t", "since": "s"}])
        ),
        _WARN,
        ["t"],
    ),
    "not found out": ([doctor.unknown("dns", "no answer in 4 s")], _WARN, ["not known: no answer in 4 s"]),
}


@pytest.mark.parametrize("scenario", _TABLE)
def test_facts_are_judged_with_level_words_and_remedy(scenario: str) -> None:
    checks, level, words = _TABLE[scenario]
    worst = doctor.sorted_checks(checks)[-1]
    assert worst.level is level, worst
    told = f"{worst.text} | {worst.remedy}"
    assert [word for word in words if word not in told] == [], told


def test_every_code_of_the_table_differs_when_all_is_well() -> None:
    judged = (doctor.check_flows, doctor.check_models, doctor.check_sinks, doctor.check_spool, doctor.check_pressure)
    levels = {check.level for judge in judged for check in judge(ground())}
    assert levels == {Level.OK}
    assert list(doctor.check_conditions(ground())) == []


@pytest.mark.parametrize("sight", [Sight.HIDDEN, Sight.MUTE, Sight.OTHER])
def test_what_was_not_seen_is_never_called_fine(sight: Sight) -> None:
    unseen = Ground(sight, trouble="x")
    judged = (
        doctor.check_agent,
        doctor.check_flows,
        doctor.check_models,
        doctor.check_sinks,
        doctor.check_spool,
        doctor.check_pressure,
        doctor.check_conditions,
    )
    assert Level.OK not in {check.level for judge in judged for check in judge(unseen)}


def test_the_report_of_another_version_is_not_judged() -> None:
    older = running_ground({"version": "0.0.9", "running": True})
    assert (older.sight, older.trouble) == (Sight.OTHER, f"vedette-agent 0.0.9 runs, {__version__} is installed")
    assert running_ground({"version": __version__}).is_running


# How it reads

_CHECKS = [
    Check("flows", Level.FAIL, "no packet on UDP 2055 for 14 min. Last exporter 10.4.0.1", "Try: tcpdump"),
    Check("link", Level.OK, "ctl.example:7443, TLS 1.3, 31 ms"),
    Check("clock", Level.WARN, "38 s behind the controller", "Set up chrony"),
]


def test_what_must_be_acted_on_comes_last() -> None:
    text = doctor.doctor_text(_CHECKS, 120)
    assert text.splitlines() == [
        " ok    link          ctl.example:7443, TLS 1.3, 31 ms",
        " warn  clock         38 s behind the controller. Set up chrony",
        " FAIL  flows         no packet on UDP 2055 for 14 min. Last exporter 10.4.0.1. Try: tcpdump",
        "1 failed, 1 to look at, 1 fine.",
    ]
    assert doctor.doctor_text(_CHECKS[1:2], 80).splitlines()[-1] == "All is well: 1 check."


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_it_fits_the_terminal_and_loses_no_word(columns: int) -> None:
    lines = doctor.doctor_text(_CHECKS, columns).splitlines()
    assert max(map(len, lines)) <= columns
    words = " ".join(f"{check.text} {check.remedy}" for check in _CHECKS)
    assert set(re.findall(r"[\w:]+", words)) <= set(re.findall(r"[\w:]+", " ".join(lines)))


def test_colour_repeats_what_the_words_say() -> None:
    coloured = doctor.doctor_text(_CHECKS, 80, is_coloured=True)
    assert "\x1b[31;1mFAIL \x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == doctor.doctor_text(_CHECKS, 80)


def test_json_has_every_check_and_whether_all_is_well() -> None:
    report = doctor.doctor_report(_CHECKS)
    assert report["healthy"] is False
    assert [check["level"] for check in report["checks"]] == ["ok", "warn", "fail"]
    assert doctor.doctor_report(_CHECKS[1:])["healthy"] is True
