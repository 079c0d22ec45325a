"""Telemetry: takes batches in, answers how agents and models do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from vedette.controller.domain.clock import Clock
from vedette.controller.domain.telemetry import Place, Pulse, Tallies, Tally, Totals, check_batch, pulse, recent
from vedette.controller.services.ports import Runner
from vedette.wire.values import TelemetryAcknowledgement, TelemetryBatch, Window

_REMEMBERED = timedelta(minutes=2)
"""How far back a start looks for windows of a pulse: the span of one, and some time for the start itself."""


class TelemetryLog(Protocol):
    """The store of telemetry. Methods run in the database's thread; each is one transaction."""

    def record(self, agent_id: str, batch: TelemetryBatch, received: datetime) -> bool:
        """Count a batch unless it was counted before; return whether it was new. Committed when it returns."""
        ...

    def totals(self) -> dict[str, Totals]:
        """Return all that each agent ever reported."""
        ...

    def recent(self, since: datetime) -> dict[str, tuple[Window, ...]]:
        """Return the windows since a time that each agent's pulse is made of."""
        ...

    def tallies(self, since: datetime, after: Place | None = None) -> tuple[list[Tally], Place | None]:
        """Return what a bounded number of windows since a time add up to, and where to go on; None at the end."""
        ...

    def purge(self, before: datetime) -> int:
        """Delete some windows older than a time and return how many."""
        ...


class Telemetry:
    """Takes in what agents measured."""

    def __init__(self, *, runner: Runner, store: TelemetryLog, clock: Clock, keep: timedelta) -> None:
        self._runner = runner
        self._store = store
        self._clock = clock
        self._keep = keep
        self._totals: dict[str, Totals] = {}
        self._recent: dict[str, tuple[Window, ...]] = {}
        self.batches = 0
        self.repeated = 0

    async def start(self) -> None:
        """Read what was reported before."""
        self._totals = await self._runner.run(self._store.totals)
        self._recent = await self._runner.run(self._store.recent, self._clock.now() - _REMEMBERED)

    async def report(self, agent_id: str, batch: TelemetryBatch) -> TelemetryAcknowledgement:
        """Commit a batch, once however often it comes, and acknowledge it.

        Raises:
            InvalidInput: A number is outside its limits.
            DiskFull: There is no room; the agent keeps the batch and repeats it.
        """
        await self.take(agent_id, batch)
        return TelemetryAcknowledgement(boot_epoch=batch.boot_epoch, sequence=batch.sequence)

    async def take(self, agent_id: str, batch: TelemetryBatch) -> bool:
        """Commit a batch unless it was counted before, on whatever way it came; return whether it was new.

        Raises:
            InvalidInput, DiskFull: As :meth:`report`.
        """
        check_batch(batch)
        is_new = await self._runner.run(self._store.record, agent_id, batch, self._clock.now())
        self.batches += is_new
        self.repeated += not is_new
        if is_new:
            self._count(agent_id, batch)
        return is_new

    def _count(self, agent_id: str, batch: TelemetryBatch) -> None:
        before = self._totals.get(agent_id, Totals())
        rows = before.rows + sum(window.rows for window in batch.windows)
        flagged = before.flagged + sum(window.flagged for window in batch.windows)
        self._totals[agent_id] = Totals(rows, flagged)
        self._recent[agent_id] = recent([*self._recent.get(agent_id, ()), *batch.windows])

    def totals(self, agent_id: str) -> Totals:
        """Return all that an agent ever reported."""
        return self._totals.get(agent_id, Totals())

    def pulse(self, agent_id: str) -> Pulse:
        """Return how an agent works, from its newest windows."""
        return pulse(self._recent.get(agent_id, ()))

    def forget(self, agent_id: str) -> None:
        """Drop what is kept of an agent that was removed."""
        self._totals.pop(agent_id, None)
        self._recent.pop(agent_id, None)

    async def tallies(self, window: timedelta) -> Sequence[Tally]:
        """Return what the newest windows add up to, by agent, model and version."""
        since = self._clock.now() - window
        found, place = await self._runner.run(self._store.tallies, since, None)
        sums = Tallies(found)
        while place:
            found, place = await self._runner.run(self._store.tallies, since, place)
            sums.add(found)
        return sums.all()

    async def purge(self) -> int:
        """Delete windows older than they are kept, piece by piece; return how many."""
        before, deleted = self._clock.now() - self._keep, 0
        while piece := await self._runner.run(self._store.purge, before):
            deleted += piece
        return deleted
