"""Datagrams of real exporters decode to what is known of them apart from this decoder."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.support.captures import CAPTURES, capture_datagrams
from vedette.models.flows.netflow import Exporter, FlowDecoder
from vedette.models.flows.records import FlowRecords, address_text

_ROW = re.compile(r"\| (\S+)\.pcap\.gz \| [^|]+ \| (\d+) \| (\d+) \|")
# Name, datagrams and records as the READMEs say, counted when the captures were made.
STATED = [
    (f"{readme.parent.name}/{name}", int(datagrams), int(records))
    for readme in sorted(CAPTURES.glob("*/README.md"))
    for name, datagrams, records in _ROW.findall(readme.read_text())
]

_KEY = ["src_lo", "dst_lo", "src_port", "dst_port", "proto"]


def decoded(name: str) -> tuple[FlowRecords, FlowDecoder]:
    decoder = FlowDecoder()
    return decoder.decode_many(capture_datagrams(name)), decoder


def test_readmes_name_exactly_the_captures_that_are_there() -> None:
    there = sorted(f"{path.parent.name}/{path.name.removesuffix('.pcap.gz')}" for path in CAPTURES.glob("*/*.gz"))

    assert sorted(name for name, _, _ in STATED) == there
    assert len(there) == 10


@pytest.mark.parametrize(("name", "datagrams", "records"), STATED, ids=[name for name, _, _ in STATED])
def test_every_record_of_a_capture_is_decoded_and_nothing_is_malformed(name: str, datagrams: int, records: int) -> None:
    flows, decoder = decoded(name)

    counted = decoder.counters
    assert (counted.datagrams, counted.records, len(flows)) == (datagrams, records, records)
    assert counted.malformed == {}
    assert (counted.unknown_template_sets, counted.records_not_flows, counted.records_boot_unknown) == (0, 0, 0)


@pytest.mark.parametrize("name", [name for name, _, _ in STATED])
def test_one_by_one_gives_the_same_bytes_as_a_batch(name: str) -> None:
    datagrams = capture_datagrams(name)
    single = FlowDecoder()

    apart = [single.decode(one.payload, one.source, one.at_ns // 1_000_000, one.source_port) for one in datagrams]

    batch = FlowDecoder()
    assert np.concatenate(apart).tobytes() == batch.decode_many(datagrams).tobytes()
    assert single.counters == batch.counters


@pytest.mark.parametrize("name", [name for name, _, _ in STATED])
def test_values_are_those_of_the_network_that_was_recorded(name: str) -> None:
    labels = json.loads((CAPTURES / name).parent.joinpath("labels.json").read_text())
    first_ms, minutes = labels["t0"] * 1000, labels["minutes"]
    network = labels["net"].removesuffix("0/24")

    flows, decoder = decoded(name)

    inside = (flows["src_lo"] & 0xFFFFFF00) == (flows["dst_lo"] & 0xFFFFFF00)
    assert inside.mean() > 0.9
    assert any(address_text(0, int(low)).startswith(network) for low in flows["src_lo"][inside][:10])
    assert set(np.unique(flows["proto"])) <= {1, 2, 6, 17}
    packets = flows["packets"] + flows["reverse_packets"]  # softflowd -b turns some flows round: nothing forward
    assert (packets > 0).all()
    assert (flows["bytes"] + flows["reverse_bytes"] >= 20 * packets).all()
    assert (flows["end_ms"] >= flows["start_ms"]).all()
    # Started while the network ran, ended before they were told of; v9 header seconds are whole: a second early.
    assert (flows["start_ms"] > first_ms - 10_000).all()
    assert (flows["end_ms"] < first_ms + minutes * 60_000 + 70_000).all()
    assert (flows["export_ms"] - flows["end_ms"] > -1000).all()
    assert set(np.unique(flows["sampling"])) == {1}
    assert flows["bidirectional"].all() == name.endswith("biflow")
    assert flows["bidirectional"].any() == name.endswith("biflow")
    version = 5 if name.endswith("v5") else 9 if name.endswith("v9") else 10
    assert decoder.exporters == {0: Exporter("127.0.0.1", version, decoder.exporters[0].domain)}


def seen_once(flows: FlowRecords) -> FlowRecords:
    """Return the flows whose addresses, ports and protocol occur once, in the order of those."""
    _, first, count = np.unique(flows[_KEY], return_index=True, return_counts=True)
    return flows[first[count == 1]]


@pytest.mark.parametrize(
    ("form", "least_ms", "most_ms"),
    [
        ("v9", 0, 1010),  # header seconds are whole: up to a second early
        ("ipfix", -2, 2),  # from the boot time in option data
        ("ipfix-biflow", -2, 2),  # absolute milliseconds
    ],
)
def test_three_processes_that_saw_the_same_packets_agree_with_v5(form: str, least_ms: int, most_ms: int) -> None:
    exact, other = seen_once(decoded("base/softflowd-v5")[0]), seen_once(decoded(f"base/softflowd-{form}")[0])
    _, ours, theirs = np.intersect1d(exact[_KEY], other[_KEY], assume_unique=True, return_indices=True)
    exact, other = exact[ours], other[theirs]

    assert len(exact) > 15_000
    assert (exact["bytes"] == other["bytes"]).mean() > 0.999
    assert (exact["packets"] == other["packets"]).mean() > 0.999
    assert (exact["flags"] == other["flags"]).mean() > 0.99
    early = exact["start_ms"] - other["start_ms"]
    assert ((early >= least_ms) & (early <= most_ms)).all()


def test_reverse_counters_of_a_biflow_are_the_forward_counters_of_its_other_half() -> None:
    halves, whole = seen_once(decoded("base/softflowd-v5")[0]), decoded("base/softflowd-ipfix-biflow")[0]
    turned = seen_once(whole).copy()
    for forward, reverse in (("src_lo", "dst_lo"), ("src_port", "dst_port")):
        turned[forward], turned[reverse] = turned[reverse].copy(), turned[forward].copy()
    _, ours, theirs = np.intersect1d(halves[_KEY], turned[_KEY], assume_unique=True, return_indices=True)

    assert len(ours) > 15_000
    for forward in ("packets", "bytes", "flags"):
        assert (halves[forward][ours] == turned[f"reverse_{forward}"][theirs]).mean() > 0.99, forward
