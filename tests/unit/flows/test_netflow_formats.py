"""What each export format says is what the record holds: packets built from the standards' layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
from vedette.models.flows.netflow import Exporter, FlowDecoder
from vedette.models.flows.records import FlowRecords, address_halves, address_text

EXPORT_MS = SECONDS * 1000
ADDRESSES: tuple[FieldSpec, ...] = ((8, 4), (12, 4))
NTP_1970 = 2_208_988_800


def decode(*packets: bytes, decoder: FlowDecoder | None = None) -> FlowRecords:
    decoder = decoder or FlowDecoder()
    made = [decoder.decode(packet, "192.0.2.1", 0) for packet in packets]
    assert decoder.counters.malformed == {}, decoder.last_error
    return np.concatenate(made)


def one(
    fields: tuple[FieldSpec, ...], *values: Any, version: int = 10, before: tuple[bytes, ...] = ()
) -> dict[str, Any]:
    """Return the one record that a template of addresses and ``fields`` gives."""
    layout = ADDRESSES + fields
    body = record(layout, "10.0.0.1", "10.0.0.2", *values)
    flows = decode(export(version, template_set(version, template(256, *layout)), *before, packet_set(256, body)))
    assert len(flows) == 1
    return {name: flows[name][0].item() for name in flows.dtype.names or ()}


def test_v5_record_has_every_value_of_its_packet() -> None:
    body = v5_record("10.1.2.3", "172.16.0.9", ports=(40112, 22), flags=0x1F, tos=0xB8, packets=9, octets=1210)

    decoder = FlowDecoder()
    flows = decode(
        v5(body, nanoseconds=250_999_999, uptime_ms=10_000, engine=(1, 2), sampling=0x4064),
        v5(body, engine=(3, 2), sampling=0xFFFF),
        decoder=decoder,
    )

    got = {name: flows[name][0].item() for name in flows.dtype.names or ()}
    high, low = address_halves("10.1.2.3")
    assert (got["src_hi"], got["src_lo"]) == (high, low)
    assert address_text(got["dst_hi"], got["dst_lo"]) == "172.16.0.9"
    assert (got["src_port"], got["dst_port"], got["proto"], got["flags"], got["tos"]) == (40112, 22, 6, 0x1F, 0xB8)
    assert (got["packets"], got["bytes"], got["icmp"], got["bidirectional"]) == (9, 1210, 0, False)
    assert (got["reverse_packets"], got["reverse_bytes"], got["reverse_flags"], got["end_reason"]) == (0, 0, 0, 0)
    assert got["export_ms"] == EXPORT_MS + 250
    assert (got["start_ms"], got["end_ms"]) == (EXPORT_MS + 250 - 9000, EXPORT_MS + 250 - 8000)
    assert flows["sampling"].tolist() == [100, 0x3FFF]  # 14 low bits; the two above say how
    assert [decoder.exporters[index].domain for index in flows["exporter"].tolist()] == [0x0102, 0x0302]


def test_v9_times_count_from_header_seconds_less_uptime() -> None:
    flows = decode(v9(template_set(9, template(256, *V4_FLOW)), packet_set(256, v4_flow()), uptime_ms=5000))

    assert flows["start_ms"][0] == EXPORT_MS - 4000
    assert flows["end_ms"][0] == EXPORT_MS - 3000
    assert flows["export_ms"][0] == EXPORT_MS


@pytest.mark.parametrize("version", [5, 9])
def test_uptime_that_wrapped_after_49_days_gives_the_time_before_the_wrap(version: int) -> None:
    before_wrap = 2**32 - 500
    if version == 5:
        packet = v5(v5_record(first=before_wrap, last=100), uptime_ms=1000)
    else:
        body = record(V4_FLOW, "10.0.0.1", "10.0.0.2", 1, 2, 6, 0, 1, 40, before_wrap, 100)
        packet = v9(template_set(9, template(256, *V4_FLOW)), packet_set(256, body), uptime_ms=1000)

    flows = decode(packet)

    assert flows["start_ms"][0] == EXPORT_MS - 1500
    assert flows["end_ms"][0] == EXPORT_MS - 900


def test_packet_stamped_after_the_header_is_a_little_in_the_future_not_49_days_ago() -> None:
    flows = decode(v5(v5_record(first=10_000, last=10_007), uptime_ms=10_000))

    assert flows["end_ms"][0] == EXPORT_MS + 7


def test_ipfix_uptimes_count_from_the_boot_time_in_option_data() -> None:
    boot_ms = EXPORT_MS - 3_600_123
    scope, option = ((143, 4),), ((160, 8),)
    says_boot = (
        options_set(10, options_template(10, 300, scope, *option)),
        packet_set(300, record(scope + option, 7, boot_ms)),
    )

    got = one(((22, 4), (21, 4)), 3_500_000, 3_599_000, before=says_boot)

    assert (got["start_ms"], got["end_ms"]) == (boot_ms + 3_500_000, boot_ms + 3_599_000)


def test_ipfix_uptimes_without_boot_time_keep_the_length_and_are_counted() -> None:
    decoder = FlowDecoder()
    layout = (*ADDRESSES, (22, 4), (21, 4))
    body = record(layout, "10.0.0.1", "10.0.0.2", 5000, 7500)

    flows = decode(ipfix(template_set(10, template(256, *layout)), packet_set(256, body)), decoder=decoder)

    assert (flows["start_ms"][0], flows["end_ms"][0]) == (EXPORT_MS - 2500, EXPORT_MS)
    assert decoder.counters.records_boot_unknown == 1


def test_ipfix_uptimes_beside_absolute_times_need_no_boot_time() -> None:
    decoder = FlowDecoder()
    layout = (*ADDRESSES, (22, 4), (21, 4), (152, 8), (153, 8))
    body = record(layout, "10.0.0.1", "10.0.0.2", 1, 2, EXPORT_MS - 3, EXPORT_MS - 2)

    flows = decode(ipfix(template_set(10, template(256, *layout)), packet_set(256, body)), decoder=decoder)

    assert (flows["start_ms"][0], flows["end_ms"][0]) == (EXPORT_MS - 3, EXPORT_MS - 2)
    assert decoder.counters.records_boot_unknown == 0


def test_boot_time_in_the_record_itself_is_used() -> None:
    got = one(((160, 8), (22, 4), (21, 4)), EXPORT_MS - 50_000, 10_000, 20_000)

    assert (got["start_ms"], got["end_ms"]) == (EXPORT_MS - 40_000, EXPORT_MS - 30_000)


@pytest.mark.parametrize("version", [9, 10])
@pytest.mark.parametrize(
    ("fields", "values", "start_ms", "end_ms"),
    [
        (((150, 4), (151, 4)), (SECONDS - 9, SECONDS - 2), EXPORT_MS - 9000, EXPORT_MS - 2000),
        (((152, 8), (153, 8)), (EXPORT_MS - 9001, EXPORT_MS - 2003), EXPORT_MS - 9001, EXPORT_MS - 2003),
        (
            ((154, 8), (155, 8)),
            (((SECONDS + NTP_1970) << 32) | 0x8000_0000, ((SECONDS + NTP_1970 + 1) << 32) | 0x4000_0000),
            EXPORT_MS + 500,
            EXPORT_MS + 1250,
        ),
        (
            ((156, 8), (157, 8)),
            ((SECONDS + NTP_1970) << 32, ((SECONDS + NTP_1970 + 3) << 32) | 0xC000_0000),
            EXPORT_MS,
            EXPORT_MS + 3750,
        ),
        (((154, 8), (155, 8)), (0, 1 << 32), 2_085_978_496_000, 2_085_978_497_000),  # 2036: NTP's next era
        (((158, 4), (159, 4)), (9_000_000, 2_500_000), EXPORT_MS - 9000, EXPORT_MS - 2500),
        (((150, 4),), (SECONDS - 9,), EXPORT_MS - 9000, EXPORT_MS - 9000),
        (((151, 4),), (SECONDS - 9,), EXPORT_MS - 9000, EXPORT_MS - 9000),
        ((), (), EXPORT_MS, EXPORT_MS),
        # the absolute form wins over the one relative to boot, which an exporter may leave zero
        (((22, 4), (152, 8), (21, 4), (153, 8)), (0, EXPORT_MS - 7, 0, EXPORT_MS - 5), EXPORT_MS - 7, EXPORT_MS - 5),
        (((152, 8), (153, 8)), (2**64 - 1, 0), 253_402_300_799_999, 0),  # held at the year 9999
        (((150, 8), (151, 8)), (2**64 - 1, 0), 253_402_300_799_000, 0),
    ],
)
def test_start_and_end_in_every_form(
    version: int, fields: tuple[FieldSpec, ...], values: tuple[int, ...], start_ms: int, end_ms: int
) -> None:
    got = one(fields, *values, version=version)

    assert (got["start_ms"], got["end_ms"]) == (start_ms, end_ms)


@pytest.mark.parametrize(
    ("version", "fields", "values", "expected"),
    [
        (10, ((1, 8), (2, 8)), (2**40, 2**33), {"bytes": 2**40, "packets": 2**33}),
        (10, ((1, 3), (2, 1)), (70_000, 9), {"bytes": 70_000, "packets": 9}),  # reduced-size encoding
        (10, ((1, 5), (2, 6)), (2**39, 2**47), {"bytes": 2**39, "packets": 2**47}),
        (10, ((1, 7), (2, 2)), (2**55 + 1, 9), {"bytes": 2**55 + 1, "packets": 9}),
        (9, ((85, 8), (86, 8)), (500, 5), {"bytes": 500, "packets": 5}),
        (10, ((85, 8), (1, 4), (86, 8), (2, 4)), (500, 50, 9, 5), {"bytes": 50, "packets": 5}),  # delta before total
        (9, ((23, 4), (24, 4)), (500, 5), {"bytes": 500, "packets": 5, "bidirectional": False}),
        (
            9,
            ((1, 4), (2, 4), (23, 4), (24, 4)),
            (50, 5, 70, 7),
            {"bytes": 50, "packets": 5, "reverse_bytes": 70, "reverse_packets": 7, "bidirectional": True},
        ),
        (
            10,  # after a middlebox, the same direction
            ((1, 4), (2, 4), (23, 4), (24, 4)),
            (50, 5, 70, 7),
            {"bytes": 50, "packets": 5, "reverse_bytes": 0, "reverse_packets": 0, "bidirectional": False},
        ),
        (
            10,
            ((231, 8), (298, 8), (232, 8), (299, 8)),
            (50, 5, 70, 7),
            {"bytes": 50, "packets": 5, "reverse_bytes": 70, "reverse_packets": 7, "bidirectional": True},
        ),
        (
            10,
            ((1, 4), (2, 4), (6, 1), (1, 4, 29305), (2, 4, 29305), (6, 2, 29305)),
            (50, 5, 2, 70, 7, 0x112),
            {"flags": 2, "reverse_bytes": 70, "reverse_packets": 7, "reverse_flags": 0x12, "bidirectional": True},
        ),
        (10, ((1, 4, 9), (2, 4, 4_294_967_295)), (50, 5), {"bytes": 0, "packets": 0, "bidirectional": False}),
        (10, ((6, 2), (5, 1), (136, 1)), (0x0152, 0xB8, 3), {"flags": 0x52, "tos": 0xB8, "end_reason": 3}),
        (10, ((4, 1), (7, 2), (11, 2)), (17, 53, 5353), {"src_port": 53, "dst_port": 5353, "icmp": 0}),
        (10, ((4, 1), (180, 2), (181, 2)), (17, 53, 5353), {"src_port": 53, "dst_port": 5353}),
        (10, ((4, 1), (7, 2), (11, 2)), (47, 53, 5353), {"src_port": 0, "dst_port": 0, "icmp": 0}),  # GRE has no ports
        (10, ((4, 1), (7, 2), (11, 2)), (1, 0, 0x0301), {"src_port": 0, "dst_port": 0, "icmp": 0x0301}),
        (10, ((4, 1), (32, 2)), (1, 0x0800), {"icmp": 0x0800, "dst_port": 0}),
        (10, ((4, 1), (139, 2)), (58, 0x8000), {"icmp": 0x8000}),
        (10, ((4, 1), (176, 1), (177, 1)), (1, 3, 13), {"icmp": 0x030D}),
        (10, ((4, 1), (178, 1), (179, 1)), (58, 1, 4), {"icmp": 0x0104}),
        (10, ((4, 1), (32, 2)), (6, 0x0800), {"icmp": 0}),
        (10, ((34, 4),), (1000,), {"sampling": 1000}),
        (10, ((34, 4),), (0,), {"sampling": 1}),
        (9, ((1, 0), (2, 4)), (b"", 5), {"bytes": 0, "packets": 5}),  # a field of no bytes is no field
        (10, ((1, 4), (1, 4)), (50, 60), {"bytes": 50}),
    ],
)
def test_elements_mean_what_the_registry_says(
    version: int, fields: tuple[FieldSpec, ...], values: tuple[Any, ...], expected: dict[str, Any]
) -> None:
    got = one(fields, *values, version=version)

    assert {name: got[name] for name in expected} == expected


def test_ipv6_addresses_keep_all_their_bits() -> None:
    layout: tuple[FieldSpec, ...] = ((27, 16), (28, 16), (4, 1))
    body = record(layout, "2001:db8:1:2:3:4:5:6", "fe80::ffff:1", 58)

    flows = decode(ipfix(template_set(10, template(256, *layout)), packet_set(256, body)))

    assert address_text(int(flows["src_hi"][0]), int(flows["src_lo"][0])) == "2001:db8:1:2:3:4:5:6"
    assert address_text(int(flows["dst_hi"][0]), int(flows["dst_lo"][0])) == "fe80::ffff:1"


def test_template_for_both_families_takes_the_one_that_is_not_zero() -> None:
    layout: tuple[FieldSpec, ...] = ((8, 4), (27, 16), (12, 4), (28, 16))
    v4 = record(layout, "10.0.0.1", "::", "10.0.0.2", "::")
    v6 = record(layout, bytes(4), "2001:db8::1", bytes(4), "2001:db8::2")

    flows = decode(ipfix(template_set(10, template(256, *layout)), packet_set(256, v4, v6)))

    texts = [address_text(int(high), int(low)) for high, low in zip(flows["src_hi"], flows["src_lo"], strict=True)]
    assert texts == ["10.0.0.1", "2001:db8::1"]


@pytest.mark.parametrize("version", [9, 10])
@pytest.mark.parametrize(
    ("fields", "values", "rate"),
    [
        (((34, 4), (35, 1)), (512, 2), 512),
        (((50, 4),), (64,), 64),
        (((305, 4), (306, 4)), (1, 99), 100),
        (((309, 4), (310, 4)), (2, 200), 100),
        (((305, 4), (306, 4)), (0, 0), 1),
        (((34, 4),), (0,), 1),
    ],
)
def test_sampling_of_option_data_holds_for_the_exporter_that_said_it(
    version: int, fields: tuple[FieldSpec, ...], values: tuple[int, ...], rate: int
) -> None:
    # Scope type 2 of v9 is an interface, element 2 a packet count: the number must not be taken for the other.
    scope: tuple[FieldSpec, ...] = ((2, 4),)
    decoder = FlowDecoder()
    says_rate = [
        options_set(version, options_template(version, 300, scope, *fields)),
        packet_set(300, record(scope + fields, 7, *values)),
    ]
    flow = [template_set(version, template(256, *V4_FLOW)), packet_set(256, v4_flow())]

    flows = decode(
        export(version, *flow, domain=1),
        export(version, *says_rate, domain=1),
        export(version, *flow, domain=1, sequence=2 if version == 10 else 1),
        export(version, *flow, domain=2),
        decoder=decoder,
    )

    assert flows["sampling"].tolist() == [1, rate, 1]
    assert decoder.counters.option_records == 1


def test_last_option_record_counts_and_one_that_says_nothing_changes_nothing() -> None:
    layout: tuple[FieldSpec, ...] = ((143, 4), (160, 8), (34, 4))
    other: tuple[FieldSpec, ...] = ((143, 4), (41, 8))
    templates = options_set(10, *(options_template(10, n, f[:1], *f[1:]) for n, f in ((300, layout), (301, other))))
    decoder = FlowDecoder()

    decode(
        ipfix(templates, packet_set(300, record(layout, 1, 1111, 10), record(layout, 2, 2222, 20))),
        ipfix(packet_set(301, record(other, 1, 9)), sequence=2),
        ipfix(packet_set(300, record(layout, 1, 0, 0)), sequence=3),
        decoder=decoder,
    )

    (status,) = decoder.status()
    assert (status.boot_ms, status.sampling, decoder.counters.option_records) == (2222, 20, 4)


def test_option_elements_that_flows_would_need_may_have_any_length() -> None:
    # In v9 the scope of an options template is a type, not an element: 1 is the system, of any length.
    decode(v9(options_set(9, options_template(9, 300, ((1, 12), (2, 10)), (34, 4)))))


def test_known_element_of_variable_length_is_passed_over() -> None:
    layout: tuple[FieldSpec, ...] = ((8, 4), (1, 65535), (12, 4), (2, 4))
    body = record(layout, "10.0.0.1", b"\x02\x01\x02", "10.0.0.2", 5)

    flows = decode(ipfix(template_set(10, template(256, *layout)), packet_set(256, body)))

    assert (flows["bytes"][0], flows["packets"][0]) == (0, 5)


def test_padding_as_long_as_the_fixed_fields_of_a_variable_record_is_no_record() -> None:
    layout: tuple[FieldSpec, ...] = ((8, 4), (12, 4), (82, 65535))
    body = record(layout, "10.0.0.1", "10.0.0.2", b"\x00")

    assert len(decode(ipfix(template_set(10, template(256, *layout)), packet_set(256, body, bytes(8))))) == 1


def test_variable_length_fields_are_passed_over_wherever_they_stand() -> None:
    layout: tuple[FieldSpec, ...] = ((82, 65535), (8, 4), (12, 4), (313, 65535), (2, 4), (371, 65535))
    long = b"\xff" + (300).to_bytes(2, "big") + bytes(300)
    bodies = [
        record(layout, b"\x03eth", "10.0.0.1", "10.0.0.2", b"\x00", 5, long),
        record(layout, long, "10.0.0.3", "10.0.0.4", b"\x02ab", 6, b"\x00"),
        record(layout, b"\x00", "10.0.0.5", "10.0.0.6", long, 7, b"\x01x"),
    ]

    flows = decode(ipfix(template_set(10, template(256, *layout)), packet_set(256, *bodies, b"\0\0\0")))

    assert flows["packets"].tolist() == [5, 6, 7]
    assert (flows["dst_lo"] & 0xFF).tolist() == [2, 4, 6]


def test_v9_knows_no_enterprise_bit() -> None:
    got = one(((0x8001, 4), (2, 4)), 9, 5, version=9)

    assert (got["bytes"], got["packets"]) == (0, 5)


def test_records_keep_the_order_in_which_they_were_sent_across_templates() -> None:
    other: tuple[FieldSpec, ...] = ((12, 4), (8, 4), (2, 8))
    decoder = FlowDecoder()
    sets = [template_set(9, template(256, *V4_FLOW), template(257, *other))]
    for number in range(0, 20, 4):
        sets.append(packet_set(256, v4_flow(packets=number), v4_flow(packets=number + 1)))
        sets.append(packet_set(257, record(other, "10.0.0.1", "10.0.0.2", number + 2)))
        sets.append(packet_set(256, v4_flow(packets=number + 3)))

    flows = decode(v9(*sets), decoder=decoder)

    assert flows["packets"].tolist() == list(range(20))


@pytest.mark.parametrize("version", [9, 10])
def test_same_template_id_of_other_domains_versions_and_addresses_are_other_templates(version: int) -> None:
    swapped: tuple[FieldSpec, ...] = ((12, 4), (8, 4), (2, 8))
    decoder = FlowDecoder()
    flow, reverse = v4_flow("10.0.0.1", "10.0.0.2"), record(swapped, "10.0.0.2", "10.0.0.1", 3)

    decoder.decode(export(version, template_set(version, template(256, *V4_FLOW)), domain=1), "192.0.2.1", 0)
    decoder.decode(export(version, template_set(version, template(256, *swapped)), domain=2), "192.0.2.1", 0)
    decoder.decode(export(version, template_set(version, template(256, *swapped)), domain=1), "192.0.2.2", 0)
    made = [
        decoder.decode(export(version, packet_set(256, flow), domain=1), "192.0.2.1", 0),
        decoder.decode(export(version, packet_set(256, reverse), domain=2), "192.0.2.1", 0),
        decoder.decode(export(version, packet_set(256, reverse), domain=1), "192.0.2.2", 0),
        decoder.decode(export(19 - version, packet_set(256, flow), domain=1), "192.0.2.1", 0),
    ]

    flows = np.concatenate(made[:3])
    assert {address_text(0, int(low)) for low in flows["src_lo"]} == {"10.0.0.1"}
    assert flows["packets"].tolist() == [3, 3, 3]
    assert [decoder.exporters[index] for index in flows["exporter"].tolist()] == [
        Exporter("192.0.2.1", version, 1),
        Exporter("192.0.2.1", version, 2),
        Exporter("192.0.2.2", version, 1),
    ]
    assert len(made[3]) == 0
    assert decoder.counters.unknown_template_sets == 1


def test_each_version_counts_what_its_standard_says() -> None:
    decoder = FlowDecoder()
    flow = packet_set(256, v4_flow(), v4_flow())
    template_only = (v9(template_set(9, template(256, *V4_FLOW))), ipfix(template_set(10, template(256, *V4_FLOW))))
    packets = [
        *template_only,
        *(v5(v5_record(), v5_record(), sequence=number % 2**32) for number in (*range(-10, 10, 2), 17)),
        *(v9(flow, sequence=number) for number in (*range(1, 11), 12)),
        *(ipfix(flow, sequence=number) for number in (*range(0, 20, 2), 23)),
    ]

    for packet in packets:
        decoder.decode(packet, "192.0.2.1", 0)

    # Two records missed, or one datagram, might be another way of counting them; seven records might not.
    told = {status.exporter.version: (status.counting, status.sequence_gaps) for status in decoder.status()}
    assert told == {5: ("flows", 1), 9: ("datagrams", 0), 10: ("records", 1)}
    assert decoder.counters.sequence_gaps == 2


def test_status_says_how_far_an_exporters_clock_is_from_ours() -> None:
    decoder = FlowDecoder()

    decoder.decode(v5(v5_record()), "192.0.2.1", EXPORT_MS + 60_000)

    (status,) = decoder.status()
    assert (status.clock_ahead_ms, status.heard_ms, status.records) == (-60_000, EXPORT_MS + 60_000, 1)


def test_status_names_the_templates_that_data_came_for_until_they_come() -> None:
    decoder = FlowDecoder()
    decoder.decode(export(9, packet_set(300, v4_flow()), packet_set(301, v4_flow())), "10.0.0.1", 0)
    assert [status.missing for status in decoder.status()] == [(300, 301)]
    decoder.decode(export(9, template_set(9, template(300, *V4_FLOW))), "10.0.0.1", 0)
    assert [status.missing for status in decoder.status()] == [(301,)]
