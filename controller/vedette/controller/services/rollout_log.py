"""What the log tells of rollouts: each event of one, and what became of each of its agents.

An operator asks the journal for one rollout, one appliance or one version and gets its whole story, so every line has
the fields of what it is about. A line is written where a change is stored, hence once, whoever or whatever made it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from vedette.controller.domain.rollout import Event, Member, Rollout
from vedette.wire.systemd import fields
from vedette.wire.views import MemberState, RolloutState

logger = logging.getLogger(__name__)

_WAITS_FOR_SOMEONE = (RolloutState.STOPPED, RolloutState.PAUSED)
_BAD = (MemberState.FAILED, MemberState.REFUSED)
_FATES = {
    MemberState.MOVED: "serves it",
    MemberState.FAILED: "failed",
    MemberState.REFUSED: "refused it",
    MemberState.UNREACHABLE: "is unreachable",
    MemberState.SUPERSEDED: "is passed over",
}


def log_changes(before: Rollout | None, after: Rollout) -> None:
    """Log what is new in a rollout; ``before`` is None for one that has just begun."""
    for member in _changed_members(before, after):
        text, reason = "rollout %s (%s): %s %s%s", f": {member.reason}" if member.reason else ""
        extra = fields(rollout=after.id, model=after.version, slot=after.model, agent=member.name)
        level = logging.WARNING if member.state in _BAD else logging.INFO
        logger.log(level, text, after.id, after.version, member.name, _FATES[member.state], reason, extra=extra)
    has_ceased = after.state in _WAITS_FOR_SOMEONE and (before is None or before.state is not after.state)
    whom = "" if before else f" to {after.selector or 'all agents'}"
    for event in _new_events(before, after):
        level = logging.WARNING if has_ceased else logging.INFO
        extra = fields(rollout=after.id, model=after.version, slot=after.model)
        logger.log(level, "rollout %s (%s%s): %s", after.id, after.version, whom, event.text, extra=extra)


def _new_events(before: Rollout | None, after: Rollout) -> list[Event]:
    """Return the events since; the oldest may have been dropped meanwhile, so they are found from the end."""
    if before is None or not before.events:
        return list(after.events)
    newest = before.events[-1]
    new = list(itertools.takewhile(lambda event: event is not newest, reversed(after.events)))
    return new[::-1]


def _changed_members(before: Rollout | None, after: Rollout) -> Iterator[Member]:
    """Yield members whose state is news; a wave in which nothing changed is the same object and not looked through."""
    if before is None:
        return
    for old_wave, wave in zip(before.waves, after.waves, strict=True):
        for old, new in zip(old_wave.members, wave.members, strict=True) if old_wave is not wave else ():
            if old.state is not new.state and new.state in _FATES:
                yield new
