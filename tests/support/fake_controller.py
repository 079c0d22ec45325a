"""A controller that works, and can drop, delay and corrupt: real gRPC with real TLS on loopback, state in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NoReturn, TypeVar

import grpc

from tests.support.clock import NOON
from tests.support.pki import Authority, public_bytes_of_request
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, AtDeadline, SlotAssignment
from vedette.models.documents import digest_of
from vedette.models.release import RELEASE_TYPE, Release
from vedette.models.signing import SigningKey, seal
from vedette.wire import values
from vedette.wire.convert import (
    ACKNOWLEDGEMENT,
    BATCH,
    ENROL_REQUEST,
    ENROL_RESPONSE,
    HELLO_RESPONSE,
    agent_word_from_wire,
    controller_word_to_wire,
)
from vedette.wire.token import EnrolmentToken
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

AGENT_ID = "agent-1"
W = TypeVar("W")


@dataclass
class FakeToken:
    """A token as a controller keeps it. ``refuse`` is the code of an error to give instead of an identity."""

    secret: str
    uses: int = 1
    spent_by: set[bytes] = field(default_factory=set)
    refuse: str = ""


class FakeController:
    """One controller with one CA. Start it with ``async with``."""

    def __init__(self, authority: Authority | None = None, host: str = "127.0.0.1") -> None:
        self._host = host  # as in an address: IPv6 in brackets
        self.authority = authority or Authority()
        self.shown_ca = self.authority.pem
        self.release_key, self.assignment_key = SigningKey.generate(), SigningKey.generate()
        self.tokens: dict[str, FakeToken] = {}
        self.secrets_seen: list[str] = []
        self.lose_enrolment_answers = 0
        self.hellos: list[values.Hello] = []
        self.statuses: list[values.Status] = []
        self.results: list[values.GenerationResult] = []
        self.desired: values.DesiredState | None = None
        self.time: datetime | None = NOON  # None is the machine's own
        self.status_interval_s = 60
        self.refuse_connect = ""
        self.blobs: dict[str, bytes] = {}
        self.chunk_bytes = 1000
        self.cut_after_bytes: int | None = None
        self.corrupt_next: int | None = None  # flips the byte at this offset once
        self.stall_after_bytes: int | None = None  # then says nothing more until the call is ended
        self.stalled = asyncio.Event()
        self.bytes_sent = 0
        self.reads: list[int] = []  # offsets asked for
        self.committed: dict[tuple[int, int], values.TelemetryBatch] = {}
        self.reports = 0
        self.lose_acknowledgements = 0
        self.refuse_batch: tuple[int, int] | None = None  # will never be taken while it holds windows
        self._streams: set[asyncio.Queue[values.DesiredState | None]] = set()
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> FakeController:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0, enrol_port: int = 0) -> None:
        """Listen on loopback; a port of 0 is any free one."""
        server = self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        key, certificate = self.authority.server()
        mutual = grpc.ssl_server_credentials([(key, certificate)], self.authority.pem, require_client_auth=True)
        self.port = server.add_secure_port(f"{self._host}:{port}", mutual)
        one_way = grpc.ssl_server_credentials([(key, certificate)])
        self.enrol_port = server.add_secure_port(f"{self._host}:{enrol_port}", one_way)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(_Enrolment(self), server)
        fleet_pb2_grpc.add_FleetServicer_to_server(_Fleet(self), server)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(_Artifacts(self), server)
        telemetry_pb2_grpc.add_TelemetryServicer_to_server(_Telemetry(self), server)
        await server.start()

    async def stop(self) -> None:
        """Close every connection at once."""
        if self._server is not None:
            await self._server.stop(None)

    @property
    def time_of_day(self) -> datetime:
        return self.time or datetime.now(UTC)

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    def token(self, token_id: str = "t1", *, uses: int = 1, refuse: str = "") -> EnrolmentToken:
        """Make a token that this controller takes."""
        self.tokens[token_id] = FakeToken(f"secret-of-{token_id}", uses, refuse=refuse)
        enrol_address = f"{self._host}:{self.enrol_port}"
        return EnrolmentToken(
            (self.address,), enrol_address, self.authority.digest, token_id, self.tokens[token_id].secret
        )

    def assign(
        self, sequence: int, *releases: Release, agent_id: str = AGENT_ID, builds: int = 0
    ) -> values.DesiredState:
        """Return a signed desired state in which each release serves in the slot of its name."""
        slots = tuple(SlotAssignment(r.model, r.model, r.version, r.digest, r.builds[builds].digest) for r in releases)
        assignment = Assignment(agent_id, sequence, NOON, NOON + timedelta(days=30), AtDeadline.KEEP, slots)
        return values.DesiredState(
            assignment=seal(ASSIGNMENT_TYPE, assignment.to_bytes(), self.assignment_key),
            releases=tuple(seal(RELEASE_TYPE, r.to_bytes(), self.release_key) for r in releases),
        )

    def push(self, desired: values.DesiredState) -> None:
        """Want it of the agent: on every open stream now, on later ones after their welcome."""
        self.desired = desired
        for stream in self._streams:
            stream.put_nowait(desired)

    def drop_streams(self) -> None:
        """End every open stream."""
        for stream in self._streams:
            stream.put_nowait(None)

    def add_blob(self, data: bytes) -> str:
        """Offer bytes for download and return their digest."""
        self.blobs[digest_of(data)] = data
        return digest_of(data)

    async def until(self, holds: Callable[[FakeController], W]) -> W:
        """Return once something holds of what the agent said; checked at every word of it."""
        async with self._changed:
            while not (found := holds(self)):
                await self._changed.wait()
            return found

    async def changed(self) -> None:
        """Wake who waits in ``until``."""
        async with self._changed:
            self._changed.notify_all()


class _Enrolment(enrolment_pb2_grpc.EnrolmentServicer):
    def __init__(self, controller: FakeController) -> None:
        self._at = controller

    async def Hello(  # noqa: N802
        self, request: enrolment_pb2.HelloRequest, context: grpc.aio.ServicerContext
    ) -> enrolment_pb2.HelloResponse:
        return HELLO_RESPONSE.to_wire(
            values.HelloResponse(
                controller_id="c1", ca_certificate=self._at.shown_ca, time=self._at.time_of_day, version="test"
            )
        )

    async def Enrol(  # noqa: N802
        self, request: enrolment_pb2.EnrolRequest, context: grpc.aio.ServicerContext
    ) -> enrolment_pb2.EnrolResponse:
        asked = ENROL_REQUEST.from_wire(request)
        self._at.secrets_seen.append(asked.token_secret)
        token = self._at.tokens.get(asked.token_id)
        if token is None or token.secret != asked.token_secret:
            await _abort(context, "token-unknown", grpc.StatusCode.UNAUTHENTICATED)
        if token.refuse:
            await _abort(context, token.refuse, grpc.StatusCode.PERMISSION_DENIED)
        key = public_bytes_of_request(asked.certificate_request)
        if key not in token.spent_by and len(token.spent_by) >= token.uses:
            await _abort(context, "token-used", grpc.StatusCode.PERMISSION_DENIED)
        token.spent_by.add(key)
        if self._at.lose_enrolment_answers:
            self._at.lose_enrolment_answers -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        return ENROL_RESPONSE.to_wire(
            values.EnrolResponse(
                agent_id=AGENT_ID,
                name=asked.name,
                certificate=self._at.authority.client(asked.certificate_request, AGENT_ID),
                controller_id="c1",
                release_keys=(self._at.release_key.public,),
                assignment_keys=(self._at.assignment_key.public,),
                addresses=(self._at.address,),
            )
        )


class _Fleet(fleet_pb2_grpc.FleetServicer):
    def __init__(self, controller: FakeController) -> None:
        self._at = controller

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[fleet_pb2.AgentMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[fleet_pb2.ControllerMessage]:
        if self._at.refuse_connect:
            await _abort(context, self._at.refuse_connect, grpc.StatusCode.PERMISSION_DENIED)
        outgoing: asyncio.Queue[values.DesiredState | None] = asyncio.Queue()
        self._at._streams.add(outgoing)
        listening = asyncio.create_task(self._listen(request_iterator, outgoing))
        try:
            welcome = values.Welcome(time=self._at.time_of_day, status_interval_s=self._at.status_interval_s)
            yield controller_word_to_wire(welcome)
            if self._at.desired is not None:
                yield controller_word_to_wire(self._at.desired)
            while (word := await outgoing.get()) is not None:
                yield controller_word_to_wire(word)
        finally:
            self._at._streams.discard(outgoing)
            listening.cancel()

    async def _listen(
        self,
        request_iterator: AsyncIterator[fleet_pb2.AgentMessage],
        outgoing: asyncio.Queue[values.DesiredState | None],
    ) -> None:
        async for message in request_iterator:
            word = agent_word_from_wire(message)
            match word:
                case values.Hello():
                    self._at.hellos.append(word)
                case values.Status():
                    self._at.statuses.append(word)
                case values.GenerationResult():
                    self._at.results.append(word)
            await self._at.changed()
        outgoing.put_nowait(None)


class _Artifacts(artifacts_pb2_grpc.ArtifactsServicer):
    def __init__(self, controller: FakeController) -> None:
        self._at = controller

    async def Read(  # noqa: N802
        self, request: artifacts_pb2.ReadRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[artifacts_pb2.Chunk]:
        at = self._at
        at.reads.append(request.offset)
        data = at.blobs.get(request.digest)
        if data is None:
            await _abort(context, "blob-unknown", grpc.StatusCode.NOT_FOUND)
        if at.corrupt_next is not None:
            flipped = bytearray(data)
            flipped[at.corrupt_next] ^= 1
            data, at.corrupt_next = bytes(flipped), None
        left = at.cut_after_bytes if at.cut_after_bytes is not None else len(data)
        for offset in range(request.offset, len(data), at.chunk_bytes):
            piece = data[offset : offset + at.chunk_bytes]
            if at.stall_after_bytes is not None and offset >= at.stall_after_bytes:
                at.stalled.set()
                await asyncio.Event().wait()
            if len(piece) > left:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            left -= len(piece)
            at.bytes_sent += len(piece)
            yield artifacts_pb2.Chunk(offset=offset, data=piece, total_bytes=len(data))


class _Telemetry(telemetry_pb2_grpc.TelemetryServicer):
    def __init__(self, controller: FakeController) -> None:
        self._at = controller

    async def Report(  # noqa: N802
        self, request: telemetry_pb2.TelemetryBatch, context: grpc.aio.ServicerContext
    ) -> telemetry_pb2.TelemetryAcknowledgement:
        batch = BATCH.from_wire(request)
        self._at.reports += 1
        if self._at.refuse_batch == (batch.boot_epoch, batch.sequence) and batch.windows:
            await _abort(context, "too-large", grpc.StatusCode.INVALID_ARGUMENT)
        self._at.committed.setdefault((batch.boot_epoch, batch.sequence), batch)
        await self._at.changed()
        if self._at.lose_acknowledgements:
            self._at.lose_acknowledgements -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        return ACKNOWLEDGEMENT.to_wire(
            values.TelemetryAcknowledgement(boot_epoch=batch.boot_epoch, sequence=batch.sequence)
        )


async def _abort(context: grpc.aio.ServicerContext, code: str, status: grpc.StatusCode) -> NoReturn:
    text = f"refused: {code}\nthe fake says {code}\ntry another"
    abort: Callable[..., Awaitable[NoReturn]] = context.abort
    await abort(status, text, (("vedette-code", code),))
    raise AssertionError("abort returned")
