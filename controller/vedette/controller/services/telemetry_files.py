"""Telemetry that comes in files: proven as a connection is, counted as a report is.

Rules: nothing is counted before signature, certificate and digest of the whole file were checked, and whether the agent
is still welcome; each batch is counted once, on whichever way it comes first. So a file may be imported again, also one
whose import was cut, and a link may bring the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from google.protobuf.message import DecodeError

from vedette.controller.domain.errors import InvalidInput, Refused, Unauthenticated
from vedette.controller.services.telemetry import Telemetry
from vedette.controller.services.workshop import Pieces, Workshop
from vedette.models.telemetry_file import (
    Head,
    TelemetryFileError,
    TelemetryForged,
    batches_of,
    check_body,
    read_head,
)
from vedette.wire.convert import BATCH
from vedette.wire.errors import WireError
from vedette.wire.v1 import telemetry_pb2
from vedette.wire.values import TelemetryBatch
from vedette.wire.views import TelemetryImport

MAX_FILE_BYTES = 4 * 1024**3
_REMEDY = "copy it once more from the appliance, or export it again"


class Agents(Protocol):
    """Who knows the agents."""

    def check_agent(self, agent_id: str, key_digest: str) -> None:
        """Check that a certificate's holder is an agent in good standing, or raise Unauthenticated."""
        ...

    def name_of(self, agent_id: str) -> str:
        """Return an agent's name by its id."""
        ...


@dataclass(frozen=True, slots=True)
class _Sender:
    agent_id: str
    key_digest: str


class TelemetryFiles:
    """Counts what agents wrote into files. All methods belong to the controller's event loop.

    Args:
        workshop: Where an upload is kept while it is read.
        telemetry: Counts.
        agent_of: Returns id and key digest of the agent that a certificate, PEM, was issued to; raises Refused.
        fleet: The agents.
    """

    def __init__(
        self, workshop: Workshop, telemetry: Telemetry, *, agent_of: Callable[[bytes], tuple[str, str]], fleet: Agents
    ) -> None:
        self._shop = workshop
        self._telemetry = telemetry
        self._agent_of = agent_of
        self._fleet = fleet

    async def import_file(self, total: int, pieces: Pieces) -> TelemetryImport:
        """Count what a file holds, as far as it was not counted before.

        Args:
            total: Bytes announced.
            pieces: The file, in order.

        Raises:
            InvalidInput: It is no whole telemetry file.
            Refused: It is not proven to be of an agent here, or that agent is no longer welcome.
            TooLarge, DiskFull, StoreFailed: It cannot be kept, or counted; what was counted stays.
        """
        with self._shop.job_folder() as folder:
            path = folder / "telemetry"
            await self._shop.receive(pieces, path, total, MAX_FILE_BYTES)
            head, sender = await asyncio.to_thread(self._proven, path)
            self._check(sender)
            with path.open("rb") as source:
                await asyncio.to_thread(read_head, source)
                return await self._counted(source, head, sender)

    def _proven(self, path: Path) -> tuple[Head, _Sender]:
        try:
            with path.open("rb") as source:
                head = read_head(source)
                sender = _Sender(*self._agent_of(head.certificate))
                if sender.agent_id != head.agent:
                    raise TelemetryForged(f"it says to be of {head.agent[:64]}, its certificate is {sender.agent_id}'s")
                check_body(source, head)
        except TelemetryFileError as exc:
            raise _invalid(exc) from exc
        except TelemetryForged as exc:
            raise Refused("file-forged", "the telemetry file is not proven to be its agent's", str(exc)) from exc
        return head, sender

    def _check(self, sender: _Sender) -> None:
        try:
            self._fleet.check_agent(sender.agent_id, sender.key_digest)
        except Unauthenticated as exc:  # of the file's sender: who brings it is an admin in good standing
            raise Refused(exc.code, f"the telemetry file is not taken: {exc.what}", exc.why, exc.remedy) from exc

    async def _counted(self, source: BinaryIO, head: Head, sender: _Sender) -> TelemetryImport:
        name = self._fleet.name_of(sender.agent_id)
        done = TelemetryImport(agent=name, exported=head.exported, batches=head.batches)
        try:
            for body in batches_of(source, head):
                self._check(sender)  # it may be revoked at any time, and a file may take a while
                done = await self._taken(done, sender.agent_id, body)
        except TelemetryFileError as exc:
            raise _invalid(exc) from exc
        return done

    async def _taken(self, done: TelemetryImport, agent_id: str, body: bytes) -> TelemetryImport:
        try:
            batch = BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(body))
            is_new = await self._telemetry.take(agent_id, batch)
        except (DecodeError, WireError, InvalidInput):  # as over a link, where the agent then tells it as a gap
            return replace(done, refused=done.refused + 1)
        return _added(done, batch) if is_new else done


def _added(done: TelemetryImport, batch: TelemetryBatch) -> TelemetryImport:
    return replace(
        done,
        counted=done.counted + 1,
        rows=done.rows + sum(window.rows for window in batch.windows),
        flagged=done.flagged + sum(window.flagged for window in batch.windows),
        gaps=done.gaps + len(batch.gaps),
        rows_lost=done.rows_lost + sum(gap.rows for gap in batch.gaps),
    )


def _invalid(exc: TelemetryFileError) -> InvalidInput:
    return InvalidInput("file-invalid", "the file is no whole telemetry file", str(exc), _REMEDY)
