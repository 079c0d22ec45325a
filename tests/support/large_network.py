"""NetFlow v5 or v9 of a large network, made of a shared capture: real flows, mostly benign, at any rate wanted.

Pieces of the capture at different moments of it, one for each of many small networks, with all their benign flows and
one attack flow in a hundred: seven flows a second of each. One exporter, 30 records a datagram.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from tests.support.flow_packets import V5_HEADER, V5_RECORDS, V9_HEADER
from tests.support.flow_training import capture_flows, capture_labels, capture_records
from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.records import FlowRecords
from vedette.models.recipes import BENIGN

_ATTACKS = 0.01  # of the attack flows that are kept
_UPTIME_MS = 10_000_000
_V9_FIELDS = (
    *(("src", 8, 4), ("dst", 12, 4), ("last", 21, 4), ("first", 22, 4), ("bytes", 1, 4), ("packets", 2, 4)),
    *(("in", 10, 4), ("out", 14, 4), ("src_port", 7, 2), ("dst_port", 11, 2), ("proto", 4, 1), ("flags", 6, 1)),
    *(("ip", 60, 1), ("tos", 5, 1)),
)
_V9_RECORDS = np.dtype([(name, f">u{size}" if size > 1 else "u1") for name, _, size in _V9_FIELDS])
_V9_TEMPLATE = struct.pack(">HHHH", 0, 8 + 4 * len(_V9_FIELDS), 1024, len(_V9_FIELDS)) + b"".join(
    struct.pack(">HH", element, size) for _, element, size in _V9_FIELDS
)


def large_network(capture: str, networks: int, seconds: int, *, version: int = 5) -> list[Datagram]:
    """Return datagrams of NetFlow v5 or v9 in the order of their export, each small network with its own addresses."""
    batch, records = capture_flows(capture), capture_records(capture)
    is_attack = np.array([label != BENIGN for label in capture_labels(capture, batch.flows)])
    kept = ~is_attack | (np.random.default_rng(1).random(len(batch)) < _ATTACKS)
    rows = np.sort(batch.origins[kept].ravel())
    records = records[rows[rows >= 0]]
    into_ms = records["export_ms"] - records["export_ms"][0]
    latest = int(into_ms[-1]) - seconds * 1000
    begins = (place * latest // networks for place in range(networks))
    ordered = _by_export([_moved(records, into_ms, at, place, seconds) for place, at in enumerate(begins)])
    return list(_datagrams(ordered, _v5 if version == 5 else _v9))


def due(datagrams: Iterable[Datagram], now_ns: int) -> Iterator[tuple[float, bytes]]:
    """Return when each is to be sent, in seconds from the first, and its bytes as if that were said at ``now_ns``."""
    begun_ns = -1
    for datagram in datagrams:
        begun_ns = datagram.at_ns if begun_ns < 0 else begun_ns
        after_ns = datagram.at_ns - begun_ns
        said = bytearray(datagram.payload)
        struct.pack_into(">II", said, 8, *divmod(now_ns + after_ns, 1_000_000_000))
        yield after_ns / 1e9, bytes(said)


def _moved(
    records: FlowRecords, into_ms: npt.NDArray[np.int64], begin_ms: int, place: int, seconds: int
) -> FlowRecords:
    """Return the records of one small network for some seconds, as if they had begun with the capture."""
    made: FlowRecords = records[(into_ms >= begin_ms) & (into_ms < begin_ms + seconds * 1000)]
    for name in ("start_ms", "end_ms", "export_ms"):
        made[name] -= begin_ms
    for name in ("src_lo", "dst_lo"):
        made[name] += np.uint64(place << 12)  # one network's addresses differ in their last byte alone
    return made


def _by_export(parts: list[FlowRecords]) -> FlowRecords:
    records = np.concatenate(parts)
    ordered: FlowRecords = records[np.argsort(records["export_ms"], kind="stable")]
    return ordered


def _datagrams(
    records: FlowRecords, layout: Callable[[FlowRecords], Iterator[tuple[int, bytes]]]
) -> Iterator[Datagram]:
    for export_ms, payload in layout(records):
        yield Datagram(export_ms * 1_000_000, "192.0.2.1", 2055, payload)


def _v5(records: FlowRecords) -> Iterator[tuple[int, bytes]]:
    """Give datagrams with the time of their export: that of the last record in each."""
    wire = _filled(V5_RECORDS, records)
    for begin, export_ms, part in _cut(records, wire):
        seconds, milliseconds = divmod(export_ms, 1000)
        head = V5_HEADER.pack(5, len(part), _UPTIME_MS, seconds, milliseconds * 1_000_000, begin, 0, 0, 0)
        yield export_ms, head + part.tobytes()


def _v9(records: FlowRecords) -> Iterator[tuple[int, bytes]]:
    """As :func:`_v5`, with softflowd's template in one datagram of twenty."""
    wire = _filled(_V9_RECORDS, records)
    wire["ip"] = 4
    for number, (_, export_ms, part) in enumerate(_cut(records, wire)):
        template = b"" if number % 20 else _V9_TEMPLATE
        data, count = part.tobytes(), len(part) + bool(template)
        padding = bytes(-len(data) % 4)
        head = V9_HEADER.pack(9, count, _UPTIME_MS, export_ms // 1000, number, 0)
        yield export_ms, head + template + struct.pack(">HH", 1024, 4 + len(data) + len(padding)) + data + padding


def _cut(records: FlowRecords, wire: npt.NDArray[np.void]) -> Iterator[tuple[int, int, npt.NDArray[np.void]]]:
    for begin in range(0, len(records), 30):
        yield begin, int(records["export_ms"][min(begin + 29, len(records) - 1)]), wire[begin : begin + 30]


def _filled(layout: np.dtype[np.void], records: FlowRecords) -> npt.NDArray[np.void]:
    wire = np.zeros(len(records), layout)
    for name in ("src", "dst"):
        wire[name] = records[name + "_lo"] & np.uint64(0xFFFF_FFFF)
    for name in ("packets", "bytes", "src_port", "dst_port", "flags", "proto"):
        wire[name] = records[name]
    for name, times in (("first", records["start_ms"]), ("last", records["end_ms"])):
        wire[name] = _UPTIME_MS - np.minimum(records["export_ms"] - times, _UPTIME_MS)
    return wire
