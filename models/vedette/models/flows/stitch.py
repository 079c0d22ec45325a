"""Two halves make a biflow: pairing of unidirectional records, and who of the two asked.

Rules, all deterministic in the order of the records given:

- Two records are halves of one flow when protocol and both endpoints agree with the directions swapped, and the later
  one starts no more than :data:`MAX_GAP_MS` after the earlier one ends. ICMP has no ports: its endpoints are addresses.
- The first record of one direction pairs with the first of the other, the second with the second.
- The client of a flow is, by the first of these that decides:
  1. ICMP: who sent the request, and for an error message who caused it, that is its receiver;
  2. the half that started earlier;
  3. the side whose TCP flags show SYN without ACK while the other's do not;
  4. the side with the higher class of port (well-known, registered, ephemeral), then with the higher port;
  5. the source of the record that came first.
- Records that are biflows already are oriented by the same rules 1 and 3 to 5: RFC 5103 asks exporters to put the
  initiator first, softflowd 1.1.0 puts the lower address first (measured on the shared captures).
- A record whose other half is missing keeps its direction, unless it is plainly an answer: an ICMP reply or error; TCP
  with RST and ACK but no SYN, or with SYN and ACK from a lower class of port; a well-known source port talking to one
  that is not. Turned round, its counters stand on the reverse side and the forward ones are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vedette.models.flows.hashing import begins, destination_keys, join, mix, source_keys
from vedette.models.flows.records import FlowRecords, chosen

MAX_GAP_MS = 2_000
"""Both halves of a flow leave the exporter with the same times (measured: softflowd, pmacct) up to its rounding."""

WELL_KNOWN = 1024
EPHEMERAL = 32_768
"""Where Linux begins its ephemeral ports; IANA's 49152 (RFC 6335 section 6) would split Linux clients in two."""

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def _kinds(version4: tuple[int, ...], version6: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    table = np.zeros((2, 256), np.bool_)
    table[0, version4], table[1, version6] = True, True
    return table


# RFC 792; RFC 4443, RFC 2710, RFC 4861, RFC 4620 and RFC 6275 for version 6. Rows: version 4, version 6.
_ICMP_REQUESTS = _kinds((8, 13, 15, 17), (128, 130, 133, 135, 139, 144))
# Type 0, the echo reply, is missing: exporters that do not report the type leave 0 as well.
_ICMP_ANSWERS = _kinds((3, 4, 5, 11, 12, 14, 16, 18), (1, 2, 3, 4, 129, 131, 134, 136, 140, 145))

_ICMP_ERRORS = _kinds((3, 4, 11, 12), (1, 2, 3, 4))

_SIDES = (
    ("src_hi", "dst_hi"),
    ("src_lo", "dst_lo"),
    ("src_port", "dst_port"),
    ("packets", "reverse_packets"),
    ("bytes", "reverse_bytes"),
    ("flags", "reverse_flags"),
)

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stitched:
    """Biflows, client first, and which of the given records each was made of."""

    flows: FlowRecords
    first: Rows  # shape (flows,), the record that came first
    second: Rows  # shape (flows,), the other half, -1 when there is none


def stitch(records: FlowRecords) -> Stitched:
    """Return the biflows of ``records``, oriented from client to server, in the order of their first record.

    Flows of one half keep ``bidirectional`` false.
    """
    partner = pair_halves(records)
    position = np.arange(len(records), dtype=np.int64)
    first = position[(partner < 0) | (position < partner)]
    second = partner[first]
    paired = np.flatnonzero(second >= 0)
    ahead, back = first.copy(), second[paired]
    begin = records["start_ms"]
    decided = np.zeros(len(first), np.bool_)
    decided[paired] = begin[back] != begin[first[paired]]
    late = begin[back] < begin[first[paired]]
    ahead[paired[late]], back[late] = back[late], ahead[paired[late]]
    flows = chosen(records, ahead)
    answer_icmp = np.zeros(len(first), np.uint16)
    answer_icmp[paired] = records["icmp"][back]
    _join(flows, paired, records, back)
    return Stitched(_oriented(flows, answer_icmp, decided), first, second)


def pair_halves(records: FlowRecords) -> Rows:
    """Return for each record the row of its other half, or -1. Shape (records,)."""
    partner = np.full(len(records), -1, np.int64)
    one_way = np.flatnonzero(~records["bidirectional"])
    if len(one_way) < 2:
        return partner
    halves = records if len(one_way) == len(records) else chosen(records, one_way)
    left, right = _endpoint_keys(halves)
    backward = left > right
    # The sum is the same in both directions; the lowest bit then keeps the two directions of a key apart and adjacent.
    key = (mix(left + right) ^ mix(halves["proto"])) & ~np.uint64(1)
    order = np.argsort(key | backward, kind="stable")
    key, backward = key[order], backward[order]
    first = begins(key)
    group = np.cumsum(first) - 1
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(key))
    forwards = np.bincount(group[~backward], minlength=len(starts))
    rank = np.arange(len(key)) - starts[group]
    other = np.flatnonzero(~backward)
    match = starts[group[other]] + forwards[group[other]] + rank[other]
    has = match < ends[group[other]]
    ahead, back = order[other[has]], order[match[has]]
    agree = _are_halves(halves, ahead, back)
    ahead, back = one_way[ahead[agree]], one_way[back[agree]]
    partner[ahead], partner[back] = back, ahead
    return partner


def port_class(ports: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """Return 0 for well-known ports, 1 for registered and 2 for ephemeral ones; 0 also where there is no port."""
    return (ports >= WELL_KNOWN).astype(np.int64) + (ports >= EPHEMERAL)


def icmp_errors(flows: FlowRecords) -> Mask:
    """Tell which flows are ICMP messages that report a failure (RFC 792, RFC 4443 section 2.1)."""
    icmp = (flows["proto"] == ICMP) | (flows["proto"] == ICMP6)
    errors: Mask = icmp & _icmp_in(_ICMP_ERRORS, flows["proto"], flows["icmp"])
    return errors


def _endpoint_keys(records: FlowRecords) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    left = join(source_keys(records), records["src_port"])
    return left, join(destination_keys(records), records["dst_port"])


def _are_halves(halves: FlowRecords, one: npt.NDArray[np.intp], other: npt.NDArray[np.intp]) -> Mask:
    """Tell which rows truly belong together: keys may collide, and a port may be used again."""
    agree: Mask = halves["proto"][one] == halves["proto"][other]
    for mine, theirs in (("src_hi", "dst_hi"), ("src_lo", "dst_lo"), ("src_port", "dst_port")):
        left, right = halves[mine], halves[theirs]
        agree &= (left[one] == right[other]) & (right[one] == left[other])
    begin, end = halves["start_ms"], halves["end_ms"]
    agree &= np.maximum(begin[one], begin[other]) - np.minimum(end[one], end[other]) <= MAX_GAP_MS
    return agree


def _join(flows: FlowRecords, paired: Rows, records: FlowRecords, back: Rows) -> None:
    """Write the other halves ``records[back]`` into the reverse side of ``flows[paired]``."""
    if len(paired) == 0:
        return
    for name in ("packets", "bytes", "flags"):
        flows["reverse_" + name][paired] = records[name][back]
    for name in ("end_ms", "export_ms", "end_reason"):
        column = flows[name]
        column[paired] = np.maximum(column[paired], records[name][back])
    flows["bidirectional"][paired] = True


def _oriented(flows: FlowRecords, answer_icmp: npt.NDArray[np.uint16], decided: Mask) -> FlowRecords:
    """Turn those flows round whose destination asked; ``decided`` ones only when ICMP says so."""
    proto = flows["proto"]
    icmp = (proto == ICMP) | (proto == ICMP6)
    swap = np.where(flows["bidirectional"], ~decided & _client_is_destination(flows), _looks_like_an_answer(flows))
    if icmp.any():
        asked_back = icmp & _icmp_in(_ICMP_REQUESTS, proto, answer_icmp)
        swap = np.where(icmp, asked_back | _icmp_in(_ICMP_ANSWERS, proto, flows["icmp"]), swap)
        flows["icmp"][asked_back] = answer_icmp[asked_back]
    rows = np.flatnonzero(swap)
    for one, other in _SIDES:
        left, right = flows[one], flows[other]
        left[rows], right[rows] = right[rows], left[rows]
    return flows


def _client_is_destination(flows: FlowRecords) -> Mask:
    asks = _opens(flows["flags"])
    asked = _opens(flows["reverse_flags"])
    source, destination = flows["src_port"], flows["dst_port"]
    source_class, destination_class = port_class(source), port_class(destination)
    by_port = (destination_class > source_class) | ((destination_class == source_class) & (destination > source))
    tcp = flows["proto"] == TCP
    clear: Mask = tcp & (asks != asked)
    return np.where(clear, asked, by_port)


def _looks_like_an_answer(flows: FlowRecords) -> Mask:
    flags = flows["flags"]
    accepts = (flags & (SYN | ACK) == (SYN | ACK)) & (port_class(flows["src_port"]) < port_class(flows["dst_port"]))
    refuses = flags & (SYN | RST | ACK) == (RST | ACK)
    from_service = (flows["src_port"] < WELL_KNOWN) & (flows["dst_port"] >= WELL_KNOWN)
    udp: Mask = (flows["proto"] == UDP) & from_service & (flows["src_port"] > 0)
    tcp: Mask = (flows["proto"] == TCP) & (
        accepts | refuses | (from_service & ~_opens(flags) & (flows["src_port"] > 0))
    )
    return udp | tcp


def _opens(flags: npt.NDArray[np.uint8]) -> Mask:
    """Tell which sides sent SYN and never ACK."""
    opens: Mask = flags & (SYN | ACK) == SYN
    return opens


def _icmp_in(kinds: Mask, proto: npt.NDArray[np.uint8], icmp: npt.NDArray[np.uint16]) -> Mask:
    found: Mask = kinds[(proto == ICMP6).astype(np.int64), icmp >> 8]
    return found
