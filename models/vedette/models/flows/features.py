"""The features of a flow: what the record itself says, and what its source, destination, pair and service were doing.

No address, no port number (three classes of port only) and no clock is a feature. Counters are scaled by the sampling
rate. Every value is finite. Ratios are given beside counts because trees cannot divide; logarithms are not, because
trees do not need them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vedette.models.flows.context import (
    FIRST_MEAN,
    INTERVAL_DEVIATION,
    INTERVAL_MEAN,
    INTERVALS,
    UPDATES,
    WARM_S,
    Floats,
    Table,
    TableShape,
    Tick,
    Touched,
)
from vedette.models.flows.hashing import destination_keys, join, mix, source_keys
from vedette.models.flows.records import FlowRecords
from vedette.models.flows.stitch import ACK, FIN, ICMP, ICMP6, PSH, RST, SYN, TCP, UDP, icmp_errors, port_class
from vedette.models.schema import Feature, FeatureSchema

_RECORD = (
    ("tcp", "0/1", "The protocol is TCP"),
    ("udp", "0/1", "The protocol is UDP"),
    ("icmp", "0/1", "The protocol is ICMP or ICMPv6"),
    ("icmp_error", "0/1", "An ICMP message that reports a failure to the client"),
    ("duration", "s", "From the first to the last packet"),
    ("packets", "packets", "From client to server"),
    ("bytes", "bytes", "From client to server"),
    ("reverse_packets", "packets", "From server to client"),
    ("reverse_bytes", "bytes", "From server to client"),
    ("bytes_per_packet", "bytes", "Mean size of the client's packets"),
    ("reverse_bytes_per_packet", "bytes", "Mean size of the server's packets"),
    ("byte_share", "ratio", "Client's share of all bytes"),
    ("packet_share", "ratio", "Client's share of all packets"),
    ("packet_rate", "packets/s", "Packets of both sides over the duration, which counts as 1 ms at least"),
    ("byte_rate", "bytes/s", "Bytes of both sides over the duration, which counts as 1 ms at least"),
    ("packet_gap", "s", "Duration over the packets of both sides"),
    ("client_syn", "0/1", "The client's packets show SYN"),
    ("client_ack", "0/1", "The client's packets show ACK"),
    ("client_psh", "0/1", "The client's packets show PSH"),
    ("client_fin", "0/1", "The client's packets show FIN"),
    ("client_rst", "0/1", "The client's packets show RST"),
    ("server_syn", "0/1", "The server's packets show SYN"),
    ("server_ack", "0/1", "The server's packets show ACK"),
    ("server_psh", "0/1", "The server's packets show PSH"),
    ("server_fin", "0/1", "The server's packets show FIN"),
    ("server_rst", "0/1", "The server's packets show RST"),
    ("unanswered", "0/1", "No packet of the server was seen"),
    ("failed", "0/1", "Never answered, refused, or an ICMP error"),
    ("server_port_class", "class", "0 well-known or none, 1 registered, 2 ephemeral (from 32768)"),
    ("client_port_class", "class", "0 well-known or none, 1 registered, 2 ephemeral (from 32768)"),
)
_COUNTS = (
    ("flows_10s", "flows", "Flows, decayed at 10 s"),
    ("flows_60s", "flows", "Flows, decayed at 60 s"),
    ("failed_10s", "flows", "Failed flows, decayed at 10 s"),
    ("failed_60s", "flows", "Failed flows, decayed at 60 s"),
    ("failed_share_60s", "ratio", "Share of failed flows at 60 s"),
    ("bytes_60s", "bytes", "From clients, decayed at 60 s"),
    ("reverse_bytes_60s", "bytes", "From servers, decayed at 60 s"),
    ("byte_share_60s", "ratio", "Clients' share of the bytes at 60 s"),
    ("busy_60s", "s", "Durations of flows that ended, decayed at 60 s"),
)
_SOURCE = (
    ("hosts", "hosts", "Different servers in the last 30 to 60 s, estimated"),
    ("ports", "ports", "Different server ports in the last 30 to 60 s, estimated"),
)
_DESTINATION = (
    ("hosts", "hosts", "Different clients in the last 30 to 60 s, estimated"),
    ("ports", "ports", "Different ports asked for in the last 30 to 60 s, estimated"),
)
_PAIR = (
    ("ports", "ports", "Different server ports in the last 30 to 60 s, estimated"),
    ("known", "ratio", "0 new to 1 seen for ten minutes or since the first one"),
)
_SERVICE = (
    ("hosts", "hosts", "Different clients in the last 30 to 60 s, estimated"),
    ("known", "ratio", "0 new to 1 seen for ten minutes or since the first one"),
    ("bytes_to_usual", "ratio", "This flow's client bytes over the usual ones of this service"),
    ("reverse_bytes_to_usual", "ratio", "This flow's server bytes over the usual ones of this service"),
    ("duration_to_usual", "ratio", "This flow's duration over the usual one of this service"),
)
_USER = (
    ("known", "ratio", "0 new to 1 seen for ten minutes or since the first one"),
    ("intervals", "intervals", "Intervals between flows seen so far, 50 at most"),
    ("interval", "s", "Weighted mean of the interval between flows, 0 before the first"),
    ("interval_spread", "ratio", "Mean deviation of the interval over its mean; 1 before the third interval"),
    ("size", "bytes", "Weighted mean of the client's bytes a flow"),
    ("size_spread", "ratio", "Mean deviation of the client's bytes over their mean; 1 before the third second"),
    ("reverse_size", "bytes", "Weighted mean of the server's bytes a flow"),
    ("reverse_size_spread", "ratio", "Mean deviation of the server's bytes over their mean; 1 before the third second"),
)
_ROLES = (
    ("source", "the client", _SOURCE),
    ("destination", "the server", _DESTINATION),
    ("pair", "this client with this server", _PAIR),
    ("service", "this server's port", _SERVICE),
    ("user", "this client at this server's port", _USER),
)


def _schema() -> FeatureSchema:
    features = [Feature(name, unit, text) for name, unit, text in _RECORD]
    for role, who, own in _ROLES:
        features += [Feature(f"{role}_{name}", unit, f"{text} ({who})") for name, unit, text in (*_COUNTS, *own)]
    return FeatureSchema("flow-context", tuple(features), "flow")


FLOW_SCHEMA = _schema()
"""The features that :class:`vedette.models.flows.extract.FlowExtractor` fills, all float32."""

_FLOWS, _FAILED, _BYTES, _REVERSE, _BUSY_MS = range(5)
_MAX_DURATION_MS = 86_400_000
_MAX_TIME_MS = 1 << 48  # the year 10889: differences of such times cannot overflow
_MAX_RATIO = 1e6
_MAX_INTERVALS = 50.0

Matrix = npt.NDArray[np.float32]


class Context:
    """The five tables of one exporter, from the first tick of an epoch on."""

    def __init__(self, first_tick: int) -> None:
        self._warm_until = first_tick + WARM_S
        self.source = Table(TableShape(sums=5, bitmaps=2))
        self.destination = Table(TableShape(sums=5, bitmaps=2))
        self.pair = Table(TableShape(sums=5, bitmaps=1, limit=32_768))
        self.service = Table(TableShape(sums=5, bitmaps=1, means=3, weight=0.05))
        self.user = Table(TableShape(sums=5, means=2, limit=65_536))

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables in the order of the schema."""
        return (self.source, self.destination, self.pair, self.service, self.user)

    def advance(self, flows: FlowRecords, tick: int) -> Matrix:
        """Add the biflows of one closed tick and return their features, shape (flows, len(FLOW_SCHEMA))."""
        record, amounts = _record_features(flows)
        when = Tick(tick, self._warm_until, amounts, np.clip(flows["start_ms"], 0, _MAX_TIME_MS))
        source, destination = source_keys(flows), destination_keys(flows)
        port = flows["dst_port"].astype(np.uint64)
        service = join(destination, (port << np.uint64(8)) | flows["proto"])
        port = mix(port)
        made = np.empty((len(flows), len(FLOW_SCHEMA)), np.float32)
        made[:, : len(_RECORD)] = record
        column = len(_RECORD)
        for block in (
            _source_block(self.source.touch(source, when, (destination, port))),
            _source_block(self.destination.touch(destination, when, (source, port))),
            _pair_block(self.pair.touch(join(source, destination), when, (port,))),
            _service_block(self.service.touch(service, when, (source,), amounts[:, _BYTES:]), amounts),
            _user_block(self.user.touch(join(source, service), when, (), amounts[:, _BYTES:_BUSY_MS])),
        ):
            made[:, column : column + block.shape[1]] = block
            column += block.shape[1]
        return made


def _record_features(flows: FlowRecords) -> tuple[Floats, Floats]:
    """Return the features of the records alone and what they add to the tables."""
    count, proto = len(flows), flows["proto"]
    scale = np.maximum(flows["sampling"], 1).astype(np.float64)
    packets, reverse_packets = flows["packets"] * scale, flows["reverse_packets"] * scale
    sent, received = flows["bytes"] * scale, flows["reverse_bytes"] * scale
    lasted_ms = _durations_ms(flows)
    whole_packets, whole_bytes = packets + reverse_packets, sent + received
    lasted = np.maximum(lasted_ms, 1.0) / 1000.0
    flags, reverse_flags = flows["flags"], flows["reverse_flags"]
    tcp, errors = proto == TCP, icmp_errors(flows)
    unanswered = flows["reverse_packets"] == 0
    failed = np.where(tcp & ~_is_open(flags, reverse_flags), reverse_flags & SYN == 0, unanswered) | errors
    made = np.empty((count, len(_RECORD)))
    for column, values in enumerate(
        (
            *(tcp, proto == UDP, (proto == ICMP) | (proto == ICMP6), errors),
            *(lasted_ms / 1000.0, packets, sent, reverse_packets, received),
            *(_ratio(sent, packets), _ratio(received, reverse_packets)),
            *(_ratio(sent, whole_bytes), _ratio(packets, whole_packets)),
            *(whole_packets / lasted, whole_bytes / lasted, _ratio(lasted_ms / 1000.0, whole_packets)),
            *(flags & bit != 0 for bit in (SYN, ACK, PSH, FIN, RST)),
            *(reverse_flags & bit != 0 for bit in (SYN, ACK, PSH, FIN, RST)),
            *(unanswered, failed, port_class(flows["dst_port"]), port_class(flows["src_port"])),
        )
    ):
        made[:, column] = values
    amounts = np.empty((count, 5))
    for column, values in enumerate((np.ones(count), failed, sent, received, lasted_ms)):
        amounts[:, column] = values
    return made, amounts


def _is_open(flags: npt.NDArray[np.uint8], reverse_flags: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell which TCP flows show a connection that was made before, or nothing of how it was made.

    After its active time-out an exporter reports a connection in parts, and all but the first show no SYN; a sampled
    one may have missed it. Some exporters (FortiOS) send no flags at all, and no packet of TCP is without one.
    """
    goes_on: npt.NDArray[np.bool_] = (flags & (SYN | RST) == 0) & (reverse_flags & (SYN | RST | ACK) == ACK)
    unsaid: npt.NDArray[np.bool_] = (flags | reverse_flags) == 0
    return np.logical_or(goes_on, unsaid, out=goes_on)


def _durations_ms(flows: FlowRecords) -> Floats:
    begin = np.clip(flows["start_ms"], 0, _MAX_TIME_MS)
    end = np.clip(flows["end_ms"], 0, _MAX_TIME_MS)
    lasted: Floats = np.clip(end - begin, 0, _MAX_DURATION_MS).astype(np.float64)
    return lasted


def _counts(touched: Touched, own: int) -> Floats:
    """Return the block of a table by entry, its own columns still to be filled, shape (entries, counts + own)."""
    fast, slow = touched.fast, touched.slow
    block = np.empty((len(fast), len(_COUNTS) + own))
    block[:, 0], block[:, 1] = fast[:, _FLOWS], slow[:, _FLOWS]
    block[:, 2], block[:, 3] = fast[:, _FAILED], slow[:, _FAILED]
    block[:, 4] = slow[:, _FAILED] / slow[:, _FLOWS]
    block[:, 5], block[:, 6] = slow[:, _BYTES], slow[:, _REVERSE]
    block[:, 7] = _ratio(slow[:, _BYTES], slow[:, _BYTES] + slow[:, _REVERSE])
    block[:, 8] = slow[:, _BUSY_MS] / 1000.0
    return block


def _source_block(touched: Touched) -> Floats:
    block = _counts(touched, len(_SOURCE))
    block[:, len(_COUNTS) :] = touched.distinct
    return _by_flow(block, touched)


def _pair_block(touched: Touched) -> Floats:
    block = _counts(touched, len(_PAIR))
    block[:, len(_COUNTS)] = touched.distinct[:, 0]
    block[:, len(_COUNTS) + 1] = touched.known
    return _by_flow(block, touched)


def _service_block(touched: Touched, amounts: Floats) -> Floats:
    own = len(_COUNTS)
    block = _counts(touched, len(_SERVICE))
    block[:, own], block[:, own + 1] = touched.distinct[:, 0], touched.known
    # What was usual before this tick; in the first tick of a service its own flows are what is usual.
    means = np.where(touched.earlier[:, UPDATES, None] > 0, touched.earlier, touched.means)
    block[:, own + 2 :] = means[:, [FIRST_MEAN, FIRST_MEAN + 2, FIRST_MEAN + 4]]
    by_flow = _by_flow(block, touched)
    by_flow[:, own + 2 :] = np.minimum((amounts[:, _BYTES:] + 1.0) / (by_flow[:, own + 2 :] + 1.0), _MAX_RATIO)
    return by_flow


def _user_block(touched: Touched) -> Floats:
    own, means = len(_COUNTS), touched.means
    block = _counts(touched, len(_USER))
    block[:, own] = touched.known
    block[:, own + 1] = np.minimum(means[:, INTERVALS], _MAX_INTERVALS)
    block[:, own + 2] = means[:, INTERVAL_MEAN] / 1000.0
    block[:, own + 3] = _spread(means[:, INTERVAL_MEAN], means[:, INTERVAL_DEVIATION], means[:, INTERVALS])
    for column, mean in ((own + 4, FIRST_MEAN), (own + 6, FIRST_MEAN + 2)):
        block[:, column] = means[:, mean]
        block[:, column + 1] = _spread(means[:, mean], means[:, mean + 1], means[:, UPDATES])
    return _by_flow(block, touched)


def _by_flow(block: Floats, touched: Touched) -> Floats:
    by_flow: Floats = block[touched.entry]
    return by_flow


def _spread(mean: Floats, deviation: Floats, count: Floats) -> Floats:
    return np.where(count >= 3, np.minimum(_ratio(deviation, mean), _MAX_RATIO), 1.0)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Return ``part / whole``, 0 where the whole is 0."""
    return part / np.where(whole > 0, whole, np.inf)
