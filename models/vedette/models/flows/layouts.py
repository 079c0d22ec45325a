"""Compile a template's fields to a numpy layout and turn record bytes into :data:`FLOW_RECORD` columns.

What lives here: which information elements mean what to us, and the one conversion that NetFlow v5, v9 and IPFIX share.
Nothing here keeps state of an exporter; a :class:`Layout` is a value that many exporters may share.

Rules:
    - Elements we do not know, and those of other enterprises, are skipped by their length.
    - Integers may have any length from 1 to 8 (reduced-size encoding, RFC 7011 section 6.2); too long a value for our
      column keeps its low bits, which for the two-byte TCP control bits is what is wanted.
    - Times are the exporter's, never re-based. Of several forms in a template the absolute and finer one is taken.
    - A time beyond the year 9999 is held there, so that no arithmetic on records can overflow.
    - A record's sampling rate is what it states itself, else that of the sampler it names, else its exporter's.

Source: RFC 3954 (NetFlow v9), RFC 7011 (IPFIX), RFC 5103 (biflows), RFC 5477 (sampling), IANA registry "IPFIX
    Information Elements", CERT's element numbers for YAF.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vedette.models.flows.records import FLOW_RECORD, V4_MAPPED, FlowRecords

Column = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

VARIABLE_LENGTH = 65535
"""Length of a field whose records carry their own lengths (RFC 7011 section 7)."""

REVERSE_ENTERPRISE = 29305
"""Elements of this enterprise speak of the other direction of a biflow (RFC 5103 section 6.1)."""

CERT_ENTERPRISE = 6871
"""Elements of YAF; a number with 16384 added speaks of the other direction."""

NTOP_ENTERPRISE = 35_632
"""ntop's own elements, of nProbe; none is read."""

MAX_TIME_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z."""

UPTIME_UNKNOWN = -1
"""In place of an uptime: this exporter has not said when it booted."""

# (element, role), the preferred element of a role first: delta counters before totals (RFC 5102), then the initiator
# and responder counters of Cisco's bidirectional event logs; 23 and 24 count what went out (see _outgoing).
_FLOW_ELEMENTS = (
    (8, "src4"), (12, "dst4"), (27, "src6"), (28, "dst6"),
    (7, "src_port"), (182, "src_port"), (180, "src_port"),
    (11, "dst_port"), (183, "dst_port"), (181, "dst_port"),
    (4, "proto"), (5, "tos"), (6, "flags"), (136, "end_reason"),
    (32, "icmp4"), (139, "icmp6"), (176, "type4"), (177, "code4"), (178, "type6"), (179, "code6"),
    (2, "packets"), (86, "packets"), (298, "packets"), (24, "packets"),
    (1, "bytes"), (85, "bytes"), (231, "bytes"), (23, "bytes"),
    (299, "reverse_packets"), (232, "reverse_bytes"),
    (152, "start_ms"), (153, "end_ms"), (154, "start_ntp"), (155, "end_ntp"), (156, "start_ntp"), (157, "end_ntp"),
    (158, "start_ago_us"), (159, "end_ago_us"), (150, "start_s"), (151, "end_s"),
    (22, "start_uptime"), (21, "end_uptime"),
    (160, "boot_ms"), (48, "sampler"), (302, "sampler"), (34, "interval"), (50, "interval"),
    (305, "taken"), (306, "left"), (307, "taken"), (308, "left"), (309, "taken"), (310, "of"), (311, "probability"),
)  # fmt: skip
_REVERSE_ELEMENTS = (
    (2, "reverse_packets"), (86, "reverse_packets"), (1, "reverse_bytes"), (85, "reverse_bytes"), (6, "reverse_flags"),
)  # fmt: skip
# YAF tells the first packet's TCP flags apart from those of all others.
_CERT_ELEMENTS = (
    (14, "first_flags"), (15, "flags"), (16_398, "reverse_first_flags"), (16_399, "reverse_flags"),
)  # fmt: skip
_OPTION_ROLES = frozenset({"boot_ms", "sampler", "interval", "taken", "left", "of", "probability"})

_ROLES: dict[tuple[int, int], tuple[str, int]] = {
    (enterprise, element): (role, rank)
    for enterprise, table in (
        (0, _FLOW_ELEMENTS),
        (REVERSE_ENTERPRISE, _REVERSE_ELEMENTS),
        (CERT_ENTERPRISE, _CERT_ELEMENTS),
    )
    for rank, (element, role) in enumerate(table)
}
_ADDRESS_BYTES = {"src4": 4, "dst4": 4, "src6": 16, "dst6": 16}
_NTP_BYTES = 8
_NTP_UNIX_S = 2_208_988_800  # 1900-01-01 to 1970-01-01 (RFC 5905 figure 4)
_INTEGER_TYPES: dict[int, Any] = {1: ">u1", 2: ">u2", 4: ">u4", 8: ">u8"}
_MAX_INTEGER_BYTES = 8
_FLOAT_BYTES = (4, 8)  # "float64 ... reduced to ... float32" (RFC 7011 section 6.2)
# The first fields of every flow template of FortiOS (captured from 5.2.1 and 5.4.2; Fortinet, NetFlow templates).
_FORTIOS = [(1, 8), (23, 8), (2, 4), (24, 4)]
_DIRECTION = 61
_NTOP_V9_ELEMENTS = range(57_472, 58_500)  # ntop's own, without an enterprise number (nProbe User's Guide, templates)
# Columns that take the element as it comes.
_PLAIN = (
    "src_port", "dst_port", "proto", "tos", "flags", "reverse_flags", "end_reason",
    "packets", "bytes", "reverse_packets", "reverse_bytes",
)  # fmt: skip
_HAS_PORTS = np.zeros(256, np.uint16)
_HAS_PORTS[[6, 17, 33, 132, 136]] = 1  # TCP, UDP, DCCP, SCTP, UDP-Lite (IANA protocol numbers)
_IS_ICMP = np.zeros(256, np.uint16)
_IS_ICMP[[1, 58]] = 1


class LayoutError(ValueError):
    """A field cannot have the length that its template gives it; says which, the length and the limit."""

    def __init__(self, what: str, value: int, limit: int) -> None:
        super().__init__(f"{what} is {value}, limit {limit}")
        self.what, self.value, self.limit = what, value, limit


class Field(NamedTuple):
    """One field specifier of a template."""

    element: int
    length: int
    enterprise: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole records of one set, and what its datagram says of all of them."""

    body: bytes
    count: int
    position: int  # of its first record among those of the batch
    export_ms: int
    uptime_ms: int  # of the exporter at export_ms, or UPTIME_UNKNOWN
    exporter: int
    sampling: int
    samplers: Mapping[int, int]  # rate by the id of a sampler, as known when the records came; never changed


class Layout:
    """How the records of one template are read; hashable by identity, holds no state."""

    def __init__(self, fields: Sequence[Field], *, version: int, options: bool = False) -> None:
        """Compile ``fields``.

        Args:
            fields: In the order of the template, scope fields first; :func:`check_fields` has passed them.
            version: Of the export protocol; 9 and 10 differ in what 23 and 24 mean.
            options: Read what describes the exporter instead of flows. Scope fields, whose types are no elements in
                v9, need no care then: their numbers mean nothing we read.
        """
        self.runs = _runs(fields)
        self.bytes = sum(self.runs)
        self.is_variable = len(self.runs) > 1
        self.min_bytes = self.bytes + len(self.runs) - 1
        roles = _places(_without_half_pairs(fields), options)
        if not options:
            _outgoing(fields, version, roles)
        self._dtype = _dtype(roles, self.bytes)
        self._roles = frozenset(roles)
        self._plain = tuple(role for role in _PLAIN if role in roles)
        self._icmp = tuple(role for role in ("icmp4", "icmp6", "type4", "code4", "type6", "code6") if role in roles)
        self._reverse = bool({"reverse_packets", "reverse_bytes"} & self._roles)
        self._start, self._end = (_time_form(roles, which) for which in ("start", "end"))
        self.needs_uptime = "uptime" in (self._start, self._end) and "boot_ms" not in roles
        self.names_sampler = "sampler" in roles
        self.is_flow = bool({"src4", "src6"} & self._roles and {"dst4", "dst6"} & self._roles)

    def compact(self, body: bytes) -> tuple[bytes, int, bool]:
        """Drop the variable-length fields of each record of a set.

        The work is bounded by the bytes of the set: each turn of the loops eats at least one.

        Returns:
            The whole records without those fields, their count, and whether a record's lengths fit the set.
        """
        pieces: list[bytes] = []
        offset, end, count = 0, len(body), 0
        while end - offset >= self.min_bytes:
            for run in self.runs[:-1]:
                pieces.append(body[offset : offset + run])
                offset += run
                length = body[offset] if offset < end else end
                offset += 1
                if length == 255:  # "the length is carried in the next 2 octets" (RFC 7011 section 7)
                    length = int.from_bytes(body[offset : offset + 2], "big")
                    offset += 2
                offset += length
            pieces.append(body[offset : offset + self.runs[-1]])
            offset += self.runs[-1]
            if offset > end:
                return b"".join(pieces)[: count * self.bytes], count, False
            count += 1
        return b"".join(pieces), count, True

    def convert(self, chunks: Sequence[Chunk]) -> FlowRecords:
        """Return the records of ``chunks``, in their order; only for a layout that :attr:`is_flow`."""
        rows = np.frombuffer(b"".join([chunk.body for chunk in chunks]), self._dtype)
        counts = [chunk.count for chunk in chunks]
        out = np.zeros(len(rows), FLOW_RECORD)
        for role in self._plain:
            out[role] = _integers(rows[role])
        self._flags_and_counters(rows, out)
        self._addresses(rows, out)
        self._ports_and_icmp(rows, out)
        out["bidirectional"] = self._reverse
        out["exporter"] = _spread([chunk.exporter for chunk in chunks], counts)
        export_ms = _spread([chunk.export_ms for chunk in chunks], counts)
        out["export_ms"] = export_ms
        self._times(rows, out, export_ms, _spread([chunk.uptime_ms for chunk in chunks], counts))
        sampling = _spread([chunk.sampling for chunk in chunks], counts)
        if self.names_sampler:
            self._by_sampler(rows, chunks, sampling)
        out["sampling"] = self._own_sampling(rows, sampling)
        return out

    def boot_ms(self, body: bytes) -> int:
        """Return the exporter's boot time that the last of some option records gives, Unix ms, or 0."""
        if "boot_ms" not in self._roles:
            return 0
        return min(int(_integers(self._last(body)["boot_ms"])[0]), MAX_TIME_MS)

    def sampling(self, body: bytes) -> int:
        """Return "one of so many packets" that the last of some option records gives, or 0 when it gives none."""
        return int(self._own_sampling(self._last(body), np.zeros(1, np.int64))[0])

    def samplers(self, body: bytes, most: int) -> dict[int, int]:
        """Return the rates that some option records give to ids of samplers; of the last records, at most so many."""
        if not self.names_sampler:
            return {}
        rows = np.frombuffer(body, self._dtype)[-most:]
        rates = self._own_sampling(rows, np.zeros(len(rows), np.int64))
        ids = _integers(rows["sampler"]).tolist()
        return {sampler: rate for sampler, rate in zip(ids, rates.tolist(), strict=True) if rate}

    def _last(self, body: bytes) -> Column:
        return np.frombuffer(body, self._dtype, count=1, offset=len(body) - self.bytes)

    def _flags_and_counters(self, rows: Column, out: FlowRecords) -> None:
        for first in self._roles & {"first_flags", "reverse_first_flags"}:
            out[first.replace("first_", "")] |= _integers(rows[first]).astype(np.uint8)
        for name in ("packets", "bytes"):
            if f"egress_{name}" in self._roles:
                counted, egress = out[name], _integers(rows[f"egress_{name}"])
                out[name] = np.where(counted == 0, egress, counted)

    def _by_sampler(self, rows: Column, chunks: Sequence[Chunk], sampling: Int64s) -> None:
        """Put the rates of the samplers that records name into ``sampling``; the rate of an unknown one stays."""
        ids, end = _integers(rows["sampler"]), 0
        for _, run in itertools.groupby(chunks, key=lambda chunk: id(chunk.samplers)):
            same = list(run)
            begin, end = end, end + sum(chunk.count for chunk in same)
            # An exporter that has samplers and names none means that it took every packet.
            rates = {0: 1, **same[0].samplers} if same[0].samplers else {}
            for sampler in set(ids[begin:end].tolist()) & rates.keys():
                sampling[begin:end][ids[begin:end] == sampler] = rates[sampler]

    def _addresses(self, rows: Column, out: FlowRecords) -> None:
        for end in ("src", "dst"):
            if f"{end}4" in self._roles:
                out[f"{end}_lo"] = rows[f"{end}4"] | V4_MAPPED
            if f"{end}6" not in self._roles:
                continue
            high, low = rows[f"{end}6_hi"], rows[f"{end}6_lo"]
            if f"{end}4" in self._roles:  # a template for both: the address that is not used is zero
                low = np.where((high | low) != 0, low, out[f"{end}_lo"])
            out[f"{end}_hi"], out[f"{end}_lo"] = high, low

    def _ports_and_icmp(self, rows: Column, out: FlowRecords) -> None:
        proto = out["proto"]
        is_icmp = _IS_ICMP[proto]
        if is_icmp.any():
            said = np.zeros(len(rows), np.uint16)
            for role in self._icmp:
                said |= _integers(rows[role]).astype(np.uint16) << (8 if role.startswith("type") else 0)
            # Exporters without an ICMP element put type and code where the destination port would be.
            out["icmp"] = np.where(said != 0, said, out["dst_port"]) * is_icmp
        has_ports = _HAS_PORTS[proto]
        out["src_port"] *= has_ports
        out["dst_port"] *= has_ports

    def _times(self, rows: Column, out: FlowRecords, export_ms: Int64s, uptime_ms: Int64s) -> None:
        if "boot_ms" in self._roles:
            uptime_ms = export_ms - _bounded(rows["boot_ms"])
        elif self.needs_uptime and (unknown := uptime_ms == UPTIME_UNKNOWN).any():
            # The last packet is then taken to be as old as the datagram: the length of the flow stays exact.
            newest = "end_uptime" if self._end == "uptime" else "start_uptime"
            uptime_ms = np.where(unknown, _integers(rows[newest]).astype(np.int64), uptime_ms)
        start = _time(rows, "start", self._start, export_ms, uptime_ms)
        end = _time(rows, "end", self._end, export_ms, uptime_ms)
        if start is None:
            start = export_ms if end is None else end
        out["start_ms"] = start
        out["end_ms"] = start if end is None else end

    def _own_sampling(self, rows: Column, otherwise: Int64s) -> Int64s:
        """Return the rate each record states itself, or ``otherwise`` where it states none."""
        if "interval" in self._roles:
            rate = _bounded(rows["interval"])
        elif {"taken", "left"} <= self._roles or {"taken", "of"} <= self._roles:
            taken = np.maximum(_bounded(rows["taken"]), 1)
            # 305/306: so many packets taken, then so many left out; 307/308 the same in microseconds; 309/310: so many
            # taken out of so many (RFC 5477)
            whole = taken + _bounded(rows["left"]) if "left" in self._roles else _bounded(rows["of"])
            rate = (whole + taken // 2) // taken
        elif "probability" in self._roles:
            rate = _one_of(rows["probability"])
        else:
            return otherwise
        return np.where(rate > 0, np.minimum(rate, 0xFFFF_FFFF), otherwise)


def _role(field: Field, options: bool) -> tuple[str, int]:
    """Return what a field is to us and its rank among others of that role; nothing when we do not read it."""
    role, rank = _ROLES.get((field.enterprise, field.element), ("", 0))
    return ("", 0) if options and role not in _OPTION_ROLES else (role, rank)


def check_fields(fields: Iterable[Field], *, options: bool) -> None:
    """Refuse lengths that elements we read cannot have; far cheaper than compiling, so done for every template.

    Raises:
        LayoutError: An address is not 4 or 16 bytes, an NTP timestamp not 8, an integer more than 8.
    """
    for field in fields:
        role, _ = _role(field, options)
        if not role or field.length in (0, VARIABLE_LENGTH):
            continue
        if role == "probability":
            if field.length not in _FLOAT_BYTES:
                raise LayoutError(f"length of element {field.element}", field.length, _MAX_INTEGER_BYTES)
            continue
        exact = _ADDRESS_BYTES.get(role, _NTP_BYTES if role.endswith("_ntp") else 0)
        if field.length != exact if exact else field.length > _MAX_INTEGER_BYTES:
            raise LayoutError(f"length of element {field.element}", field.length, exact or _MAX_INTEGER_BYTES)


def _runs(fields: Iterable[Field]) -> list[int]:
    """Return the lengths of the fixed runs of bytes between variable-length fields."""
    runs = [0]
    for field in fields:
        if field.length == VARIABLE_LENGTH:
            runs.append(0)
        else:
            runs[-1] += field.length
    return runs


def _places(fields: Iterable[Field], options: bool) -> dict[str, tuple[int, int]]:
    """Return role -> (offset, length) of the elements we read; offsets count without variable-length fields."""
    best: dict[str, tuple[int, int, int]] = {}
    offset = 0
    for field in fields:
        if field.length == VARIABLE_LENGTH:
            continue
        role, rank = _role(field, options)
        if role and field.length and (role not in best or rank < best[role][0]):
            best[role] = (rank, offset, field.length)
        offset += field.length
    return {role: (at, length) for role, (_, at, length) in best.items()}


def _without_half_pairs(fields: Sequence[Field]) -> list[Field]:
    """Return the fields, those that count the responder without counting the initiator made unknown ones.

    Huawei's NetStream sends another thing of two bytes under 232, captured; it would make a biflow of every record.
    """
    elements = {field.element for field in fields if not field.enterprise}
    unpaired = {other for other, one in ((232, 231), (299, 298)) if one not in elements}
    return [Field(0, field.length) if not field.enterprise and field.element in unpaired else field for field in fields]


def _outgoing(fields: Sequence[Field], version: int, roles: dict[str, tuple[int, int]]) -> None:
    """Add what 23 and 24 count where 1 and 2 count as well."""
    elements = {field.element for field in fields if not field.enterprise}
    meaning = _meaning_of_outgoing(fields, version)
    for incoming, outgoing, counter in ((2, 24, "packets"), (1, 23, "bytes")):
        if not meaning or not {incoming, outgoing} <= elements:
            continue
        offset = 0
        for field in fields:
            if field.length == VARIABLE_LENGTH:
                continue
            if (field.element, field.enterprise) == (outgoing, 0) and field.length:
                roles.setdefault(f"{meaning}_{counter}", (offset, field.length))
            offset += field.length


def _meaning_of_outgoing(fields: Sequence[Field], version: int) -> str:
    """Return "reverse", "egress" or nothing for elements 23 and 24 beside 1 and 2.

    - nProbe counts the other direction there, in both versions; ntop's own elements tell it.
    - IPFIX means "after a middlebox" (postOctetDeltaCount): the same packets once more.
    - So does FortiOS in v9: it sends a record for each direction, and what it forwarded beside what it received.
    - Where v9 records tell a direction (element 61), they count a flow seen on its way out.
    - Else it is the other direction: what exporters of bidirectional v9 records use OUT_BYTES and OUT_PKTS for.
    """
    is_ntop = any(
        field.enterprise == NTOP_ENTERPRISE or (version == 9 and field.element in _NTOP_V9_ELEMENTS) for field in fields
    )
    if is_ntop:
        return "reverse"
    if version != 9 or [(field.element, field.length) for field in fields[:4]] == _FORTIOS:
        return ""
    return "egress" if any(field.element == _DIRECTION for field in fields) else "reverse"


def _dtype(roles: dict[str, tuple[int, int]], size: int) -> np.dtype[Any]:
    names, formats, offsets = [], [], []
    for role, (offset, length) in roles.items():
        if _ADDRESS_BYTES.get(role) == 16:
            names += [f"{role}_hi", f"{role}_lo"]
            formats += [">u8", ">u8"]
            offsets += [offset, offset + 8]
        else:
            names.append(role)
            formats.append(_INTEGER_TYPES.get(length, (np.uint8, (length,))))
            offsets.append(offset)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def _integers(column: Column) -> Column:
    """Return a column of integers; those of 3, 5, 6 or 7 bytes come as rows of bytes."""
    if column.ndim == 1:
        return column
    weights = np.uint64(1) << (np.arange(column.shape[1] - 1, -1, -1, dtype=np.uint64) * np.uint64(8))
    total: Column = (column.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return total


def _bounded(column: Column) -> Int64s:
    """Return unsigned values as signed ones, none above :data:`MAX_TIME_MS`."""
    return np.minimum(_integers(column).astype(np.uint64), np.uint64(MAX_TIME_MS)).astype(np.int64)


def _from_ntp(column: Column) -> Int64s:
    """Return Unix milliseconds of NTP timestamps, those before 1970 read as of the era that begins in 2036.

    Source: RFC 7011 section 6.1.9, RFC 5905 section 6.
    """
    stamp = column.astype(np.uint64)
    seconds = (stamp >> np.uint64(32)).astype(np.int64)
    seconds = np.where(seconds < _NTP_UNIX_S, seconds + (1 << 32), seconds) - _NTP_UNIX_S
    fraction_ms = ((stamp & np.uint64(0xFFFF_FFFF)) * np.uint64(1000)) >> np.uint64(32)
    return seconds * 1000 + fraction_ms.astype(np.int64)


def _one_of(probabilities: Column) -> Int64s:
    """Return "one of so many packets" for big-endian floats; 0, which says nothing, where they are no probability."""
    whole = np.ascontiguousarray(probabilities)
    values = whole.view(f">f{whole.dtype.itemsize}").astype(np.float64)
    sane = (values > 0.0) & (values <= 1.0)
    return np.where(sane, np.minimum(np.rint(1.0 / np.where(sane, values, 1.0)), 0xFFFF_FFFF), 0).astype(np.int64)


def _time_form(roles: Iterable[str], which: str) -> str:
    """Return in which form a template gives start or end: the best of those it has, empty when it has none."""
    return next((form for form in ("ms", "ntp", "ago_us", "s", "uptime") if f"{which}_{form}" in roles), "")


def _time(rows: Column, which: str, form: str, export_ms: Int64s, uptime_ms: Int64s) -> Int64s | None:
    """Return start or end in Unix ms; None when the records do not give it."""
    if not form:
        return None
    column = rows[f"{which}_{form}"]
    if form == "ms":
        return _bounded(column)
    if form == "ntp":
        return _from_ntp(column)
    if form == "ago_us":  # "negative time offset ... relative to the export time" (RFC 5102 section 5.9.9)
        return export_ms - _bounded(column) // 1000
    if form == "s":
        return np.minimum(_bounded(column), MAX_TIME_MS // 1000) * 1000
    # Uptimes wrap after 49.7 days: their difference modulo 2^32, read as signed, is right across a wrap and for a
    # packet stamped just after the header.
    age = (uptime_ms - _integers(column).astype(np.int64)).astype(np.uint32)
    return export_ms - age.view(np.int32)


def _spread(values: list[int], counts: list[int]) -> Int64s:
    """Return each value as often as its chunk has records."""
    return np.repeat(np.array(values, np.int64), counts)
