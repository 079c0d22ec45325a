"""The verbs of what travels in files, past every network: convert, call, convert, return."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc import aio

from vedette.controller.adapters.grpc.uploads import upload
from vedette.controller.services.bundles import Bundles
from vedette.controller.services.telemetry_files import TelemetryFiles
from vedette.wire import convert
from vedette.wire.systemd import fields
from vedette.wire.v1 import admin_pb2

logger = logging.getLogger(__name__)

Context = aio.ServicerContext[Any, Any]


class AdminFiles:
    """A part of the Admin service.

    Args:
        bundles: Writes versions into files.
        telemetry: Reads what agents exported.
        caller: Tells the name of the admin behind a call.
    """

    def __init__(self, bundles: Bundles, telemetry: TelemetryFiles, caller: Callable[[Context], str]) -> None:
        self._bundles = bundles
        self._telemetry = telemetry
        self._caller = caller

    async def ExportModel(  # noqa: N802
        self, request: admin_pb2.ExportModelRequest, context: Context
    ) -> AsyncIterator[admin_pb2.ExportModelResponse]:
        """Send a version as a bundle, with assignments for whom it is."""
        by = self._caller(context)
        head, pieces = await self._bundles.export(request.version, request.selector if request.assign else None, by)
        told = by, head.version, len(head.agents), head.bytes
        logger.info("%s exported %s for %d agents, %d bytes", *told, extra=fields(model=head.version))
        yield admin_pb2.ExportModelResponse(head=convert.MODEL_EXPORT.to_wire(head))
        async for piece in pieces:
            yield admin_pb2.ExportModelResponse(data=piece)

    async def ImportTelemetry(  # noqa: N802
        self, requests: AsyncIterator[admin_pb2.ImportTelemetryRequest], context: Context
    ) -> admin_pb2.TelemetryImport:
        """Count what an agent wrote into a file."""
        by = self._caller(context)
        head, pieces = await upload(requests)
        done = await self._telemetry.import_file(head.total_bytes, pieces)
        told = by, done.agent, done.counted, done.batches
        logger.info(
            "%s imported telemetry of agent %s: %d of %d batches are new", *told, extra=fields(agent=done.agent)
        )
        return convert.TELEMETRY_IMPORT.to_wire(done)
