"""A slot's way from one build to the next, as a table; pure, so that every step can be tried without a process.

Rules:

* A slot has one active, one previous and at most one candidate build. Only ``switch`` makes a candidate active, and
  only a tested one; what was active becomes previous in the same record, so that storing the record is the switch.
* A record is stored before the step it names is begun: whoever reads it after a power cut knows what was in progress.
  ``loading`` is stored again each time it is tried; ``saves`` counts, and at :data:`MAX_SAVES` the build is given up,
  because a build that takes the agent down with it leaves no other trace.
* Passing the self-test is worth nothing once the worker is gone: a tested candidate that is not loaded is loaded again.
* A failed or unwanted candidate leaves active and previous as they were. That one failed is told until another is tried
  or what is active is wanted again.
* The active build's fall (``roll_back``) does not touch a candidate on its way.

    at rest (empty, active, failed) --wanted--> downloading --fetched--> verified --loading--> staged --passed-->
    tested --switched--> active;  any of these --failed--> failed, --dropped--> at rest, --wanted--> downloading
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from vedette.models.assignment import SlotAssignment
from vedette.wire.values import BuildRef, SlotState

MAX_SAVES = 8
"""Records stored for one candidate before it is given up. A clean installation takes 5."""


class Event(StrEnum):
    """What happened to a candidate."""

    WANTED = "wanted"
    FETCHED = "fetched"
    LOADING = "loading"
    PASSED = "passed"
    SWITCHED = "switched"
    FAILED = "failed"
    DROPPED = "dropped"


class Step(StrEnum):
    """What to do next with a slot."""

    NOTHING = "nothing"
    BEGIN = "begin"  # store the candidate
    FETCH = "fetch"
    LOAD = "load"  # start its worker and run the golden samples
    SWITCH = "switch"
    DROP = "drop"  # forget a candidate that is no longer wanted
    REFUSE = "refuse"  # quarantined
    GIVE_UP = "give-up"


_AT_REST = (SlotState.EMPTY, SlotState.ACTIVE, SlotState.FAILED)
_ON_THE_WAY = (SlotState.DOWNLOADING, SlotState.VERIFIED, SlotState.STAGED, SlotState.TESTED)

TRANSITIONS: dict[tuple[SlotState, Event], SlotState] = {
    **{(state, Event.WANTED): SlotState.DOWNLOADING for state in (*_AT_REST, *_ON_THE_WAY)},
    (SlotState.DOWNLOADING, Event.FETCHED): SlotState.VERIFIED,
    (SlotState.VERIFIED, Event.LOADING): SlotState.STAGED,
    (SlotState.STAGED, Event.LOADING): SlotState.STAGED,
    (SlotState.TESTED, Event.LOADING): SlotState.STAGED,
    (SlotState.STAGED, Event.PASSED): SlotState.TESTED,
    (SlotState.TESTED, Event.SWITCHED): SlotState.ACTIVE,
    **{(state, Event.FAILED): SlotState.FAILED for state in _ON_THE_WAY},
    # Or empty, when nothing is active.
    **{(state, Event.DROPPED): SlotState.ACTIVE for state in (*_ON_THE_WAY, SlotState.FAILED)},
}


class NoSuchTransition(Exception):
    """A step was taken that the table does not have: a mistake of ours, not of a model."""


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """All that is stored of a slot. ``stage`` is the candidate's while there is one."""

    slot: str
    active: SlotAssignment | None = None
    previous: SlotAssignment | None = None
    candidate: SlotAssignment | None = None
    stage: SlotState = SlotState.EMPTY
    saves: int = 0
    reason: str = ""

    @property
    def named(self) -> tuple[SlotAssignment, ...]:
        """Every build the record names."""
        return tuple(build for build in (self.active, self.previous, self.candidate) if build is not None)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is on its way or failed: what is active is all there is to say."""
        return self.stage is _rest(self.active)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the outside knows that a step depends on."""

    quarantined: bool = False  # the target's build
    loaded: bool = False  # the candidate's worker runs and passed the self-test


def advance(record: SlotRecord, event: Event, *, target: SlotAssignment | None = None, reason: str = "") -> SlotRecord:
    """Return the record after an event.

    Args:
        record: Before it.
        event: What happened.
        target: The new candidate; with ``WANTED`` only.
        reason: Why; with ``FAILED`` only.

    Raises:
        NoSuchTransition: The table has no such event in this state.
    """
    stage = TRANSITIONS.get((record.stage, event))
    if stage is None or (event is Event.WANTED) != (target is not None):
        raise NoSuchTransition(f"{event} while {record.stage} in slot {record.slot!r}")
    if event is Event.WANTED:
        return replace(record, candidate=target, stage=stage, saves=1, reason="")
    if event is Event.SWITCHED:
        return SlotRecord(record.slot, active=record.candidate, previous=record.active, stage=stage)
    if event is Event.FAILED:
        return replace(record, candidate=None, stage=stage, saves=0, reason=reason)
    if event is Event.DROPPED:
        return replace(record, candidate=None, stage=_rest(record.active), saves=0, reason="")
    return replace(record, stage=stage, saves=record.saves + 1)


def _rest(active: SlotAssignment | None) -> SlotState:
    return SlotState.EMPTY if active is None else SlotState.ACTIVE


def roll_back(record: SlotRecord, reason: str) -> SlotRecord:
    """Return the record after the active build was found bad: the previous one, or nothing, is active."""
    if record.candidate is not None:
        return replace(record, active=record.previous, previous=None)
    stage = SlotState.FAILED if record.previous is None else SlotState.ACTIVE
    return replace(record, active=record.previous, previous=None, stage=stage, reason=reason)


def next_step(record: SlotRecord, target: SlotAssignment, facts: Facts) -> Step:
    """Return what to do so that the target becomes the slot's active build. Calling it again after each step ends."""
    if target == record.active:
        return Step.NOTHING if record.is_settled else Step.DROP
    if facts.quarantined:
        return Step.REFUSE
    if record.candidate != target:
        return Step.BEGIN
    if record.stage is SlotState.TESTED and facts.loaded:
        return Step.SWITCH
    if record.saves >= MAX_SAVES:
        return Step.GIVE_UP
    return Step.FETCH if record.stage is SlotState.DOWNLOADING else Step.LOAD


def is_bad(strikes: Sequence[float], now: float, *, most: int, window_s: float) -> bool:
    """Return whether a build has failed too often: ``most`` strikes within ``window_s`` up to ``now`` (seconds)."""
    return sum(1 for at in strikes if now - at <= window_s) >= most


def build_ref(build: SlotAssignment | None) -> BuildRef | None:
    """Return how a status names a build."""
    return None if build is None else BuildRef(model=build.model, version=build.version, build=build.build)
