"""What the port of telemetry promises about reading and deleting in pieces; the rest is tested over the wire."""

from datetime import timedelta
from typing import Any

import pytest

from tests.support.clock import NOON
from tests.unit.controller.stores.test_fleet_stores import enrol, token
from vedette.controller.adapters.sqlite import telemetry as module
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.adapters.sqlite.telemetry import TelemetryStore
from vedette.controller.adapters.sqlite.tokens import TokenStore
from vedette.controller.domain.telemetry import LATENCY_BINS, Tallies, Tally
from vedette.wire.values import Gap, TelemetryBatch, Window


@pytest.fixture
def store(database: Database, monkeypatch: pytest.MonkeyPatch) -> TelemetryStore:
    monkeypatch.setattr(module, "PIECE_ROWS", 7)
    tokens = TokenStore(database)
    tokens.add(token())
    enrol(tokens)
    return TelemetryStore(database)


def window(second: int, **changes: Any) -> Window:
    end = NOON + timedelta(seconds=second)
    counts = (0,) * 5 + (3,) + (0,) * (LATENCY_BINS - 6)
    whole = {"slot": "s", "model": "m", "version": 1, "rows": 3, "flagged": 1, "verdicts": {"scan": 1}, **changes}
    return Window(start=end - timedelta(seconds=1), end=end, latency_counts=counts, **whole)


def report(store: TelemetryStore, sequence: int, *windows: Window) -> None:
    assert store.record(
        "a-1", TelemetryBatch(boot_epoch=1, sequence=sequence, windows=windows), NOON + timedelta(days=1)
    )


def whole(store: TelemetryStore, since: int = -1) -> tuple[list[Tally], int]:
    found, pieces, place = [], 0, None
    while True:
        more, place = store.tallies(NOON + timedelta(seconds=since), place)
        found, pieces = [*found, *more], pieces + 1
        if place is None:
            return Tallies(found).all(), pieces


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 14, 20])
def test_every_window_is_in_exactly_one_piece(store: TelemetryStore, count: int):
    for second in range(count):
        report(store, second + 1, window(second // 3))  # several windows share a time
    tallies, pieces = whole(store)
    assert pieces == count // 7 + 1
    assert [tally.rows for tally in tallies] == ([3 * count] if count else [])
    if count:
        shown = tallies[0].view("edge")
        assert (shown.flagged, shown.verdicts, shown.rows_per_s) == (count, {"scan": count}, 3.0)
        assert int(tallies[0].latency.sum()) == 3 * count


def test_pieces_keep_to_the_time(store: TelemetryStore):
    report(store, 1, *(window(second, model=model) for second in range(20) for model in ("m", "n")))
    assert [(tally.model, tally.rows) for tally in whole(store, since=10)[0]] == [("m", 30), ("n", 30)]
    assert whole(store, since=20)[0] == []


def test_old_windows_go_in_pieces_and_the_recent_ones_are_found(store: TelemetryStore):
    report(store, 1, *(window(second, rows=second) for second in range(20)))
    deleted = []
    while piece := store.purge(NOON + timedelta(seconds=15)):
        deleted.append(piece)
    assert deleted == [7, 7, 1]
    assert [made.rows for made in store.recent(NOON)["a-1"]] == [15, 16, 17, 18, 19]
    assert store.recent(NOON + timedelta(seconds=20)) == {}
    assert store.totals()["a-1"].rows == sum(range(20))


def test_reading_by_time_uses_an_index(database: Database):
    query = "EXPLAIN QUERY PLAN SELECT * FROM telemetry_windows WHERE (at, id) > (1, 1) ORDER BY at, id LIMIT 5"
    with database.transaction() as connection:
        plan = " ".join(row["detail"] for row in connection.execute(query))
    assert "USING INDEX" in plan
    assert "TEMP B-TREE" not in plan


def test_windows_of_minutes_and_of_days_add_up_and_a_merged_batch_is_counted_once(store: TelemetryStore):
    day = window(86_400, rows=1440 * 3, flagged=1440, verdicts={"scan": 1440})
    merged = TelemetryBatch(boot_epoch=1, first_sequence=1, sequence=1440, windows=(day,))
    assert store.record("a-1", merged, NOON + timedelta(days=2))
    report(store, 1441, window(86_460))
    assert not store.record("a-1", merged, NOON + timedelta(days=2))
    (tally,) = whole(store)[0]
    assert (tally.rows, tally.flagged, tally.verdicts) == (1441 * 3, 1441, {"scan": 1441})
    assert store.totals()["a-1"].rows == 1441 * 3
    assert store.gaps("a-1") == []


def test_a_sum_of_which_a_part_was_counted_is_kept_as_a_gap(store: TelemetryStore):
    report(store, 5, window(1))
    overlapping = TelemetryBatch(boot_epoch=1, first_sequence=4, sequence=6, windows=(window(2),))
    assert not store.record("a-1", overlapping, NOON)
    assert not store.record("a-1", overlapping, NOON)
    assert store.totals()["a-1"].rows == 3
    reason = "merged with what was counted"
    assert store.gaps("a-1") == [Gap(first_sequence=4, last_sequence=6, rows=3, reason=reason)]
