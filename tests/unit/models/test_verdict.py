import json

import numpy as np

from vedette.models.flows import records
from vedette.models.verdict import Evidence, ScoredBy, time_text, verdict_lines

BY = ScoredBy("edge-7", "flow-threat", 3, "sha256:ab12")


def flow(**fields: object) -> np.ndarray:
    made = records.empty(1)
    for name, value in fields.items():
        made[name] = value
    for end, text in (("src", "10.7.0.200"), ("dst", "10.7.0.10")):
        made[f"{end}_hi"], made[f"{end}_lo"] = records.address_halves(text)
    return made


def line(flows: np.ndarray, **changes: object) -> dict:
    known = {"exporters": ["10.7.0.1"], "evidence": {}, "now_ms": 1_795_433_861_120, "by": BY}
    (made,) = verdict_lines(flows, ["brute"], np.array([0.9812345678]), np.array([True]), **(known | changes))
    assert made.endswith(b"\n")
    return json.loads(made)


def test_a_verdict_has_the_shape_that_pipelines_read():
    made = line(
        flow(src_port=40112, dst_port=22, proto=6, packets=9, reverse_packets=7, bytes=1210, reverse_bytes=1800,
             start_ms=1_795_433_800_000, end_ms=1_795_433_861_000),
        evidence={0: [Evidence("dst_port_conn_rate_60s", 11.4, 0.2, 0.61)]},
    )  # fmt: skip
    assert made == {
        "timestamp": "2026-11-23T11:37:41.120Z",
        "event_type": "vedette",
        "host": "edge-7",
        "src_ip": "10.7.0.200",
        "src_port": 40112,
        "dest_ip": "10.7.0.10",
        "dest_port": 22,
        "proto": "TCP",
        "flow": {
            "start": "2026-11-23T11:36:40.000Z",
            "end": "2026-11-23T11:37:41.000Z",
            "pkts_toserver": 9,
            "pkts_toclient": 7,
            "bytes_toserver": 1210,
            "bytes_toclient": 1800,
            "exporter": "10.7.0.1",
            "sampling": 1,
        },
        "vedette": {
            "model": "flow-threat",
            "version": 3,
            "build": "sha256:ab12",
            "verdict": "brute",
            "flagged": True,
            "score": 0.981235,
            "evidence": [{"feature": "dst_port_conn_rate_60s", "value": 11.4, "usual": 0.2, "weight": 0.61}],
        },
    }


def test_icmp_says_type_and_code():
    made = line(flow(proto=1, icmp=0x0301))
    assert (made["proto"], made["icmp_type"], made["icmp_code"]) == ("ICMP", 3, 1)


def test_an_unknown_protocol_is_its_number():
    assert line(flow(proto=250))["proto"] == "250"


def test_addresses_of_both_families_read_as_usual():
    six = flow(proto=17)
    six["src_hi"], six["src_lo"] = records.address_halves("2001:db8::1")
    assert line(six)["src_ip"] == "2001:db8::1"


def test_counters_of_the_largest_size_are_exact():
    assert line(flow(bytes=2**64 - 1))["flow"]["bytes_toserver"] == 2**64 - 1


def test_a_time_no_calendar_holds_reads_as_the_nearest_it_does():
    assert time_text(-(2**63)) == "1970-01-01T00:00:00.000Z"
    assert time_text(2**63 - 1) == "9999-12-31T23:59:59.999Z"


def test_a_flow_without_evidence_has_no_such_key():
    assert "evidence" not in line(flow())["vedette"]
