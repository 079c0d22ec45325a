"""Training runs as a state machine.

Rules of this file:

* A state is stored before its work begins; the work of a state may be done twice with the same result.
* After a restart a run goes on in the state it was stored in: nothing that is finished is done again.
* A state that was begun ``MAX_STARTS`` times without an end fails the run: no loop is endless.
* SUCCEEDED and FAILED are ends; nothing leaves them.

    state        event        next
    queued       started      training
    training     trained      converting
    converting   converted    registering
    registering  registered   succeeded
    any but ends failed       failed
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from vedette.controller.domain.errors import InvalidInput
from vedette.models.recipes import RecipeError, RecipeSpec
from vedette.wire.views import Run, RunState

MAX_STARTS = 3
"""Of one state: a controller that is killed in it again and again must not try for ever."""

LOG_TAIL = 40
"""Lines of the log that are shown."""


class RunEvent(StrEnum):
    """What can happen to a run."""

    STARTED = "started"
    TRAINED = "trained"
    CONVERTED = "converted"
    REGISTERED = "registered"
    FAILED = "failed"


_NEXT: Mapping[tuple[RunState, RunEvent], RunState] = {
    (RunState.QUEUED, RunEvent.STARTED): RunState.TRAINING,
    (RunState.TRAINING, RunEvent.TRAINED): RunState.CONVERTING,
    (RunState.CONVERTING, RunEvent.CONVERTED): RunState.REGISTERING,
    (RunState.REGISTERING, RunEvent.REGISTERED): RunState.SUCCEEDED,
    **{(state, RunEvent.FAILED): RunState.FAILED for state in RunState if state not in ("succeeded", "failed")},
}

ENDS = frozenset({RunState.SUCCEEDED, RunState.FAILED})

SHARE = {RunState.QUEUED: 0.0, RunState.TRAINING: 0.02, RunState.CONVERTING: 0.85, RunState.REGISTERING: 0.98}
"""Where a state's work begins on the scale of 0 to 1; it ends where the next begins."""


class ImpossibleStep(Exception):
    """An event happened in a state that knows no such event."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """What somebody asks to be trained."""

    recipe: str
    snapshot: str
    model: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is stored."""

    run: str
    recipe: str
    snapshot: str
    model: str
    parameters: Mapping[str, str]
    state: RunState
    created: datetime
    starts: int = 0  # of the present state
    version: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    ended: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.state in ENDS


def step(record: RunRecord, event: RunEvent, now: datetime) -> RunRecord:
    """Return the record after an event.

    Raises:
        ImpossibleStep: The state knows no such event.
    """
    state = _NEXT.get((record.state, event))
    if state is None:
        raise ImpossibleStep(f"run {record.run} is {record.state}; {event} cannot happen there")
    return replace(record, state=state, starts=0, ended=now if state in ENDS else None)


def begin(record: RunRecord) -> RunRecord | None:
    """Return the record with one more start of its state, or None when it has had its tries."""
    return None if record.starts >= MAX_STARTS else replace(record, starts=record.starts + 1)


def overall(state: RunState, fraction: float) -> float:
    """Return how far a run is, 0 to 1, from how far its state's work is."""
    if state in ENDS:
        return 1.0
    marks = [*SHARE.values(), 1.0]
    place = list(SHARE).index(state)
    return marks[place] + (marks[place + 1] - marks[place]) * fraction


def view(record: RunRecord, *, fraction: float, doing: str, log_tail: tuple[str, ...]) -> Run:
    """Return a run as admins see it.

    Args:
        record: As stored.
        fraction: How far the present state's work is, 0 to 1.
        doing: What it does now, for people.
        log_tail: The newest lines of its log.
    """
    return Run(
        run=record.run,
        recipe=record.recipe,
        snapshot=record.snapshot,
        parameters=record.parameters,
        state=record.state,
        progress=overall(record.state, fraction),
        step=doing,
        version=record.version,
        metrics=record.metrics,
        error=record.error,
        created=record.created,
        ended=record.ended,
        log_tail=log_tail,
    )


def _example(spec: RecipeSpec) -> str:
    parameter = spec.parameters[0]
    return f"vedette train {spec.name} --data DATASET@N --set {parameter.name}={parameter.default}"


def check_parameters(spec: RecipeSpec, given: Mapping[str, str]) -> None:
    """Judge what was set before anything runs.

    Raises:
        InvalidInput: A name is unknown (the nearest is named), or a value is of the wrong type or out of range.
    """
    known = [parameter.name for parameter in spec.parameters]
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        near = difflib.get_close_matches(strange, known, n=1)
        why = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"
        what = f"recipe {spec.name} has no parameter {strange[:80]!r}"
        raise InvalidInput("parameter-unknown", what, why, f"example: {_example(spec)}" if known else "")
    try:
        spec.resolve(given)
    except RecipeError as exc:
        raise InvalidInput("bad-parameter", "a parameter does not fit", str(exc), f"example: {_example(spec)}") from exc
