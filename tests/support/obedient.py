"""An appliance that does what it is assigned and says so, over real TLS, for as long as it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from grpc import aio

from tests.support.controller import Appliance, Running, Stream
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, SlotAssignment
from vedette.models.signing import unseal
from vedette.wire.values import BuildRef, GenerationResult, Outcome, SlotState, SlotStatus, Status


class Obedient:
    """Follows assignments; gives the versions of ``bad`` up. Comes back when its stream ends."""

    def __init__(self, running: Running, appliance: Appliance, bad: tuple[int, ...] = ()) -> None:
        self._running = running
        self._appliance = appliance
        self._bad = bad
        self._status = Status()
        self._digest = ""
        self.served: list[int] = []  # versions, in the order in which they became active

    async def live(self) -> None:
        """Serve until cancelled."""
        while True:
            with contextlib.suppress(aio.AioRpcError, ConnectionError, AssertionError, TimeoutError):
                await self._one_stream()
            await asyncio.sleep(0.05)  # the controller may be down for a moment

    async def _one_stream(self) -> None:
        highest = self._status.desired_sequence
        hello = {"status": self._status, "applied_digest": self._digest, "highest_sequence": highest}
        async with self._appliance.connected(**hello) as stream:
            while True:
                word = await stream.call.read()
                if word is aio.EOF:
                    raise ConnectionError("the stream ended")
                if word.HasField("desired"):
                    await self._follow(stream, word.desired.assignment)

    async def _follow(self, stream: Stream, envelope: bytes) -> None:
        payload = unseal(envelope, ASSIGNMENT_TYPE, [self._running.keys.assignment.public])
        assignment = Assignment.from_bytes(payload)
        self._digest = assignment.digest
        slots = tuple(self._slot(slot) for slot in assignment.slots)
        failed = [slot for slot in slots if slot.state is SlotState.FAILED]
        number = assignment.sequence
        self._status = replace(
            self._status, desired_sequence=number, attempted_sequence=number, running_sequence=number, slots=slots
        )
        await stream.say(self._status)
        outcome = Outcome.FAILED if failed else Outcome.APPLIED
        await stream.say(GenerationResult(sequence=number, outcome=outcome, reason=failed[0].reason if failed else ""))

    def _slot(self, slot: SlotAssignment) -> SlotStatus:
        ref = BuildRef(model=slot.model, version=slot.version, build=slot.build)
        before = next((item.active for item in self._status.slots if item.slot == slot.slot), None)
        if slot.version in self._bad:
            reason = "self-test: row 3 differs"
            return SlotStatus(slot=slot.slot, state=SlotState.FAILED, active=before, candidate=ref, reason=reason)
        self.served.append(slot.version)
        return SlotStatus(slot=slot.slot, state=SlotState.ACTIVE, active=ref, previous=before)


@asynccontextmanager
async def alive(*agents: Obedient) -> AsyncIterator[None]:
    """Let agents live until the block ends."""
    tasks = [asyncio.create_task(agent.live()) for agent in agents]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
