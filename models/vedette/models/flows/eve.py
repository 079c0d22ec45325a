"""Suricata's EVE log: ``flow`` events, or ``netflow`` events where there are no others, to flow records.

Pure; see :mod:`vedette.models.flows.log_lines` for what all logs share. What the log tells and does not:

- ``flow`` events are biflows: counters and TCP flags of both sides. ``netflow`` events are halves, one a side, and are
  stitched like any exporter's. Where a file has both they say the same twice: from the first ``flow`` event on, and in
  the lines given together with it, ``netflow`` events are passed over.
- The record clock is ``timestamp``, when the event was written; ``flow.start`` and ``flow.end`` are the packets'.
- Bytes are of whole frames: Suricata adds the length of each packet as captured. ``link_bytes`` of each are taken off,
  so that they are the IP bytes which exporters count; 14 is Ethernet. Padding of short frames cannot be told.
- Not told: type of service, sampling (1), the reason an exporter ends a flow for.

Source: Suricata user guide, "EVE JSON Format", event type flow; src/flow.c (FlowHandlePacketUpdate) for what is
    counted; src/output-json-flow.c for the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vedette.models.flows.log_lines import (
    BadLine,
    LogCounters,
    LogStateError,
    Reason,
    RecordClock,
    address,
    iso_ms,
    protocol,
    records_of,
    whole,
)
from vedette.models.flows.records import FlowRecords

ETHERNET_BYTES = 14
_TCP, _ICMP, _ICMP6 = 6, 1, 58
_FLOW, _NETFLOW = "flow", "netflow"
_COMPACT = b'"event_type":"'
_WANTED = (b'"event_type":"flow"', b'"event_type":"netflow"')
_STATE = {"has_flows", "newest_ms"}

_Row = tuple[Any, ...]


class EveParser:
    """The EVE log of one file.

    Args:
        link_bytes: Of each packet that are not IP's.
    """

    def __init__(self, link_bytes: int = ETHERNET_BYTES) -> None:
        self.counters = LogCounters()
        self._link_bytes = link_bytes
        self._clock = RecordClock()
        self._has_flows = False

    def parse(self, lines: Sequence[bytes], exporter: int = 0) -> FlowRecords:
        """Return the flows of whole lines, in their order; what is none is counted."""
        self.counters.lines += len(lines)
        events = [event for line in lines if (event := self._event(line)) is not None]
        self._has_flows = self._has_flows or any(event["event_type"] == _FLOW for event in events)
        rows = [row for event in events if (row := self._counted_row(event, exporter)) is not None]
        self.counters.records += len(rows)
        return records_of(rows)

    def begin(self) -> None:
        """Nothing: a file's events need no header, and the next file goes on with the same clock."""

    def state(self) -> dict[str, Any]:
        """Return what must be known to go on in the middle of a file."""
        return {"has_flows": self._has_flows, "newest_ms": self._clock.newest_ms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            LogStateError: It is something else.
        """
        if set(state) != _STATE or not isinstance(state["has_flows"], bool):
            raise LogStateError(f"the stored state of an EVE log has {sorted(state)[:5]}, expected {sorted(_STATE)}")
        self._clock.restore(state["newest_ms"])
        self._has_flows = state["has_flows"]

    def _event(self, line: bytes) -> dict[str, Any] | None:
        """Return a line that is about a flow; counts what is not."""
        # Suricata writes no space there, so that alerts, DNS and HTTP, most of a log, need not be parsed. Inside of a
        # text the quotes would be escaped.
        if not line.strip() or (_COMPACT in line and not any(wanted in line for wanted in _WANTED)):
            self.counters.others += 1
            return None
        try:
            event = json.loads(line.decode())
        except (ValueError, RecursionError):
            self.counters.bad[Reason.NOT_JSON] += 1
            return None
        if not isinstance(event, dict):
            self.counters.bad[Reason.NOT_JSON] += 1
            return None
        if event.get("event_type") not in (_FLOW, _NETFLOW):
            self.counters.others += 1
            return None
        return event

    def _counted_row(self, event: dict[str, Any], exporter: int) -> _Row | None:
        if self._has_flows and event["event_type"] == _NETFLOW:
            self.counters.others += 1
            return None
        try:
            return self._row(event, exporter)
        except BadLine as exc:
            self.counters.bad[exc.reason] += 1
            return None

    def _row(self, event: dict[str, Any], exporter: int) -> _Row:
        is_biflow = event["event_type"] == _FLOW
        body, tcp = _part(event, event["event_type"]), _part(event, "tcp", optional=True)
        source, destination = address(_text(event, "src_ip")), address(_text(event, "dest_ip"))
        proto = protocol(_present(event, "proto"))
        if is_biflow:
            flags, reverse_flags = _flags(tcp, "tcp_flags_ts"), _flags(tcp, "tcp_flags_tc")
            packets, size = self._counted(body, "pkts_toserver", "bytes_toserver")
            reverse_packets, reverse_size = self._counted(body, "pkts_toclient", "bytes_toclient")
        else:
            flags, reverse_flags = _flags(tcp, "tcp_flags"), 0
            packets, size = self._counted(body, "pkts", "bytes")
            reverse_packets, reverse_size = 0, 0
        is_icmp = proto in (_ICMP, _ICMP6)
        kind = whole(event.get("icmp_type"), 255) << 8 | whole(event.get("icmp_code"), 255) if is_icmp else 0
        ports = (0, 0) if is_icmp else (whole(event.get("src_port"), 65_535), whole(event.get("dest_port"), 65_535))
        written = iso_ms(_present(event, "timestamp"))
        start, end = iso_ms(_present(body, "start")), iso_ms(_present(body, "end"))
        return (
            *(*source, *destination, *ports, kind, proto, 0, flags if proto == _TCP else 0),
            *(reverse_flags if proto == _TCP else 0, 0, is_biflow, packets, size, reverse_packets, reverse_size),
            *(start, end, self._clock.stamp(written), exporter, 1),
        )

    def _counted(self, body: dict[str, Any], packets_name: str, bytes_name: str) -> tuple[int, int]:
        packets, size = whole(_present(body, packets_name)), whole(_present(body, bytes_name))
        return packets, max(size - self._link_bytes * packets, 0)


def _part(event: dict[str, Any], name: str, *, optional: bool = False) -> dict[str, Any]:
    part = event.get(name)
    if isinstance(part, dict):
        return part
    if optional and part is None:
        return {}
    raise BadLine(Reason.MISSING)


def _present(body: dict[str, Any], name: str) -> Any:
    value = body.get(name)
    if value is None:
        raise BadLine(Reason.MISSING)
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = _present(body, name)
    if not isinstance(value, str):
        raise BadLine(Reason.ADDRESS)
    return value


def _flags(tcp: dict[str, Any], name: str) -> int:
    """Return TCP flags that are written as two hexadecimal digits; 0 where they are absent."""
    text = tcp.get(name)
    if text is None:
        return 0
    try:
        flags = int(text, 16) if isinstance(text, str) and len(text) <= 4 else -1
    except ValueError:
        flags = -1
    if not 0 <= flags <= 255:
        raise BadLine(Reason.NUMBER)
    return flags
