"""Claims about coarsening: what merges, in which order, and that no count changes by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clock import NOON
from vedette.agent.domain.coarsening import Piece, merged, next_run
from vedette.models.profile import DataProfile, ProfileCounts, ReferenceProfile
from vedette.wire.values import Gap, TelemetryBatch, Window

RANDOM = np.random.default_rng(5)
FEATURES = RANDOM.normal(size=(400, 3)).astype(np.float32)
SCORES = RANDOM.random(400)
REFERENCES = [ReferenceProfile.fit(["a", "b", f"c{n}"], FEATURES, SCORES, SCORES > 0.9) for n in range(2)]
MINUTE = 60_000_000


def pieces(*starts: int, boot_epoch: int = 1, first: int = 1) -> list[Piece]:
    return [Piece(boot_epoch, first + place, first + place, start * MINUTE) for place, start in enumerate(starts)]


def faded(waiting: list[Piece], steps: int) -> list[Piece]:
    """Return what waits after so many merges."""
    for _ in range(steps):
        run = next_run(waiting, waiting[-1].start)
        assert len(run) > 1
        place = waiting.index(run[0])
        assert waiting[place : place + len(run)] == list(run)
        one = replace(run[-1], first_sequence=run[0].first_sequence, start=run[0].start)
        waiting = [*waiting[:place], one, *waiting[place + len(run) :]]
    return waiting


def names(run: Sequence[Piece]) -> list[int]:
    return [piece.sequence for piece in run]


def test_the_oldest_five_minutes_merge_first() -> None:
    assert names(next_run(pieces(*range(100)), 99 * MINUTE)) == [1, 2, 3, 4, 5]


def test_detail_fades_with_age() -> None:
    waiting = pieces(*range(14 * 24 * 60))
    while len(waiting) > 500:
        waiting = faded(waiting, 1)
    spans = [piece.sequence - piece.first_sequence + 1 for piece in waiting]
    assert spans == sorted(spans, reverse=True)
    assert {1, 5, 60} <= set(spans)
    assert sum(spans) == 14 * 24 * 60


def test_in_the_end_there_is_one_piece_a_day_and_then_nothing_merges() -> None:
    waiting = pieces(*range(3 * 24 * 60))
    while next_run(waiting, waiting[-1].start):
        waiting = faded(waiting, 1)
    assert [piece.sequence for piece in waiting] == [1440, 2880, 4320]


@pytest.mark.parametrize(
    ("why", "waiting"),
    [
        ("nothing waits", []),
        ("one waits", pieces(7)),
        ("of two boots", [*pieces(0), *pieces(1, boot_epoch=2, first=2)]),
        ("one between them was sent", [*pieces(0), *pieces(2, first=3)]),
        ("of two days", pieces(24 * 60 - 1, 24 * 60)),
        ("the clock was set by a year", pieces(0, 365 * 24 * 60)),
        ("the clock was set back by a year", pieces(365 * 24 * 60, 0)),
    ],
)
def test_what_does_not_belong_together_stays_apart(why: str, waiting: list[Piece]) -> None:
    assert next_run(waiting, waiting[-1].start if waiting else 0) == (), why


def profile(rows: int, reference: int = 0) -> bytes:
    made = DataProfile(REFERENCES[reference])
    made.add(FEATURES[:rows], SCORES[:rows], SCORES[:rows] > 0.9)
    return made.encode()


SMALL = st.integers(0, 400)
PROFILES = st.one_of(st.just(b""), st.just(b"torn"), st.builds(profile, SMALL, st.integers(0, 1)))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start = NOON + timedelta(seconds=draw(st.integers(0, 86_400)))
    slot = draw(st.sampled_from(["", "a", "b"]))
    return Window(
        start=start,
        end=start + timedelta(seconds=draw(st.integers(0, 60))),
        slot=slot,
        model=slot and "m",
        version=draw(st.integers(1, 2)) if slot else 0,
        build=slot and "sha256:1",
        rows=draw(SMALL),
        flagged=draw(SMALL),
        errors=draw(SMALL),
        worker_restarts=draw(SMALL),
        verdicts=draw(st.dictionaries(st.sampled_from(["scan", "benign"]), SMALL)),
        latency_counts=draw(st.one_of(st.just(()), st.tuples(*[SMALL] * 4))),
        profile=draw(PROFILES) if slot else b"",
        counters=draw(st.dictionaries(st.sampled_from(["flows", "datagrams"]), SMALL)),
        cpu_seconds=float(draw(SMALL)),
        memory_bytes=draw(SMALL),
    )


@st.composite
def batches(draw: st.DrawFn) -> list[TelemetryBatch]:
    given_windows = draw(st.lists(st.lists(windows(), max_size=3), min_size=1, max_size=6))
    return [
        TelemetryBatch(boot_epoch=4, sequence=place, windows=tuple(each))
        for place, each in enumerate(given_windows, start=3)
    ]


def totals(parts: Sequence[TelemetryBatch]) -> Counter[Any]:
    """Return every count of some batches, by build and name: what must not change however they are grouped."""
    found: Counter[Any] = Counter()
    for window in (window for part in parts for window in part.windows):
        who = (window.slot, window.version)
        for name in ("rows", "flagged", "errors", "worker_restarts", "cpu_seconds"):
            found[who, name] += getattr(window, name)
        for name in ("verdicts", "counters"):
            found.update({(who, name, key): value for key, value in getattr(window, name).items()})
        found.update({(who, "latency", place): value for place, value in enumerate(window.latency_counts)})
        if window.profile == b"torn":
            found[who, "torn"] += 1
        elif window.profile:
            counts = ProfileCounts.decode(window.profile)
            found[who, counts.reference, "profiled"] += counts.rows
            cells = enumerate(counts.counts.reshape(-1).tolist())
            found.update({(who, counts.reference, place): value for place, value in cells})
    return +found


@given(batches(), st.data())
def test_however_batches_are_grouped_they_add_up_to_the_same(parts: list[TelemetryBatch], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(parts)))
    at_once = merged(parts)
    in_two = merged([merged(parts[:cut]), *([merged(parts[cut:])] if parts[cut:] else [])])
    assert totals([at_once]) == totals([in_two]) == totals(parts)
    assert (at_once.sequence, at_once.first, at_once.boot_epoch) == (parts[-1].sequence, 3, 4)
    assert (in_two.sequence, in_two.first) == (at_once.sequence, at_once.first)
    whole = [window for part in parts for window in part.windows]
    for window in at_once.windows:
        same = [each for each in whole if (each.slot, each.version) == (window.slot, window.version)]
        assert min(each.start for each in same) <= window.start <= window.end <= max(each.end for each in same)


def test_a_gauge_is_the_newest_and_the_agents_own_window_comes_last() -> None:
    own = [Window(start=NOON, end=NOON, memory_bytes=amount) for amount in (30, 20)]
    work = Window(start=NOON, end=NOON, slot="s")
    parts = [TelemetryBatch(boot_epoch=1, sequence=place, windows=(each, work)) for place, each in enumerate(own, 1)]
    assert [(window.slot, window.memory_bytes) for window in merged(parts).windows] == [("s", 0), ("", 20)]


def test_gaps_are_handed_on() -> None:
    gap = Gap(first_sequence=2, last_sequence=3, rows=9, reason="disk failed")
    parts = [TelemetryBatch(boot_epoch=1, sequence=4, gaps=(gap,)), TelemetryBatch(boot_epoch=1, sequence=5)]
    assert merged(parts).gaps == (gap,)


def test_a_day_begins_at_midnight_utc() -> None:
    midnight = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) // 60
    assert next_run(pieces(midnight - 1, midnight), midnight * MINUTE) == ()
    assert names(next_run(pieces(midnight, midnight + 1439), (midnight + 1439) * MINUTE)) == [1, 2]
