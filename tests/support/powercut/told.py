"""A controller that marks in a log what an agent told it: after any later power cut all of that must still be so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any, TypeVar

from tests.support.clock import NOON
from tests.support.fake_controller import AGENT_ID, FakeController
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, AtDeadline, SlotAssignment
from vedette.models.release import RELEASE_TYPE, Release
from vedette.models.signing import seal
from vedette.wire import values
from vedette.wire.token import EnrolmentToken

Mark = Callable[..., None]
W = TypeVar("W")


class ToldController(FakeController):
    """The fake controller; every assignment is signed one minute after the one before."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self._mark = mark
        self.hellos = _Noted(lambda hello: mark(boot_epoch=hello.boot_epoch, highest=hello.highest_sequence))
        self.statuses = _Noted(lambda status: mark(status=_status(status)))
        self.results = _Noted(lambda result: mark(result=result.sequence, outcome=result.outcome.name))
        self.committed = _NotedBatches(mark)

    def token(self, token_id: str = "t1", *, uses: int = 1, refuse: str = "") -> EnrolmentToken:
        made = super().token(token_id, uses=uses, refuse=refuse)
        self.tokens[token_id].spent_by = _NotedKeys(self._mark)
        return made

    def reborn(self) -> FakeController:
        """Return a controller that knows what this one knew, for another event loop."""
        made = FakeController(self.authority)
        made.release_key, made.assignment_key = self.release_key, self.assignment_key
        made.blobs, made.tokens = dict(self.blobs), {}
        return made

    def assign(
        self, sequence: int, *releases: Release, agent_id: str = AGENT_ID, builds: int = 0
    ) -> values.DesiredState:
        slots = tuple(SlotAssignment(r.model, r.model, r.version, r.digest, r.builds[builds].digest) for r in releases)
        issued = NOON + timedelta(minutes=sequence)
        assignment = Assignment(agent_id, sequence, issued, issued + timedelta(days=30), AtDeadline.KEEP, slots)
        return values.DesiredState(
            assignment=seal(ASSIGNMENT_TYPE, assignment.to_bytes(), self.assignment_key),
            releases=tuple(seal(RELEASE_TYPE, r.to_bytes(), self.release_key) for r in releases),
        )


class _Noted(list[W]):
    def __init__(self, note: Callable[[W], None]) -> None:
        super().__init__()
        self._note = note

    def append(self, word: W) -> None:
        self._note(word)
        super().append(word)


class _NotedKeys(set[bytes]):
    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self._mark = mark

    def add(self, key: bytes) -> None:
        self._mark(spent_by=key.hex())
        super().add(key)


class _NotedBatches(dict[tuple[int, int], values.TelemetryBatch]):
    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self._mark = mark

    def setdefault(self, name: tuple[int, int], batch: Any = None) -> Any:
        gaps = [(gap.first_sequence, gap.last_sequence) for gap in batch.gaps]
        self._mark(batch=list(name), gaps=gaps)
        return super().setdefault(name, batch)


def _status(status: values.Status) -> dict[str, Any]:
    names = ("desired_sequence", "attempted_sequence", "failed_sequence", "running_sequence")
    told: dict[str, Any] = {name.removesuffix("_sequence"): getattr(status, name) for name in names}
    told["active"] = {slot.slot: asdict(slot.active) for slot in status.slots if slot.active is not None}
    told["quarantined"] = sorted({build for slot in status.slots for build in slot.quarantined})
    return told
