"""How an agent stands, as plain JSON values and as text for a terminal; both come from one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

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
        "process": dict(process),
        "flows": dict(flows),
        "quarantine": dict(quarantine),
        "spool": dict(spool),
        "pressure": dict(pressure),
        "download_bytes_per_s": round(download_bytes_per_s),
    }


def status_text(report: Report) -> str:
    """Return a report for a terminal; what must be acted on comes last."""
    who = f"{report['name']} ({report['agent_id']})" if report["agent_id"] else f"{report['name']} (not enrolled)"
    lines = [f"{who}   vedette-agent {report['version']}{'' if report['running'] else '   NOT RUNNING'}"]
    if not report["running"]:
        lines.append(
            "This is what is stored on disk. Start it: systemctl start vedette-agent (or by hand: vedette-agent run)"
        )
    counters = report["counters"]
    lines += [_link_line(report["link"]), *_flow_lines(counters), *_request_lines(counters)]
    lines += [*(_source_line(source) for source in report.get("sources", ())), *_sink_lines(report.get("sinks", ()))]
    lines += ["", models_text(report).rstrip()]
    if report["conditions"]:
        lines += ["", *(_condition_line(condition) for condition in report["conditions"])]
    return "\n".join(lines) + "\n"


def models_text(report: Report) -> str:
    """Return the slots of a report for a terminal."""
    slots = report["slots"].values()
    if not slots:
        return "No model yet. The controller sends one: vedette rollout start MODEL:VERSION --to SELECTOR\n"
    head = ("SLOT", "STATE", "ACTIVE", "PREVIOUS", "ROWS", "P50", "P99")
    rows = [head, *(_slot_row(slot, report.get("download_bytes_per_s", 0)) for slot in slots)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*table, *(line for slot in slots for line in _slot_notes(slot))]) + "\n"


def _slot_row(slot: Mapping[str, Any], bytes_per_s: int) -> tuple[str, ...]:
    is_busy = slot["rows"] > 0
    return (
        slot["slot"],
        _stage(slot, bytes_per_s),
        _version(slot["active"]),
        _version(slot["previous"]),
        f"{slot['rows']:,}",
        f"{slot['latency_p50_ms']:.3g} ms" if is_busy else "–",
        f"{slot['latency_p99_ms']:.3g} ms" if is_busy else "–",
    )


def _stage(slot: Mapping[str, Any], bytes_per_s: int) -> str:
    if slot["state"] == "downloading" and slot["candidate_bytes_total"]:
        share = 100 * slot["candidate_bytes_done"] // slot["candidate_bytes_total"]
        rate = f", {bytes_per_s / 1000:.3g} kB/s" if bytes_per_s else ""
        return f"downloading {share} % of {slot['candidate_bytes_total'] / _MIB:.3g} MiB{rate}"
    return str(slot["state"])


def _version(build: Mapping[str, Any] | None) -> str:
    return "–" if build is None else f"{build['model']}:{build['version']} {build['build'][7:15]}"


def _slot_notes(slot: Mapping[str, Any]) -> Sequence[str]:
    notes = [f"{slot['slot']}: {slot['reason']}"] if slot["reason"] else []
    if slot["quarantined"]:
        notes.append(f"{slot['slot']}: will not try again {', '.join(digest[7:19] for digest in slot['quarantined'])}")
    return notes


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


def _condition_line(condition: Mapping[str, Any]) -> str:
    return f" {condition['severity']:<8} {condition['code']}: {condition['text']} (since {condition['since']})"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value
