"""What agents call: enrolment, their stream, telemetry, artifacts. Each method converts, calls, converts, returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc import aio

from vedette.controller.adapters.grpc.guard import caller, host_of
from vedette.controller.domain.errors import Unavailable
from vedette.controller.services.artifacts import Artifacts
from vedette.controller.services.enrolment import Enrolment
from vedette.controller.services.fleet import Fleet
from vedette.controller.services.streams import Session
from vedette.controller.services.telemetry import Telemetry
from vedette.wire import convert
from vedette.wire.errors import WireError
from vedette.wire.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from vedette.wire.values import Hello, HelloResponse

HELLO_S = 20.0
"""An agent has its hello at hand when it connects; longer than this only a broken one holds a stream open."""

Context = aio.ServicerContext[Any, Any]


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServicer):
    """Port 7444. Trusts nobody."""

    def __init__(self, enrolment: Enrolment, hello: Callable[[], HelloResponse]) -> None:
        self._enrolment = enrolment
        self._hello = hello

    async def Hello(self, request: enrolment_pb2.HelloRequest, context: Context) -> enrolment_pb2.HelloResponse:  # noqa: N802
        """Say who this controller is."""
        return convert.HELLO_RESPONSE.to_wire(self._hello())

    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: Context) -> enrolment_pb2.EnrolResponse:  # noqa: N802
        """Make an agent of a token and a key."""
        applicant = convert.ENROL_REQUEST.from_wire(request)
        response = await self._enrolment.enrol(applicant, host_of(context.peer()))
        return convert.ENROL_RESPONSE.to_wire(response)


class FleetServicer(fleet_pb2_grpc.FleetServicer):
    """One stream for each agent."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[fleet_pb2.AgentMessage], context: Context
    ) -> AsyncIterator[fleet_pb2.ControllerMessage]:
        """Hear an agent and say what it shall run, until either side ends the stream."""
        hello = await _hello(request_iterator)
        session = await self._fleet.connect(caller().name, host_of(context.peer()), hello)
        listening = asyncio.create_task(self._listen(session, request_iterator))
        try:
            async for word in session.words():
                yield convert.controller_word_to_wire(word)
        finally:
            listening.cancel()
            await self._fleet.disconnected(session)

    async def _listen(self, session: Session, words: AsyncIterator[fleet_pb2.AgentMessage]) -> None:
        try:
            async for message in words:
                await self._fleet.heard(session, convert.agent_word_from_wire(message))
            session.end()
        except Exception as exc:  # every kind: the stream's end tells it to the agent
            session.end(exc)


async def _hello(words: AsyncIterator[fleet_pb2.AgentMessage]) -> Hello:
    try:
        async with asyncio.timeout(HELLO_S):
            message = await anext(words)
    except TimeoutError as exc:
        raise Unavailable("hello-missing", "no hello came on this stream", f"within {HELLO_S:g} s") from exc
    except StopAsyncIteration as exc:
        raise WireError("the stream ended before its hello") from exc
    word = convert.agent_word_from_wire(message)
    if not isinstance(word, Hello):
        raise WireError(f"the first word on a stream is {type(word).__name__}, expected Hello")
    return word


class TelemetryServicer(telemetry_pb2_grpc.TelemetryServicer):
    """Takes batches; the answer comes after the commit."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def Report(  # noqa: N802
        self, request: telemetry_pb2.TelemetryBatch, context: Context
    ) -> telemetry_pb2.TelemetryAcknowledgement:
        """Count a batch once."""
        batch = convert.BATCH.from_wire(request)
        return convert.ACKNOWLEDGEMENT.to_wire(await self._telemetry.report(caller().name, batch))


class ArtifactsServicer(artifacts_pb2_grpc.ArtifactsServicer):
    """Gives an agent the blobs its assignment names.

    Args:
        artifacts: Reads them.
        check: Raises when the caller is no longer good; asked again at each chunk of a long download.
    """

    def __init__(self, artifacts: Artifacts, check: Callable[[], None]) -> None:
        self._artifacts = artifacts
        self._check = check

    async def Read(  # noqa: N802
        self, request: artifacts_pb2.ReadRequest, context: Context
    ) -> AsyncIterator[artifacts_pb2.Chunk]:
        """Stream a blob from an offset to its end."""
        async for piece in self._artifacts.read(caller().name, request.digest, request.offset):
            self._check()
            yield artifacts_pb2.Chunk(offset=piece.offset, data=piece.data, total_bytes=piece.total_bytes)
