"""Datagrams of common exporters, captured or built byte for byte from their maker's description, say what they mean."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.flow_packets import (
    FieldSpec,
    ipfix,
    options_set,
    options_template,
    packet_set,
    record,
    template,
    template_set,
    v9,
)
from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.flows.records import FlowRecords, address_text
from vedette.models.flows.templates import Limits

_FOLDER = Path(__file__).parents[2] / "support/exporters"
HERE = "192.0.2.1"


def captured(name: str) -> bytes:
    """Return one datagram of tests/support/exporters."""
    return (_FOLDER / f"{name}.dat").read_bytes()


def told(flows: FlowRecords, row: int) -> dict[str, Any]:
    """Return a record by plain values, addresses as text."""
    one = flows[row]
    return {name: one[name].item() for name in flows.dtype.names or ()} | {
        side: address_text(int(one[f"{side}_hi"]), int(one[f"{side}_lo"])) for side in ("src", "dst")
    }


_FORTIGATE = "netflow9_test_fortigate_fortios_542_appid_"
_CAPTURED: tuple[tuple[str, tuple[str, ...], int, int, dict[str, Any]], ...] = (
    # name, datagrams, records, which one, what it says (by the captures' own project, see the README beside them)
    (
        "FortiGate sends a record a direction: what it forwarded is no answer",
        (f"{_FORTIGATE}tpl258-269", f"{_FORTIGATE}data258_262"),
        17,
        0,
        {"src": "192.168.100.151", "dst": "182.50.136.239", "src_port": 45380, "dst_port": 80, "proto": 6}
        | {"packets": 6, "bytes": 748, "bidirectional": False, "reverse_bytes": 0, "end_reason": 3}
        | {"start_ms": 1526000049580, "end_ms": 1526000049990},
    ),
    (
        "ASR 9000: sampler id, VRF and direction beside the flow",
        ("netflow9_test_cisco_asr9k_tpl260", "netflow9_test_cisco_asr9k_data260"),
        21,
        20,
        {"src": "10.0.29.46", "dst": "10.0.15.38", "src_port": 443, "dst_port": 52364, "proto": 6, "flags": 18}
        | {"packets": 2, "bytes": 112, "start_ms": 1481018932377, "end_ms": 1481018933964, "bidirectional": False},
    ),
    (
        "ASR 1001-X: Flexible NetFlow with application id and absolute milliseconds",
        ("netflow9_cisco_asr1001x_tpl259",),
        25,
        1,
        {"src": "10.10.4.29", "dst": "10.100.105.85", "src_port": 161, "dst_port": 41746, "proto": 17}
        | {"packets": 1, "bytes": 284, "start_ms": 1507580540638, "end_ms": 1507580540638},
    ),
    (
        "NBAR: application table in option data, sampler 0",
        ("netflow9_test_cisco_nbar_opttpl260", "netflow9_test_cisco_nbar_tpl262", "netflow9_test_cisco_nbar_data262"),
        5,
        4,
        {"src": "10.10.172.60", "dst": "10.30.19.180", "src_port": 45269, "dst_port": 161, "proto": 17}
        | {"packets": 36, "bytes": 2794, "sampling": 1},
    ),
    (
        "Nexus in ACI mode",
        ("netflow9_test_cisco_aci_tpl256-258", "netflow9_test_cisco_aci_data256"),
        3,
        0,
        {"src": "10.154.231.145", "dst": "10.154.231.146", "src_port": 179, "dst_port": 49411, "flags": 24}
        | {"packets": 2, "bytes": 99},
    ),
    (
        "ASA: events of connections, bytes and no packets",
        ("netflow9_test_cisco_asa_1_tpl", "netflow9_test_cisco_asa_1_data"),
        14,
        0,
        {"src": "192.168.14.1", "dst": "2.2.2.11", "proto": 1, "bytes": 56, "packets": 0, "bidirectional": False},
    ),
    (
        "Juniper MX: v5 with the rate in its header",
        ("netflow5_test_juniper_mx80",),
        29,
        0,
        {"src": "10.0.0.1", "dst": "192.168.0.2", "src_port": 443, "dst_port": 61608, "flags": 16, "sampling": 1000},
    ),
    (
        "nProbe v9",
        ("netflow9_test_nprobe_tpl", "netflow9_test_nprobe_data"),
        1,
        0,
        {"src": "172.16.32.201", "dst": "172.16.32.1", "src_port": 22, "dst_port": 65058, "tos": 16, "flags": 24}
        | {"packets": 2, "bytes": 200, "bidirectional": False},
    ),
    (
        "YAF: totals, reverse elements, TCP flags under CERT's number, a list of variable length",
        ("ipfix_test_yaf_tpls_option_tpl", "ipfix_test_yaf_data45873"),
        1,
        0,
        {"src": "172.16.32.100", "dst": "172.16.32.215", "src_port": 63499, "dst_port": 9997, "proto": 6}
        | {"packets": 4, "bytes": 172, "reverse_packets": 2, "reverse_bytes": 92, "bidirectional": True}
        | {"flags": 194 | 17, "reverse_flags": 18 | 17, "end_reason": 3}
        | {"start_ms": 1482670713345, "end_ms": 1482670714347},
    ),
    (
        "H3C: a field of variable length in v9",
        ("netflow9_test_h3c_netstream_varstring_tpl3281", "netflow9_test_h3c_netstream_varstring_data3281"),
        1,
        0,
        {"src": "20.20.20.20", "dst": "20.20.255.255", "src_port": 137, "dst_port": 137, "proto": 17}
        | {"packets": 9, "bytes": 702, "sampling": 1},
    ),
    (
        "fields of no bytes; a flow that was seen on its way out only",
        ("netflow9_test_0length_fields_tpl_data",),
        10,
        1,
        {"src": "192.168.1.80", "dst": "239.255.255.250", "proto": 2, "packets": 1, "bytes": 32}
        | {"bidirectional": False, "reverse_packets": 0},
    ),
    (
        "VMware: enterprise elements between the standard ones",
        ("ipfix_test_vmware_vds_tpl", "ipfix_test_vmware_vds_data264"),
        1,
        0,
        {"src": "172.18.65.21", "dst": "172.18.65.211", "src_port": 61209, "dst_port": 5985, "flags": 2}
        | {"packets": 2, "bytes": 100, "start_ms": 1482409057000},
    ),
    (
        "MikroTik: IPFIX by uptime",
        ("ipfix_test_mikrotik_tpl", "ipfix_test_mikrotik_data258"),
        28,
        1,
        {"src": "192.168.35.143", "dst": "192.168.230.216", "src_port": 46518, "dst_port": 82, "flags": 2}
        | {"packets": 8, "bytes": 502},
    ),
    (
        "Palo Alto",
        ("netflow9_test_paloalto_panos_tpl", "netflow9_test_paloalto_panos_data"),
        8,
        1,
        {"src": "10.32.105.103", "dst": "162.115.24.30", "src_port": 39702, "dst_port": 443, "flags": 26}
        | {"packets": 1, "bytes": 111, "start_ms": 1510583632000, "end_ms": 1510583971000},
    ),
    (
        "Huawei NetStream: something of two bytes under the number of the responder's counter",
        ("netflow9_test_huawei_netstream_tpl", "netflow9_test_huawei_netstream_data"),
        1,
        0,
        {"src": "10.108.219.53", "dst": "10.111.112.204", "src_port": 45587, "dst_port": 2598, "proto": 6}
        | {"packets": 4, "bytes": 200, "bidirectional": False},
    ),
    (
        "ipt_NETFLOW: counters of reduced size",
        ("netflow9_test_iptnetflow_reduced_size_encoding_tpldata260",),
        12,
        0,
        {"bidirectional": False},
    ),
)


@pytest.mark.parametrize(
    ("names", "records", "row", "says"), [case[1:] for case in _CAPTURED], ids=[c[0] for c in _CAPTURED]
)
def test_captured_datagrams_say_what_their_exporter_meant(
    names: tuple[str, ...], records: int, row: int, says: dict[str, Any]
) -> None:
    decoder = FlowDecoder()
    flows = np.concatenate([decoder.decode(captured(name), HERE, 0) for name in names])
    assert decoder.counters.malformed == {}, decoder.last_error
    assert len(flows) == records
    assert told(flows, row).items() >= says.items()


@pytest.mark.parametrize(
    ("names", "boot_ms", "sampling"),
    [
        # exportingProcessId as the scope, systemInitTime and samplingInterval among the fields
        (
            ("ipfix_test_juniper_mx240_junos151r6s3_opttpl512", "ipfix_test_juniper_mx240_junos151r6s3_data512"),
            1262761598000,
            1000,
        ),
        (("netflow9_test_juniper_srx_tplopt",), 0, 1),  # a scope of no bytes
    ],
)
def test_captured_option_data_says_the_rate(names: tuple[str, ...], boot_ms: int, sampling: int) -> None:
    decoder = FlowDecoder()
    for name in names:
        decoder.decode(captured(name), HERE, 0)
    (status,) = decoder.status()
    assert (status.boot_ms, status.sampling, decoder.counters.option_records) == (boot_ms, sampling, 1)
    assert decoder.counters.malformed == {}


# Cisco IOS XR: the options template of netflow9_test_cisco_asr9k_opttpl257. IOS and NX-OS send the fields in another
# order and the id in one or four bytes (Cisco, NetFlow Version 9 Flow-Record Format, fields 48 to 50 and 84).
_SCOPE: tuple[FieldSpec, ...] = ((1, 4),)
_XR_TABLE: tuple[FieldSpec, ...] = ((48, 2), (50, 4), (49, 1), (84, 32))
_IOS_TABLE: tuple[FieldSpec, ...] = ((48, 1), (84, 41), (49, 1), (50, 4))
_FLOW: tuple[FieldSpec, ...] = ((8, 4), (12, 4), (4, 1), (1, 4), (2, 4))


def _table(fields: tuple[FieldSpec, ...], *rows: dict[int, int]) -> bytes:
    """Return option records; what a row leaves out is zeros, a name for instance."""
    return b"".join(record(_SCOPE + fields, 7, *(row.get(field[0], 0) for field in fields)) for row in rows)


def _flow(sampler: int | None, fields: tuple[FieldSpec, ...]) -> bytes:
    return record(fields, "10.0.0.1", "10.0.0.2", 17, 300, 3, *([] if sampler is None else [sampler]))


@pytest.mark.parametrize("table", [_XR_TABLE, _IOS_TABLE])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_each_record_has_the_rate_of_the_sampler_it_names(table: tuple[FieldSpec, ...], width: int) -> None:
    fields = (*_FLOW, (48, width))
    says = packet_set(257, _table(table, {48: 1, 50: 100, 49: 2}, {48: 2, 50: 1000, 49: 2}))
    flows = [_flow(sampler, fields) for sampler in (1, 2, 0, 3)]
    decoder = FlowDecoder()

    made = decoder.decode(
        v9(
            options_set(9, options_template(9, 257, _SCOPE, *table)),
            template_set(9, template(260, *fields)),
            says,
            packet_set(260, *flows),
        ),
        HERE,
        0,
    )

    # 0: not sampled; 3 is not in the table: the rate that was said last
    assert made["sampling"].tolist() == [100, 1000, 1, 1000]
    assert decoder.status()[0].samplers == {1: 100, 2: 1000}


def test_a_captured_sampler_table_gives_the_rate_of_captured_flows() -> None:
    decoder, head = FlowDecoder(), captured("netflow9_test_cisco_asr9k_data260")[:20]
    source_id = struct.unpack_from(">I", head, 16)[0]
    says = v9(packet_set(257, _table(_XR_TABLE, {48: 1, 50: 4096, 49: 2})), source_id=source_id)
    names = ("netflow9_test_cisco_asr9k_opttpl257", "netflow9_test_cisco_asr9k_tpl260")
    template_packets = [_of_source(captured(name), source_id) for name in names]

    for packet in (*template_packets, says):
        decoder.decode(packet, HERE, 0)
    flows = decoder.decode(captured("netflow9_test_cisco_asr9k_data260"), HERE, 0)

    assert set(flows["sampling"].tolist()) == {4096}


def _of_source(packet: bytes, source_id: int) -> bytes:
    return packet[:16] + struct.pack(">I", source_id) + packet[20:]


def test_a_rate_that_changes_holds_from_there_on_however_datagrams_are_batched() -> None:
    fields = (*_FLOW, (48, 2))
    head = v9(options_set(9, options_template(9, 257, _SCOPE, *_XR_TABLE)), template_set(9, template(260, *fields)))
    flow = v9(packet_set(260, _flow(1, fields)))
    rates = (100, 100, 200, 50)
    packets = [head]
    for rate in rates:
        packets += [v9(packet_set(257, _table(_XR_TABLE, {48: 1, 50: rate}))), flow]
    one_by_one, together = FlowDecoder(), FlowDecoder()

    made = np.concatenate([one_by_one.decode(packet, HERE, 0) for packet in packets])
    assert made["sampling"].tolist() == list(rates)
    assert together.decode_many(Datagram(0, HERE, 0, packet) for packet in packets).tobytes() == made.tobytes()


def test_samplers_are_of_one_exporter_and_domain() -> None:
    fields = (*_FLOW, (48, 2))
    decoder = FlowDecoder()
    templates = (options_set(9, options_template(9, 257, _SCOPE, *_XR_TABLE)), template_set(9, template(260, *fields)))
    for domain, rate in ((1, 10), (2, 20)):
        says = packet_set(257, _table(_XR_TABLE, {48: 1, 50: rate}))
        decoder.decode(v9(*templates, says, source_id=domain), HERE, 0)
    decoder.decode(v9(*templates, source_id=1), "192.0.2.2", 0)

    got = [
        decoder.decode(v9(packet_set(260, _flow(1, fields)), source_id=domain), address, 0)["sampling"].tolist()
        for address, domain in ((HERE, 1), (HERE, 2), ("192.0.2.2", 1))
    ]

    assert got == [[10], [20], [1]]


def test_samplers_survive_a_restart_and_are_bounded() -> None:
    fields = (*_FLOW, (48, 4))
    table: tuple[FieldSpec, ...] = ((48, 4), (50, 4))
    head = v9(options_set(9, options_template(9, 257, _SCOPE, *table)), template_set(9, template(260, *fields)))
    decoder = FlowDecoder(Limits(samplers_per_state=3))
    decoder.decode(head, HERE, 0)
    for sampler in range(1, 6):
        decoder.decode(v9(packet_set(257, _table(table, {48: sampler, 50: 10 * sampler}))), HERE, 0)
    later = FlowDecoder()

    later.load_templates(decoder.dump_templates())

    assert later.status()[0].samplers == decoder.status()[0].samplers == {3: 30, 4: 40, 5: 50}
    assert later.decode(v9(packet_set(260, _flow(4, fields))), HERE, 0)["sampling"].tolist() == [40]


@pytest.mark.parametrize(
    ("fields", "values", "rate"),
    [
        (((304, 2), (305, 4), (306, 4)), (1, 1, 99), 100),  # systematic by count
        (((304, 2), (307, 4), (308, 4)), (2, 1000, 9000), 10),  # systematic by time
        (((304, 2), (309, 4), (310, 4)), (3, 2, 401), 201),  # n of N, to the nearest whole
        (((304, 2), (311, 8)), (4, struct.pack(">d", 0.001)), 1000),  # a probability
        (((304, 2), (311, 4)), (4, struct.pack(">f", 0.25)), 4),
        (((304, 2), (311, 8)), (4, struct.pack(">d", float("nan"))), 1),
        (((304, 2), (311, 8)), (4, struct.pack(">d", 0.0)), 1),
        (((304, 2), (311, 8)), (4, struct.pack(">d", 2.0)), 1),
    ],
)
def test_selectors_of_ipfix_give_the_rate_of_the_records_that_name_them(
    fields: tuple[FieldSpec, ...], values: tuple[Any, ...], rate: int
) -> None:
    # RFC 5476 section 6.5.2: the selector's id is the scope of its report; RFC 5477 section 8.2: what describes it.
    scope: tuple[FieldSpec, ...] = ((302, 4),)
    flow = (*_FLOW, (302, 4))
    made = FlowDecoder().decode(
        ipfix(
            options_set(10, options_template(10, 300, scope, *fields)),
            packet_set(300, record(scope + fields, 9, *values)),
            template_set(10, template(301, *flow)),
            packet_set(301, _flow(9, flow)),
        ),
        HERE,
        0,
    )
    assert made["sampling"].tolist() == [rate]


@pytest.mark.parametrize(
    ("version", "fields", "reverse"),
    [
        # nProbe User's Guide: OUT_BYTES and OUT_PKTS are "dst->src"; L7_PROTO is 57590 in v9 and 35632/118 in IPFIX.
        (9, ((1, 4), (2, 4), (23, 4), (24, 4), (57_590, 2)), True),
        (9, ((1, 4), (2, 4), (23, 4), (24, 4), (61, 1), (57_590, 2)), True),
        (9, ((1, 4), (2, 4), (23, 4), (24, 4)), True),
        (9, ((1, 4), (2, 4), (23, 4), (24, 4), (61, 1)), False),
        (10, ((1, 4), (2, 4), (23, 4), (24, 4), (118, 2, 35_632)), True),
        (10, ((1, 4), (2, 4), (1, 4, 29_305), (2, 4, 29_305), (118, 2, 35_632)), True),
        (10, ((1, 4), (2, 4), (23, 4), (24, 4)), False),
    ],
)
def test_outgoing_counters_are_the_answer_only_where_their_exporter_says_so(
    version: int, fields: tuple[FieldSpec, ...], reverse: bool
) -> None:
    layout = ((8, 4), (12, 4), *fields)
    values = [500, 5, 700, 7, *([1] * (len(fields) - 4))]
    sets = (
        template_set(version, template(300, *layout)),
        packet_set(300, record(layout, "10.0.0.1", "10.0.0.2", *values)),
    )
    made = told(FlowDecoder().decode(v9(*sets) if version == 9 else ipfix(*sets), HERE, 0), 0)
    assert (made["bytes"], made["packets"]) == (500, 5)
    assert (made["reverse_bytes"], made["reverse_packets"], made["bidirectional"]) == (
        (700, 7, True) if reverse else (0, 0, False)
    )
