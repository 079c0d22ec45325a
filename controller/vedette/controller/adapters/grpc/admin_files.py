"""The verbs of what travels in files, past every network: convert, call, convert, return."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc import aio

from vedette.controller.services.bundles import Bundles
from vedette.wire import convert
from vedette.wire.systemd import fields
from vedette.wire.v1 import admin_pb2

logger = logging.getLogger(__name__)

Context = aio.ServicerContext[Any, Any]


class AdminFiles:
    """A part of the Admin service.

    Args:
        bundles: Writes versions into files.
        caller: Tells the name of the admin behind a call.
    """

    def __init__(self, bundles: Bundles, caller: Callable[[Context], str]) -> None:
        self._bundles = bundles
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
