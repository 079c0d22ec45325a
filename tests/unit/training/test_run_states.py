"""The state machine of a run, event by event."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.controller.domain.runs import ENDS, MAX_STARTS, ImpossibleStep, RunEvent, RunRecord, begin, overall, step
from vedette.wire.views import RunState

NOW = datetime(2026, 11, 23, tzinfo=UTC)
WAY = [RunEvent.STARTED, RunEvent.TRAINED, RunEvent.CONVERTED, RunEvent.REGISTERED]


def record(state: RunState) -> RunRecord:
    return RunRecord("r1", "toy", "lab@1", "toy", {}, state, NOW)


def test_the_way_of_a_run_ends_in_success() -> None:
    run, seen = record(RunState.QUEUED), []
    for event in WAY:
        run = step(run, event, NOW)
        seen.append(run.state.value)
    assert seen == ["training", "converting", "registering", "succeeded"]
    assert run.ended == NOW


@pytest.mark.parametrize("state", list(RunState))
@pytest.mark.parametrize("event", list(RunEvent))
def test_every_pair_of_state_and_event_steps_or_is_impossible(state: RunState, event: RunEvent) -> None:
    forward = dict(
        zip((RunState.QUEUED, RunState.TRAINING, RunState.CONVERTING, RunState.REGISTERING), WAY, strict=True)
    )
    possible = state not in ENDS and event in (RunEvent.FAILED, forward[state])
    if possible:
        assert step(record(state), event, NOW).state is not state
    else:
        with pytest.raises(ImpossibleStep):
            step(record(state), event, NOW)


def test_a_state_starts_so_often_and_no_more_and_the_next_counts_anew() -> None:
    run = record(RunState.TRAINING)
    for _ in range(MAX_STARTS):
        begun = begin(run)
        assert begun is not None
        run = begun
    assert begin(run) is None
    assert begin(step(run, RunEvent.TRAINED, NOW)) is not None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8).map(sorted))
def test_progress_never_goes_back(fractions: list[float]) -> None:
    states = [RunState.QUEUED, RunState.TRAINING, RunState.CONVERTING, RunState.REGISTERING, RunState.SUCCEEDED]
    shown = [overall(state, fraction) for state in states for fraction in fractions]
    assert shown == sorted(shown)
    assert shown[0] >= 0
    assert shown[-1] == 1
