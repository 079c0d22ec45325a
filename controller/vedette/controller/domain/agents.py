"""What the controller knows of an agent, and what of it an operator needs in a word.

The four facts of a status (desired, attempted, failed, running) are kept apart; the state is only derived from them
for display and for gates, never stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vedette.controller.domain.errors import InvalidInput
from vedette.controller.domain.selector import attributes_of
from vedette.models.assignment import SlotAssignment
from vedette.wire.values import (
    BuildRef,
    Condition,
    Facts,
    GenerationResult,
    Outcome,
    Severity,
    SlotState,
    SlotStatus,
    Status,
)
from vedette.wire.views import AgentSlot, AgentState

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """One agent: who it is, what is wanted of it, and what it last said."""

    id: str
    name: str
    key_digest: str  # SHA-256 of its public key's DER
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Facts
    enrolled: datetime
    seen: datetime | None = None  # its last word
    revoked: datetime | None = None
    address: str = ""
    status: Status | None = None
    result: GenerationResult | None = None  # of the newest assignment it judged
    desired_sequence: int = 0  # of the newest assignment issued; 0 when none was
    slots: Mapping[str, SlotAssignment] = field(default_factory=dict)  # desired
    is_online: bool = False
    moved_on: datetime | None = None  # when it was found to have moved on after the backup that was restored
    held: tuple[str, ...] = ()  # what it runs that is not known here since; nothing is asked of it meanwhile

    @property
    def attributes(self) -> dict[str, str]:
        """Return what a selector can ask."""
        return attributes_of(self.name, self.labels, self.facts)


def state_of(agent: AgentRecord) -> AgentState:
    """Return an agent's state in a word."""
    if agent.revoked:
        return AgentState.REVOKED
    if agent.seen is None:
        return AgentState.ENROLLED
    if not agent.is_online or agent.status is None:
        return AgentState.SILENT
    if (
        agent.held
        or has_failed(agent)
        or any(condition.severity is Severity.ERROR for condition in agent.status.conditions)
    ):
        return AgentState.DEGRADED
    return AgentState.BEHIND if agent.status.running_sequence < agent.desired_sequence else AgentState.HEALTHY


def held_condition(agent: AgentRecord) -> Condition | None:
    """Return what an operator must know of an agent that is held, None when it is not."""
    if not agent.held or agent.moved_on is None:
        return None
    running = ", ".join(item.partition(" ")[2] for item in agent.held)
    text = (
        f"held: it runs {running}, unknown here since an older backup was restored, and keeps it."
        f" Restore a newer backup, or move it on: vedette rollout start MODEL:VERSION --to 'name={agent.name}'"
    )
    return Condition(code="held-after-restore", severity=Severity.WARNING, text=text, since=agent.moved_on)


def held_beside(agent: AgentRecord, slot: str) -> tuple[str, ...]:
    """Return what an agent runs in other slots that is not known here: an assignment about ``slot`` would end it."""
    return tuple(item.partition(" ")[2] for item in agent.held if item.partition(" ")[0] != slot)


def has_failed(agent: AgentRecord) -> bool:
    """Return whether the agent refused or failed at the newest assignment issued to it."""
    if agent.desired_sequence == 0:
        return False
    if agent.status and agent.status.failed_sequence == agent.desired_sequence:
        return True
    judged = agent.result
    return bool(judged and judged.sequence == agent.desired_sequence and judged.outcome is not Outcome.APPLIED)


def slots_view(agent: AgentRecord) -> dict[str, AgentSlot]:
    """Return each slot that is desired or reported, in names."""
    reported = {slot.slot: slot for slot in agent.status.slots} if agent.status else {}
    names = sorted({*reported, *agent.slots})
    return {name: _slot_view(agent.slots.get(name), reported.get(name)) for name in names}


def _slot_view(desired: SlotAssignment | None, reported: SlotStatus | None) -> AgentSlot:
    wanted = f"{desired.model}:{desired.version}" if desired else ""
    if reported is None:
        return AgentSlot(desired=wanted, state=SlotState.EMPTY)
    return AgentSlot(
        active=_name(reported.active),
        previous=_name(reported.previous),
        candidate=_name(reported.candidate),
        desired=wanted,
        state=reported.state,
        build=reported.active.build if reported.active else "",
        reason=reported.reason,
        candidate_bytes_done=reported.candidate_bytes_done,
        candidate_bytes_total=reported.candidate_bytes_total,
    )


def _name(build: BuildRef | None) -> str:
    return f"{build.model}:{build.version}" if build else ""


def unique_name(wished: str, hostname: str, is_taken: Callable[[str], bool]) -> str:
    """Return the name an agent gets: the one it wishes for, its host's, or one of these with the next free number.

    Args:
        wished: What the operator asked for; may be empty.
        hostname: Of the appliance; may be empty or no name.
        is_taken: Whether another agent has a name.

    Raises:
        InvalidInput: The wished name is not 1 to 63 of A-Z a-z 0-9 . _ - between letters or digits.
    """
    if wished and not _NAME.fullmatch(wished):
        why = f"{wished[:80]!r} is not 1 to 63 of A-Z a-z 0-9 . _ - between letters or digits"
        raise InvalidInput("name-invalid", "an agent cannot have this name", why, "choose another with --name")
    base = wished or (hostname if _NAME.fullmatch(hostname) else "agent")
    if not is_taken(base):
        return base
    number = 2
    while is_taken(f"{base[:56]}-{number}"):
        number += 1
    return f"{base[:56]}-{number}"
