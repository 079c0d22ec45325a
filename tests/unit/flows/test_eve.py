"""Claims about Suricata's EVE log as a source of flows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.flow_logs import eve_event, eve_lines, rows
from tests.support.flows import T0_MS, record
from vedette.models.flows.eve import EveParser
from vedette.models.flows.log_lines import LogStateError, Reason
from vedette.models.flows.stitch import stitch

# As Suricata 7 writes one; byte for byte but for addresses and times.
LINE = (
    b'{"timestamp":"2026-11-23T10:57:41.120034+0000","flow_id":229978107844536,"in_iface":"eth0",'
    b'"event_type":"flow","src_ip":"10.7.0.200","src_port":40112,"dest_ip":"10.7.0.10","dest_port":22,"proto":"TCP",'
    b'"app_proto":"ssh","flow":{"pkts_toserver":9,"pkts_toclient":7,"bytes_toserver":1336,"bytes_toclient":1898,'
    b'"start":"2026-11-23T10:57:31.000400+0000","end":"2026-11-23T11:57:35.250000+0100","age":4,"state":"closed",'
    b'"reason":"timeout","alerted":false},"tcp":{"tcp_flags":"1f","tcp_flags_ts":"1b","tcp_flags_tc":"1e","syn":true}}'
)


def biflow(**fields: object) -> dict[str, Any]:
    return eve_event(next(rows(record(bidirectional=True, reverse_packets=4, reverse_bytes=900, **fields))))


def parsed(*events: dict[str, Any] | bytes, parser: EveParser | None = None):
    lines = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    return (parser or EveParser()).parse(lines)


def test_a_flow_event_is_a_biflow_with_the_ip_bytes_and_times_of_its_packets() -> None:
    (flow,) = parsed(LINE)
    assert (flow["src_lo"] & 0xFFFFFFFF, flow["dst_lo"] & 0xFFFFFFFF) == (0x0A0700C8, 0x0A07000A)
    assert (flow["src_port"], flow["dst_port"], flow["proto"]) == (40112, 22, 6)
    assert (flow["packets"], flow["bytes"]) == (9, 1336 - 9 * 14)
    assert (flow["reverse_packets"], flow["reverse_bytes"]) == (7, 1898 - 7 * 14)
    assert (flow["flags"], flow["reverse_flags"]) == (0x1B, 0x1E)
    assert flow["bidirectional"]
    assert (flow["end_ms"] - flow["start_ms"], flow["export_ms"] - flow["end_ms"]) == (4250, 5870)
    assert (flow["sampling"], flow["end_reason"], flow["icmp"]) == (1, 0, 0)


def test_link_bytes_are_what_the_operator_says() -> None:
    (flow,) = EveParser(link_bytes=0).parse([LINE])
    assert (flow["bytes"], flow["reverse_bytes"]) == (1336, 1898)
    (short,) = EveParser(link_bytes=1500).parse([LINE])
    assert (short["bytes"], short["reverse_bytes"]) == (0, 0)


def test_two_netflow_events_are_two_halves_that_are_stitched() -> None:
    def half(source: str, target: str, ports: tuple[int, int], flags: str, packets: int) -> dict[str, Any]:
        return {
            "timestamp": "2026-11-23T10:57:41.0+0000", "event_type": "netflow", "src_ip": source, "dest_ip": target,
            "src_port": ports[0], "dest_port": ports[1], "proto": "TCP", "tcp": {"tcp_flags": flags},
            "netflow": {"pkts": packets, "bytes": 100 * packets, "start": "2026-11-23T10:57:31.0+0000",
                        "end": "2026-11-23T10:57:35.0+0000", "age": 4, "min_ttl": 64, "max_ttl": 64},
        }  # fmt: skip

    halves = parsed(
        half("10.0.0.1", "10.0.0.7", (443, 40_000), "12", 3), half("10.0.0.7", "10.0.0.1", (40_000, 443), "02", 5)
    )
    assert not halves["bidirectional"].any()
    (flow,) = stitch(halves).flows
    assert (flow["src_port"], flow["packets"], flow["reverse_packets"], flow["flags"]) == (40_000, 5, 3, 2)


def test_a_file_that_says_every_flow_twice_counts_it_once() -> None:
    netflow = json.loads(LINE) | {"event_type": "netflow"}
    netflow["netflow"] = {"pkts": 9, "bytes": 900, "start": netflow["timestamp"], "end": netflow["timestamp"]}
    parser = EveParser()
    assert len(parsed(netflow, LINE, netflow, parser=parser)) == 1
    assert len(parsed(netflow, parser=parser)) == 0
    assert (parser.counters.others, parser.counters.records) == (3, 1)


@pytest.mark.parametrize("spaces", [False, True])
def test_other_events_are_passed_over_and_counted_as_others(spaces: bool) -> None:
    alert = {"timestamp": "x", "event_type": "alert", "flow": {"pkts_toserver": 1}, "payload": '"event_type":"flow"'}
    separators = None if spaces else (",", ":")
    parser = EveParser()
    found = parser.parse([json.dumps(alert, separators=separators).encode(), LINE, b"", b"  "])
    assert len(found) == 1
    assert (parser.counters.lines, parser.counters.others, parser.counters.records) == (4, 3, 1)
    assert not parser.counters.bad


def test_icmp_has_type_and_code_and_no_ports() -> None:
    (flow,) = parsed(biflow(proto=1, icmp=8 << 8, src_port=0, dst_port=0))
    assert (flow["icmp"], flow["src_port"], flow["dst_port"]) == (8 << 8, 0, 0)


def test_ipv6_and_protocols_without_a_name() -> None:
    event = biflow() | {"src_ip": "fe80::1%eth0", "dest_ip": "2001:db8::2", "proto": "089"}
    (flow,) = parsed(event)
    assert (flow["src_hi"], flow["src_lo"], flow["proto"]) == (0xFE80 << 48, 1, 89)
    assert flow["flags"] == 0, "flags are TCP's"


Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        (Reason.MISSING, lambda e: e.pop("flow")),
        (Reason.MISSING, lambda e: e.pop("proto")),
        (Reason.MISSING, lambda e: e["flow"].pop("pkts_toserver")),
        (Reason.MISSING, lambda e: e.update(tcp=[])),
        (Reason.TIME, lambda e: e.update(timestamp="yesterday")),
        (Reason.TIME, lambda e: e.update(timestamp="2026-11-23T10:57:41")),
        (Reason.TIME, lambda e: e["flow"].update(end=5)),
        (Reason.ADDRESS, lambda e: e.update(src_ip="10.0.0.256")),
        (Reason.ADDRESS, lambda e: e.update(dest_ip=7)),
        (Reason.PROTOCOL, lambda e: e.update(proto="tcpip")),
        (Reason.PROTOCOL, lambda e: e.update(proto=256)),
        (Reason.NUMBER, lambda e: e.update(src_port=65_536)),
        (Reason.NUMBER, lambda e: e["flow"].update(bytes_toserver=-1)),
        (Reason.NUMBER, lambda e: e["flow"].update(bytes_toserver=1.5)),
        (Reason.NUMBER, lambda e: e["flow"].update(pkts_toclient=2**63)),
        (Reason.NUMBER, lambda e: e["flow"].update(pkts_toclient=True)),
        (Reason.NUMBER, lambda e: e["tcp"].update(tcp_flags_ts="1ff")),
        (Reason.NUMBER, lambda e: e["tcp"].update(tcp_flags_ts="zz")),
    ],
)
def test_a_bad_event_is_counted_by_its_reason_and_costs_only_itself(reason: Reason, spoil: Spoil) -> None:
    event, parser = biflow(), EveParser()
    spoil(event)
    assert len(parsed(LINE, event, LINE, parser=parser)) == 2
    assert parser.counters.bad == {reason: 1}


@pytest.mark.parametrize(
    "line",
    [
        b'{"event_type":"flow"',
        b"\x00" * 64,
        b"\xff\xfe event_type",
        b"[" * 100_000,
        b'["event_type","flow"]',
        b'{"event_type":"flow","n":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_event_is_counted_as_no_json(line: bytes) -> None:
    parser = EveParser()
    assert len(parser.parse([line, LINE])) == 1
    assert parser.counters.bad == {Reason.NOT_JSON: 1}


def test_the_record_clock_waits_for_late_lines_and_starts_anew_for_an_old_file() -> None:
    at = [T0_MS, T0_MS + 90_000, T0_MS + 5_000, T0_MS + 100_000, T0_MS - 4_000_000, T0_MS - 3_999_000]
    made = parsed(*(biflow(export_ms=ms) for ms in at))
    assert (made["export_ms"] - T0_MS).tolist() == [0, 90_000, 90_000, 100_000, -4_000_000, -3_999_000]


def test_a_parser_goes_on_where_another_one_stopped() -> None:
    first, second = EveParser(), EveParser()
    parsed(LINE, parser=first)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    for wrong in ({}, first.state() | {"newest_ms": -1}, first.state() | {"has_flows": 1}, first.state() | {"x": 1}):
        with pytest.raises(LogStateError):
            second.restore(wrong)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just({}) | st.just([])


@given(st.dictionaries(st.sampled_from(sorted(json.loads(LINE))), VALUES, max_size=6), st.binary(max_size=200))
def test_no_line_raises_and_every_line_is_counted_once(changes: dict[str, Any], garbage: bytes) -> None:
    event = json.loads(LINE) | changes
    event["flow"] = event["flow"] if not isinstance(event["flow"], dict) else event["flow"] | changes
    parser = EveParser()
    found = parser.parse([json.dumps(event).encode(), garbage, LINE])
    counted = parser.counters
    assert counted.lines == counted.records + counted.others + counted.bad.total()
    assert counted.records == len(found) >= 1
    assert np.all(found["start_ms"] >= 0)


def test_batches_of_any_size_give_the_same_records() -> None:
    flows = np.concatenate([record(bidirectional=True, src_port=port, export_ms=T0_MS + port) for port in range(9)])
    lines = eve_lines(flows)
    one_by_one = EveParser()
    pieces = np.concatenate([one_by_one.parse([line]) for line in lines])
    assert pieces.tobytes() == EveParser().parse(lines).tobytes()
