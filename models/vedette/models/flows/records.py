"""The one form of a flow record, as a numpy structured type.

Decoders of every export format make arrays of :data:`FLOW_RECORD`; stitching makes biflows of the same type with the
reverse counters filled in; feature extraction reads nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

FLOW_RECORD = np.dtype(
    [
        ("src_hi", np.uint64),  # address as 128-bit IPv6; IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2)
        ("src_lo", np.uint64),
        ("dst_hi", np.uint64),
        ("dst_lo", np.uint64),
        ("src_port", np.uint16),  # 0 for protocols without ports
        ("dst_port", np.uint16),
        ("icmp", np.uint16),  # type * 256 + code of ICMP and ICMPv6, else 0
        ("proto", np.uint8),
        ("tos", np.uint8),
        ("flags", np.uint8),  # union of TCP flags, forward direction
        ("reverse_flags", np.uint8),
        ("end_reason", np.uint8),  # IPFIX flowEndReason (element 136), 0 when the exporter does not say
        ("bidirectional", np.bool_),  # the reverse counters are known (biflow record or two stitched halves)
        ("packets", np.uint64),
        ("bytes", np.uint64),
        ("reverse_packets", np.uint64),
        ("reverse_bytes", np.uint64),
        ("start_ms", np.int64),  # Unix milliseconds, the exporter's clock, never re-based
        ("end_ms", np.int64),
        ("export_ms", np.int64),  # export time of the datagram's header: the record clock that ticks are made of
        ("exporter", np.uint32),  # index into the decoder's table of exporters
        ("sampling", np.uint32),  # 1 of so many packets was seen; 1 = all
    ]
)
"""One flow, one direction; or both when ``bidirectional``."""

FlowRecords = npt.NDArray[Any]
"""An array of :data:`FLOW_RECORD`, shape (records,)."""

_WHOLE = np.dtype((np.void, FLOW_RECORD.itemsize))
"""A record as so many bytes: numpy moves those ten to twenty times as fast as one field after the other (measured)."""

V4_MAPPED = np.uint64(0xFFFF_0000_0000)
"""Low half of ::ffff:0.0.0.0."""


def empty(count: int = 0) -> FlowRecords:
    """Return ``count`` zeroed records with a sampling rate of 1."""
    made = np.zeros(count, FLOW_RECORD)
    made["sampling"] = 1
    return made


def chosen(records: FlowRecords, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> FlowRecords:
    """Return ``records[rows]``, a copy, by row numbers or a mask."""
    picked: FlowRecords = records.view(_WHOLE)[rows].view(FLOW_RECORD)
    return picked


def joined(parts: Iterable[FlowRecords]) -> FlowRecords:
    """Return one array of all parts in their order, a copy; there is one part at least."""
    whole: FlowRecords = np.concatenate([part.view(_WHOLE) for part in parts]).view(FLOW_RECORD)
    return whole


def address_text(high: int, low: int) -> str:
    """Return an address in its usual text form, IPv4 when it is a mapped one."""
    if high == 0 and low >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(low & 0xFFFF_FFFF))
    return str(ipaddress.IPv6Address(high << 64 | low))


def address_halves(text: str) -> tuple[int, int]:
    """Return the two 64-bit halves of an address written as text.

    Raises:
        ValueError: The text is no IPv4 or IPv6 address.
    """
    parsed = ipaddress.ip_address(text)
    number = int(parsed) | 0xFFFF_0000_0000 if parsed.version == 4 else int(parsed)
    return number >> 64, number & 0xFFFF_FFFF_FFFF_FFFF
