"""What to do about a desired state: bytes and keys in, a decision out.

Rules: nothing of a document is parsed before its signature was verified by a key trusted for its kind; both documents
must agree before anything is planned; a refused document changes nothing. Expiry refuses what is new and is judged by
the time floor alone. One slot's trouble never keeps another slot from its build.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from vedette.agent.domain.errors import AgentError
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, AtDeadline, Refusal, SlotAssignment, accept
from vedette.models.documents import DocumentError
from vedette.models.release import RELEASE_TYPE, Release
from vedette.models.signing import SignatureError, unseal
from vedette.wire.values import DesiredState


class Refused(AgentError):
    """A desired state was refused before anything was tried.

    ``code`` is one of docs/errors.md; ``sequence`` is the assignment's, 0 while its signature is not proven.
    """

    def __init__(self, code: str, text: str, sequence: int) -> None:
        super().__init__(text)
        self.code = code
        self.sequence = sequence


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom this appliance believes, as learnt at enrolment."""

    agent_id: str
    release_keys: tuple[bytes, ...]
    assignment_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A desired state whose signatures, sequence and documents hold."""

    assignment: Assignment
    releases: Mapping[str, Release]  # by digest
    envelopes: DesiredState

    @property
    def signed_time(self) -> datetime:
        """The newest time that a verified signature vouches for."""
        return max([self.assignment.issued, *(release.created for release in self.releases.values())])

    def without_slots(self) -> Accepted:
        """Return the same with nothing to run."""
        return replace(self, assignment=replace(self.assignment, slots=()))

    def is_over(self, floor: datetime) -> bool:
        """Return whether its slots must stop: it says so, and its deadline is certainly past."""
        return self.assignment.at_deadline is AtDeadline.STOP and self.assignment.not_after < floor


@dataclass(frozen=True, slots=True)
class Install:
    """Bring a slot to a build."""

    slot: SlotAssignment
    release: Release


@dataclass(frozen=True, slots=True)
class Remove:
    """Empty a slot that is wanted no more."""

    slot: str


Action = Install | Remove


def verify(
    desired: DesiredState, trust: Trust, *, highest_sequence: int, highest_digest: str, now: datetime
) -> Accepted:
    """Return what a desired state says once all of it is proven.

    Args:
        desired: Envelopes as they came.
        trust: Keys pinned at enrolment.
        highest_sequence: Of any assignment accepted before; 0 when none was.
        highest_digest: Of that assignment.
        now: The time floor.

    Raises:
        Refused: ``signature-invalid``, ``document-invalid`` or a code of :func:`vedette.models.assignment.accept`.
    """
    sequence = 0
    try:
        assignment = Assignment.from_bytes(unseal(desired.assignment, ASSIGNMENT_TYPE, trust.assignment_keys))
        sequence = assignment.sequence
        payloads = [unseal(envelope, RELEASE_TYPE, trust.release_keys) for envelope in desired.releases]
        releases = {release.digest: release for release in map(Release.from_bytes, payloads)}
        accept(
            assignment,
            releases,
            agent_id=trust.agent_id,
            highest_sequence=highest_sequence,
            highest_digest=highest_digest,
            now=now,
        )
    except SignatureError as exc:
        raise Refused("signature-invalid", str(exc), sequence) from exc
    except DocumentError as exc:
        raise Refused("document-invalid", str(exc), sequence) from exc
    except Refusal as exc:
        raise Refused(exc.code, str(exc), sequence) from exc
    return Accepted(assignment, releases, desired)


def plan(
    accepted: Accepted, running: Mapping[str, SlotAssignment | None], unsettled: Collection[str] = ()
) -> tuple[Action, ...]:
    """Return what leads from what runs to what is wanted, in a fixed order: slots that go, then slots that change.

    Args:
        accepted: What is wanted.
        running: Each known slot's active build; None when the slot is empty.
        unsettled: Slots with a candidate that is on its way or failed, which is forgotten when nobody wants it.
    """
    wanted = {slot.slot: slot for slot in accepted.assignment.slots}
    held = {*unsettled, *(name for name, active in running.items() if active is not None)}
    gone = sorted(held - wanted.keys())
    changed = [slot for name, slot in sorted(wanted.items()) if running.get(name) != slot or name in unsettled]
    return (*(Remove(name) for name in gone), *(Install(slot, accepted.releases[slot.release]) for slot in changed))
