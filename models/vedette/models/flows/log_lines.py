"""What logs of flows have in common: bytes to lines, a line's faults, and the record clock of a file.

Pure: whoever reads the file hands over its bytes. Rules:

- A line ends with a newline; what follows the last one waits for the rest of its line. A line over the limit is skipped
  up to its end and counted; no more than one line of the limit's length is ever held.
- A line that cannot be read is counted by its reason and costs only itself.
- The record clock of a file never goes back for a record that is late by less than :data:`RESTART_MS`: logs are written
  in the order in which flows were given up, not in that of their last packets. A record further behind begins anew,
  since a program that replays old traffic must not be judged in the state of the new.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from vedette.models.errors import ModelsError
from vedette.models.flows.records import FLOW_RECORD, FlowRecords, address_halves, empty

MAX_LINE_BYTES = 1 << 20
RESTART_MS = 3_600_000
_MAX_TIME_MS = 1 << 48  # the year 10889, as in vedette.models.flows.features
_MAX_COUNT = (1 << 63) - 1
_MAX_ADDRESS = 128  # with a zone, which may be of any length: what was read is remembered, some thousands of them
_MAX_STATE_TEXT = 64 * 1024

PROTOCOLS: Mapping[str, int] = {
    "icmp": 1, "igmp": 2, "ipip": 4, "ip-encap": 4, "ipv4": 4, "tcp": 6, "egp": 8, "udp": 17, "dccp": 33, "ipv6": 41,
    "ipv6-route": 43, "ipv6-frag": 44, "rsvp": 46, "gre": 47, "esp": 50, "ipsec-esp": 50, "ah": 51, "ipsec-ah": 51,
    "ipv6-icmp": 58, "icmpv6": 58, "icmp6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ospf": 89, "ospfigp": 89,
    "pim": 103, "ipcomp": 108, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136,
}  # fmt: skip
"""IANA's numbers by the names that libc, Suricata and Zeek write, in lower case."""


class Reason(StrEnum):
    """Why a line gave no record."""

    TOO_LONG = "too-long"
    NOT_JSON = "not-json"
    NO_HEADER = "no-header"  # a line of a table whose columns were not named, or not all that are needed
    COLUMNS = "columns"  # another number of fields than the header names
    MISSING = "missing"  # a field that every flow has
    TIME = "time"
    ADDRESS = "address"
    PROTOCOL = "protocol"
    NUMBER = "number"


class BadLine(ModelsError):
    """A line is no flow; counted, never raised out of a parser."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class LogStateError(ModelsError):
    """The stored state of a parser is none."""


@dataclass(slots=True)
class LogCounters:
    """What a parser was given since it was made."""

    lines: int = 0
    records: int = 0
    others: int = 0  # whole lines that are about something else than flows, or say a flow a second time
    bad: Counter[Reason] = field(default_factory=Counter)


class LogParser(Protocol):
    """A log's format. One per file: it keeps the file's header and clock."""

    counters: LogCounters

    def parse(self, lines: Sequence[bytes], exporter: int = 0) -> FlowRecords:
        """Return the flows of whole lines, without their ends, in their order; never raises for what they hold."""
        ...

    def begin(self) -> None:
        """Forget what the file's own header said: the next line is the first of a file."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what must be known to go on in the middle of the file, as JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            LogStateError: It is something else.
        """
        ...


class LineSplitter:
    """Cuts a stream of bytes into lines."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._rest = b""
        self._is_skipping = False
        self.too_long = 0

    @property
    def held_bytes(self) -> int:
        """How many of the bytes given so far belong to no line that was returned or skipped."""
        return len(self._rest)

    @property
    def is_skipping(self) -> bool:
        """Whether the bytes up to the next line's end are dropped."""
        return self._is_skipping

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that these bytes end, without their ends."""
        *lines, rest = (self._rest + data).split(b"\n")
        if lines and self._is_skipping:
            self._is_skipping = False
            del lines[0]
        if self._is_skipping:
            rest = b""
        elif len(rest) > self._limit:
            self._is_skipping = True
            self.too_long += 1
            rest = b""
        self._rest = rest
        fitting = [line for line in lines if len(line) <= self._limit]
        self.too_long += len(lines) - len(fitting)
        return fitting

    def finish(self) -> list[bytes]:
        """Return what waits as a last line, at the end of a file that is written no more."""
        rest, self._rest, self._is_skipping = self._rest, b"", False
        return [rest] if rest else []

    def skip(self) -> None:
        """Drop what waits, and what comes up to the next line's end: reading begins inside of a line."""
        self._rest, self._is_skipping = b"", True

    def clear(self) -> None:
        """Forget what waits: what comes next is the beginning of a line."""
        self._rest, self._is_skipping = b"", False


class RecordClock:
    """The clock that a file's records tick by."""

    def __init__(self) -> None:
        self.newest_ms = 0

    def stamp(self, at_ms: int) -> int:
        """Return the record time of a line that says it was written, or its flow ended, at ``at_ms``."""
        if at_ms >= self.newest_ms or self.newest_ms - at_ms > RESTART_MS:
            self.newest_ms = at_ms
        return self.newest_ms

    def restore(self, value: object) -> None:
        """Take over a stored ``newest_ms``.

        Raises:
            LogStateError: It is no time.
        """
        if type(value) is not int or not 0 <= value <= _MAX_TIME_MS:
            told = str(value)[:40] if isinstance(value, int | str) else type(value).__name__
            raise LogStateError(f"the stored record time is {told}, allowed 0 to {_MAX_TIME_MS}")
        self.newest_ms = value


def records_of(rows: Sequence[tuple[Any, ...]]) -> FlowRecords:
    """Return rows whose values are in the order of :data:`FLOW_RECORD` and fit its types."""
    return np.array(rows, FLOW_RECORD) if rows else empty()


@lru_cache(maxsize=4096)
def address(text: str) -> tuple[int, int]:
    """Return the halves of an address; a zone behind ``%`` is dropped.

    Raises:
        BadLine: It is none.
    """
    try:
        if len(text) > _MAX_ADDRESS:
            raise BadLine(Reason.ADDRESS)
        return address_halves(text)
    except ValueError:
        raise BadLine(Reason.ADDRESS) from None


@lru_cache(maxsize=4096)
def is_v6(text: str) -> bool:
    """Tell whether an address that :func:`address` read is one of IPv6."""
    return ipaddress.ip_address(text).version == 6


def protocol(value: object) -> int:
    """Return the number of a protocol given by name or number.

    Raises:
        BadLine: It has none.
    """
    text = str(value).lower()
    number = PROTOCOLS.get(text)
    if number is None and re.fullmatch("[0-9]{1,3}", text):
        number = int(text)
    if number is None or number > 255:
        raise BadLine(Reason.PROTOCOL)
    return number


def iso_ms(value: object) -> int:
    """Return Unix milliseconds of ISO 8601 text with an offset.

    Raises:
        BadLine: It is none.
    """
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) and len(value) <= 64 else None
    except ValueError:
        at = None
    if at is None or at.utcoffset() is None:
        raise BadLine(Reason.TIME)
    return clipped_ms(at.timestamp())


def clipped_ms(seconds: float) -> int:
    """Return Unix milliseconds of seconds; times before 1970 or after the year 10889 read as the nearest."""
    if seconds != seconds:  # noqa: PLR0124 - not a number
        raise BadLine(Reason.TIME)
    return round(min(max(seconds * 1000.0, 0.0), float(_MAX_TIME_MS)))


def whole(value: object, most: int = _MAX_COUNT) -> int:
    """Return a whole number of 0 to ``most``; None counts as 0.

    Raises:
        BadLine: It is none, or too large.
    """
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= most:
        raise BadLine(Reason.NUMBER)
    return value


def state_text(value: object) -> str:
    """Return a text of a stored state.

    Raises:
        LogStateError: It is none, or too long.
    """
    if not isinstance(value, str) or len(value) > _MAX_STATE_TEXT:
        raise LogStateError(f"a stored text is {type(value).__name__}, or over {_MAX_STATE_TEXT} characters")
    return value
