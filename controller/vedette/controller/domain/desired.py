"""Desired state: what each agent shall run, and the document that says so.

Rules: an assignment is whole (all slots of one agent); its sequence only grows, and continues above any sequence the
agent reports, so a restored controller is never refused for ever; it is stored before it is sent; only the newest is
ever sent. The ports here are what the rollout engine stands on.

After a restore of an older backup agents have moved on from what is stored here. What an agent runs then counts, not
what was wanted of it when the backup was made: :func:`keep_running`. One that runs a version which is unknown here is
held: nothing is sent to it until a person decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from vedette.controller.domain.agents import AgentRecord
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, AtDeadline, SlotAssignment
from vedette.models.signing import SigningKey, seal
from vedette.wire.values import BuildRef, Facts, GenerationResult, Outcome, Status

ASSIGNMENT_LIFE = timedelta(days=90)
"""How long a new assignment may be accepted; what runs is not stopped by it."""

REISSUE_CODES = frozenset({"old-sequence", "sequence-reused", "expired"})
"""Refusals that a newer sequence number or date mends: they come of a restored backup or a long time apart."""


class Desired(Protocol):
    """Changes what agents shall run. All methods are for the event loop's thread."""

    async def set_slot(self, agent_id: str, target: SlotAssignment) -> int:
        """Make ``target`` what its slot of the agent shall run; return the sequence of the assignment that says so.

        Idempotent: the same target again returns the sequence already issued. Stored when it returns; sent at once
        to an agent that is connected, else when it comes back.

        Raises:
            NotFound: No such agent.
            Refused: The agent is revoked, or has the most slots already.
        """
        ...

    async def clear_slot(self, agent_id: str, slot: str) -> int:
        """Empty a slot; return the sequence of the assignment that says so. Idempotent.

        Raises:
            NotFound: No such agent.
        """
        ...


class FleetView(Protocol):
    """Tells how agents stand."""

    async def agents(self, selector: str = "") -> tuple[AgentRecord, ...]:
        """Return the agents a selector matches, revoked ones included, by name.

        Raises:
            InvalidInput: The selector cannot be read.
        """
        ...

    async def agent(self, name: str) -> AgentRecord:
        """Return one agent by name or id.

        Raises:
            NotFound: There is none; the message names the nearest.
        """
        ...


class FleetObserver(Protocol):
    """Is told what agents say, in order per agent, after it was taken in. Must not raise and not wait for an agent."""

    async def on_status(self, agent_id: str, status: Status) -> None:
        """An agent said how it stands; also called with its hello."""

    async def on_result(self, agent_id: str, result: GenerationResult) -> None:
        """An agent judged an assignment. The result is stored."""

    async def on_presence(self, agent_id: str, *, is_online: bool) -> None:
        """An agent connected, or its stream ended."""

    async def on_enrolled(self, agent_id: str) -> None:
        """A new agent exists."""


class Releases(Protocol):
    """The signed release documents, by digest of their payload."""

    def envelope(self, release_digest: str) -> bytes | None:
        """Return the signed envelope, or None when there is no such release. Runs in the database's thread."""
        ...

    def release_of(self, running: BuildRef) -> str | None:
        """Return the release that has a build, None when no version here has it. Runs in the database's thread."""
        ...


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed assignment as it is stored and sent."""

    sequence: int
    digest: str
    envelope: bytes
    not_after: datetime
    slots: tuple[SlotAssignment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What an agent said last, as it is stored."""

    agent_id: str
    seen: datetime
    address: str
    facts: Facts
    status: Status
    reported_sequence: int


@dataclass(frozen=True, slots=True)
class StoredAgent:
    """An agent as it is stored; ``newest`` is the assignment issued last."""

    record: AgentRecord
    slots: Mapping[str, SlotAssignment]
    newest: Issued | None
    reported_sequence: int
    restored_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What a restored controller wants of an agent that moved on after the backup: what it runs."""

    slots: Mapping[str, SlotAssignment]  # of versions that are known here
    unknown: tuple[str, ...] = ()  # ``SLOT MODEL:VERSION`` that it runs and that are not known here


def has_moved_on(
    newest: Issued | None, *, restored_sequence: int | None, applied_digest: str, highest_sequence: int
) -> bool:
    """Return whether an agent knows assignments that were issued after the backup of a restored controller.

    Args:
        newest: The assignment issued last here.
        restored_sequence: The highest issued when the backup was made; None when nothing was restored, or the agent was
            heard since. Then only a number never issued tells, as after a copy of the database put back by hand.
        applied_digest: Of the assignment the agent applied.
        highest_sequence: The highest it knows.
    """
    if newest is not None and newest.digest == applied_digest:
        return False
    if restored_sequence is not None:
        return highest_sequence > restored_sequence
    return newest is not None and highest_sequence > newest.sequence


def keep_running(
    wanted: Mapping[str, SlotAssignment], status: Status, release_of: Callable[[BuildRef], str | None]
) -> Kept:
    """Return what to want of an agent that moved on: what serves serves on, an empty slot gets what it was to get.

    Args:
        wanted: What was desired of it when the backup was made.
        status: What it runs.
        release_of: The release here that has a build, None when there is none.
    """
    slots, unknown = dict(wanted), []
    for slot in status.slots:
        if slot.active is None or _is(wanted.get(slot.slot), slot.active):
            continue
        slots.pop(slot.slot, None)
        release = release_of(slot.active)
        if release is None:
            unknown.append(f"{slot.slot} {slot.active.model}:{slot.active.version}")
        else:
            active = slot.active
            slots[slot.slot] = SlotAssignment(slot.slot, active.model, active.version, release, active.build)
    return Kept(slots, tuple(unknown))


def _is(wanted: SlotAssignment | None, active: BuildRef) -> bool:
    return wanted is not None and (wanted.model, wanted.version, wanted.build) == (
        active.model,
        active.version,
        active.build,
    )


def issue(
    agent_id: str, slots: Mapping[str, SlotAssignment], *, above: Iterable[int], now: datetime, key: SigningKey
) -> Issued:
    """Return a new signed assignment of all slots, with a sequence above every one of ``above``."""
    assignment = Assignment(
        agent_id=agent_id,
        sequence=max(above, default=0) + 1,
        issued=now,
        not_after=now + ASSIGNMENT_LIFE,
        at_deadline=AtDeadline.KEEP,
        slots=tuple(slots[name] for name in sorted(slots)),
    )
    envelope = seal(ASSIGNMENT_TYPE, assignment.to_bytes(), key)
    return Issued(assignment.sequence, assignment.digest, envelope, assignment.not_after, assignment.slots)


def must_reissue_at_hello(newest: Issued, *, applied_digest: str, highest_sequence: int, now: datetime) -> bool:
    """Return whether the newest assignment would be refused, or soon be, by an agent that says hello."""
    if newest.digest == applied_digest:
        return False
    return must_reissue_for_a_file(newest, highest_sequence=highest_sequence, now=now)


def must_reissue_for_a_file(newest: Issued, *, highest_sequence: int, now: datetime) -> bool:
    """Return whether an agent that knows a sequence would refuse the newest assignment, now or on the day it comes."""
    return newest.sequence < highest_sequence or newest.not_after - now < ASSIGNMENT_LIFE / 2


def must_reissue_after(newest: Issued, result: GenerationResult) -> bool:
    """Return whether an agent refused the newest assignment for its number or date alone."""
    is_newest = result.sequence == newest.sequence
    return is_newest and result.outcome is Outcome.REFUSED and result.code in REISSUE_CODES
