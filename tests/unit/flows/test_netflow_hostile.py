"""Wrong, lying and hostile export packets: counted with value and limit, everything else goes on, memory is bounded."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.captures import capture_datagrams
from tests.support.flow_packets import (
    SECONDS,
    V4_FLOW,
    FieldSpec,
    export,
    ipfix,
    options_set,
    options_template,
    packet_set,
    record,
    template,
    template_set,
    v4_flow,
    v5,
    v5_record,
    v9,
)
from vedette.models.errors import ModelsError
from vedette.models.flows.netflow import Exporter, FlowDecoder
from vedette.models.flows.records import FLOW_RECORD
from vedette.models.flows.templates import Limits, NetflowError, Reason

HERE = "192.0.2.1"
GOOD_TEMPLATE = template(256, *V4_FLOW)
GOOD = packet_set(256, v4_flow())
WIDE: tuple[FieldSpec, ...] = tuple((number, 4) for number in range(1000, 1257))
REAL = {
    name: capture_datagrams(name) for name in ("shifted/softflowd-v9", "shifted/softflowd-ipfix", "shifted/pmacct-v9")
}

# (case, packet, reason, records that are still read, value, limit)
CASES: list[tuple[str, bytes, Reason, int, int, int]] = [
    ("empty", b"", Reason.SHORT, 0, 0, 2),
    ("one byte", b"\x00", Reason.SHORT, 0, 1, 2),
    ("version 0", bytes(40), Reason.VERSION, 0, 0, 10),
    ("version 8", b"\x00\x08" + bytes(40), Reason.VERSION, 0, 8, 10),
    ("v5 header cut", v5()[:23], Reason.SHORT, 0, 23, 24),
    ("v9 header cut", v9()[:19], Reason.SHORT, 0, 19, 20),
    ("ipfix header cut", ipfix()[:15], Reason.SHORT, 0, 15, 16),
    ("v5 record cut", v5(v5_record(), v5_record())[:-1], Reason.LENGTH, 1, 119, 120),
    ("v5 count says more", v5(v5_record(), count=30), Reason.LENGTH, 1, 72, 24 + 30 * 48),
    ("v5 count says 65535", v5(v5_record(), count=65535), Reason.LENGTH, 1, 72, 24 + 65535 * 48),
    ("v5 count says fewer", v5(v5_record(), v5_record(), count=1), Reason.LENGTH, 1, 120, 72),
    ("ipfix length under its header", ipfix(GOOD, length=15), Reason.LENGTH, 0, 15, 16),
    ("ipfix length over the datagram", ipfix(GOOD, length=1000), Reason.LENGTH, 1, 1000, 16 + len(GOOD)),
    ("ipfix bytes behind its length", ipfix(GOOD) + b"rest", Reason.LENGTH, 1, 16 + len(GOOD), 20 + len(GOOD)),
    *(
        (f"v{version} {case}", export(version, *sets), reason, records, value, limit)
        for version in (9, 10)
        for case, sets, reason, records, value, limit in (
            ("set of 3 bytes", (GOOD, packet_set(256, b"x", length=3)), Reason.SET_LENGTH, 1, 3, 4),
            ("set of no bytes, data behind it", (GOOD, packet_set(256, b"x", length=0)), Reason.SET_LENGTH, 1, 0, 4),
            ("set longer than the datagram", (GOOD, packet_set(256, b"1234", length=9)), Reason.SET_LENGTH, 1, 9, 8),
            ("set of 65535 bytes", (GOOD, packet_set(256, length=65535)), Reason.SET_LENGTH, 1, 65535, 4),
            ("reserved set, then data", (packet_set(200, b"1234"), GOOD), Reason.RESERVED_SET, 1, 200, 256),
            ("more sets than the limit", (GOOD,) * 300, Reason.TOO_MANY_SETS, 256, 256, 256),
            (
                "template cut in its fields",
                (template_set(version, template(300, (8, 4), count=9)), GOOD),
                Reason.TEMPLATE_TRUNCATED,
                1,
                1,
                9,
            ),
            (
                "template id of a set",
                (template_set(version, template(255, (8, 4), (12, 4))), GOOD),
                Reason.TEMPLATE_ID,
                1,
                255,
                256,
            ),
            (
                "template without bytes",
                (template_set(version, template(300, (8, 0), (12, 0))), packet_set(300, bytes(90)), GOOD),
                Reason.TEMPLATE_EMPTY,
                1,
                0,
                1,
            ),
            (
                "template with too many fields",
                (template_set(version, template(300, *WIDE)), GOOD),
                Reason.TEMPLATE_FIELDS,
                1,
                257,
                256,
            ),
            (
                "template that says 65535 fields",
                (template_set(version, template(300, (8, 4), count=65535)), GOOD),
                Reason.TEMPLATE_FIELDS,
                1,
                65535,
                256,
            ),
            (
                "template of too long records",
                (template_set(version, template(300, (8, 4), (12, 4), (999, 16_384))), GOOD),
                Reason.TEMPLATE_BYTES,
                1,
                16_392,
                16_384,
            ),
            (
                "IPv4 address of 3 bytes",
                (template_set(version, template(300, (8, 3), (12, 4))), GOOD),
                Reason.FIELD_LENGTH,
                1,
                3,
                4,
            ),
            (
                "IPv6 address of 4 bytes",
                (template_set(version, template(300, (27, 4), (28, 16))), GOOD),
                Reason.FIELD_LENGTH,
                1,
                4,
                16,
            ),
            (
                "counter of 9 bytes",
                (template_set(version, template(300, (8, 4), (12, 4), (1, 9))), GOOD),
                Reason.FIELD_LENGTH,
                1,
                9,
                8,
            ),
            (
                "NTP time of 4 bytes",
                (template_set(version, template(300, (8, 4), (12, 4), (154, 4))), GOOD),
                Reason.FIELD_LENGTH,
                1,
                4,
                8,
            ),
            (
                "options template cut in its header",
                (options_set(version, b"\x01\x2c\x00\x04"), GOOD),
                Reason.TEMPLATE_TRUNCATED,
                1,
                4,
                6,
            ),
        )
    ),
    ("v9 template of no fields", v9(template_set(9, template(300)), GOOD), Reason.TEMPLATE_EMPTY, 1, 0, 1),
    (
        "v9 option lengths that are no fields",
        v9(options_set(9, b"\x01\x2c\x00\x03\x00\x04" + bytes(8)), GOOD),
        Reason.TEMPLATE_SCOPE,
        1,
        3,
        0,
    ),
    (
        "ipfix more scope than fields",
        ipfix(options_set(10, b"\x01\x2c\x00\x01\x00\x02" + bytes(8)), GOOD),
        Reason.TEMPLATE_SCOPE,
        1,
        2,
        1,
    ),
    (
        "ipfix enterprise number cut",
        ipfix(template_set(10, b"\x01\x2c\x00\x01\x80\x01\x00\x04\x00\x00"), GOOD),
        Reason.TEMPLATE_TRUNCATED,
        1,
        0,
        1,
    ),
]


def primed(**limits: int) -> FlowDecoder:
    """Return a decoder that knows the good template of both versions from one address."""
    decoder = FlowDecoder(Limits(**limits))
    for version in (9, 10):
        decoder.decode(export(version, template_set(version, GOOD_TEMPLATE)), HERE, 0)
    return decoder


@pytest.mark.parametrize(
    ("packet", "reason", "records", "value", "limit"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_packet_is_counted_with_value_and_limit_and_the_next_one_is_read(
    packet: bytes, reason: Reason, records: int, value: int, limit: int
) -> None:
    decoder = primed()

    flows = decoder.decode(packet, HERE, 0)

    assert len(flows) == records
    assert decoder.counters.malformed == {reason: 1}
    error = decoder.last_error
    assert isinstance(error, NetflowError)
    assert isinstance(error, ModelsError)
    assert (error.exporter, error.reason, error.value, error.limit) == (HERE, reason, value, limit)
    assert all(part in str(error) for part in (HERE, error.what, str(value), str(limit)))
    for version in (9, 10):
        assert len(decoder.decode(export(version, GOOD), HERE, 0)) == 1
    assert len(decoder.decode(v5(v5_record()), HERE, 0)) == 1


@pytest.mark.parametrize("version", [9, 10])
def test_data_of_a_missing_template_is_counted_and_read_from_the_template_on(version: int) -> None:
    decoder = FlowDecoder()

    early = decoder.decode(export(version, GOOD, GOOD), HERE, 0)
    now = decoder.decode(export(version, template_set(version, GOOD_TEMPLATE), GOOD), HERE, 0)

    assert (len(early), len(now)) == (0, 1)
    assert decoder.counters.unknown_template_sets == 2
    assert decoder.counters.unknown_template_bytes == 2 * len(v4_flow())
    assert decoder.counters.malformed == {}


@pytest.mark.parametrize("version", [9, 10])
def test_last_definition_of_a_template_counts_within_one_packet_too(version: int) -> None:
    other: tuple[FieldSpec, ...] = ((12, 4), (8, 4), (2, 8))
    body = record(other, "10.0.0.9", "10.0.0.8", 77)
    decoder = primed()

    flows = decoder.decode(
        export(version, GOOD, template_set(version, template(256, *other)), packet_set(256, body)), HERE, 0
    )

    assert flows["packets"].tolist() == [3, 77]
    assert (flows["src_lo"] & 0xFF).tolist() == [1, 8]
    assert decoder.counters.templates_redefined == 1


@pytest.mark.parametrize("version", [9, 10])
def test_repeated_template_is_no_redefinition(version: int) -> None:
    decoder = primed()

    decoder.decode(export(version, template_set(version, GOOD_TEMPLATE, template(257, *V4_FLOW)), GOOD), HERE, 0)
    decoder.decode(export(version, template_set(version, GOOD_TEMPLATE, template(257, *V4_FLOW)), GOOD), HERE, 0)

    assert (decoder.counters.templates_defined, decoder.counters.templates_redefined) == (3, 0)


def test_options_template_of_the_same_bytes_is_another_template() -> None:
    decoder = FlowDecoder()
    data = template(300, (2, 4), (999, 4))
    options = data + b"\x00\x08"  # scope 2: element 4 of 999 bytes, then of 8

    decoder.decode(ipfix(template_set(10, data)), HERE, 0)
    decoder.decode(ipfix(options_set(10, options), packet_set(300, bytes(2 * 1007))), HERE, 0)

    assert decoder.counters.templates_redefined == 1
    assert (decoder.counters.option_records, decoder.counters.records_not_flows) == (2, 0)


@pytest.mark.parametrize("version", [9, 10])
def test_refused_redefinition_takes_the_old_template_away(version: int) -> None:
    decoder = primed()

    flows = decoder.decode(export(version, template_set(version, template(256, (8, 3), (12, 4))), GOOD), HERE, 0)

    assert len(flows) == 0
    assert decoder.counters.unknown_template_sets == 1
    assert decoder.counters.malformed == {Reason.FIELD_LENGTH: 1}


@pytest.mark.parametrize(("withdrawal", "left"), [(template(256), {257}), (template(2), set())])
def test_withdrawn_ipfix_templates_are_gone(withdrawal: bytes, left: set[int]) -> None:
    decoder = primed()
    decoder.decode(ipfix(template_set(10, template(257, *V4_FLOW))), HERE, 0)

    decoder.decode(ipfix(template_set(10, withdrawal)), HERE, 0)

    known = {number for number in (256, 257) if len(decoder.decode(ipfix(packet_set(number, v4_flow())), HERE, 0))}
    assert known == left
    assert decoder.counters.templates_withdrawn == 2 - len(left)
    assert len(decoder.decode(v9(GOOD), HERE, 0)) == 1


def test_withdrawing_all_options_templates_leaves_the_others() -> None:
    decoder = primed()
    decoder.decode(ipfix(options_set(10, options_template(10, 300, ((149, 4),), (34, 4)))), HERE, 0)

    decoder.decode(ipfix(options_set(10, template(3))), HERE, 0)

    assert decoder.counters.templates_withdrawn == 1
    assert len(decoder.decode(ipfix(GOOD), HERE, 0)) == 1


@pytest.mark.parametrize("padding", [b"\0", b"\0\0\0", b"\0" * 8])
@pytest.mark.parametrize("version", [9, 10])
def test_padding_behind_templates_records_and_sets_is_no_fault(version: int, padding: bytes) -> None:
    decoder = FlowDecoder()

    flows = decoder.decode(
        export(version, template_set(version, GOOD_TEMPLATE, padding), packet_set(256, v4_flow(), padding), padding),
        HERE,
        0,
    )

    assert len(flows) == 1
    assert decoder.counters.malformed == {}


@pytest.mark.parametrize("version", [9, 10])
def test_records_that_are_no_flows_are_counted_apart(version: int) -> None:
    decoder = FlowDecoder()
    layout: tuple[FieldSpec, ...] = ((8, 4), (2, 4))

    flows = decoder.decode(
        export(version, template_set(version, template(256, *layout)), packet_set(256, bytes(24))), HERE, 0
    )

    assert len(flows) == 0
    assert (decoder.counters.records_not_flows, decoder.counters.records) == (3, 0)
    assert decoder.counters.malformed == {}


@pytest.mark.parametrize("lie", [b"\xfe", b"\xff\xff\xff", b"\xff", b"\xff\xff", b"\x05abcd"])
def test_variable_length_that_leaves_its_set_keeps_the_records_before_it(lie: bytes) -> None:
    layout: tuple[FieldSpec, ...] = ((8, 4), (12, 4), (82, 65535))
    good = record(layout, "10.0.0.1", "10.0.0.2", b"\x02ab")
    bad = record(layout, "10.0.0.3", "10.0.0.4", lie)
    decoder = primed()

    flows = decoder.decode(
        ipfix(template_set(10, template(300, *layout)), packet_set(300, good, good, bad), GOOD), HERE, 0
    )

    assert (flows["src_lo"] & 0xFF).tolist() == [1, 1, 1]
    assert decoder.counters.malformed == {Reason.RECORD_LENGTH: 1}


def test_template_of_variable_lengths_only_ends() -> None:
    decoder = FlowDecoder()
    layout: tuple[FieldSpec, ...] = ((82, 65535),) * 256

    decoder.decode(ipfix(template_set(10, template(300, *layout)), packet_set(300, bytes(60_000))), HERE, 0)

    assert decoder.counters.records_not_flows == 60_000 // 256


@pytest.mark.parametrize(
    "names", [("shifted/softflowd-v9", "shifted/pmacct-v9"), ("base/softflowd-ipfix-biflow", "base2/pmacct-ipfix")]
)
def test_two_programs_on_one_address_with_the_same_domain_and_template_ids_are_read_as_if_alone(
    names: tuple[str, str],
) -> None:
    captures = [capture_datagrams(name)[:400] for name in names]
    mixed = FlowDecoder()
    together: list[list[bytes]] = [[], []]

    for pair in zip(*captures, strict=False):
        for number, one in enumerate(pair):
            together[number].append(mixed.decode(one.payload, one.source, 0, one.source_port).tobytes())

    for number, datagrams in enumerate(captures):
        alone = FlowDecoder().decode_many(datagrams[: len(together[number])]).tobytes()
        assert b"".join(together[number]) == alone
    assert len(mixed.exporters) == 1
    assert mixed.counters.malformed == {}


@pytest.mark.parametrize("version", [9, 10])
def test_port_that_sends_no_templates_is_read_by_those_of_the_exporters_other_ports(version: int) -> None:
    decoder = FlowDecoder()
    says = options_set(version, options_template(version, 300, ((143, 4),), (34, 4)))
    decoder.decode(
        export(version, template_set(version, GOOD_TEMPLATE), says, packet_set(300, bytes(4), b"\0\0\0\x0a")),
        HERE,
        0,
        1,
    )

    other = decoder.decode(export(version, GOOD), HERE, 0, 2)
    of_another_size = decoder.decode(export(version, packet_set(256, bytes(19))), HERE, 0, 3)
    defines_its_own = decoder.decode(export(version, template_set(version, template(400, (8, 4))), GOOD), HERE, 0, 4)

    assert (len(other), len(of_another_size), len(defines_its_own)) == (1, 0, 0)
    assert other["sampling"].tolist() == [10]
    assert decoder.counters.unknown_template_sets == 2
    assert {status.index for status in decoder.status()} == {0}


def test_boot_time_said_at_one_port_holds_for_a_port_that_says_none() -> None:
    decoder = FlowDecoder()
    boot_ms = SECONDS * 1000 - 60_000
    says = options_set(10, options_template(10, 300, ((143, 4),), (160, 8)))
    decoder.decode(ipfix(says, packet_set(300, bytes(4), boot_ms.to_bytes(8, "big"))), HERE, 0, 1)

    flows = decoder.decode(ipfix(template_set(10, GOOD_TEMPLATE), GOOD), HERE, 0, 2)

    assert (flows["start_ms"][0], flows["end_ms"][0]) == (boot_ms + 1000, boot_ms + 2000)
    assert decoder.counters.records_boot_unknown == 0


def test_exporters_over_the_limit_leave_oldest_first_and_their_index_is_not_used_again() -> None:
    decoder = FlowDecoder(Limits(states=3))
    heard = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1", "192.0.2.4", "192.0.2.2"]

    indices = [int(decoder.decode(v5(v5_record()), address, 0)["exporter"][0]) for address in heard]

    assert indices == [0, 1, 2, 0, 3, 4]
    assert decoder.counters.exporters_evicted == 2
    assert [status.exporter.address for status in decoder.status()] == ["192.0.2.1", "192.0.2.4", "192.0.2.2"]
    assert decoder.exporters[1] == decoder.exporters[4] == Exporter("192.0.2.2", 5, 0)


def test_one_address_with_many_domains_pushes_out_only_itself() -> None:
    decoder = primed(states=16, states_per_address=4)

    for domain in range(1000):
        decoder.decode(v9(template_set(9, GOOD_TEMPLATE), source_id=domain), "198.51.100.66", 0)

    assert len(decoder.decode(v9(GOOD), HERE, 0)) == 1
    assert len(decoder.status()) == 6


def test_templates_of_one_exporter_are_limited_the_longest_not_refreshed_goes() -> None:
    decoder = FlowDecoder(Limits(templates_per_state=4))
    for number in (256, 257, 258, 259, 256, 260):
        decoder.decode(v9(template_set(9, template(number, *V4_FLOW))), HERE, 0)

    known = [n for n in range(256, 261) if len(decoder.decode(v9(packet_set(n, v4_flow())), HERE, 0))]

    assert known == [256, 258, 259, 260]
    assert decoder.counters.templates_evicted == 1


def test_templates_of_all_exporters_are_limited_the_longest_silent_loses() -> None:
    decoder = primed(templates=8)
    packet = v9(template_set(9, *(template(number, *V4_FLOW) for number in range(300, 310))))

    decoder.decode(packet, "198.51.100.66", 0)

    assert [status.templates for status in decoder.status()] == [0, 0, 8]
    assert len(decoder.decode(v9(packet_set(309, v4_flow())), "198.51.100.66", 0)) == 1


def test_memory_is_bounded_under_a_flood_of_exporters_domains_and_templates() -> None:
    limits = Limits(states=8, states_per_address=2, templates_per_state=4, templates=16)
    decoder = FlowDecoder(limits)
    for number in range(6000):
        sets = [template_set(9, template(256 + number % 50 + k, *V4_FLOW)) for k in range(3)]
        decoder.decode(v9(*sets, source_id=number % 7), f"198.51.100.{number % 250}", 0)
        decoder.decode(v5(v5_record(), engine=(number % 3, 0)), f"2001:db8::{number:x}", 0)

    status = decoder.status()
    assert len(status) <= limits.states
    assert sum(one.templates for one in status) <= limits.templates
    assert len(decoder.exporters) <= limits.states + 4096
    assert sys.getsizeof(decoder._states_at) < 4096


def test_saved_templates_let_a_later_process_read_from_the_first_packet() -> None:
    first, later = FlowDecoder(), FlowDecoder()
    datagrams = REAL["shifted/softflowd-ipfix"]
    first.decode_many(datagrams[:40])
    kept = first.dump_templates()

    later.load_templates(kept)

    assert first.decode_many(datagrams[40:50]).tobytes() == later.decode_many(datagrams[40:50]).tobytes()
    assert later.counters.unknown_template_sets == later.counters.records_boot_unknown == 0
    again = FlowDecoder()
    again.load_templates(kept)
    assert again.dump_templates() == kept


@pytest.mark.parametrize(
    "saved",
    [
        b"",
        b"[]",
        b"{}",
        b'{"form": 2, "exporters": []}',
        b"\xff",
        b"[" * 100_000,
        b'{"form": 1, "exporters": [1]}',
        b'{"form": 1, "exporters": [{"address": "a", "version": 5, "domain": 0, "source_port": 0}]}',
        b'{"form": 1, "exporters": [{"address": "a", "version": 9, "domain": -1}]}',
        b'{"form": 1, "exporters": [{"address": "a", "version": 9, "domain": 0, "source_port": 0, "boot_ms": 1e999}]}',
        b'{"form":1, "exporters":[{"address":"a", "version":9, "domain":0, "source_port":0, '
        b'"boot_ms":0, "sampling":1, "templates":[[0]]}]}',
    ],
)
def test_saved_templates_that_are_none_are_refused(saved: bytes) -> None:
    with pytest.raises(NetflowError, match=r"saved templates|version") as caught:
        FlowDecoder().load_templates(saved)
    assert caught.value.reason == Reason.SAVED_TEMPLATES


def test_saved_templates_over_the_limit_are_refused_before_they_are_read() -> None:
    with pytest.raises(NetflowError, match="is 11, limit 10"):
        FlowDecoder(Limits(saved_bytes=10)).load_templates(b"{" * 11)


def check(decoder: FlowDecoder, flows: Any) -> None:
    """Whatever came: records of our type, counted, by exporters that have a name."""
    assert flows.dtype == FLOW_RECORD
    assert set(decoder.counters.malformed) <= set(Reason)
    assert set(np.unique(flows["exporter"]).tolist()) <= set(decoder.exporters)
    assert (flows["sampling"] >= 1).all()
    assert (np.abs(flows["start_ms"]) <= 253_402_300_799_999).all()


HEADERS = st.sampled_from([v5(), v9(), ipfix(), v5(count=3), ipfix(length=200)])


@given(st.binary(max_size=300) | st.builds(bytes.__add__, HEADERS, st.binary(max_size=300)))
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_records_or_a_counted_fault(payload: bytes) -> None:
    decoder = primed()

    check(decoder, decoder.decode(payload, HERE, 0))

    assert len(decoder.decode(v5(v5_record()), HERE, 0)) == 1


sets = st.builds(
    packet_set,
    st.sampled_from([0, 1, 2, 3, 4, 255, 256, 257, 1024, 65535]),
    st.binary(max_size=80)
    | st.builds(
        template,
        st.sampled_from([0, 2, 3, 256, 257]),
        *[st.tuples(st.sampled_from([1, 2, 4, 8, 12, 21, 22, 34, 82, 154, 160]), st.sampled_from([0, 1, 4, 8, 65535]))]
        * 4,
    )
    | st.builds(options_template, st.sampled_from([9, 10]), st.just(257), st.just(((143, 4),)), st.just((160, 8))),
    length=st.none() | st.integers(0, 120),
)


class Exporters(RuleBasedStateMachine):
    """Several exporters and domains send whatever they like, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(states=4, states_per_address=2, templates_per_state=3, templates=6)
        self.decoder = FlowDecoder(self.limits)
        self.records = 0

    def take(self, packet: bytes, address: int) -> None:
        flows = self.decoder.decode(packet, f"192.0.2.{address}", 0, len(packet) % 2)
        self.records += len(flows)
        check(self.decoder, flows)

    @rule(
        version=st.sampled_from([9, 10]),
        body=st.lists(sets, max_size=5),
        domain=st.integers(0, 3),
        at=st.integers(1, 4),
    )
    def send_sets(self, version: int, body: list[bytes], domain: int, at: int) -> None:
        self.take(export(version, *body, domain=domain), at)

    @rule(
        pick=st.integers(0, 2000),
        at=st.integers(1, 4),
        flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4),
        cut=st.integers(0, 1500),
    )
    def send_damaged(self, pick: int, at: int, flips: list[tuple[int, int]], cut: int) -> None:
        capture = list(REAL.values())[pick % 3]
        payload = bytearray(capture[pick % len(capture)].payload)
        for place, value in flips:
            payload[place % len(payload)] ^= value
        self.take(bytes(payload[: max(cut, 1)]), at)

    @rule(first=st.integers(0, 300), second=st.integers(0, 300), splice=st.integers(16, 1400), at=st.integers(1, 4))
    def send_spliced(self, first: int, second: int, splice: int, at: int) -> None:
        one, two = (REAL["shifted/softflowd-ipfix"][number].payload for number in (first, second))
        self.take(one[:splice] + two[16:], at)

    @invariant()
    def stays_within_its_limits(self) -> None:
        status = self.decoder.status()
        assert len(status) <= self.limits.states
        assert sum(one.templates for one in status) == self.decoder._templates <= self.limits.templates
        assert all(one.templates <= self.limits.templates_per_state for one in status)
        assert self.decoder.counters.records == self.records


Exporters.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestExporters = Exporters.TestCase
