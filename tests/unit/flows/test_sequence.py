"""Sequence numbers are believed as far as they prove to count something."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from tests.support.captures import capture_datagrams
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.flows.sequence import JUDGED_AFTER, JUDGED_AGAIN_AFTER, Counting, Sequence

SIZES = [3, 30, 12, 7, 22, 18, 5, 9, 14, 27, 30, 2, 11, 6, 25]


def numbers(counting: Counting, sizes: list[int], start: int = 2**32 - 40) -> list[tuple[int, int]]:
    """Return (sequence number, flows) of datagrams as an exporter that counts this way sends them, wrapping."""
    made, total = [], start
    for size in sizes:
        own = 1 if counting is Counting.DATAGRAMS else size
        after = own if counting in (Counting.RECORDS_AFTER, Counting.FLOWS_AFTER) else 0
        made.append(((total + after) % 2**32, size))
        total += own
    return made


def taken(version: int, datagrams: Iterable[tuple[int, int]], options: int = 0) -> Sequence:
    sequence = Sequence(version)
    counted = sum(sequence.take(number, flows, flows + options) for number, flows in datagrams)
    assert counted == sequence.gaps
    return sequence


@pytest.mark.parametrize("version", [5, 9, 10])
@pytest.mark.parametrize("counting", [Counting.DATAGRAMS, Counting.FLOWS, Counting.FLOWS_AFTER])
def test_whatever_an_exporter_counts_it_loses_nothing_until_something_is_lost(version: int, counting: Counting) -> None:
    whole = numbers(counting, SIZES * 20)
    sequence = taken(version, whole)
    assert (sequence.gaps, sequence.lost, sequence.is_credible) == (0, 0, True)

    lossy = taken(version, [datagram for place, datagram in enumerate(whole) if place not in (40, 41, 100)])

    lost = [1] * len(SIZES) * 20 if counting is Counting.DATAGRAMS else SIZES * 20
    assert (lossy.gaps, lossy.lost) == (2, lost[40] + lost[41] + lost[100])
    assert lossy.is_credible


def test_option_data_counts_where_the_exporter_counts_it() -> None:
    sizes = [size + 1 for size in SIZES]
    for counting, options in ((Counting.RECORDS, 1), (Counting.RECORDS_AFTER, 1)):
        datagrams = [(number, size - 1) for number, size in numbers(counting, sizes)]
        assert taken(10, datagrams, options).counting is counting


def test_nothing_is_said_before_numbers_were_judged_and_their_gaps_are_said_then() -> None:
    datagrams = numbers(Counting.DATAGRAMS, SIZES)
    del datagrams[2]
    sequence = taken(9, datagrams[:JUDGED_AFTER])
    assert (sequence.is_credible, sequence.counting, sequence.gaps) == (None, None, 0)
    assert sequence.take(*datagrams[JUDGED_AFTER], None) == 1
    assert (sequence.is_credible, sequence.lost) == (True, 1)


@pytest.mark.parametrize("version", [5, 9, 10])
@pytest.mark.parametrize("kind", ["random", "constant"])
def test_numbers_that_count_nothing_are_not_credible_and_claim_no_loss(version: int, kind: str) -> None:
    random_numbers = random.Random(1)
    made = [(random_numbers.getrandbits(32) if kind == "random" else 0, size) for size in SIZES * 4]
    sequence = taken(version, made)
    assert (sequence.is_credible, sequence.counting, sequence.gaps) == (False, None, 0)


def test_numbers_that_become_sensible_are_believed_later() -> None:
    nonsense = [(0, size) for size in SIZES]
    sensible = numbers(Counting.DATAGRAMS, (SIZES * 25)[: JUDGED_AGAIN_AFTER + 2 * JUDGED_AFTER])
    assert taken(9, nonsense + sensible).counting is Counting.DATAGRAMS


def test_an_exporter_that_begins_anew_has_lost_nothing() -> None:
    first = numbers(Counting.DATAGRAMS, SIZES * 3, start=500_000)
    sequence = taken(9, first + numbers(Counting.DATAGRAMS, SIZES * 3, start=1))
    assert (sequence.gaps, sequence.late, sequence.is_credible) == (0, 0, True)


def test_datagrams_in_another_order_or_twice_are_late_and_no_second_gap() -> None:
    datagrams = numbers(Counting.DATAGRAMS, SIZES * 2)
    datagrams[20], datagrams[21] = datagrams[21], datagrams[20]
    datagrams.insert(25, datagrams[24])
    sequence = taken(9, datagrams)
    # the one that came early looked like a gap until the other was there
    assert (sequence.gaps, sequence.lost, sequence.late) == (1, 1, 2)


def test_full_datagrams_hide_the_way_until_one_is_not_full() -> None:
    sequence = taken(10, numbers(Counting.FLOWS_AFTER, [30] * 50 + SIZES))
    assert (sequence.gaps, sequence.is_credible) == (0, True)
    assert sequence.counting in (Counting.FLOWS_AFTER, Counting.RECORDS_AFTER)


def test_a_loss_that_looks_like_another_way_of_counting_is_counted_in_the_end() -> None:
    datagrams = numbers(Counting.DATAGRAMS, [2] * 200)
    del datagrams[50]  # the step of 2 that follows is the datagram's number of records, too
    sequence = taken(9, datagrams)
    assert (sequence.gaps, sequence.lost, sequence.counting) == (1, 1, Counting.DATAGRAMS)


def test_unknown_counts_say_nothing() -> None:
    sequence = Sequence(10)
    for number, flows in numbers(Counting.RECORDS, SIZES):
        sequence.take(number, flows, flows)
    last, size = numbers(Counting.RECORDS, SIZES)[-1]
    sequence.take(last + size, None, None)
    assert sequence.take(last + size + 500, 3, 3) == 0
    assert sequence.take(last + size + 503, 3, 3) == 0
    assert sequence.take(last + size + 510, 3, 3) == 1


def test_datagrams_without_their_template_do_not_cost_the_numbers_their_credit() -> None:
    sequence = taken(10, numbers(Counting.RECORDS, SIZES))
    for number, _ in numbers(Counting.RECORDS, SIZES * 10)[len(SIZES) :]:
        sequence.take(number, None, None)
    assert sequence.counting is Counting.RECORDS


@pytest.mark.parametrize(
    ("form", "counting"),
    [
        ("softflowd-v5", Counting.FLOWS),
        ("softflowd-v9", Counting.DATAGRAMS),
        ("softflowd-ipfix", Counting.FLOWS_AFTER),
        ("softflowd-ipfix-biflow", Counting.FLOWS_AFTER),
        ("pmacct-v9", Counting.DATAGRAMS),
    ],
)
def test_captures_lose_nothing_and_what_is_taken_out_of_them_is_found(form: str, counting: Counting) -> None:
    datagrams = capture_datagrams(f"base/{form}")
    whole, lossy = FlowDecoder(), FlowDecoder()
    whole.decode_many(datagrams)
    kept = [datagram for place, datagram in enumerate(datagrams) if place not in (500, 700, 701)]
    lossy.decode_many(kept)
    assert (whole.counters.sequence_gaps, whole.status()[0].counting) == (0, counting)
    (status,) = lossy.status()
    missing = whole.counters.records - lossy.counters.records
    assert (lossy.counters.sequence_gaps, status.sequence_gaps, status.is_credible) == (2, 2, True)
    assert status.sequence_lost == (3 if counting is Counting.DATAGRAMS else missing)
