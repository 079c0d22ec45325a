"""How an agent stands, as plain JSON values and as text for a terminal; both come from one report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from vedette.agent.domain.words import ago, milliseconds, size, span
from vedette.wire.values import Status

Report = dict[str, Any]
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_MIB = 2**20


def status_report(
    *,
    is_running: bool,
    name: str,
    agent_id: str,
    version: str,
    link: Mapping[str, Any],
    status: Status,
    counters: Mapping[str, int | float],
    sources: Sequence[Mapping[str, Any]] = (),
    sinks: Sequence[Mapping[str, Any]] = (),
    process: Mapping[str, Any] = _NOTHING,
    flows: Mapping[str, Any] = _NOTHING,
    models: Mapping[str, Mapping[str, Any]] = _NOTHING,
    quarantine: Mapping[str, str] = _NOTHING,
    spool: Mapping[str, Any] = _NOTHING,
    pressure: Mapping[str, Any] = _NOTHING,
    download_bytes_per_s: float = 0.0,
) -> Report:
    """Return the report that ``status --output json`` prints; docs/agent.md lists its keys.

    Args:
        is_running: Whether the agent itself says it; else it is read from the disk, and what only runs is empty.
        name: Of the appliance.
        agent_id: "" before it is enrolled.
        version: Of the program.
        link: Where the link stands.
        status: As the controller gets it.
        counters: By plain names.
        sources: How each log file stands.
        sinks: How each stands.
        process: The agent's process and clock.
        flows: The flow port and its exporters.
        models: What the active build of each slot costs, by slot.
        quarantine: Builds that are not tried again, with the reason.
        spool: Telemetry that waits.
        pressure: What is given up.
        download_bytes_per_s: Of models.
    """
    return {
        "running": is_running,
        "name": name,
        "agent_id": agent_id,
        "version": version,
        "link": dict(link),
        "sequences": {
            "desired": status.desired_sequence,
            "attempted": status.attempted_sequence,
            "failed": status.failed_sequence,
            "running": status.running_sequence,
        },
        "slots": {slot.slot: _plain(asdict(slot)) | dict(models.get(slot.slot, {})) for slot in status.slots},
        "conditions": [_plain(asdict(condition)) for condition in status.conditions],
        "counters": dict(counters),
        "sources": [dict(source) for source in sources],
        "sinks": [dict(sink) for sink in sinks],
        "time": _plain(status.agent_time),
        "process": dict(process),
        "flows": dict(flows),
        "quarantine": dict(quarantine),
        "spool": dict(spool),
        "pressure": dict(pressure),
        "download_bytes_per_s": round(download_bytes_per_s),
    }


def status_text(report: Report, columns: int = 100) -> str:
    """Return a report for a terminal of so many columns; what must be acted on comes last."""
    lines = [_head_line(report)]
    if not report["running"]:
        start = "Start it: systemctl start vedette-agent (or by hand: vedette-agent run)"
        lines += textwrap.wrap(f"This is what is stored on disk. {start}", columns)
    counters = report["counters"]
    told = [_link_line(report["link"]), *_flow_lines(counters), *_exporter_lines(report.get("flows", {}))]
    told += [*_request_lines(counters), *_host_lines(counters)]
    told += [_source_line(source) for source in report.get("sources", ())]
    told += [*_sink_lines(report.get("sinks", ())), *_spool_lines(report.get("spool", {}))]
    lines += [line for text in told for line in _wrapped(text, columns, indent=10)]
    lines += ["", models_text(report, columns).rstrip(), ""]
    for condition in report["conditions"]:
        lines += _wrapped(_condition_line(condition, report.get("time", "")), columns, indent=10)
    if report["running"] and not report["conditions"]:
        lines.append("Nothing is wrong. Look closer: vedette-agent doctor")
    return "\n".join(lines).rstrip() + "\n"


def _head_line(report: Report) -> str:
    who = f"{report['name']} ({report['agent_id']})" if report["agent_id"] else f"{report['name']} (not enrolled)"
    up_s = report.get("process", {}).get("up_s")
    up = "" if up_s is None else f"   up {span(up_s)}"
    return f"{who}   vedette-agent {report['version']}{up if report['running'] else '   NOT RUNNING'}"


def _wrapped(text: str, columns: int, *, indent: int) -> list[str]:
    """Return lines of at most so many columns; a path or digest that is longer stays whole."""
    return textwrap.wrap(
        text, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip


def models_text(report: Report, columns: int = 100) -> str:
    """Return the slots of a report for a terminal of so many columns."""
    slots = report["slots"].values()
    if not slots:
        return "No model yet. The controller sends one: vedette rollout start MODEL:VERSION --to SELECTOR\n"
    rows = [_slot_row(slot, report.get("download_bytes_per_s", 0)) for slot in slots]
    left_out: list[str] = []
    shown = list(_COLUMNS)
    while _width(rows, shown) > columns and len(left_out) < len(_CUT_FIRST):
        left_out.append(_CUT_FIRST[len(left_out)])
        shown = [name for name in _COLUMNS if name not in left_out]
    table = [_joined({name: name for name in shown}, rows, shown), *(_joined(row, rows, shown) for row in rows)]
    if left_out:
        table += _wrapped(f"Not shown in {columns} columns: {', '.join(left_out)}", columns, indent=10)
    return (
        "\n".join([*table, *_quarantine_lines(report), *(line for slot in slots for line in _slot_notes(slot))]) + "\n"
    )


_COLUMNS = ("SLOT", "STATE", "ACTIVE", "PREVIOUS", "ROWS", "P50", "P99", "WORKER", "TESTED", "REPLACED", "PID")
_CUT_FIRST = ("PID", "REPLACED", "TESTED", "PREVIOUS", "P50", "WORKER", "ROWS")


def _widths(rows: Sequence[Mapping[str, str]], shown: Sequence[str]) -> list[int]:
    return [max(len(name), *(len(row[name]) for row in rows)) for name in shown]


def _width(rows: Sequence[Mapping[str, str]], shown: Sequence[str]) -> int:
    return sum(_widths(rows, shown)) + 2 * (len(shown) - 1)


def _joined(row: Mapping[str, str], rows: Sequence[Mapping[str, str]], shown: Sequence[str]) -> str:
    cells = (row[name].ljust(width) for name, width in zip(shown, _widths(rows, shown), strict=True))
    return "  ".join(cells).rstrip()


def _slot_row(slot: Mapping[str, Any], bytes_per_s: int) -> dict[str, str]:
    is_busy, workers = slot["rows"] > 0, slot.get("workers", ())
    tested_s = slot.get("self_test_s_ago")
    return {
        "SLOT": slot["slot"],
        "STATE": _stage(slot, bytes_per_s),
        "ACTIVE": _version(slot["active"]),
        "PREVIOUS": _version(slot["previous"]),
        "ROWS": f"{slot['rows']:,}",
        "P50": milliseconds(slot["latency_p50_ms"]) if is_busy else "–",
        "P99": milliseconds(slot["latency_p99_ms"]) if is_busy else "–",
        "WORKER": " + ".join(size(worker["memory_bytes"]) for worker in workers) or "–",
        "TESTED": "–" if tested_s is None else ago(tested_s),
        "REPLACED": f"{slot.get('worker_restarts', 0)} ×",
        "PID": ", ".join(str(worker["pid"]) for worker in workers) or "–",
    }


def _stage(slot: Mapping[str, Any], bytes_per_s: int) -> str:
    if slot["state"] == "downloading" and slot["candidate_bytes_total"]:
        share = 100 * slot["candidate_bytes_done"] // slot["candidate_bytes_total"]
        rate = f", {bytes_per_s / 1000:.3g} kB/s" if bytes_per_s else ""
        return f"downloading {share} % of {slot['candidate_bytes_total'] / _MIB:.3g} MiB{rate}"
    return str(slot["state"])


def _version(build: Mapping[str, Any] | None) -> str:
    return "–" if build is None else f"{build['model']}:{build['version']} {build['build'][7:15]}"


def _slot_notes(slot: Mapping[str, Any]) -> Sequence[str]:
    return [f"{slot['slot']}: {slot['reason']}"] if slot["reason"] else []


def _quarantine_lines(report: Report) -> Iterator[str]:
    for build, reason in report.get("quarantine", {}).items():
        yield f"build {build[7:19]} is not tried again: {reason}"


def _link_line(link: Mapping[str, Any]) -> str:
    return f"link      {link['state']}" + (f"   {link['address']}" if link.get("address") else "")


def _flow_lines(counters: Mapping[str, int | float]) -> Sequence[str]:
    if "flows" not in counters:
        return ()
    told = (
        ("in {:,} datagrams", "datagrams"),
        ("{:,} scored", "rows_scored"),
        ("{:,} flagged", "rows_flagged"),
        ("{:,} without a model", "flows_unscored"),
        ("{:,} datagrams dropped", "datagrams_dropped"),
    )
    parts = [text.format(counters.get(name, 0)) for text, name in told]
    if shed := counters.get("flows_shed", 0):
        parts.append(f"{shed:,} not scored under pressure ({shed / counters['flows']:.1%})")
    return (f"flows     {counters['flows']:,} {' · '.join(parts)}",)


def _host_lines(counters: Mapping[str, int | float]) -> Sequence[str]:
    if "host_rows" not in counters:
        return ()
    scored, flagged = counters["host_rows_scored"], counters["host_rows_flagged"]
    return (f"host      {counters['host_rows']:,} rows of metrics · {scored:,} scored · {flagged:,} flagged",)


def _source_line(source: Mapping[str, Any]) -> str:
    parts = [f"{source['records']:,} flows in {source['lines']:,} lines"]
    if bad := sum(source["bad"].values()):
        parts.append(f"{bad:,} unreadable")
    if source["behind_bytes"]:
        parts.append(f"{source['behind_bytes'] / _MIB:.3g} MiB behind")
    if source["gaps"]:
        parts.append(f"{source['gaps']:,} gaps")
    state = " (NOT READ)" if source["problem"] else ""
    return f"{source['source']:<9} {source['path']}{state}   {' · '.join(parts)}"


def _sink_lines(sinks: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    parts = [_sink_part(sink) for sink in sinks]
    return (f"sinks     {' · '.join(parts)}",) if parts else ()


def _sink_part(sink: Mapping[str, Any]) -> str:
    lost = sum(sink["lost"].values())
    told = f", {lost:,} lost" if lost else ""
    return f"{sink['sink']}{' FAILED' if sink['problem'] else ''} {sink['written']:,} written{told}"


def _request_lines(counters: Mapping[str, int | float]) -> Sequence[str]:
    if "requests_answered" not in counters:
        return ()
    return (f"requests  {counters['requests_answered']:,} answered · {counters['requests_refused']:,} refused",)


def _exporter_lines(flows: Mapping[str, Any]) -> Iterator[str]:
    if not flows.get("listen"):
        return
    heard = [exporter for exporter in flows["exporters"] if exporter["heard_s_ago"] is not None]
    if not heard:
        yield f"exporters none yet on UDP {flows['listen']}"
        return
    last = min(heard, key=lambda exporter: exporter["heard_s_ago"])
    told = f"last packet {ago(last['heard_s_ago'])} from {last['address']}"
    yield f"exporters {flows['exporters_known']:,} on UDP {flows['listen']} · {told}"


def _spool_lines(spool: Mapping[str, Any]) -> Iterator[str]:
    if spool.get("waiting_bytes"):
        yield f"telemetry {size(spool['waiting_bytes'])} waiting of {size(spool['budget_bytes'])}"


def _condition_line(condition: Mapping[str, Any], now: str) -> str:
    since = f"since {condition['since']}"
    if now:  # the agent's own clock, by which it began
        age = datetime.fromisoformat(now) - datetime.fromisoformat(condition["since"])
        since = "just now" if age.total_seconds() < 1 else f"for {span(age.total_seconds())}"
    return f" {condition['severity']:<8} {condition['code']}: {condition['text']} ({since})"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value
