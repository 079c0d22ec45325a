"""Who belongs together, and who asked."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.flows import CLIENT, SERVER, T0_MS, answer, record, traffic
from vedette.models.flows.records import FlowRecords, address_text, empty
from vedette.models.flows.stitch import MAX_GAP_MS, stitch


def _ends(flows: FlowRecords) -> tuple[str, str]:
    row = flows[0]
    return (
        address_text(int(row["src_hi"]), int(row["src_lo"])),
        address_text(int(row["dst_hi"]), int(row["dst_lo"])),
    )


def test_two_halves_become_one_flow_with_both_sides_counters() -> None:
    there = record(packets=5, bytes=500, flags=27)
    made = stitch(np.concatenate([there, answer(there, packets=7, bytes=9000, flags=30, end_ms=T0_MS + 300)]))
    (flow,) = made.flows
    assert (flow["packets"], flow["bytes"], flow["flags"]) == (5, 500, 27)
    assert (flow["reverse_packets"], flow["reverse_bytes"], flow["reverse_flags"]) == (7, 9000, 30)
    assert flow["bidirectional"]
    assert flow["end_ms"] == T0_MS + 300
    assert (made.first.tolist(), made.second.tolist()) == ([0], [1])


@pytest.mark.parametrize(
    ("there", "back"),
    [
        pytest.param({}, {}, id="lower class of port is the server"),
        pytest.param({"src_port": 50_000, "dst_port": 40_001}, {}, id="within a class the lower port"),
        pytest.param({"dst_port": 60_000, "flags": 2}, {"flags": 20}, id="SYN without ACK asks, whatever the ports"),
        pytest.param({"dst_port": 60_000}, {"start_ms": T0_MS + 1}, id="the earlier start asks, whatever the ports"),
        pytest.param(
            {"proto": 1, "src_port": 0, "dst_port": 0, "icmp": 8 * 256}, {"icmp": 0}, id="an echo request asks"
        ),
        pytest.param(
            {"proto": 58, "src_port": 0, "dst_port": 0, "icmp": 128 * 256}, {"icmp": 129 * 256}, id="ICMPv6 echo"
        ),
    ],
)
@pytest.mark.parametrize("answer_first", [False, True])
def test_client_is_found_whichever_half_comes_first(
    there: dict[str, int], back: dict[str, int], answer_first: bool
) -> None:
    asked = record(**there)
    halves = [asked, answer(asked, **back)]
    made = stitch(np.concatenate(halves[::-1] if answer_first else halves))
    assert len(made.flows) == 1
    assert _ends(made.flows) == (CLIENT, SERVER)
    assert made.flows["icmp"][0] == asked["icmp"][0]


@pytest.mark.parametrize(
    ("fields", "turned"),
    [
        pytest.param({"flags": 2}, False, id="an unanswered SYN"),
        pytest.param({"flags": 20, "src_port": 443, "dst_port": 40_000}, True, id="a refusal"),
        pytest.param({"flags": 18, "src_port": 443, "dst_port": 40_000}, True, id="an acceptance"),
        pytest.param({"proto": 17, "flags": 0, "src_port": 53, "dst_port": 40_000}, True, id="a DNS answer"),
        pytest.param({"proto": 17, "flags": 0, "src_port": 40_000, "dst_port": 50_000}, False, id="a UDP probe"),
        pytest.param(
            {"proto": 1, "flags": 0, "icmp": 3 * 256 + 3, "src_port": 0, "dst_port": 0}, True, id="unreachable"
        ),
        pytest.param({"proto": 1, "flags": 0, "icmp": 8 * 256, "src_port": 0, "dst_port": 0}, False, id="a ping"),
        pytest.param({"proto": 17, "flags": 0, "src_port": 123, "dst_port": 123}, False, id="NTP between servers"),
    ],
)
def test_a_lone_half_is_turned_only_when_it_is_plainly_an_answer(fields: dict[str, int], turned: bool) -> None:
    made = stitch(record(**fields))
    (flow,) = made.flows
    assert not flow["bidirectional"]
    assert _ends(made.flows) == ((SERVER, CLIENT) if turned else (CLIENT, SERVER))
    assert (flow["packets"], flow["reverse_packets"]) == ((0, 5) if turned else (5, 0))


def test_biflow_records_are_not_paired_but_oriented() -> None:
    by_address = answer(record(), bidirectional=True, flags=20, reverse_flags=2, reverse_packets=9)
    made = stitch(np.concatenate([by_address, by_address]))
    assert len(made.flows) == 2
    assert _ends(made.flows) == (CLIENT, SERVER)
    assert (made.flows["packets"] == 9).all()


def test_a_port_used_again_later_is_another_flow() -> None:
    there = record()
    late = answer(there, start_ms=T0_MS + 101 + MAX_GAP_MS, end_ms=T0_MS + 9_000)
    assert len(stitch(np.concatenate([there, late])).flows) == 2
    in_time = answer(there, start_ms=T0_MS + 100 + MAX_GAP_MS, end_ms=T0_MS + 9_000)
    assert len(stitch(np.concatenate([there, in_time])).flows) == 1


def test_repeated_flows_of_one_key_pair_in_turn() -> None:
    there = record()
    rows = [there, there, answer(there, packets=1), answer(there, packets=2), there]
    made = stitch(np.concatenate(rows))
    assert made.first.tolist() == [0, 1, 4]
    assert made.second.tolist() == [2, 3, -1]
    assert made.flows["reverse_packets"].tolist() == [1, 2, 0]


def test_other_protocol_or_port_does_not_pair() -> None:
    there = record()
    rows = [there, answer(there, proto=17), answer(there, src_port=444), answer(there, dst_port=40_001)]
    assert len(stitch(np.concatenate(rows)).flows) == 4


def test_no_records_make_no_flows() -> None:
    assert len(stitch(empty()).flows) == 0


def test_stitching_keeps_every_packet_and_byte_and_each_record_once() -> None:
    records = traffic(3, 20, 50)
    made = stitch(records)
    used = np.concatenate([made.first, made.second[made.second >= 0]])
    assert sorted(used.tolist()) == list(range(len(records)))
    for name in ("packets", "bytes"):
        assert made.flows[name].sum() + made.flows["reverse_" + name].sum() == records[name].sum()
