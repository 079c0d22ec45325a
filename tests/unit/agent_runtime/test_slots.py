from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.agent.domain.slots import (
    MAX_SAVES,
    TRANSITIONS,
    Event,
    Facts,
    NoSuchTransition,
    SlotRecord,
    Step,
    advance,
    is_bad,
    next_step,
    roll_back,
)
from vedette.models.assignment import SlotAssignment
from vedette.wire.values import SlotState


def build(version: int) -> SlotAssignment:
    return SlotAssignment("m", "m", version, f"sha256:{version:064x}", f"sha256:{version + 100:064x}")


def follow(record: SlotRecord, target: SlotAssignment, loaded: bool = False) -> SlotRecord:
    """Take the steps that next_step names, as a serving agent would."""
    for _ in range(20):
        step = next_step(record, target, Facts(loaded=loaded))
        if step is Step.NOTHING:
            return record
        events = {
            Step.BEGIN: [Event.WANTED],
            Step.FETCH: [Event.FETCHED],
            Step.LOAD: [Event.LOADING, Event.PASSED],
            Step.SWITCH: [Event.SWITCHED],
            Step.DROP: [Event.DROPPED],
        }[step]
        loaded = loaded or step is Step.LOAD
        for event in events:
            record = advance(record, event, target=target if event is Event.WANTED else None)
    raise AssertionError("the steps do not end")


def test_the_steps_lead_an_empty_slot_to_the_target() -> None:
    record = follow(SlotRecord("m"), build(1))
    assert (record.active, record.previous, record.candidate) == (build(1), None, None)
    assert record.stage is SlotState.ACTIVE


def test_the_steps_lead_from_one_version_to_the_next_and_back() -> None:
    second = follow(follow(SlotRecord("m"), build(1)), build(2))
    assert (second.active, second.previous) == (build(2), build(1))
    back = follow(second, build(1))
    assert (back.active, back.previous) == (build(1), build(2))


@pytest.mark.parametrize("stage", [SlotState.DOWNLOADING, SlotState.VERIFIED, SlotState.STAGED, SlotState.TESTED])
def test_from_every_stored_stage_the_steps_reach_the_target(stage: SlotState) -> None:
    stored = SlotRecord("m", active=build(1), candidate=build(2), stage=stage, saves=2)
    record = follow(stored, build(2))
    assert (record.active, record.previous, record.candidate) == (build(2), build(1), None)


def test_a_tested_candidate_whose_worker_is_gone_is_loaded_again() -> None:
    record = SlotRecord("m", candidate=build(1), stage=SlotState.TESTED, saves=4)
    assert next_step(record, build(1), Facts(loaded=False)) is Step.LOAD
    assert next_step(record, build(1), Facts(loaded=True)) is Step.SWITCH


def test_a_quarantined_build_is_refused_but_one_that_is_active_is_left_alone() -> None:
    assert next_step(SlotRecord("m"), build(1), Facts(quarantined=True)) is Step.REFUSE
    active = SlotRecord("m", active=build(1), stage=SlotState.ACTIVE)
    assert next_step(active, build(1), Facts(quarantined=True)) is Step.NOTHING


def test_a_candidate_no_longer_wanted_is_dropped() -> None:
    record = SlotRecord("m", active=build(1), candidate=build(2), stage=SlotState.STAGED, saves=3)
    dropped = follow(record, build(1))
    assert (dropped.active, dropped.candidate, dropped.stage) == (build(1), None, SlotState.ACTIVE)


def test_a_candidate_stored_too_often_is_given_up() -> None:
    record = SlotRecord("m", candidate=build(1), stage=SlotState.STAGED, saves=MAX_SAVES - 1)
    assert next_step(record, build(1), Facts()) is Step.LOAD
    assert next_step(advance(record, Event.LOADING), build(1), Facts()) is Step.GIVE_UP


def test_a_clean_installation_stays_under_the_limit_of_saves() -> None:
    record, most = SlotRecord("m"), 0
    for event in (Event.WANTED, Event.FETCHED, Event.LOADING, Event.PASSED):
        record = advance(record, event, target=build(1) if event is Event.WANTED else None)
        most = max(most, record.saves)
    assert most == 4
    assert advance(record, Event.SWITCHED).saves == 0


@given(st.lists(st.sampled_from(list(Event)), max_size=30), st.integers(0, 3))
def test_no_order_of_events_loses_the_active_build_but_a_switch(events: list[Event], version: int) -> None:
    record = SlotRecord("m", active=build(9), previous=build(8), stage=SlotState.ACTIVE)
    for event in events:
        target = build(version) if event is Event.WANTED else None
        if (record.stage, event) not in TRANSITIONS:
            with pytest.raises(NoSuchTransition):
                advance(record, event, target=target)
            continue
        after = advance(record, event, target=target)
        if event is Event.SWITCHED:
            assert record.stage is SlotState.TESTED
            assert (after.active, after.previous) == (record.candidate, record.active)
        else:
            assert (after.active, after.previous) == (record.active, record.previous)
        record = after


def test_rolling_back_makes_the_previous_build_active_and_keeps_a_candidate_on_its_way() -> None:
    record = SlotRecord("m", active=build(2), previous=build(1), stage=SlotState.ACTIVE)
    assert roll_back(record, "died") == replace(record, active=build(1), previous=None, reason="died")
    busy = replace(record, candidate=build(3), stage=SlotState.VERIFIED, saves=2)
    after = roll_back(busy, "died")
    assert (after.active, after.candidate, after.stage) == (build(1), build(3), SlotState.VERIFIED)


def test_rolling_back_the_only_build_leaves_a_failed_slot_with_its_reason() -> None:
    after = roll_back(SlotRecord("m", active=build(1), stage=SlotState.ACTIVE), "died")
    assert (after.active, after.stage, after.reason) == (None, SlotState.FAILED, "died")


@pytest.mark.parametrize(
    ("strikes", "bad"),
    [([], False), ([100.0, 100.0], False), ([0.0, 399.0, 400.0], False), ([100.0, 399.0, 400.0], True)],
)
def test_three_strikes_within_the_window_make_a_build_bad(strikes: list[float], bad: bool) -> None:
    assert is_bad(strikes, 400.0, most=3, window_s=300.0) is bad
