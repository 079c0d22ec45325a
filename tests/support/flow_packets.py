"""Export packets built from the layouts in the standards, right or wrong on purpose.

Source: RFC 3954 sections 5 and 6, RFC 7011 section 3, Cisco NetFlow export v5.
"""

from __future__ import annotations

import ipaddress
import struct

import numpy as np

FieldSpec = tuple[int, int] | tuple[int, int, int]  # element, length, enterprise

SECONDS = 1_795_433_818
V4_FLOW: tuple[FieldSpec, ...] = ((8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (6, 1), (2, 4), (1, 4), (22, 4), (21, 4))
V5_HEADER = struct.Struct(">HHIIIIBBH")
V5_RECORDS = np.dtype(
    [
        *(("src", ">u4"), ("dst", ">u4"), ("hop", ">u4"), ("in", ">u2"), ("out", ">u2"), ("packets", ">u4")),
        *(("bytes", ">u4"), ("first", ">u4"), ("last", ">u4"), ("src_port", ">u2"), ("dst_port", ">u2"), ("p1", "u1")),
        *(("flags", "u1"), ("proto", "u1"), ("tos", "u1"), ("asn", ">u4"), ("masks", ">u2"), ("p2", ">u2")),
    ]
)
"""Many records at once."""
V9_HEADER = struct.Struct(">HHIIII")


def v5_record(
    src: str = "10.0.0.1",
    dst: str = "10.0.0.2",
    *,
    ports: tuple[int, int] = (1234, 80),
    proto: int = 6,
    flags: int = 0x1B,
    tos: int = 0,
    packets: int = 3,
    octets: int = 180,
    first: int = 1000,
    last: int = 2000,
) -> bytes:
    addresses = ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed + bytes(4)
    counters = struct.pack(">HHIIII", 1, 2, packets, octets, first, last)
    return addresses + counters + struct.pack(">HHBBBBHHBBH", *ports, 0, flags, proto, tos, 0, 0, 24, 24, 0)


def v5(
    *records: bytes,
    count: int | None = None,
    seconds: int = SECONDS,
    nanoseconds: int = 0,
    uptime_ms: int = 10_000,
    sequence: int = 0,
    engine: tuple[int, int] = (0, 0),
    sampling: int = 0,
) -> bytes:
    count = len(records) if count is None else count
    return V5_HEADER.pack(5, count, uptime_ms, seconds, nanoseconds, sequence, *engine, sampling) + b"".join(records)


def v9(
    *sets: bytes, seconds: int = SECONDS, uptime_ms: int = 10_000, sequence: int = 0, source_id: int = 0, count: int = 1
) -> bytes:
    return V9_HEADER.pack(9, count, uptime_ms, seconds, sequence, source_id) + b"".join(sets)


def ipfix(*sets: bytes, seconds: int = SECONDS, sequence: int = 0, domain: int = 0, length: int | None = None) -> bytes:
    body = b"".join(sets)
    length = 16 + len(body) if length is None else length
    return struct.pack(">HHIII", 10, length, seconds, sequence, domain) + body


def export(version: int, *sets: bytes, domain: int = 0, sequence: int = 0) -> bytes:
    """Return a v9 or IPFIX packet."""
    if version == 9:
        return v9(*sets, source_id=domain, sequence=sequence)
    return ipfix(*sets, domain=domain, sequence=sequence)


def packet_set(set_id: int, *bodies: bytes, length: int | None = None) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">HH", set_id, 4 + len(body) if length is None else length) + body


def template_set(version: int, *templates: bytes) -> bytes:
    return packet_set(0 if version == 9 else 2, *templates)


def options_set(version: int, *templates: bytes) -> bytes:
    return packet_set(1 if version == 9 else 3, *templates)


def fields_bytes(*fields: FieldSpec) -> bytes:
    return b"".join(
        struct.pack(">HHI", field[0] | 0x8000, field[1], field[2]) if len(field) == 3 else struct.pack(">HH", *field)
        for field in fields
    )


def template(template_id: int, *fields: FieldSpec, count: int | None = None) -> bytes:
    return struct.pack(">HH", template_id, len(fields) if count is None else count) + fields_bytes(*fields)


def options_template(version: int, template_id: int, scope: tuple[FieldSpec, ...], *fields: FieldSpec) -> bytes:
    if version == 9:
        head = struct.pack(">HHH", template_id, 4 * len(scope), 4 * len(fields))
    else:
        head = struct.pack(">HHH", template_id, len(scope) + len(fields), len(scope))
    return head + fields_bytes(*scope, *fields)


def record(fields: tuple[FieldSpec, ...], *values: int | str | bytes) -> bytes:
    """Return a record: numbers and addresses in the lengths that ``fields`` say, bytes as they are."""
    return b"".join(_value(field[1], value) for field, value in zip(fields, values, strict=True))


def v4_flow(src: str = "10.0.0.1", dst: str = "10.0.0.2", *, packets: int = 3, octets: int = 180) -> bytes:
    """Return a record of :data:`V4_FLOW`: TCP, port 1234 to 80, flags 1b, from 1000 to 2000 ms of uptime."""
    return record(V4_FLOW, src, dst, 1234, 80, 6, 0x1B, packets, octets, 1000, 2000)


def _value(length: int, value: int | str | bytes) -> bytes:
    if isinstance(value, str):
        return ipaddress.ip_address(value).packed
    return value if isinstance(value, bytes) else value.to_bytes(length, "big")
