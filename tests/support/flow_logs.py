"""Logs as Suricata and Zeek would have written them of given biflows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from vedette.models.flows.records import FlowRecords, address_text
from vedette.models.flows.stitch import ACK, FIN, PSH, RST, SYN

LINK_BYTES = 14
_NAMES = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "IPv6-ICMP"}
ZEEK_FIELDS = [
    *("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service", "duration", "orig_bytes"),
    *("resp_bytes", "conn_state", "local_orig", "local_resp", "missed_bytes", "history", "orig_pkts", "orig_ip_bytes"),
    *("resp_pkts", "resp_ip_bytes", "tunnel_parents", "_write_ts"),
]


def rows(flows: FlowRecords) -> Iterator[dict[str, Any]]:
    """Return the fields of each flow, addresses as text."""
    for values in flows.tolist():
        row = dict(zip(flows.dtype.names or (), values, strict=True))
        yield row | {side: address_text(row[f"{side}_hi"], row[f"{side}_lo"]) for side in ("src", "dst")}


def eve_text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="microseconds").replace("+00:00", "+0000")


def eve_event(row: dict[str, Any]) -> dict[str, Any]:
    """Return the flow event of one biflow."""
    event: dict[str, Any] = {
        "timestamp": eve_text(row["export_ms"]), "flow_id": 1, "in_iface": "eth0", "event_type": "flow",
        "src_ip": row["src"], "dest_ip": row["dst"], "proto": _NAMES[row["proto"]],
    }  # fmt: skip
    if row["proto"] in (1, 58):
        event |= {"icmp_type": row["icmp"] >> 8, "icmp_code": row["icmp"] & 255}
    else:
        event |= {"src_port": row["src_port"], "dest_port": row["dst_port"]}
    event["flow"] = {
        "pkts_toserver": row["packets"], "pkts_toclient": row["reverse_packets"],
        "bytes_toserver": row["bytes"] + LINK_BYTES * row["packets"],
        "bytes_toclient": row["reverse_bytes"] + LINK_BYTES * row["reverse_packets"],
        "start": eve_text(row["start_ms"]), "end": eve_text(row["end_ms"]), "age": 0, "state": "closed",
        "reason": "timeout", "alerted": False,
    }  # fmt: skip
    if row["proto"] == 6:
        event["tcp"] = {
            "tcp_flags": f"{row['flags'] | row['reverse_flags']:02x}",
            "tcp_flags_ts": f"{row['flags']:02x}",
            "tcp_flags_tc": f"{row['reverse_flags']:02x}",
        }
    return event


def eve_lines(flows: FlowRecords) -> list[bytes]:
    """Return the flow events of biflows, as Suricata writes them."""
    return [json.dumps(eve_event(row), separators=(",", ":")).encode() for row in rows(flows)]


def zeek_values(row: dict[str, Any]) -> dict[str, str]:
    """Return the connection of one biflow, each field as text."""
    ports = (row["icmp"] >> 8, row["icmp"] & 255) if row["proto"] in (1, 58) else (row["src_port"], row["dst_port"])
    history = _letters(row["flags"]).upper() + _letters(row["reverse_flags"]).lower() if row["proto"] == 6 else "Dd"
    known = {
        "ts": f"{row['start_ms'] / 1000:.6f}", "uid": "CHhAvVGS1DHFjwGM9", "id.orig_h": row["src"],
        "id.orig_p": str(ports[0]), "id.resp_h": row["dst"], "id.resp_p": str(ports[1]),
        "proto": "icmp" if row["proto"] in (1, 58) else _NAMES[row["proto"]].lower(),
        "duration": f"{(row['end_ms'] - row['start_ms']) / 1000:.6f}", "history": history or "-",
        "orig_pkts": str(row["packets"]), "orig_ip_bytes": str(row["bytes"]),
        "resp_pkts": str(row["reverse_packets"]), "resp_ip_bytes": str(row["reverse_bytes"]),
        "_write_ts": f"{row['export_ms'] / 1000:.6f}",
    }  # fmt: skip
    return {name: known.get(name, "-") for name in ZEEK_FIELDS}


def zeek_header(fields: Iterable[str] = ZEEK_FIELDS) -> list[bytes]:
    """Return what a table begins with."""
    head = ["#separator \\x09", "#set_separator\t,", "#empty_field\t(empty)", "#unset_field\t-", "#path\tconn"]
    return [line.encode() for line in (*head, "#open\t2026-11-23-10-00-00", "\t".join(["#fields", *fields]))]


def zeek_table(flows: FlowRecords) -> list[bytes]:
    """Return a conn.log as a table, with its header and its end."""
    lines = ["\t".join(zeek_values(row).values()).encode() for row in rows(flows)]
    return [*zeek_header(), *lines, b"#close\t2026-11-23-11-00-00"]


def zeek_json(flows: FlowRecords) -> list[bytes]:
    """Return a conn.log as JSON; fields that are not known are left out, as Zeek does."""
    texts = {"uid", "id.orig_h", "id.resp_h", "proto", "history"}
    lines = []
    for row in rows(flows):
        known = {name: text for name, text in zeek_values(row).items() if text != "-"}
        made = {name: text if name in texts else json.loads(text) for name, text in known.items()}
        lines.append(json.dumps(made, separators=(",", ":")).encode())
    return lines


def _letters(flags: int) -> str:
    """Return a history that shows these flags, in upper case."""
    made = "H" if flags & (SYN | ACK) == (SYN | ACK) else "S" if flags & SYN else ""
    made += "D" if flags & PSH else "A" if flags & ACK and not made.endswith("H") else ""
    return made + ("F" if flags & FIN else "") + ("R" if flags & RST else "")
