"""Claims about Zeek's conn.log as a source of flows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.flow_logs import ZEEK_FIELDS, rows, zeek_header, zeek_json, zeek_table, zeek_values
from tests.support.flows import T0_MS, record
from vedette.models.flows.log_lines import LogStateError, Reason
from vedette.models.flows.stitch import ACK, FIN, PSH, RST, SYN
from vedette.models.flows.zeek import ZeekParser

# As Zeek 7 writes it, without the policy that adds _write_ts.
HEADER = [
    b"#separator \\x09",
    b"#set_separator\t,",
    b"#empty_field\t(empty)",
    b"#unset_field\t-",
    b"#path\tconn",
    b"#open\t2026-11-23-10-00-00",
    b"#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\t"
    b"conn_state\tlocal_orig\tlocal_resp\tmissed_bytes\thistory\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\t"
    b"tunnel_parents",
    b"#types\ttime\tstring\taddr\tport\taddr\tport\tenum\tstring\tinterval\tcount\tcount\tstring\tbool\tbool\tcount\t"
    b"string\tcount\tcount\tcount\tcount\tset[string]",
]
SSH = (
    b"1795431451.000400\tCHhAvVGS1DHFjwGM9\t10.7.0.200\t40112\t10.7.0.10\t22\ttcp\tssh\t4.250000\t694\t1226\tSF\tT\tT\t0"
    b"\tShAdDaFf\t9\t1210\t7\t1800\t-"
)
DNS = b"1795431452.5\tC1\t2001:db8::1\t50000\t2001:db8::2\t53\tudp\tdns\t-\t-\t-\tS0\t-\t-\t0\tD\t1\t80\t0\t0\t-"


def parse(*lines: bytes, parser: ZeekParser | None = None):
    return (parser or ZeekParser()).parse([*HEADER, *lines])


def as_json(**changes: Any) -> bytes:
    values = dict(zip(HEADER[6].decode().split("\t")[1:], SSH.decode().split("\t"), strict=True))
    texts = {"uid", "id.orig_h", "id.resp_h", "proto", "service", "conn_state", "history"}
    made = {name: text if name in texts else json.loads(text) for name, text in values.items() if text not in "-TF"}
    return json.dumps({name: value for name, value in (made | changes).items() if value != "absent"}).encode()


def test_a_line_of_a_table_is_a_biflow_with_ip_bytes_and_the_flags_of_its_history() -> None:
    (flow,) = parse(SSH)
    assert (flow["src_port"], flow["dst_port"], flow["proto"], flow["bidirectional"]) == (40112, 22, 6, True)
    assert (flow["packets"], flow["bytes"], flow["reverse_packets"], flow["reverse_bytes"]) == (9, 1210, 7, 1800)
    assert (flow["flags"], flow["reverse_flags"]) == (SYN | ACK | PSH | FIN, SYN | ACK | PSH | FIN)
    assert (flow["start_ms"], flow["end_ms"], flow["export_ms"]) == (1795431451000, 1795431455250, 1795431455250)


def test_what_is_not_set_counts_as_nothing_and_version_6_is_read() -> None:
    (flow,) = parse(DNS)
    assert (flow["end_ms"] - flow["start_ms"], flow["reverse_packets"], flow["flags"]) == (0, 0, 0)
    assert (flow["src_hi"], flow["src_lo"], flow["dst_port"]) == (0x20010DB8 << 32, 1, 53)


def test_json_says_the_same_as_the_table() -> None:
    table = parse(SSH)
    assert ZeekParser().parse([as_json()]).tobytes() == table.tobytes()
    assert ZeekParser().parse([as_json(ts="2026-11-23T10:57:31.000400Z")]).tobytes() == table.tobytes()
    assert ZeekParser().parse([as_json(ts=1795431451000)]).tobytes() == table.tobytes(), "times in milliseconds"


def test_payload_bytes_stand_in_for_ip_bytes_that_were_left_out() -> None:
    (flow,) = ZeekParser().parse([as_json(orig_ip_bytes=None, resp_ip_bytes="absent")])
    assert (flow["bytes"], flow["reverse_bytes"]) == (694, 1226)


@pytest.mark.parametrize(
    ("history", "state", "sent", "received"),
    [
        ("S", "S0", SYN, 0),
        ("Sr", "REJ", SYN, RST | ACK),
        ("ShR", "RSTO", SYN | RST, SYN | ACK),
        ("ShADdr", "RSTR", SYN | ACK | PSH, SYN | ACK | PSH | RST),
        ("DadA", "OTH", ACK | PSH, ACK | PSH),
        ("^hCGtw", "SHR", 0, SYN | ACK),
        (None, "S0", SYN, 0),
        (None, "REJ", SYN, RST | ACK),
        (None, "SF", SYN | ACK | FIN, SYN | ACK | FIN),
        (None, "OTH", 0, 0),
        (None, None, 0, 0),
        (None, "new", 0, 0),
    ],
)
def test_flags_are_read_off_the_history_or_else_off_the_state(
    history: str | None, state: str | None, sent: int, received: int
) -> None:
    (flow,) = ZeekParser().parse([as_json(history=history, conn_state=state)])
    assert (flow["flags"], flow["reverse_flags"]) == (sent, received)


@pytest.mark.parametrize(
    ("client", "ports", "proto", "icmp"),
    [
        ("10.0.0.1", (8, 0), 1, 8 << 8),
        ("10.0.0.1", (3, 1), 1, 3 << 8 | 1),
        ("10.0.0.1", (13, 14), 1, 13 << 8),
        ("2001:db8::1", (128, 129), 58, 128 << 8),
        ("2001:db8::1", (1, 4), 58, 1 << 8 | 4),
    ],
)
def test_icmp_ports_are_type_and_code(client: str, ports: tuple[int, int], proto: int, icmp: int) -> None:
    changes = {"id.orig_h": client, "id.resp_h": client, "id.orig_p": ports[0], "id.resp_p": ports[1], "proto": "icmp"}
    (flow,) = ZeekParser().parse([as_json(**changes)])
    assert (flow["proto"], flow["icmp"], flow["src_port"], flow["dst_port"], flow["flags"]) == (proto, icmp, 0, 0, 0)


def test_a_protocol_without_a_name_has_its_number() -> None:
    (flow,) = ZeekParser().parse([as_json(proto="unknown_transport", ip_proto=89)])
    assert flow["proto"] == 89


def test_a_new_header_in_the_middle_reads_what_follows_it() -> None:
    values = dict(zip(HEADER[6].decode().split("\t")[1:], SSH.decode().split("\t"), strict=True))
    names = [name for name in sorted(values) if name != "uid"]
    second = [
        b"#separator \\x7c", b"#unset_field|NIL", b"#path|conn", ("#fields|" + "|".join(names)).encode(),
        "|".join(values[name] if values[name] != "-" else "NIL" for name in names).encode(),
    ]  # fmt: skip
    parser = ZeekParser()
    found = parse(SSH, *second, parser=parser)
    assert found[1].tobytes() == found[0].tobytes()
    assert parser.counters.others == len(HEADER) + 4


def test_the_write_time_is_the_record_clock_where_the_log_has_it() -> None:
    flow = record(bidirectional=True, export_ms=T0_MS + 77_000)
    for lines in (zeek_table(flow), zeek_json(flow)):
        (made,) = ZeekParser().parse(lines)
        assert made["export_ms"] == T0_MS + 77_000


def test_the_end_is_the_record_clock_and_never_goes_back_for_a_late_line() -> None:
    later, sooner = as_json(ts=1795431500.0, duration=60.0), as_json(ts=1795431500.0, duration=1.0)
    assert ZeekParser().parse([later, sooner])["export_ms"].tolist() == [1795431560000, 1795431560000]


@pytest.mark.parametrize("field", ["ts", "id.orig_h", "id.resp_p", "proto", "orig_pkts"])
def test_a_field_that_every_flow_has_may_not_be_missing(field: str) -> None:
    parser = ZeekParser()
    assert len(parser.parse([as_json(**{field: "absent"}), as_json()])) == 1
    assert parser.counters.bad == {Reason.MISSING: 1}


@pytest.mark.parametrize(
    ("reason", "lines"),
    [
        (Reason.COLUMNS, [*HEADER, SSH + b"\tmore"]),
        (Reason.COLUMNS, [*HEADER, SSH[:40]]),
        (Reason.COLUMNS, [*HEADER, b"\xff" + SSH]),
        (Reason.NO_HEADER, [SSH]),
        (Reason.NO_HEADER, [*HEADER[:5], b"#fields\tts\tuid", b"1.0\tC1"]),
        (Reason.NUMBER, [*HEADER, SSH.replace(b"40112", b"70000")]),
        (Reason.NUMBER, [*HEADER, SSH.replace(b"\t1210\t", b"\t-1210\t")]),
        (Reason.NUMBER, [*HEADER, SSH.replace(b"\t1210\t", b"\tmany\t")]),
        (Reason.TIME, [*HEADER, SSH.replace(b"1795431451.000400", b"nan")]),
        (Reason.ADDRESS, [*HEADER, SSH.replace(b"10.7.0.10\t", b"host\t")]),
        (Reason.PROTOCOL, [*HEADER, SSH.replace(b"\ttcp\t", b"\tunknown_transport\t")]),
        (Reason.NOT_JSON, [b'{"ts":']),
        (Reason.NOT_JSON, [b"{\xff}"]),
        (Reason.ADDRESS, [as_json(**{"id.orig_h": 7})]),
        (Reason.TIME, [as_json(ts=[])]),
        (Reason.TIME, [as_json(duration=True)]),
        (Reason.NUMBER, [as_json(orig_pkts=1.5)]),
    ],
)
def test_a_bad_line_is_counted_by_its_reason(reason: Reason, lines: list[bytes]) -> None:
    parser = ZeekParser()
    assert len(parser.parse(lines)) == 0
    assert parser.counters.bad == {reason: 1}


def test_another_log_in_the_same_file_is_passed_over() -> None:
    parser = ZeekParser()
    dns = [line.replace(b"conn", b"dns") if line.startswith(b"#path") else line for line in HEADER]
    assert len(parser.parse([*dns, SSH, as_json(_path="dns"), b"#close\t2026"])) == 0
    assert parser.counters.others == len(dns) + 3
    assert not parser.counters.bad


def test_a_parser_goes_on_in_the_middle_of_a_table() -> None:
    first, second = ZeekParser(), ZeekParser()
    parse(DNS, parser=first)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.parse([SSH]).tobytes() == first.parse([SSH]).tobytes()
    for wrong in ({}, first.state() | {"fields": [1]}, first.state() | {"separator": 1}, first.state() | {"x": 1}):
        with pytest.raises(LogStateError):
            second.restore(wrong)
    second.begin()
    second.parse([SSH])
    assert second.counters.bad == {Reason.NO_HEADER: 1}


@given(st.lists(st.sampled_from([*HEADER, SSH, DNS, as_json()]) | st.binary(max_size=80), max_size=20))
def test_no_line_raises_and_every_line_is_counted_once(lines: list[bytes]) -> None:
    parser = ZeekParser()
    found = parser.parse(lines)
    counted = parser.counters
    assert counted.lines == counted.records + counted.others + counted.bad.total() == len(lines)
    assert counted.records == len(found)


@given(st.dictionaries(st.sampled_from(ZEEK_FIELDS), st.text(max_size=12) | st.floats().map(str), max_size=4))
def test_no_value_of_a_table_raises(changes: dict[str, str]) -> None:
    values = zeek_values(next(rows(record(bidirectional=True)))) | changes
    parser = ZeekParser()
    parser.parse([*zeek_header(), "\t".join(values.values()).encode("utf-8", "replace")])
    assert parser.counters.records + parser.counters.others + parser.counters.bad.total() == len(zeek_header()) + 1
