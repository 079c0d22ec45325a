"""Verdicts as JSON lines in the shape that flow log pipelines already read (Suricata's EVE).

A verdict about a flow has ``flow``, one about the host itself ``host_metrics`` and no addresses.

``flow.start`` and ``flow.end`` are the exporter's times and never re-based; ``timestamp`` is the appliance's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.flows.records import FlowRecords, address_text

_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "IPv6-ICMP", 132: "SCTP"}
_ICMP = frozenset({1, 58})
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - in UTC, and says so with a Z instead of an offset
_LATEST_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z


@dataclass(frozen=True, slots=True)
class Evidence:
    """A feature that drove a verdict: its value, what is usual, and its share of the score's rise (0 to 1)."""

    feature: str
    value: float
    usual: float
    weight: float


@dataclass(frozen=True, slots=True)
class ScoredBy:
    """Who gave the verdicts."""

    host: str
    model: str
    version: int
    build: str


def time_text(unix_ms: int) -> str:
    """Return Unix milliseconds as ISO 8601 in UTC; what lies outside the years 1970 to 9999 reads as the nearest."""
    at = _EPOCH + timedelta(milliseconds=min(max(int(unix_ms), 0), _LATEST_MS))
    return at.isoformat(timespec="milliseconds") + "Z"


def verdict_lines(
    flows: FlowRecords,
    verdicts: Sequence[str],
    scores: npt.NDArray[np.floating[Any]],
    flagged: npt.NDArray[np.bool_],
    *,
    by: ScoredBy,
    exporters: Sequence[str],
    evidence: Mapping[int, Sequence[Evidence]],
    now_ms: int,
) -> list[bytes]:
    """Return one JSON line a flow, each with its newline.

    Args:
        flows: Biflows, oriented from client to server, shape (rows,).
        verdicts: The label of each row, as the data names it.
        scores: Shape (rows,).
        flagged: Shape (rows,).
        by: Who gave them.
        exporters: The address of each row's exporter.
        evidence: By row, most important first; rows without are those not flagged or over the budget.
        now_ms: The appliance's corrected clock, Unix milliseconds.
    """
    stamp = time_text(now_ms)
    rows = zip(flows.tolist(), verdicts, scores.tolist(), flagged.tolist(), exporters, strict=True)
    names = flows.dtype.names or ()
    return [
        b"%s\n"
        % json.dumps(
            _line(dict(zip(names, flow, strict=True)), stamp, by.host, exporter)
            | {"vedette": _verdict(by, verdict, score, is_flagged, evidence.get(place))},
            separators=(",", ":"),
        ).encode()
        for place, (flow, verdict, score, is_flagged, exporter) in enumerate(rows)
    ]


def host_verdict_line(
    values: Mapping[str, float | None],
    verdict: str,
    score: float,
    *,
    is_flagged: bool,
    by: ScoredBy,
    evidence: Sequence[Evidence] | None,
    now_ms: int,
) -> bytes:
    """Return one JSON line about the appliance itself, with its newline.

    Args:
        values: The row that was judged, by feature; None where a value is not known.
        verdict: Its label, as the data names it.
        score: Of the row.
        is_flagged: Whether it is at or above the threshold.
        by: Who gave the verdict.
        evidence: Most important first; None when it was not asked for.
        now_ms: The appliance's corrected clock, Unix milliseconds.
    """
    line = {"timestamp": time_text(now_ms), "event_type": "vedette", "host": by.host, "host_metrics": dict(values)}
    line["vedette"] = _verdict(by, verdict, score, is_flagged, evidence)
    return b"%s\n" % json.dumps(line, separators=(",", ":"), allow_nan=False).encode()


def _line(flow: dict[str, Any], stamp: str, host: str, exporter: str) -> dict[str, Any]:
    proto = flow["proto"]
    line: dict[str, Any] = {
        "timestamp": stamp,
        "event_type": "vedette",
        "host": host,
        "src_ip": address_text(flow["src_hi"], flow["src_lo"]),
        "src_port": flow["src_port"],
        "dest_ip": address_text(flow["dst_hi"], flow["dst_lo"]),
        "dest_port": flow["dst_port"],
        "proto": _PROTOCOLS.get(proto, str(proto)),
    }
    if proto in _ICMP:
        line |= {"icmp_type": flow["icmp"] >> 8, "icmp_code": flow["icmp"] & 0xFF}
    line["flow"] = {
        "start": time_text(flow["start_ms"]),
        "end": time_text(flow["end_ms"]),
        "pkts_toserver": flow["packets"],
        "pkts_toclient": flow["reverse_packets"],
        "bytes_toserver": flow["bytes"],
        "bytes_toclient": flow["reverse_bytes"],
        "exporter": exporter,
        "sampling": flow["sampling"],
    }
    return line


def _verdict(
    by: ScoredBy, verdict: str, score: float, is_flagged: bool, evidence: Sequence[Evidence] | None
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "model": by.model,
        "version": by.version,
        "build": by.build,
        "verdict": verdict,
        "flagged": is_flagged,
        "score": round(score, 6),
    }
    if evidence is not None:
        said["evidence"] = [
            {
                "feature": item.feature,
                "value": float(f"{item.value:.6g}"),
                "usual": float(f"{item.usual:.6g}"),
                "weight": round(item.weight, 3),
            }
            for item in evidence
        ]
    return said
