"""Decode NetFlow v5, v9 and IPFIX datagrams of many exporters into :data:`FLOW_RECORD` arrays.

Rules:
    - A bad datagram stops nothing. :meth:`FlowDecoder.decode` never raises for bytes from the network: it returns the
      records that stand before the fault (and behind it, when the set's length still tells where the next one begins),
      counts the fault by :class:`Reason` in :attr:`FlowDecoder.counters`, keeps it as :attr:`FlowDecoder.last_error`.
    - An exporter is (address, version, observation domain or source id or engine), whatever its source port. What it
      says of itself is kept by source port: two programs on one address may give a template id two meanings (RFC 7011
      section 3.4.1: unique per transport session). A port that sends no templates is read by those of the others.
    - State is bounded by :class:`Limits`, longest silent out first.
    - Data of a template that was not seen is counted, not kept: decoded late, it would turn the exporter's record clock
      back, and so change features. What a restart would lose that way is kept by :meth:`FlowDecoder.dump_templates`.
    - The last definition of a template counts; one that is refused takes the earlier one away, because data that
      follows is no longer laid out that way.
    - A sequence gap is suspected loss, not proof; numbers that count nothing are told apart (``sequence``).
    - An exporter's sampling rate is that of its last option record. Records that name a sampler have the rate that
      option records gave it, records that state their own have that; a new rate holds for what comes after it.

Times: v5 and v9 count from the header's time less its uptime; IPFIX fields 21/22 from the boot time that the exporter
sends in element 160, or, until it does, such that the last packet is as old as the datagram (counted).

Work is done once per template and batch, not per datagram: :meth:`FlowDecoder.decode_many` is several times faster.
Not thread-safe.

Source: Cisco NetFlow export v5, RFC 3954 (v9), RFC 7011 (IPFIX), RFC 5103 (biflows), RFC 5477 (sampling).
"""

from __future__ import annotations

import json
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.layouts import MAX_TIME_MS, UPTIME_UNKNOWN, Chunk, Field, Layout
from vedette.models.flows.records import FLOW_RECORD, FlowRecords, empty
from vedette.models.flows.sequence import Counting, Sequence
from vedette.models.flows.templates import Limits, NetflowError, Reason, Template, Withdrawal, read_templates

_V5_HEADER = struct.Struct(">HHIIIIBBH")
_V9_HEADER = struct.Struct(">HHIIII")
_IPFIX_HEADER = struct.Struct(">HHIII")
_SET_HEADER = struct.Struct(">HH")
_FIRST_DATA_SET = 256
_TEMPLATE_SETS = {9: {0: False, 1: True}, 10: {2: False, 3: True}}  # version -> set id -> holds options templates
_UINT16 = 0xFFFF
_UINT32 = 0xFFFF_FFFF
# A v5 record in the words of v9, so that one conversion serves all; 0 is padding (Cisco NetFlow export v5).
_V5 = Layout(
    [
        Field(element, length)
        for element, length in (
            (8, 4), (12, 4), (15, 4), (10, 2), (14, 2), (2, 4), (1, 4), (22, 4), (21, 4), (7, 2), (11, 2),
            (0, 1), (6, 1), (4, 1), (5, 1), (16, 2), (17, 2), (9, 1), (13, 1), (0, 2),
        )
    ],
    version=5,
)  # fmt: skip
_REMEMBERED_EVICTED = 4096
_REMEMBERED_MISSING = 16
_SAVED_FORM = 1
_MOST_ADDRESS = 128  # characters, with a zone


class Exporter(NamedTuple):
    """Who made a record."""

    address: str
    version: int
    domain: int  # source id of v9, observation domain of IPFIX, engine type and id of v5


@dataclass(slots=True)
class Counters:
    """What a decoder did since it was made."""

    datagrams: int = 0
    bytes: int = 0
    records: int = 0
    malformed: Counter[str] = field(default_factory=Counter)  # faults by Reason
    unknown_template_sets: int = 0
    unknown_template_bytes: int = 0
    records_not_flows: int = 0  # of templates without two addresses
    records_boot_unknown: int = 0  # whose times lean on the export time, see the module
    option_records: int = 0
    templates_defined: int = 0
    templates_redefined: int = 0  # of those, over another definition of the same id
    templates_withdrawn: int = 0
    templates_evicted: int = 0
    exporters_evicted: int = 0
    sequence_gaps: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return all of them as plain JSON values."""
        return asdict(self) | {"malformed": dict(self.malformed)}


@dataclass(frozen=True, slots=True)
class ExporterStatus:
    """What the decoder knows of one exporter at one of its source ports."""

    index: int  # in a record's ``exporter``
    exporter: Exporter
    source_port: int
    datagrams: int
    records: int
    sequence_gaps: int  # suspected only, see the module
    sequence_lost: int  # in those gaps, in units of ``counting``
    sequence_late: int  # datagrams that came late or twice
    counting: Counting | None  # what its numbers count; None while that is judged or when they are not credible
    is_credible: bool | None  # whether its numbers say what is lost; None while that is judged
    heard_ms: int  # receiver's clock, Unix ms
    clock_ahead_ms: int  # export time of the last datagram less the receiver's clock
    boot_ms: int  # 0: not said
    sampling: int
    samplers: Mapping[int, int]  # rate by the id of a sampler
    templates: int
    missing: tuple[int, ...] = ()  # ids of templates whose data came and whose definition has not, a few of them


@dataclass(slots=True, eq=False)
class _Shared:
    """What the source ports of one exporter have in common."""

    index: int
    boot_ms: int = 0  # as last said at any port
    sampling: int = 1
    samplers: Mapping[int, int] = field(default_factory=dict)  # replaced, never changed: chunks hold it
    states: list[_State] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _State:
    exporter: Exporter
    source_port: int
    shared: _Shared
    sequence: Sequence
    datagrams: int = 0
    records: int = 0
    heard_ms: int = 0
    clock_ahead_ms: int = 0
    boot_ms: int = 0  # 0: not said
    sampling: int = 0  # 0: not said
    samplers: Mapping[int, int] = field(default_factory=dict)  # as in _Shared
    has_defined: bool = False  # a template set came
    templates: dict[int, Template] = field(default_factory=dict)  # the longest not refreshed first
    missing: set[int] = field(default_factory=set)  # of data that could not be read since this state began

    def status(self) -> ExporterStatus:
        return ExporterStatus(
            self.shared.index,
            self.exporter,
            self.source_port,
            self.datagrams,
            self.records,
            self.sequence.gaps,
            self.sequence.lost,
            self.sequence.late,
            self.sequence.counting,
            self.sequence.is_credible,
            self.heard_ms,
            self.clock_ahead_ms,
            self.boot_ms or self.shared.boot_ms,
            self.sampling or self.shared.sampling,
            self.samplers or self.shared.samplers,
            len(self.templates),
            tuple(sorted(self.missing - self.templates.keys())),
        )


class _Source(NamedTuple):
    """What a datagram's header says of all its records."""

    state: _State
    export_ms: int
    uptime_ms: int


class _Batch:
    """Sets of many datagrams, gathered by layout and converted at once."""

    def __init__(self) -> None:
        self.total = 0
        self._chunks: dict[Layout, list[Chunk]] = {}

    def add(self, layout: Layout, body: bytes, count: int, source: _Source) -> None:
        state, export_ms, uptime_ms = source
        shared = state.shared
        sampling = state.sampling or shared.sampling
        samplers = state.samplers or shared.samplers
        chunk = Chunk(body, count, self.total, export_ms, uptime_ms, shared.index, sampling, samplers)
        self._chunks.setdefault(layout, []).append(chunk)
        self.total += count
        state.records += count

    def records(self) -> FlowRecords:
        """Return all records in the order in which they came."""
        if len(self._chunks) == 1:
            ((layout, chunks),) = self._chunks.items()
            return layout.convert(chunks)
        out = np.empty(self.total, FLOW_RECORD) if self.total else empty()
        for layout, chunks in self._chunks.items():
            counts = np.array([chunk.count for chunk in chunks])
            first_of = np.cumsum(counts) - counts  # in the converted array
            shift = np.array([chunk.position for chunk in chunks]) - first_of
            out[np.repeat(shift, counts) + np.arange(counts.sum())] = layout.convert(chunks)
        return out


class FlowDecoder:
    """The state of all exporters that send to one collector."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.counters = Counters()
        self.last_error: NetflowError | None = None
        self._limits = limits or Limits()
        self._states: OrderedDict[tuple[Exporter, int], _State] = OrderedDict()  # least recently heard first
        self._shared: dict[Exporter, _Shared] = {}
        self._names: dict[int, Exporter] = {}
        self._evicted: deque[int] = deque()  # indices that still have a name and no state
        self._states_at: Counter[str] = Counter()  # by address
        self._next_index = 0
        self._templates = 0  # over all exporters

    @property
    def exporters(self) -> Mapping[int, Exporter]:
        """Name each index in a record's ``exporter``, as a live view; an index is never used again.

        Holds all exporters that have state and the last 4,096 that lost it.
        """
        return MappingProxyType(self._names)

    def status(self) -> list[ExporterStatus]:
        """Return what is known of each exporter and source port, the longest silent first."""
        return [state.status() for state in self._states.values()]

    def decode(self, payload: bytes, exporter_address: str, received_ms: int, source_port: int = 0) -> FlowRecords:
        """Return the records of one datagram, in its order; never raises for what the bytes say.

        Args:
            payload: Of the UDP datagram.
            exporter_address: Where it came from, without the port.
            received_ms: Receiver's clock, Unix ms; only compared with the exporter's, no record depends on it.
            source_port: Of the sender; tells programs on one address apart where they contradict each other.
        """
        batch = _Batch()
        self._take(batch, Datagram(received_ms * 1_000_000, exporter_address, source_port, payload))
        return batch.records()

    def decode_many(self, datagrams: Iterable[Datagram]) -> FlowRecords:
        """Return the records of many datagrams, in their order: the same as decoding one after the other."""
        batch = _Batch()
        for datagram in datagrams:
            self._take(batch, datagram)
        return batch.records()

    def dump_templates(self) -> bytes:
        """Return what exporters have said of themselves, as JSON for :meth:`load_templates` of a later process."""
        exporters = [
            {
                **state.exporter._asdict(),
                "source_port": state.source_port,
                "boot_ms": state.boot_ms,
                "sampling": state.sampling,
                "samplers": list(state.samplers.items()),
                "templates": [[t.is_options, t.definition.hex()] for t in state.templates.values()],
            }
            for state in self._states.values()
            if state.templates
        ]
        return json.dumps({"form": _SAVED_FORM, "exporters": exporters}, separators=(",", ":")).encode()

    def load_templates(self, saved: bytes) -> None:
        """Take over what :meth:`dump_templates` wrote; a template is checked, and its fault counted, as one received.

        Raises:
            NetflowError: Too long, or not such a document; exporters before the fault are kept.
        """
        if len(saved) > self._limits.saved_bytes:
            limit = self._limits.saved_bytes
            raise NetflowError(Reason.SAVED_TEMPLATES, "bytes of saved templates", len(saved), limit)
        try:
            document = json.loads(saved)
            if document["form"] != _SAVED_FORM:
                raise ValueError(f"another form than {_SAVED_FORM}")
            for one in document["exporters"]:
                self._load_exporter(one)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
            # Not as repr: that of undecodable bytes holds all of them.
            what = f"bytes read as saved templates ({f'{type(exc).__name__}: {exc}'[:200]})"
            raise NetflowError(Reason.SAVED_TEMPLATES, what, 0, len(saved)) from exc

    def _load_exporter(self, one: Mapping[str, Any]) -> None:
        version, domain = int(one["version"]), int(one["domain"])
        if version not in _TEMPLATE_SETS or not 0 <= domain <= _UINT32:
            raise NetflowError(Reason.SAVED_TEMPLATES, f"version with domain {domain}", version, 10)
        port = int(one["source_port"])
        if not 0 <= port <= _UINT16:
            raise NetflowError(Reason.SAVED_TEMPLATES, "source port", port, _UINT16)
        state = self._state(Exporter(_address(one["address"]), version, domain), port)
        self._learn(state, min(max(int(one["boot_ms"]), 0), MAX_TIME_MS), min(max(int(one["sampling"]), 0), _UINT32))
        # Files of earlier versions have none.
        named = {int(sampler): min(max(int(rate), 0), _UINT32) for sampler, rate in one.get("samplers", ())}
        self._learn_samplers(state, {sampler: rate for sampler, rate in named.items() if rate})
        for is_options, definition in one["templates"]:
            self._define(state, bytes.fromhex(definition), is_options=bool(is_options))

    def _take(self, batch: _Batch, datagram: Datagram) -> None:
        counters = self.counters
        payload = datagram.payload
        counters.datagrams += 1
        counters.bytes += len(payload)
        before = batch.total
        try:
            version = int.from_bytes(payload[:2], "big")
            if version == 9:
                self._take_v9(batch, datagram)
            elif version == 10:
                self._take_ipfix(batch, datagram)
            elif version == 5:
                self._take_v5(batch, datagram)
            elif len(payload) < 2:
                raise NetflowError(Reason.SHORT, "bytes of a datagram", len(payload), 2)
            else:
                raise NetflowError(Reason.VERSION, "version", version, 10)
        except NetflowError as error:
            self._note(error, datagram.source)
        counters.records += batch.total - before

    def _take_v5(self, batch: _Batch, datagram: Datagram) -> None:
        payload = datagram.payload
        _check_header(payload, _V5_HEADER)
        _, count, uptime, seconds, nanoseconds, sequence, engine_type, engine, sampling = _V5_HEADER.unpack_from(
            payload
        )
        export_ms = seconds * 1000 + nanoseconds // 1_000_000
        state = self._heard(datagram, 5, engine_type << 8 | engine, export_ms)
        state.sampling = sampling & 0x3FFF or 1  # the two high bits say how it samples
        self.counters.sequence_gaps += state.sequence.take(sequence, count, count)
        whole = min(count, (len(payload) - _V5_HEADER.size) // _V5.bytes)
        if whole:
            body = payload[_V5_HEADER.size : _V5_HEADER.size + whole * _V5.bytes]
            batch.add(_V5, body, whole, _Source(state, export_ms, uptime))
        if len(payload) != _V5_HEADER.size + count * _V5.bytes:
            expected = _V5_HEADER.size + count * _V5.bytes
            raise NetflowError(Reason.LENGTH, "bytes of a v5 datagram", len(payload), expected)

    def _take_v9(self, batch: _Batch, datagram: Datagram) -> None:
        payload = datagram.payload
        _check_header(payload, _V9_HEADER)
        _, _, uptime, seconds, sequence, source_id = _V9_HEADER.unpack_from(payload)
        state = self._heard(datagram, 9, source_id, seconds * 1000)
        self._take_message(batch, payload, _V9_HEADER.size, _Source(state, seconds * 1000, uptime), sequence)

    def _take_ipfix(self, batch: _Batch, datagram: Datagram) -> None:
        payload = datagram.payload
        _check_header(payload, _IPFIX_HEADER)
        _, length, seconds, sequence, domain = _IPFIX_HEADER.unpack_from(payload)
        if length < _IPFIX_HEADER.size:
            raise NetflowError(Reason.LENGTH, "length of an IPFIX message", length, _IPFIX_HEADER.size)
        state = self._heard(datagram, 10, domain, seconds * 1000)
        message = payload if length == len(payload) else payload[:length]
        self._take_message(batch, message, _IPFIX_HEADER.size, _Source(state, seconds * 1000, UPTIME_UNKNOWN), sequence)
        if length != len(payload):
            raise NetflowError(Reason.LENGTH, "length of an IPFIX message", length, len(payload))

    def _take_message(self, batch: _Batch, message: bytes, offset: int, source: _Source, sequence: int) -> None:
        """Take the sets of one message and its sequence number.

        Raises:
            NetflowError: As :meth:`_take_sets`.
        """
        unknown, before = self.counters.unknown_template_sets, batch.total
        flows = seen = None
        try:
            seen = self._take_sets(batch, message, offset, source)
        finally:
            # Without its templates, or where it is broken, nobody knows how many records the message holds.
            if seen is not None and unknown == self.counters.unknown_template_sets:
                flows = batch.total - before
            else:
                seen = None
            self.counters.sequence_gaps += source.state.sequence.take(sequence, flows, seen)

    def _take_sets(self, batch: _Batch, message: bytes, offset: int, source: _Source) -> int:
        """Take the sets of one message and return how many data records, options included, they hold.

        Raises:
            NetflowError: A set's length leads nowhere, or there are too many.
        """
        state = source.state
        template_sets = _TEMPLATE_SETS[state.exporter.version]
        end, seen, left = len(message), 0, self._limits.sets_per_datagram
        while end - offset >= _SET_HEADER.size:
            set_id, length = _SET_HEADER.unpack_from(message, offset)
            if length < _SET_HEADER.size:
                if not any(message[offset:]):
                    return seen  # zeros behind the last set
                raise NetflowError(Reason.SET_LENGTH, f"length of set {set_id}", length, _SET_HEADER.size)
            if length > end - offset:
                raise NetflowError(Reason.SET_LENGTH, f"length of set {set_id}", length, end - offset)
            if not left:
                limit = self._limits.sets_per_datagram
                raise NetflowError(Reason.TOO_MANY_SETS, "sets of a datagram, more than", limit, limit)
            left -= 1
            body = message[offset + _SET_HEADER.size : offset + length]
            offset += length
            if set_id >= _FIRST_DATA_SET:
                seen += self._take_data(batch, set_id, body, source)
            elif set_id in template_sets:
                self._define(state, body, is_options=template_sets[set_id])
            else:
                self._note(NetflowError(Reason.RESERVED_SET, "set id", set_id, _FIRST_DATA_SET), state.exporter.address)
        return seen

    def _of_other_ports(self, state: _State, template_id: int, size: int) -> Template | None:
        """Return another port's template for a port that sends none, as exporters that spread their data over ports do.

        It must fit the set's bytes but for padding to four: it may be another program's after all.
        """
        if state.has_defined:
            return None
        for other in reversed(state.shared.states):
            template = other.templates.get(template_id)
            if template is not None and (template.layout.is_variable or size % template.layout.bytes < 4):
                return template
        return None

    def _take_data(self, batch: _Batch, set_id: int, body: bytes, source: _Source) -> int:
        state = source.state
        template = state.templates.get(set_id) or self._of_other_ports(state, set_id, len(body))
        if template is None:
            if len(state.missing) < _REMEMBERED_MISSING:
                state.missing.add(set_id)
            self.counters.unknown_template_sets += 1
            self.counters.unknown_template_bytes += len(body)
            return 0
        layout = template.layout
        if layout.is_variable:
            body, count, fits = layout.compact(body)
            if not fits:
                what = f"bytes a record of template {set_id} may still have"
                self._note(NetflowError(Reason.RECORD_LENGTH, what, -1, 0), state.exporter.address)
        else:
            count = len(body) // layout.bytes
            if count * layout.bytes != len(body):  # padding
                body = body[: count * layout.bytes]
        if count == 0:
            return 0
        if template.is_options:
            self._take_options(layout, body, count, state)
        elif not layout.is_flow:
            self.counters.records_not_flows += count
        else:
            if layout.needs_uptime and source.uptime_ms == UPTIME_UNKNOWN:
                source = self._with_uptime(source, count)
            batch.add(layout, body, count, source)
        return count

    def _with_uptime(self, source: _Source, count: int) -> _Source:
        """Return the source with its uptime by the boot time it has sent; counts the records that must do without."""
        boot_ms = source.state.boot_ms or source.state.shared.boot_ms
        if not boot_ms:
            self.counters.records_boot_unknown += count
            return source
        return source._replace(uptime_ms=(source.export_ms - boot_ms) & _UINT32)

    def _take_options(self, layout: Layout, body: bytes, count: int, state: _State) -> None:
        self.counters.option_records += count
        self._learn(state, layout.boot_ms(body), layout.sampling(body))
        self._learn_samplers(state, layout.samplers(body, self._limits.samplers_per_state))

    def _learn(self, state: _State, boot_ms: int, sampling: int) -> None:
        """Take what an exporter says of itself; 0 says nothing."""
        if boot_ms:
            state.boot_ms = state.shared.boot_ms = boot_ms
        if sampling:
            state.sampling = state.shared.sampling = sampling

    def _learn_samplers(self, state: _State, said: Mapping[int, int]) -> None:
        """Take the rates of samplers; the last named stay when there are too many."""
        if not said or said.items() <= state.samplers.items():
            return
        kept = [(sampler, rate) for sampler, rate in state.samplers.items() if sampler not in said]
        known = dict([*kept, *said.items()][-self._limits.samplers_per_state :])
        state.samplers = state.shared.samplers = known

    def _define(self, state: _State, body: bytes, *, is_options: bool) -> None:
        """Take a template set: what it defines, redefines, repeats or withdraws."""
        state.has_defined = True
        known, counters = state.templates, self.counters
        version = state.exporter.version
        for template_id, said in read_templates(body, version, is_options=is_options, known=known, limits=self._limits):
            if isinstance(said, Withdrawal):
                self._withdraw(state, said)
                continue
            old = known.get(template_id)
            if said is old:
                known[template_id] = known.pop(template_id)  # refreshed
                continue
            if isinstance(said, NetflowError):
                self._forget(state, template_id)
                self._note(said, state.exporter.address)
                continue
            counters.templates_defined += 1
            counters.templates_redefined += old is not None
            self._forget(state, template_id)
            self._make_room(state)
            known[template_id] = said
            self._templates += 1

    def _withdraw(self, state: _State, said: Withdrawal) -> None:
        """Take back one template, or all of a kind: "Template ID ... 2 ... all Templates" (RFC 7011 section 8.1)."""
        kind_set = 3 if said.is_options else 2
        ids = [said.template_id] if said.template_id in state.templates else []
        if said.template_id == kind_set:
            ids = [i for i, template in state.templates.items() if template.is_options == said.is_options]
        for template_id in ids:
            self._forget(state, template_id)
        self.counters.templates_withdrawn += len(ids)

    def _forget(self, state: _State, template_id: int) -> None:
        if state.templates.pop(template_id, None) is not None:
            self._templates -= 1

    def _make_room(self, state: _State) -> None:
        """Drop the exporter's oldest template at its own limit, the longest silent exporter's at that of all."""
        if len(state.templates) >= self._limits.templates_per_state:
            self._drop_oldest(state)
        if self._templates >= self._limits.templates:
            silent = next(other for other in self._states.values() if other.templates)
            self._drop_oldest(silent)

    def _drop_oldest(self, state: _State) -> None:
        self._forget(state, next(iter(state.templates)))
        self.counters.templates_evicted += 1

    def _heard(self, datagram: Datagram, version: int, domain: int, export_ms: int) -> _State:
        """Return the state of the exporter and port that sent a datagram; it is now the last to be silent."""
        state = self._state(Exporter(datagram.source, version, domain), datagram.source_port)
        self._states.move_to_end((state.exporter, state.source_port))
        state.datagrams += 1
        state.heard_ms = datagram.at_ns // 1_000_000
        state.clock_ahead_ms = export_ms - state.heard_ms
        return state

    def _state(self, name: Exporter, source_port: int) -> _State:
        """Return the state of an exporter's port, made when it is new; over the limits, the longest silent one goes."""
        state = self._states.get((name, source_port))
        if state is not None:
            return state
        if self._states_at[name.address] >= self._limits.states_per_address:
            self._evict(next(key for key in self._states if key[0].address == name.address))
        elif len(self._states) >= self._limits.states:
            self._evict(next(iter(self._states)))
        shared = self._shared.get(name)
        if shared is None:
            shared = self._shared[name] = _Shared(self._next_index)
            self._names[self._next_index] = name
            self._next_index += 1
        state = _State(name, source_port, shared, Sequence(name.version))
        self._states[name, source_port] = state
        shared.states.append(state)
        self._states_at[name.address] += 1
        return state

    def _evict(self, key: tuple[Exporter, int]) -> None:
        state = self._states.pop(key)
        name, shared = state.exporter, state.shared
        self._templates -= len(state.templates)
        self._states_at[name.address] -= 1
        if not self._states_at[name.address]:
            del self._states_at[name.address]
        shared.states.remove(state)
        if shared.states:
            return
        del self._shared[name]
        self.counters.exporters_evicted += 1
        self._evicted.append(shared.index)
        if len(self._evicted) > _REMEMBERED_EVICTED:
            del self._names[self._evicted.popleft()]

    def _note(self, error: NetflowError, address: str) -> None:
        self.counters.malformed[error.reason] += 1
        self.last_error = NetflowError(error.reason, error.what, error.value, error.limit, address)


def _address(text: Any) -> str:
    """Return the address of an exporter as it is shown to people and to what watches the agent."""
    if not isinstance(text, str) or len(text) > _MOST_ADDRESS:
        raise ValueError("no address")
    ip_address(text)
    return text


def _check_header(payload: bytes, header: struct.Struct) -> None:
    if len(payload) < header.size:
        raise NetflowError(Reason.SHORT, "bytes of a datagram", len(payload), header.size)
