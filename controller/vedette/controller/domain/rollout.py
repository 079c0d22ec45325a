"""A rollout as a state machine: values in, values out. It decides; the service stores the decision, then acts.

The states of a rollout, and what moves it on::

    running  --pause-------------------------> paused       what was assigned and has not moved is withdrawn
    running  --a wave proves nothing---------> paused       nobody of it answered, or most fell silent in the soak
    paused   --resume------------------------> running
    running  --a member fails or refuses-----> stopped      also from paused: a late report of what was tried
    running  --every member is gone----------> stopped
    running  --abort-------------------------> aborted      also from paused
    running  --the last wave passes----------> succeeded

The states of a wave: waiting -> moving -> soaking -> passed, or stopped with its rollout.

Rules:

- A wave passes when no member still holds it up and its soak is over. A member holds it up from its assignment until it
  serves the version in good health, or until its deadline. The deadline moves only with progress (more bytes, a later
  stage), so a slow link may take as long as it needs and every wait still ends.
- At its deadline a member that was online all the time has failed. One that was silent meanwhile is unreachable:
  counted apart, no longer waited for; its assignment stays and it moves when it returns.
- No data is neither success nor failure. A wave that nobody answered is not passed: the rollout pauses, unless it is
  the last wave and earlier ones have answered.
- Failing counts at every stage: a member that moved and then falls back, or shows an error condition that it did not
  have before, stops the rollout too. It must say so itself: what is kept of one that is away may be older.
- Stopping, aborting and pausing withdraw what has not moved: the agent is assigned again what it had before. Members
  that serve the version keep it.
- What is still to be done at an agent is part of the state (:attr:`Member.pending`), so a controller killed at any
  instant finds it there and does it again; both actions are idempotent.

Times are the controller's; :func:`recovered` stretches them after a restart, so that time in which nobody listened
never counts as a soak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from vedette.controller.domain.desired import REISSUE_CODES
from vedette.controller.domain.errors import Refused
from vedette.models.assignment import SlotAssignment
from vedette.wire import views
from vedette.wire.values import BuildRef, Facts, GenerationResult, Outcome, SlotState, SlotStatus
from vedette.wire.views import MemberState, RolloutState

MAX_EVENTS = 500
"""Kept of one rollout; the oldest go first. A rollout writes a handful a wave, people write the rest."""

MAX_REASON = 300
"""Characters of what an agent gives as its reason: 10,000 of them must fit in one message."""

ENDED = frozenset({RolloutState.SUCCEEDED, RolloutState.STOPPED, RolloutState.ABORTED})
_OPEN = frozenset({MemberState.ASSIGNED, MemberState.UNREACHABLE})
_BAD = frozenset({MemberState.FAILED, MemberState.REFUSED})
_SILENT = "no link; moves when it returns"
_STAGES = (
    SlotState.EMPTY,
    SlotState.DOWNLOADING,
    SlotState.VERIFIED,
    SlotState.STAGED,
    SlotState.TESTED,
    SlotState.ACTIVE,
)


class Pending(StrEnum):
    """What the controller has decided for an agent and not yet written into its desired state."""

    NOTHING = ""
    ASSIGN = "assign"
    WITHDRAW = "withdraw"


class WaveState(StrEnum):
    """Where a wave stands."""

    WAITING = "waiting"
    MOVING = "moving"
    SOAKING = "soaking"
    PASSED = "passed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What the controller knows of one agent now, as far as one slot goes."""

    agent_id: str
    online: bool = False
    gone: bool = False  # revoked or removed
    left: str = ""  # why the rollout has nothing more to say to it; empty while it has
    slot: SlotStatus | None = None
    attempted: int = 0  # number of the newest assignment it tried
    errors: Mapping[str, str] = field(default_factory=dict)  # conditions of severity error: code -> text
    results: tuple[GenerationResult, ...] = ()  # since the last sighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An agent that a rollout may take."""

    agent_id: str
    name: str
    facts: Facts | None = None
    desired: SlotAssignment | None = None  # of the rollout's slot
    sighting: Sighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One agent in a rollout."""

    agent_id: str
    name: str
    build: str  # chosen for its hardware
    before: SlotAssignment | None = None  # desired when the rollout was planned
    state: MemberState = MemberState.WAITING
    reason: str = ""
    pending: Pending = Pending.NOTHING
    sequence: int = 0  # of the assignment that carried the version; 0 when it never got it
    deadline: datetime | None = None
    stage: int = 0  # the furthest seen, with the most bytes in it
    bytes_done: int = 0
    interrupted: bool = False  # silent at some time since the deadline was set
    online: bool = False
    known_errors: tuple[str, ...] = ()  # codes it showed before it was assigned anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """One wave."""

    size: str
    members: tuple[Member, ...]
    state: WaveState = WaveState.WAITING
    soak_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for people."""

    at: datetime
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A plan that moves agents to a version in waves, and how far it has come."""

    id: str
    model: str  # also the slot
    version: str  # MODEL:N
    release: str
    selector: str
    waves: tuple[Wave, ...]
    soak_s: int
    timeout_s: int
    started: datetime
    started_by: str
    state: RolloutState = RolloutState.RUNNING
    ended: datetime | None = None
    reason: str = ""
    events: tuple[Event, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """Return the members of all waves, in order."""
        return tuple(member for wave in self.waves for member in wave.members)

    @property
    def has_ended(self) -> bool:
        """Tell whether nothing can change any more."""
        return self.state in ENDED

    @property
    def number(self) -> int:
        """Return the number of the version."""
        return int(self.version.rpartition(":")[2])

    def choice(self, member: Member) -> SlotAssignment:
        """Return what the rollout wants of a member."""
        return SlotAssignment(self.model, self.model, self.number, self.release, member.build)


@dataclass(frozen=True, slots=True)
class Action:
    """Something to write into an agent's desired state. Doing it twice changes nothing."""

    agent_id: str
    slot: str
    choice: SlotAssignment | None  # None: the slot is emptied


def begin(rollout: Rollout, sightings: Iterable[Sighting], now: datetime) -> Rollout:
    """Return a planned rollout with its first wave assigned; who serves the version already has moved at once."""
    text = (
        f"started by {rollout.started_by}: {_count(len(rollout.members), 'agent')} in"
        f" {_count(len(rollout.waves), 'wave')}"
    )
    return tick(_begin_wave(_told(rollout, now, text), 0, now), sightings, now)


def tick(rollout: Rollout, sightings: Iterable[Sighting], now: datetime) -> Rollout:
    """Return the rollout after what was seen of its agents and the time that has passed.

    Sightings of strangers are ignored; agents without one are as they were. Nothing happens to an ended rollout.
    """
    if rollout.has_ended:
        return rollout
    seen = {sighting.agent_id: sighting for sighting in sightings}
    target = rollout

    def step(member: Member) -> Member:
        sighting = seen.get(member.agent_id)
        return _overdue(_seen(member, sighting, target, now) if sighting else member, target, now)

    return _judged(_each_member(rollout, step), now)


def pause(rollout: Rollout, by: str, now: datetime) -> Rollout:
    """Return it paused: nothing more is assigned, what has not moved is withdrawn. Pausing twice is fine.

    Raises:
        Refused: It has ended.
    """
    _check_not_ended(rollout, "paused")
    if rollout.state is RolloutState.PAUSED:
        return rollout
    return _paused(rollout, f"paused by {by}", now)


def resume(rollout: Rollout, by: str, now: datetime) -> Rollout:
    """Return it running again: the current wave is assigned anew, with new deadlines. Resuming twice is fine.

    Raises:
        Refused: It has ended.
    """
    _check_not_ended(rollout, "resumed")
    if rollout.state is RolloutState.RUNNING:
        return rollout
    rollout = replace(_told(rollout, now, f"resumed by {by}"), state=RolloutState.RUNNING, reason="")
    index = _current(rollout)
    wave = rollout.waves[index]
    if wave.state is WaveState.SOAKING:
        # A pause by hand may have outlasted the soak; one for silence must not pass on what was not seen.
        return _with_wave(rollout, index, replace(wave, soak_until=now + timedelta(seconds=rollout.soak_s)))
    return _begin_wave(rollout, index, now)


def abort(rollout: Rollout, by: str, now: datetime) -> Rollout:
    """Return it aborted: what has not moved is withdrawn. Aborting twice is fine.

    Raises:
        Refused: It has ended otherwise.
    """
    if rollout.state is RolloutState.ABORTED:
        return rollout
    _check_not_ended(rollout, "aborted")
    return _closed(rollout, RolloutState.ABORTED, f"aborted by {by}", now)


def recovered(rollout: Rollout, now: datetime) -> Rollout:
    """Return it as a controller that just started should go on with it.

    Nobody listened while it was down: open deadlines and a running soak start anew, so that a restart costs time and
    never evidence, whatever the clock says by then. What is pending stays pending.
    """
    deadline = now + timedelta(seconds=rollout.timeout_s)
    soaked = now + timedelta(seconds=rollout.soak_s)
    return _retimed(rollout, lambda _: deadline, lambda _: soaked)


def shifted(rollout: Rollout, by: timedelta) -> Rollout:
    """Return it after the clock was stepped: what is left of every wait stays what it was."""
    return _retimed(rollout, lambda at: at + by, lambda at: at + by)


def _retimed(
    rollout: Rollout, deadline: Callable[[datetime], datetime], soak: Callable[[datetime], datetime]
) -> Rollout:
    def member_retimed(member: Member) -> Member:
        if member.state not in _OPEN or member.deadline is None:
            return member
        return replace(member, deadline=deadline(member.deadline))

    def wave_retimed(wave: Wave) -> Wave:
        if wave.state is not WaveState.SOAKING or wave.soak_until is None:
            return wave
        return replace(wave, soak_until=soak(wave.soak_until))

    if rollout.has_ended:
        return rollout
    return _each_member(replace(rollout, waves=tuple(wave_retimed(wave) for wave in rollout.waves)), member_retimed)


def pending_actions(rollout: Rollout) -> tuple[Action, ...]:
    """Return what is decided and not yet written into agents' desired state, in order."""
    return tuple(
        Action(
            member.agent_id,
            rollout.model,
            rollout.choice(member) if member.pending is Pending.ASSIGN else member.before,
        )
        for member in rollout.members
        if member.pending is not Pending.NOTHING
    )


def performed(rollout: Rollout, sequences: Mapping[str, int]) -> Rollout:
    """Return it after pending actions were done; ``sequences`` has each agent's assignment number."""

    def settle(member: Member) -> Member:
        if member.agent_id not in sequences:
            return member
        # The number of a withdrawal is not kept: a late report of the assignment itself must still be recognised.
        sequence = sequences[member.agent_id] if member.pending is Pending.ASSIGN else member.sequence
        return replace(member, pending=Pending.NOTHING, sequence=sequence)

    return _each_member(rollout, settle)


def barred(rollout: Rollout, reasons: Mapping[str, str], now: datetime) -> Rollout:
    """Return it after pending actions turned out impossible; ``reasons`` has each agent's.

    A version that cannot be assigned has failed there; what cannot be taken back is left.
    """

    def settle(member: Member) -> Member:
        reason = reasons.get(member.agent_id)
        if reason is None or member.pending is Pending.NOTHING:
            return member
        if member.pending is Pending.WITHDRAW:
            return replace(member, pending=Pending.NOTHING)
        return replace(member, pending=Pending.NOTHING, state=MemberState.FAILED, reason=_brief(reason))

    rollout = _each_member(rollout, settle)
    return rollout if rollout.has_ended else _judged(rollout, now)


def next_due(rollout: Rollout, now: datetime) -> datetime | None:
    """Return when time alone may change it next; None when only news or a person can."""
    if rollout.has_ended:
        return None
    due = [member.deadline for member in rollout.members if member.deadline and member.state in _OPEN]
    wave = rollout.waves[_current(rollout)]
    if rollout.state is RolloutState.RUNNING and wave.state is WaveState.SOAKING and wave.soak_until:
        due += [wave.soak_until, wave.soak_until + timedelta(seconds=rollout.timeout_s)]
    return min((at for at in due if at > now), default=None)


@dataclass(frozen=True, slots=True)
class Standing:
    """A rollout that succeeded: what it rolled out is what agents that its selector matches shall run."""

    model: str
    version: str
    selector: str
    ended: datetime | None = None


def owed(standing: Iterable[Standing], matches: Callable[[str], bool]) -> tuple[Standing, ...]:
    """Return what an agent that came later shall run, at most one a model.

    Args:
        standing: Newest first, without those older than a rollout that had the agent as a member: that one decided.
        matches: Tells whether a selector (its text) selects the agent.
    """
    newest: dict[str, Standing] = {}
    for item in standing:
        if item.model not in newest and matches(item.selector):
            newest[item.model] = item
    return tuple(newest.values())


def _seen(member: Member, sighting: Sighting, rollout: Rollout, now: datetime) -> Member:
    if member.state in _BAD or member.state is MemberState.SUPERSEDED:
        return member
    if sighting.gone or sighting.left:
        why = sighting.left or "revoked or removed"
        return replace(member, state=MemberState.SUPERSEDED, reason=why, pending=Pending.NOTHING, online=False)
    member = replace(member, online=sighting.online)
    target = _target(rollout, member)
    bad = _failure(member, sighting, target)
    if bad:
        return replace(member, state=bad[0], reason=_brief(bad[1] or "no reason given"))
    if member.state is MemberState.WAITING:
        return replace(member, known_errors=tuple(sorted(sighting.errors))) if not member.sequence else member
    if member.state is MemberState.MOVED:
        return member
    return _progressed(member, sighting, rollout, now)


def _progressed(member: Member, sighting: Sighting, rollout: Rollout, now: datetime) -> Member:
    target = _target(rollout, member)
    news = _new_errors(member, sighting)
    if _serves(sighting.slot, target) and not news and sighting.online:
        return replace(member, state=MemberState.MOVED, reason="", deadline=None, interrupted=False)
    member = _advanced(member, sighting.slot, target, now + timedelta(seconds=rollout.timeout_s))
    if not sighting.online:
        return replace(member, state=MemberState.UNREACHABLE, interrupted=True, reason=_SILENT)
    reason = f"serves it, but: {'; '.join(news.values())}" if news else _stage_text(sighting.slot, target)
    return replace(member, state=MemberState.ASSIGNED, reason=_brief(reason))


def _advanced(member: Member, slot: SlotStatus | None, target: BuildRef, deadline: datetime) -> Member:
    """Return the member with a new deadline if it came further than ever before."""
    if slot is None or slot.candidate != target or slot.state not in _STAGES:
        return member
    stage = _STAGES.index(slot.state)
    if (stage, slot.candidate_bytes_done) <= (member.stage, member.bytes_done):
        return member
    return replace(member, stage=stage, bytes_done=slot.candidate_bytes_done, deadline=deadline, interrupted=False)


def _failure(member: Member, sighting: Sighting, target: BuildRef) -> tuple[MemberState, str] | None:
    """Return the state and reason of a member that the version failed on, None when it did not."""
    if not member.sequence:
        return None
    slot = sighting.slot
    if _serves(slot, target):
        # Also when a result says otherwise: then another slot of the same assignment is what failed.
        return _fell_back(member, sighting, target) if member.state is MemberState.MOVED else None
    for result in sighting.results:
        if _refuses(member, result):
            return MemberState.REFUSED, _result_text(result)
        if result.sequence == member.sequence and result.outcome is Outcome.FAILED:
            return MemberState.FAILED, _result_text(result)
    if slot is not None and _gave_up(slot, target, was_tried=sighting.attempted >= member.sequence):
        return MemberState.FAILED, slot.reason
    return _fell_back(member, sighting, target) if member.state is MemberState.MOVED else None


def _refuses(member: Member, result: GenerationResult) -> bool:
    """Tell whether a refusal is of the assignment with the version, or of a later one that still has it."""
    if result.outcome is not Outcome.REFUSED or result.code in REISSUE_CODES:  # those are issued again by themselves
        return False
    has_it = member.state is not MemberState.WAITING
    return result.sequence == member.sequence or (has_it and result.sequence > member.sequence)


def _gave_up(slot: SlotStatus, target: BuildRef, *, was_tried: bool) -> bool:
    """Tell whether a slot shows that the version failed; not before it was tried: an earlier try may still show."""
    has_failed = was_tried and slot.state is SlotState.FAILED and slot.candidate == target
    return has_failed or target.build in slot.quarantined


def _fell_back(member: Member, sighting: Sighting, target: BuildRef) -> tuple[MemberState, str] | None:
    if not sighting.online:
        # What is kept of an agent that is away may be from before its move: statuses are written together, up to a
        # second late, and a controller that is killed meanwhile keeps the older one.
        return None
    slot = sighting.slot
    if slot is not None and slot.active is not None and slot.active != target:
        back = f"went back to {slot.active.model}:{slot.active.version}"
        return MemberState.FAILED, f"{back}: {slot.reason}" if slot.reason else back
    news = _new_errors(member, sighting)
    return (MemberState.FAILED, "; ".join(news.values())) if news else None


def _overdue(member: Member, rollout: Rollout, now: datetime) -> Member:
    if member.deadline is None or now < member.deadline or member.state not in _OPEN or member.interrupted:
        return member
    last = f"; last seen: {member.reason}" if member.reason else ""
    reason = f"no progress towards {rollout.version} in {rollout.timeout_s} s{last}"
    return replace(member, state=MemberState.FAILED, reason=reason)


def _holds_up(member: Member, now: datetime) -> bool:
    return member.state in _OPEN and member.deadline is not None and now < member.deadline


def _target(rollout: Rollout, member: Member) -> BuildRef:
    return BuildRef(model=rollout.model, version=rollout.number, build=member.build)


def _serves(slot: SlotStatus | None, target: BuildRef) -> bool:
    return slot is not None and slot.active == target and slot.candidate is None and slot.state is SlotState.ACTIVE


def _new_errors(member: Member, sighting: Sighting) -> dict[str, str]:
    return {code: text for code, text in sighting.errors.items() if code not in member.known_errors}


def _stage_text(slot: SlotStatus | None, target: BuildRef) -> str:
    if slot is None or slot.candidate != target:
        return ""
    if slot.state is SlotState.DOWNLOADING and slot.candidate_bytes_total:
        return f"downloading {100 * slot.candidate_bytes_done // slot.candidate_bytes_total} %"
    return str(slot.state)


def _brief(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…"


def _result_text(result: GenerationResult) -> str:
    return f"{result.reason} ({result.code})" if result.code and result.reason else result.reason or result.code


def _judged(rollout: Rollout, now: datetime) -> Rollout:
    bad = next((member for member in rollout.members if member.state in _BAD), None)
    if bad is not None:
        verb = "refused it" if bad.state is MemberState.REFUSED else "failed"
        return _closed(rollout, RolloutState.STOPPED, f"{bad.name} {verb}: {bad.reason}", now)
    if all(member.state is MemberState.SUPERSEDED for member in rollout.members):
        return _closed(rollout, RolloutState.STOPPED, "every agent of it was revoked or removed, or moved on", now)
    while rollout.state is RolloutState.RUNNING:
        after = _wave_judged(rollout, _current(rollout), now)
        if after is rollout:
            break
        rollout = after
    return rollout


def _wave_judged(rollout: Rollout, index: int, now: datetime) -> Rollout:
    """Return the rollout one step further, or itself when its current wave has to wait."""
    wave = rollout.waves[index]
    if wave.soak_until is not None and wave.state is WaveState.SOAKING:
        return _soak_judged(rollout, index, wave.soak_until, now)
    if any(_holds_up(member, now) for member in wave.members):
        return rollout
    if _has_evidence(rollout, index):
        return _begin_soak(rollout, index, now)
    return _paused(rollout, f"nobody of wave {index + 1} answered in {rollout.timeout_s} s", now)


def _soak_judged(rollout: Rollout, index: int, until: datetime, now: datetime) -> Rollout:
    if now < until:
        return rollout
    if not _most_are_silent(rollout.waves[index]):
        return _pass_wave(rollout, index, now)
    if now < until + timedelta(seconds=rollout.timeout_s):
        return rollout
    return _paused(rollout, f"most of wave {index + 1} fell silent after it moved", now)


def _has_evidence(rollout: Rollout, index: int) -> bool:
    members = rollout.waves[index].members
    if any(member.state is MemberState.MOVED for member in members):
        return True
    if all(member.state is MemberState.SUPERSEDED for member in members):
        return True
    earlier = (member for wave in rollout.waves[:index] for member in wave.members)
    return index == len(rollout.waves) - 1 and any(member.state is MemberState.MOVED for member in earlier)


def _most_are_silent(wave: Wave) -> bool:
    moved = [member for member in wave.members if member.state is MemberState.MOVED]
    return 2 * sum(not member.online for member in moved) > len(moved)


def _begin_wave(rollout: Rollout, index: int, now: datetime) -> Rollout:
    deadline = now + timedelta(seconds=rollout.timeout_s)
    wave = rollout.waves[index]
    members = tuple(_assigned(member, deadline) for member in wave.members)
    if wave.state is WaveState.WAITING:
        rollout = _told(rollout, now, f"wave {index + 1} ({wave.size}): {_count(len(members), 'agent')} assigned")
    return _with_wave(rollout, index, replace(wave, members=members, state=WaveState.MOVING))


def _assigned(member: Member, deadline: datetime) -> Member:
    """Return a waiting member assigned, an open one with a new deadline, any other as it is."""
    if member.state is not MemberState.WAITING and member.state not in _OPEN:
        return member
    state, reason = (MemberState.ASSIGNED, "") if member.online else (MemberState.UNREACHABLE, _SILENT)
    return replace(member, state=state, reason=reason, pending=Pending.ASSIGN, deadline=deadline, interrupted=False)


def _begin_soak(rollout: Rollout, index: int, now: datetime) -> Rollout:
    wave = rollout.waves[index]
    until = now + timedelta(seconds=rollout.soak_s)
    text = f"wave {index + 1} ({wave.size}): {_tally(wave.members)}; soaking {rollout.soak_s} s"
    return _with_wave(_told(rollout, now, text), index, replace(wave, state=WaveState.SOAKING, soak_until=until))


def _pass_wave(rollout: Rollout, index: int, now: datetime) -> Rollout:
    wave = replace(rollout.waves[index], state=WaveState.PASSED)
    rollout = _with_wave(_told(rollout, now, f"wave {index + 1} ({wave.size}) passed"), index, wave)
    if index + 1 < len(rollout.waves):
        return _begin_wave(rollout, index + 1, now)
    return replace(
        _told(rollout, now, f"succeeded: {_tally(rollout.members)}"), state=RolloutState.SUCCEEDED, ended=now
    )


def _paused(rollout: Rollout, reason: str, now: datetime) -> Rollout:
    rollout = _each_member(rollout, _held_back)
    return replace(_told(rollout, now, reason), state=RolloutState.PAUSED, reason=reason)


def _closed(rollout: Rollout, state: RolloutState, reason: str, now: datetime) -> Rollout:
    rollout = _each_member(rollout, _withdrawn)
    waves = tuple(
        replace(wave, state=WaveState.STOPPED, soak_until=None)
        if wave.state in (WaveState.MOVING, WaveState.SOAKING)
        else wave
        for wave in rollout.waves
    )
    return replace(_told(rollout, now, f"{state}: {reason}"), waves=waves, state=state, reason=reason, ended=now)


def _withdrawn(member: Member) -> Member:
    """Return an ended rollout's member: what it was assigned and does not serve is taken back."""
    if member.state in _BAD:
        # Also here: what failed must not stay declared, else fleet and declaration disagree for ever.
        return replace(member, pending=Pending.WITHDRAW, deadline=None)
    return _held_back(member)


def _held_back(member: Member) -> Member:
    """Return an assigned member that has not moved as one that waits, any other as it is."""
    if member.state not in _OPEN:
        return member
    return replace(
        member,
        state=MemberState.WAITING,
        reason="",
        pending=Pending.WITHDRAW,
        deadline=None,
        stage=0,
        bytes_done=0,
        interrupted=False,
    )


def _check_not_ended(rollout: Rollout, verb: str) -> None:
    if rollout.has_ended:
        raise Refused(
            "rollout-ended",
            f"rollout {rollout.id} cannot be {verb}",
            f"it has ended: {rollout.state}" + (f", {rollout.reason}" if rollout.reason else ""),
            f"start another: vedette rollout start {rollout.version} --to '{rollout.selector}'",
        )


def _current(rollout: Rollout) -> int:
    """Return the place of the wave that has not passed yet."""
    return next(i for i, wave in enumerate(rollout.waves) if wave.state is not WaveState.PASSED)


def _with_wave(rollout: Rollout, index: int, wave: Wave) -> Rollout:
    return replace(rollout, waves=(*rollout.waves[:index], wave, *rollout.waves[index + 1 :]))


def _each_member(rollout: Rollout, change: Callable[[Member], Member]) -> Rollout:
    """Return it with each member changed; what stays equal stays the same object, so that a store can tell."""
    return replace(rollout, waves=tuple(_changed_wave(wave, change) for wave in rollout.waves))


def _changed_wave(wave: Wave, change: Callable[[Member], Member]) -> Wave:
    members = tuple(_kept(member, change(member)) for member in wave.members)
    if all(old is new for old, new in zip(wave.members, members, strict=True)):
        return wave
    return replace(wave, members=members)


def _kept(old: Member, new: Member) -> Member:
    return old if old == new else new


def _told(rollout: Rollout, now: datetime, text: str) -> Rollout:
    return replace(rollout, events=(*rollout.events, Event(now, text))[-MAX_EVENTS:])


def _tally(members: Sequence[Member]) -> str:
    counts = {state: sum(member.state is state for member in members) for state in MemberState}
    rest = (MemberState.UNREACHABLE, MemberState.ASSIGNED, MemberState.SUPERSEDED)
    parts = [f"{counts[MemberState.MOVED]} moved", *(f"{counts[state]} {state}" for state in rest if counts[state])]
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def view(rollout: Rollout) -> views.Rollout:
    """Return what people and scripts are shown of it."""
    return views.Rollout(
        rollout=rollout.id,
        version=rollout.version,
        selector=rollout.selector,
        state=rollout.state,
        waves=tuple(_wave_view(wave) for wave in rollout.waves),
        soak_s=rollout.soak_s,
        started=rollout.started,
        ended=rollout.ended,
        reason=rollout.reason,
        started_by=rollout.started_by,
        events=tuple(views.RolloutEvent(at=event.at, text=event.text) for event in rollout.events),
    )


def _wave_view(wave: Wave) -> views.Wave:
    members = tuple(views.Member(agent=item.name, state=item.state, reason=item.reason) for item in wave.members)
    return views.Wave(size=wave.size, members=members, state=str(wave.state), soak_until=wave.soak_until)
