"""Zeek's conn.log, as JSON or as a table of its own header, to flow records.

Pure; see :mod:`vedette.models.flows.log_lines` for what all logs share. What the log tells and does not:

- A connection is a biflow. TCP flags are read off ``history``, or off ``conn_state`` where there is no history.
  History names what was seen, not each flag: a packet with payload counts as ACK and PSH, since a sender must set PSH
  on the last segment it has buffered (RFC 9293 section 3.9.1.2, MUST-61), and a FIN as FIN and ACK.
- Bytes are ``orig_ip_bytes`` and ``resp_ip_bytes``, as exporters count; where Zeek left them out, payload bytes.
- The record clock is ``_write_ts`` where the log has it, else the end of the connection: ``ts`` plus ``duration``.
- An ICMP "port" is the message's type, and on the other side its code or, for a request, the type of the answer.
- Not told: type of service, sampling (1), URG, ECE and CWR.

A table's header says how to read it; a new one may come at any line, as after a rotation. ``-`` is what is not known.

Source: Zeek's reference, base/protocols/conn/main.zeek and base/frameworks/logging/writers/ascii.zeek.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vedette.models.flows.log_lines import (
    BadLine,
    LogCounters,
    LogStateError,
    Reason,
    RecordClock,
    address,
    clipped_ms,
    is_v6,
    iso_ms,
    protocol,
    records_of,
    state_text,
)
from vedette.models.flows.records import FlowRecords
from vedette.models.flows.stitch import ACK, FIN, ICMP, ICMP6, PSH, RST, SYN, TCP

NEEDED = ("ts", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "orig_pkts", "resp_pkts")
_READ = frozenset(
    {*NEEDED, "duration", "orig_bytes", "resp_bytes", "orig_ip_bytes", "resp_ip_bytes", "history", "conn_state"}
    | {"ip_proto", "_write_ts"}
)
_PATH = "conn"
_MOST_COLUMNS = 512
_MILLISECONDS = 1e11  # JSON times may be written in milliseconds; as seconds that would be the year 5138
# Requests whose answer's type stands in the place of the code (src/packet_analysis/protocol/icmp/ICMP.cc in Zeek).
_ANSWERED = {ICMP: frozenset({8, 10, 13, 15, 17}), ICMP6: frozenset({128, 130, 133, 135, 139, 144, 146})}
_SEEN = {
    "S": SYN, "H": SYN | ACK, "A": ACK, "D": PSH | ACK, "F": FIN | ACK, "R": RST, "T": ACK, "W": ACK, "I": FIN | RST,
    "Q": SYN,
}  # fmt: skip
_BOTH = (SYN | ACK, SYN | ACK)
_STATES = {
    "S0": (SYN, 0),
    "S1": _BOTH,
    "SF": (SYN | ACK | FIN, SYN | ACK | FIN),
    "REJ": (SYN, RST | ACK),
    "S2": (SYN | ACK | FIN, SYN | ACK),
    "S3": (SYN | ACK, SYN | ACK | FIN),
    "RSTO": (SYN | ACK | RST, SYN | ACK),
    "RSTR": (SYN | ACK, SYN | ACK | RST),
    "RSTOS0": (SYN | RST, 0),
    "RSTRH": (0, SYN | ACK | RST),
    "SH": (SYN | FIN, 0),
    "SHR": (0, SYN | ACK | FIN),
}
_HEADERS = ("#separator", "#fields", "#unset_field", "#empty_field", "#path")
_STATE = {"separator", "unset", "empty", "path", "fields", "newest_ms"}

_Row = tuple[Any, ...]
_Fields = Mapping[str, Any]


class ZeekParser:
    """The conn.log of one file."""

    def __init__(self) -> None:
        self.counters = LogCounters()
        self._clock = RecordClock()
        self.begin()

    def begin(self) -> None:
        """Forget the table's header: the next line is the first of a file."""
        self._separator, self._unset, self._empty, self._path = "\t", "-", "(empty)", _PATH
        self._fields: tuple[str, ...] = ()
        self._places: tuple[tuple[int, str], ...] = ()

    def parse(self, lines: Sequence[bytes], exporter: int = 0) -> FlowRecords:
        """Return the connections of whole lines, in their order; what is none is counted."""
        self.counters.lines += len(lines)
        rows = [row for line in lines if (row := self._counted_row(line, exporter)) is not None]
        self.counters.records += len(rows)
        return records_of(rows)

    def state(self) -> dict[str, Any]:
        """Return what must be known to go on in the middle of a file."""
        return {
            "separator": self._separator,
            "unset": self._unset,
            "empty": self._empty,
            "path": self._path,
            "fields": list(self._fields),
            "newest_ms": self._clock.newest_ms,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            LogStateError: It is something else.
        """
        if set(state) != _STATE or not isinstance(state["fields"], list) or len(state["fields"]) > _MOST_COLUMNS:
            raise LogStateError(f"the stored state of a conn.log has {sorted(state)[:6]}, expected {sorted(_STATE)}")
        self._clock.restore(state["newest_ms"])
        self._separator, self._unset = state_text(state["separator"]) or "\t", state_text(state["unset"])
        self._empty, self._path = state_text(state["empty"]), state_text(state["path"])
        self._name_columns([state_text(name) for name in state["fields"]])

    def _counted_row(self, line: bytes, exporter: int) -> _Row | None:
        try:
            fields = self._read(line)
            if fields is None:
                self.counters.others += 1
                return None
            return self._row(fields, exporter)
        except BadLine as exc:
            self.counters.bad[exc.reason] += 1
            return None

    def _read(self, line: bytes) -> _Fields | None:
        """Return a connection's fields, those that are known; None for a line about something else."""
        try:
            text = line.decode().rstrip("\r")
        except UnicodeDecodeError:
            raise BadLine(Reason.NOT_JSON if line[:1] == b"{" else Reason.COLUMNS) from None
        if text.startswith("#"):
            self._take_header(text)
            return None
        if not text.strip():
            return None
        return _from_json(text) if text.startswith("{") else self._from_table(text)

    def _take_header(self, text: str) -> None:
        if text.startswith("#separator"):
            self.begin()
            # Blank, then the separator with its characters escaped as \xHH.
            escaped = text.removeprefix("#separator")[1:]
            self._separator = re.sub(r"\\x([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), escaped)[:16] or "\t"
            return
        name, *values = text.split(self._separator)
        if name not in _HEADERS or not values:
            return
        if name == "#fields":
            self._name_columns(values[:_MOST_COLUMNS])
        elif name == "#unset_field":
            self._unset = values[0]
        elif name == "#empty_field":
            self._empty = values[0]
        else:
            self._path = values[0]

    def _name_columns(self, names: Sequence[str]) -> None:
        self._fields = tuple(names)
        self._places = tuple((place, name) for place, name in enumerate(names) if name in _READ)

    def _from_table(self, text: str) -> _Fields | None:
        if self._path != _PATH:
            return None
        if not set(NEEDED) <= set(self._fields):
            raise BadLine(Reason.NO_HEADER)
        values = text.split(self._separator)
        if len(values) != len(self._fields):
            raise BadLine(Reason.COLUMNS)
        return {
            name: _number(values[place]) if name not in _TEXTS else values[place]
            for place, name in self._places
            if values[place] not in (self._unset, self._empty)
        }

    def _row(self, fields: _Fields, exporter: int) -> _Row:
        missing = [name for name in NEEDED if name not in fields]
        if missing:
            raise BadLine(Reason.MISSING)
        client, server = _address_text(fields["id.orig_h"]), _address_text(fields["id.resp_h"])
        source, destination = address(client), address(server)
        proto = self._protocol(fields, client)
        ports = [_whole(fields[name], 65_535) for name in ("id.orig_p", "id.resp_p")]
        kind = 0
        if proto in (ICMP, ICMP6):
            kind, ports = _icmp(proto, *ports), [0, 0]
        flags, reverse_flags = _flags(fields) if proto == TCP else (0, 0)
        start = _time_ms(fields["ts"])
        end = start + min(clipped_ms(_seconds(fields.get("duration", 0.0))), _LONGEST_MS)
        written = _time_ms(fields["_write_ts"]) if "_write_ts" in fields else end
        return (
            *(*source, *destination, *ports, kind, proto, 0, flags, reverse_flags, 0, True),
            *(_whole(fields["orig_pkts"]), _bytes(fields, "orig")),
            *(_whole(fields["resp_pkts"]), _bytes(fields, "resp")),
            *(start, end, self._clock.stamp(written), exporter, 1),
        )

    def _protocol(self, fields: _Fields, client: str) -> int:
        name = fields["proto"]
        if name == "icmp":
            return ICMP6 if is_v6(client) else ICMP
        if name == "unknown_transport" and "ip_proto" in fields:
            return _whole(fields["ip_proto"], 255)
        return protocol(name)


_TEXTS = frozenset({"id.orig_h", "id.resp_h", "proto", "history", "conn_state"})
_LONGEST_MS = 1 << 40
_MAX_COUNT = (1 << 63) - 1


def _from_json(text: str) -> _Fields | None:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        raise BadLine(Reason.NOT_JSON) from None
    if not isinstance(read, dict):
        raise BadLine(Reason.NOT_JSON)
    if read.get("_path", _PATH) != _PATH:
        return None
    return {name: value for name, value in read.items() if name in _READ and value is not None}


def _number(text: str) -> int | float:
    """Return a number of a table; a whole one stays exact."""
    try:
        return int(text) if text.isdecimal() and len(text) <= 20 else float(text)
    except ValueError:
        raise BadLine(Reason.NUMBER) from None


def _whole(value: object, most: int = _MAX_COUNT) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise BadLine(Reason.NUMBER)
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine(Reason.TIME)
    try:
        return float(value)
    except OverflowError:
        raise BadLine(Reason.TIME) from None


def _time_ms(value: object) -> int:
    """Return a time that is written in seconds, milliseconds, or as ISO 8601 text."""
    if isinstance(value, str):
        return iso_ms(value)
    seconds = _seconds(value)
    return clipped_ms(seconds / 1000.0 if seconds > _MILLISECONDS else seconds)


def _address_text(value: object) -> str:
    if not isinstance(value, str):
        raise BadLine(Reason.ADDRESS)
    return value


def _bytes(fields: _Fields, side: str) -> int:
    return _whole(fields.get(f"{side}_ip_bytes", fields.get(f"{side}_bytes", 0)))


def _icmp(proto: int, sent: int, other: int) -> int:
    """Return type * 256 + code of the originator's message."""
    if sent > 255 or other > 255:
        raise BadLine(Reason.NUMBER)
    return sent << 8 | (0 if sent in _ANSWERED[proto] else other)


def _flags(fields: _Fields) -> tuple[int, int]:
    """Return the TCP flags that were seen of originator and responder."""
    history, state = fields.get("history"), fields.get("conn_state")
    if not isinstance(history, str) or not history:
        return _STATES.get(state, (0, 0)) if isinstance(state, str) else (0, 0)
    sent = received = 0
    for letter in history[:_MOST_COLUMNS]:
        if letter.isupper():
            sent |= _SEEN.get(letter, 0)
        else:
            received |= _SEEN.get(letter.upper(), 0)
    if received == RST and sent & SYN:
        received |= ACK  # a reset that answers a SYN acknowledges it (RFC 9293 section 3.5.2)
    return sent, received
