"""The assignment: what one appliance shall run, signed by the controller's assignment key.

Rules: an assignment names its appliance, so it is worth nothing to another; its sequence only grows, so an older one
is never applied; it names releases by digest, so both signed documents must agree before anything is loaded. Its
``not_after`` limits how long a new one may be accepted and says what to do then; it never stops what runs unless
``at_deadline`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from vedette.models.documents import DocumentError, Fields, canonical_json, digest_of, parse_json, time_text
from vedette.models.errors import ModelsError
from vedette.models.release import Release, check_model_name

ASSIGNMENT_TYPE = "application/vnd.vedette.assignment+json"
MAX_SLOTS = 16
_FORMAT = 1


class AtDeadline(StrEnum):
    """What an appliance does once ``not_after`` has passed without a newer assignment."""

    KEEP = "keep"
    STOP = "stop"


class Refusal(ModelsError):
    """An assignment was refused before anything was tried. ``code`` is one of docs/errors.md."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class SlotAssignment:
    """What shall run in one slot: a release and one of its builds, by digest."""

    slot: str
    model: str
    version: int
    release: str
    build: str

    def __post_init__(self) -> None:
        check_model_name(self.slot)
        check_model_name(self.model)


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that one appliance shall run, as of one sequence number."""

    agent_id: str
    sequence: int
    issued: datetime
    not_after: datetime
    at_deadline: AtDeadline
    slots: tuple[SlotAssignment, ...]

    def __post_init__(self) -> None:
        names = [slot.slot for slot in self.slots]
        if len(names) > MAX_SLOTS or len(set(names)) != len(names):
            raise DocumentError(f"assignment has slots {names[:20]}: at most {MAX_SLOTS}, each once")

    @property
    def digest(self) -> str:
        """The digest of the canonical bytes: equal digests mean nothing has to be sent."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return canonical_json(
            {
                "format": _FORMAT,
                "agent": self.agent_id,
                "sequence": self.sequence,
                "issued": time_text(self.issued),
                "not_after": time_text(self.not_after),
                "at_deadline": self.at_deadline.value,
                "slots": [
                    {
                        "slot": slot.slot,
                        "model": slot.model,
                        "version": slot.version,
                        "release": slot.release,
                        "build": slot.build,
                    }
                    for slot in self.slots
                ],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Assignment:
        """Return the assignment of canonical bytes.

        Raises:
            DocumentError: They are no assignment; the message names field, value and limit.
        """
        known = ("format", "agent", "sequence", "issued", "not_after", "at_deadline", "slots")
        read = Fields(parse_json(data, "assignment"), "assignment", known)
        if (found := read.whole("format")) != _FORMAT:
            raise DocumentError(f"assignment.format is {found}, this version reads {_FORMAT}")
        deadline = read.text("at_deadline")
        if deadline not in tuple(AtDeadline):
            raise DocumentError(f"assignment.at_deadline is {deadline[:20]!r}, known are {[*AtDeadline]}")
        return cls(
            agent_id=read.text("agent"),
            sequence=read.whole("sequence", least=1),
            issued=read.time("issued"),
            not_after=read.time("not_after"),
            at_deadline=AtDeadline(deadline),
            slots=tuple(_slot(item) for item in read.items("slots", most=MAX_SLOTS)),
        )


def _slot(value: object) -> SlotAssignment:
    read = Fields(value, "assignment.slots", ("slot", "model", "version", "release", "build"))
    return SlotAssignment(
        slot=read.text("slot"),
        model=read.text("model"),
        version=read.whole("version", least=1),
        release=read.digest("release"),
        build=read.digest("build"),
    )


def accept(
    assignment: Assignment,
    releases: Mapping[str, Release],
    *,
    agent_id: str,
    highest_sequence: int,
    highest_digest: str,
    now: datetime,
) -> None:
    """Decide whether an appliance may act on an assignment whose signature was verified.

    Args:
        assignment: What the controller's assignment key signed.
        releases: What release keys signed, by digest of the payload.
        agent_id: Of this appliance.
        highest_sequence: Of any assignment accepted before; 0 when none was.
        highest_digest: Of that assignment.
        now: The appliance's time floor: expiry is judged against what is surely past, never against a wall clock.

    Raises:
        Refusal: ``wrong-agent``, ``old-sequence``, ``sequence-reused``, ``expired``, ``release-missing``,
            ``release-mismatch`` or ``build-unknown``.
    """
    if assignment.agent_id != agent_id:
        raise Refusal("wrong-agent", f"assignment is for agent {assignment.agent_id[:64]!r}, this is {agent_id!r}")
    if assignment.sequence < highest_sequence:
        raise Refusal("old-sequence", f"assignment has sequence {assignment.sequence}, {highest_sequence} was accepted")
    if assignment.sequence == highest_sequence and assignment.digest != highest_digest:
        raise Refusal("sequence-reused", f"two different assignments have sequence {assignment.sequence}")
    if assignment.sequence > highest_sequence and assignment.not_after < now:
        raise Refusal("expired", f"assignment was good until {time_text(assignment.not_after)}, it is {time_text(now)}")
    for slot in assignment.slots:
        _accept_slot(slot, releases.get(slot.release))


def _accept_slot(slot: SlotAssignment, release: Release | None) -> None:
    if release is None:
        raise Refusal(
            "release-missing", f"slot {slot.slot} wants release {slot.release[:19]}, which did not come along"
        )
    if (release.model, release.version) != (slot.model, slot.version):
        raise Refusal(
            "release-mismatch",
            f"slot {slot.slot} wants {slot.model}:{slot.version}, the release signed "
            f"under that digest is {release.name}",
        )
    if slot.slot != slot.model:
        raise Refusal("release-mismatch", f"model {slot.model} belongs in the slot of its name, not in {slot.slot}")
    if release.build(slot.build) is None:
        raise Refusal("build-unknown", f"{release.name} has no build {slot.build[:19]}")
