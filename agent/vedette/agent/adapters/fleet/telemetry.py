"""Sends what the spool holds, one batch at a time, and deletes what was acknowledged."""

from __future__ import annotations

import asyncio
import logging

import grpc

from vedette.agent.adapters.fleet.channels import BulkLink, ControllerRefused, MessageTooLarge, call_error
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.adapters.waiting import is_cancelling
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.bandwidth import Bandwidth
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.errors import DiskFull, StateError
from vedette.wire.convert import ACKNOWLEDGEMENT, BATCH
from vedette.wire.errors import WireError
from vedette.wire.v1 import telemetry_pb2_grpc
from vedette.wire.values import TelemetryAcknowledgement, TelemetryBatch

logger = logging.getLogger(__name__)
_TIMEOUT_S = 60.0


class Reporter:
    """The sender. Run it as one task."""

    def __init__(
        self, link: BulkLink, spool: Spool, clock: Clock, backoff: Backoff, *, bandwidth: Bandwidth | None = None
    ) -> None:
        self._link = link
        self._spool = spool
        self._clock = clock
        self._backoff = backoff
        self._bandwidth = bandwidth or Bandwidth(0, clock)
        self._has_news = asyncio.Event()
        self.bytes_sent = 0

    def appended(self) -> None:
        """Say that the spool holds something new."""
        self._has_news.set()

    async def run(self) -> None:
        """Send for ever; after a failure wait, the same batch is next."""
        while True:
            self._has_news.clear()
            try:
                batch = self._spool.oldest()
                if batch is None:
                    await self._has_news.wait()
                elif await self._send(batch):
                    self._backoff.succeeded()
                else:
                    await self._clock.sleep(self._backoff.failed())
            except (DiskFull, StateError) as exc:
                logger.warning("telemetry is not sent: %s", exc)
                await self._clock.sleep(self._backoff.failed())

    async def _send(self, batch: TelemetryBatch) -> bool:
        """Send a batch and settle it in the spool; return whether it is settled."""
        message = BATCH.to_wire(batch)
        await self._bandwidth.spend(message.ByteSize())
        try:
            channel = await self._link.bulk()
            answer = await telemetry_pb2_grpc.TelemetryStub(channel).Report(message, timeout=_TIMEOUT_S)
            acknowledged = ACKNOWLEDGEMENT.from_wire(answer)
        except (grpc.aio.UsageError, asyncio.CancelledError):
            if is_cancelling():
                raise
            return False  # the session ended
        except grpc.RpcError as exc:
            return self._refused(batch, exc)
        except WireError as exc:
            logger.warning("acknowledgement of telemetry breaks the protocol: %s", exc)
            return False
        self.bytes_sent += message.ByteSize()
        return self._settled(batch, acknowledged)

    def _settled(self, batch: TelemetryBatch, acknowledged: TelemetryAcknowledgement) -> bool:
        if (acknowledged.boot_epoch, acknowledged.sequence) != (batch.boot_epoch, batch.sequence):
            logger.warning("acknowledged was %s, sent %d.%d", acknowledged, batch.boot_epoch, batch.sequence)
            return False
        self._spool.acknowledge(batch.boot_epoch, batch.sequence)
        return True

    def _refused(self, batch: TelemetryBatch, exc: grpc.RpcError) -> bool:
        error = call_error(exc, "the controller")
        if isinstance(error, MessageTooLarge) or (isinstance(error, ControllerRefused) and error.is_final):
            reason = error.code if isinstance(error, MessageTooLarge) else error.reason or error.why
            logger.warning("controller will not take telemetry %d.%d: %s", batch.boot_epoch, batch.sequence, error)
            self._spool.refuse(batch.boot_epoch, batch.sequence, f"refused: {reason}"[:200])
            return True
        logger.debug("telemetry waits: %s", error)
        return False
