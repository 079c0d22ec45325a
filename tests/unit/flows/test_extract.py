"""One meaning at any pace: the features of a flow depend on the records of its exporter and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.flows import T0_MS, answer, assert_same, cut, feed, joined, of_exporter, record, traffic
from vedette.models.flows.extract import FLOW_SCHEMA, SILENCE_MS, FlowExtractor, Limits
from vedette.models.flows.records import FlowRecords, empty


def _column(name: str) -> int:
    return FLOW_SCHEMA.index(name)


@pytest.mark.parametrize("size", [1, 7, 100, 1024])
def test_features_are_bit_equal_for_every_batch_size(size: int) -> None:
    records = traffic(1, 40, 20)
    whole = joined(feed(FlowExtractor(), [records]))
    assert_same(joined(feed(FlowExtractor(), cut(records, size))), whole)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=12), st.integers(0, 1000))
def test_features_are_bit_equal_for_any_cut(edges: list[int], seed: int) -> None:
    records = traffic(seed, 8, 20)
    pieces = np.split(records, sorted(edges))
    assert_same(joined(feed(FlowExtractor(), pieces)), joined(feed(FlowExtractor(), [records])))


def test_exporters_do_not_see_each_other_however_they_interleave() -> None:
    one, other = traffic(1, 30, 20, exporter=4), traffic(2, 30, 15, exporter=9)
    order = np.random.default_rng(5).permutation(len(one) + len(other))
    slots = np.sort(order[: len(one)])
    mixed = empty(len(order))
    mask = np.zeros(len(order), np.bool_)
    mask[slots] = True
    mixed[mask], mixed[~mask] = one, other
    together = joined(feed(FlowExtractor(), cut(mixed, 37)))
    for alone, name in ((one, 4), (other, 9)):
        assert_same(of_exporter(together, name), joined(feed(FlowExtractor(), [alone])))


def _paced(records: FlowRecords) -> FlowExtractor:
    """Return an extractor; the records' clock jumps by three seconds every ten."""
    records["export_ms"] += (records["export_ms"] - T0_MS) // 10_000 * 4_000
    return FlowExtractor()


def test_silence_gives_the_values_that_the_next_record_would_have_brought() -> None:
    records = traffic(7, 60, 10)
    extractor = _paced(records)
    fast = joined(feed(FlowExtractor(), [records]))
    batches = []
    for piece in cut(records, 1):
        now_ms = int(piece["export_ms"][0])  # the recorded pace
        batches += [extractor.advance(now_ms=now_ms), extractor.push(piece, now_ms=now_ms)]
    batches.append(extractor.flush())
    assert extractor.counters.silences >= 5
    assert extractor.counters.reunited == 0
    assert_same(joined([batch for batch in batches if batch is not None]), fast)


def test_a_tick_closes_after_three_seconds_of_silence_and_only_once() -> None:
    extractor = FlowExtractor()
    there = record()
    assert extractor.push(np.concatenate([there, answer(there)]), now_ms=1_000) is None
    assert extractor.advance(now_ms=1_000 + SILENCE_MS - 1) is None
    closed = extractor.advance(now_ms=1_000 + SILENCE_MS)
    assert closed is not None
    assert len(closed) == 1
    assert extractor.advance(now_ms=60_000) is None
    assert extractor.flush() is None


def test_a_stall_in_mid_second_loses_nothing_and_leaves_the_state_as_without_it() -> None:
    records = traffic(11, 20, 20)
    calm = joined(feed(FlowExtractor(), [records]))
    stall = int(np.flatnonzero(np.diff(records["export_ms"] // 1000) == 0)[200])
    extractor = FlowExtractor()
    early = [extractor.push(records[: stall + 1], now_ms=0), extractor.advance(now_ms=SILENCE_MS)]
    late = [extractor.push(records[stall + 1 :], now_ms=SILENCE_MS), extractor.flush()]
    stalled = joined([batch for batch in (*early, *late) if batch is not None])
    assert {number for number in stalled.origins.ravel().tolist() if number >= 0} == set(range(len(records)))
    tick = records["export_ms"][stall] // 1000
    after = [batch.flows["export_ms"] // 1000 > tick + 1 for batch in (stalled, calm)]
    assert stalled.features[after[0]].tobytes() == calm.features[after[1]].tobytes()
    assert len(stalled) == len(calm) + extractor.counters.reunited


def test_a_half_waits_one_tick_for_the_other() -> None:
    there = record()
    back = answer(there, export_ms=there["export_ms"] + 1000)
    assert len(joined(feed(FlowExtractor(), [there, back]))) == 1
    too_late = answer(there, export_ms=there["export_ms"] + 2000)
    assert len(joined(feed(FlowExtractor(), [there, too_late]))) == 2


def test_a_clock_that_jumps_back_starts_an_epoch_with_nothing_remembered() -> None:
    records = traffic(2, 30, 20)
    twice = joined(feed(extractor := FlowExtractor(), [np.concatenate([records, records])]))
    once = joined(feed(FlowExtractor(), [records]))
    assert extractor.counters.epochs == 1
    half = len(once)
    assert len(twice) == 2 * half
    assert twice.features[:half].tobytes() == twice.features[half:].tobytes() == once.features.tobytes()


def test_a_late_record_within_the_tolerance_counts_to_the_open_tick() -> None:
    now, late = record(export_ms=T0_MS + 20_000), record(export_ms=T0_MS + 10_000, src_port=40_001)
    flows = joined(feed(extractor := FlowExtractor(), [now, late]))
    assert (extractor.counters.late, extractor.counters.epochs) == (1, 0)
    assert flows.features[:, _column("source_flows_10s")].tolist() == [2.0, 2.0]
    older = record(export_ms=T0_MS + 9_999)
    feed(extractor := FlowExtractor(), [now, older])
    assert (extractor.counters.late, extractor.counters.epochs) == (0, 1)


def test_sums_decay_by_record_time_and_see_their_own_tick() -> None:
    rows = [record(src_port=40_000 + i, export_ms=T0_MS + at * 1000, flags=2) for i, at in enumerate((0, 0, 10, 70))]
    flows = joined(feed(FlowExtractor(), [np.concatenate(rows)]))
    fast = flows.features[:, _column("source_flows_10s")]
    # Each lone SYN waits one tick, so the ticks are 1, 1, 11 and 71.
    expected = [2.0, 2.0, 1 + 2 * np.exp(-1), 1 + (1 + 2 * np.exp(-1)) * np.exp(-6)]
    np.testing.assert_allclose(fast, expected, rtol=1e-6)


def test_a_scan_shows_in_the_fan_out_of_its_source() -> None:
    probes = np.concatenate([record(dst_port=port, flags=2) for port in range(1, 101)])
    flows = joined(feed(FlowExtractor(), [probes]))
    ports = flows.features[:, _column("source_ports")]
    assert 80 < ports[0] < 120
    assert (flows.features[:, _column("source_hosts")] < 2).all()
    assert (flows.features[:, _column("source_failed_share_60s")] == 1.0).all()


def test_a_beacon_shows_as_regular_and_a_new_service_as_unknown() -> None:
    steady = [record(src="10.0.0.9", src_port=50_000 + i, export_ms=T0_MS + i * 1000) for i in range(200)]
    beacon = [
        record(
            dst_port=9000,
            src_port=40_000 + i,
            start_ms=T0_MS + 130_000 + i * 5000,
            export_ms=T0_MS + 130_000 + i * 5000,
        )
        for i in range(10)
    ]
    rows = np.concatenate([*steady, *beacon])
    flows = joined(feed(FlowExtractor(), [rows[np.argsort(rows["export_ms"], kind="stable")]]))
    of_beacon = flows.features[flows.flows["dst_port"] == 9000]
    assert of_beacon[-1, _column("user_interval")] == 5.0
    assert of_beacon[-1, _column("user_interval_spread")] == 0.0
    assert of_beacon[0, _column("service_known")] == 0.0
    assert 0.0 < of_beacon[-1, _column("service_known")] < 0.1
    assert (flows.features[flows.flows["dst_port"] == 443][:, _column("service_known")] == 1.0).all()


def test_features_do_not_know_the_time() -> None:
    records = traffic(6, 30, 20)
    moved = records.copy()
    for name in ("start_ms", "end_ms", "export_ms"):
        moved[name] += 86_400_000 * 365 + 30_000  # whole seconds, and whole halves of a distinct counter
    assert_same_features(records, moved)


def test_features_do_not_know_addresses_or_ports() -> None:
    rows = [record(src_port=40_000 + i, export_ms=T0_MS + i * 700, dst_port=(80, 443)[i % 2]) for i in range(60)]
    elsewhere = [
        record(src="fd00::9", dst="192.0.2.4", src_port=50_000 - i, export_ms=T0_MS + i * 700, dst_port=(21, 99)[i % 2])
        for i in range(60)
    ]
    assert_same_features(np.concatenate(rows), np.concatenate(elsewhere))


def assert_same_features(one: FlowRecords, other: FlowRecords) -> None:
    got = [joined(feed(FlowExtractor(), [rows])).features for rows in (one, other)]
    np.testing.assert_array_equal(got[0], got[1])


def test_memory_is_bounded_under_a_flood_of_random_addresses() -> None:
    limits = Limits(memory_bytes=4 << 20, tick_records=2_048)
    extractor = FlowExtractor(limits)
    rng = np.random.default_rng(1)
    for tick in range(40):
        flood = empty(3_000)
        flood["proto"], flood["packets"], flood["bytes"] = 17, 1, 60
        for name in ("src_lo", "dst_lo", "src_hi"):
            flood[name] = rng.integers(0, 1 << 62, len(flood))
        flood["src_port"], flood["dst_port"] = rng.integers(1024, 65_535, (2, len(flood)))
        flood["export_ms"] = flood["start_ms"] = flood["end_ms"] = T0_MS + tick * 1000
        extractor.push(flood, now_ms=0)
        assert extractor.state_bytes <= limits.memory_bytes
    assert extractor.counters.growth_refused > 0
    feed(extractor, [])
    assert extractor.counters.flows == 40 * 3_000


@pytest.mark.parametrize("pace_ms", [0, 1])  # a file is read in no time
def test_the_longest_silent_exporter_makes_room_for_a_new_one(pace_ms: int) -> None:
    extractor = FlowExtractor(Limits(exporters=2))
    for step, exporter in enumerate((1, 2, 1)):
        assert extractor.push(record(exporter=exporter), now_ms=step * pace_ms) is None
    gone = extractor.push(record(exporter=3), now_ms=3 * pace_ms)
    assert gone is not None
    assert gone.flows["exporter"].tolist() == [2]
    assert extractor.counters.exporters_forgotten == 1


def test_a_tick_is_cut_into_pieces_of_exactly_so_many_records() -> None:
    records = traffic(9, 4, 200)
    limits = Limits(tick_records=64)
    whole = joined(feed(FlowExtractor(limits), [records]))
    assert_same(joined(feed(FlowExtractor(limits), cut(records, 13))), whole)
    assert len(whole) >= len(joined(feed(FlowExtractor(), [records])))


def test_hostile_values_give_finite_features() -> None:
    rows = np.frombuffer(np.random.default_rng(2).bytes(empty().itemsize * 400), empty().dtype).copy()
    rows["bidirectional"] = np.arange(400) % 2 == 0
    rows["exporter"] = np.arange(400) % 5
    for name in ("start_ms", "end_ms"):
        rows[name][:2] = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    flows = joined(feed(FlowExtractor(), cut(rows, 50)))
    assert np.isfinite(flows.features).all()


def test_old_and_future_flows_are_taken_and_counted() -> None:
    rows = [
        record(end_ms=T0_MS - 3_600_000, start_ms=T0_MS - 3_600_000),
        record(start_ms=T0_MS + 90_000, end_ms=T0_MS + 90_000, src_port=5),
    ]
    flows = joined(feed(extractor := FlowExtractor(), rows))
    assert len(flows) == 2
    assert (extractor.counters.old, extractor.counters.future) == (1, 1)
    assert flows.flows["start_ms"].tolist() == [T0_MS - 3_600_000, T0_MS + 90_000]


def test_sampled_counters_are_scaled() -> None:
    flows = joined(feed(FlowExtractor(), [record(sampling=100, packets=5, bytes=500)]))
    assert flows.features[0, _column("packets")] == 500
    assert flows.flows["packets"][0] == 5


def test_a_connection_reported_in_parts_counts_its_bytes_once_and_no_part_as_failed() -> None:
    # An active time-out of 60 s: SYN in the first part only, counters since the part before (RFC 7011 section 5.1.1).
    parts = []
    for number, (flags, answered) in enumerate(((0x1A, 0x1A), (0x18, 0x18), (0x10, 0x10), (0x11, 0x11))):
        at = T0_MS + 60_000 * number
        half = record(flags=flags, bytes=1000, packets=10, start_ms=at, end_ms=at + 59_000, export_ms=at + 60_000)
        parts += [half, answer(half, flags=answered, bytes=4000, packets=8)]

    made = joined(feed(FlowExtractor(), parts))

    assert len(made) == 4
    assert made.features[:, _column("failed")].tolist() == [0, 0, 0, 0]
    assert made.features[:, _column("user_failed_60s")].tolist() == [0, 0, 0, 0]
    assert made.flows["bytes"].sum() == 4000
    seen = sum(1000 * float(np.exp(-number)) for number in range(4))
    np.testing.assert_allclose(made.features[-1, _column("pair_bytes_60s")], seen, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "answered", "packets_back", "failed"),
    [
        (0x02, 0x14, 1, 1),  # refused
        (0x02, 0x12, 1, 0),
        (0x02, 0x00, 0, 1),  # no answer
        (0x10, 0x04, 1, 1),  # a scan by ACK, refused
        (0x18, 0x18, 5, 0),  # the middle of a connection, or a sampled one
        (0x18, 0x14, 5, 1),  # which the server aborts
        (0x18, 0x00, 0, 1),
        (0x00, 0x00, 5, 0),  # an exporter that sends no flags
        (0x00, 0x00, 0, 1),
        (0x00, 0x14, 1, 1),  # a null scan, refused
    ],
)
def test_tcp_has_failed_when_it_was_never_made_as_far_as_flags_tell(
    flags: int, answered: int, packets_back: int, failed: int
) -> None:
    half = record(flags=flags)
    halves = [half, answer(half, flags=answered, packets=packets_back, bytes=40 * packets_back)]
    made = joined(feed(FlowExtractor(), halves))
    assert made.features[:, _column("failed")].tolist() == [failed]
