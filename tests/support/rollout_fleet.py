"""A fleet in memory that keeps desired state as the real one does, for the tests of the rollout service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from tests.support.rollout_world import GOOD_FACTS, MODEL, NOON, version
from vedette.controller.domain.agents import AgentRecord
from vedette.controller.domain.errors import NotFound, Refused
from vedette.controller.domain.selector import Selector
from vedette.models.assignment import SlotAssignment
from vedette.wire import views
from vedette.wire.values import BuildRef, GenerationResult, SlotState, SlotStatus, Status


class HandClock:
    """A wall clock and a monotonic one; both move only by hand."""

    def __init__(self) -> None:
        self.wall = NOON
        self.seconds = 100.0

    def now(self):
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.seconds += seconds


class FakeVersions:
    """A registry of versions 1 to 9 of one model, all signed."""

    async def version(self, name: str) -> views.Version:
        number = name.removeprefix(f"{MODEL}:")
        if number not in "123456789":
            raise NotFound("version-missing", f"there is no version {name}")
        return version(int(number))


class FakeFleet:
    """The port ``Desired`` and ``FleetView`` over records in memory.

    Args:
        count: Agents ``a0`` … that serve version 1 and are online.
        before_change: Called with the agent's id before its desired state changes; may raise, as a crash does.
    """

    def __init__(self, count: int, before_change: Callable[[str], None] = lambda agent_id: None) -> None:
        self.records: dict[str, AgentRecord] = {}
        self.before_change = before_change
        self.changes: list[tuple[str, SlotAssignment | None]] = []
        for number in range(count):
            self.enrol(f"a{number}")

    def enrol(self, agent_id: str, *, site: str = "s1", empty: bool = False) -> None:
        slots = {} if empty else {MODEL: _assignment(1)}
        record = AgentRecord(
            id=agent_id,
            name=f"edge-{agent_id}",
            key_digest="",
            labels={"site": site},
            facts=GOOD_FACTS,
            enrolled=NOON,
            is_online=True,
            slots=slots,
        )
        self.records[agent_id] = record
        if not empty:
            self.serve(agent_id, 1)

    async def agents(self, selector: str = "") -> tuple[AgentRecord, ...]:
        parsed = Selector.parse(selector)
        return tuple(record for record in self.records.values() if parsed.matches(record.attributes))

    async def agent(self, name: str) -> AgentRecord:
        if name not in self.records:
            raise NotFound("agent-missing", f"there is no agent {name}")
        return self.records[name]

    async def set_slot(self, agent_id: str, target: SlotAssignment) -> int:
        record = await self.agent(agent_id)
        if record.revoked:
            raise Refused("agent-revoked", f"agent {record.name} was revoked")
        if record.slots.get(target.slot) == target:
            return record.desired_sequence
        return self._change(record, {**record.slots, target.slot: target}, target)

    async def clear_slot(self, agent_id: str, slot: str) -> int:
        record = await self.agent(agent_id)
        if slot not in record.slots:
            return record.desired_sequence
        return self._change(record, {name: record.slots[name] for name in record.slots if name != slot}, None)

    def _change(self, record: AgentRecord, slots: dict[str, SlotAssignment], target: SlotAssignment | None) -> int:
        self.before_change(record.id)
        self.changes.append((record.id, target))
        sequence = record.desired_sequence + 1
        self.records[record.id] = replace(record, slots=slots, desired_sequence=sequence)
        return sequence

    def wanted(self, agent_id: str) -> int | None:
        """Return the number of the version that an agent shall run."""
        slot = self.records[agent_id].slots.get(MODEL)
        return slot.version if slot else None

    def serve(self, agent_id: str, number: int) -> None:
        """Let an agent report that it serves a version."""
        ref = BuildRef(model=MODEL, version=number, build=f"sha256:build{number}")
        self.say(agent_id, SlotStatus(slot=MODEL, state=SlotState.ACTIVE, active=ref))

    def fail(self, agent_id: str, number: int) -> None:
        """Let an agent report that it gave a version up and serves version 1."""
        slot = SlotStatus(
            slot=MODEL,
            state=SlotState.FAILED,
            active=BuildRef(model=MODEL, version=1, build="sha256:build1"),
            candidate=BuildRef(model=MODEL, version=number, build=f"sha256:build{number}"),
            reason="self-test: row 3 differs",
        )
        self.say(agent_id, slot)

    def say(self, agent_id: str, slot: SlotStatus) -> None:
        record = self.records[agent_id]
        status = Status(slots=(slot,), attempted_sequence=record.desired_sequence)
        self.records[agent_id] = replace(record, status=status, seen=NOON)

    def judge(self, agent_id: str, result: GenerationResult) -> None:
        self.records[agent_id] = replace(self.records[agent_id], result=result)

    def set(self, agent_id: str, **fields: object) -> None:
        self.records[agent_id] = replace(self.records[agent_id], **fields)  # type: ignore[arg-type]

    def obey(self) -> None:
        """Let every agent that is online serve what it shall run."""
        for agent_id, record in self.records.items():
            wanted = self.wanted(agent_id)
            if record.is_online and not record.revoked and wanted is not None:
                self.serve(agent_id, wanted)


def _assignment(number: int) -> SlotAssignment:
    return SlotAssignment(MODEL, MODEL, number, f"sha256:release{number}", f"sha256:build{number}")
