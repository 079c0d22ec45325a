"""A real controller in this process, on loopback ports, and real clients of it: an appliance and an admin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

import vedette.controller.adapters.grpc  # noqa: F401 - sets the lowest TLS version before grpc is imported
from tests.support import documents
from vedette.controller.adapters.clock import SystemClock
from vedette.controller.adapters.initialise import Plan, initialise
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.sqlite.registry import RegistryStore
from vedette.controller.app import Controller, opened
from vedette.controller.context import AdminContext
from vedette.controller.domain.clock import Clock
from vedette.controller.domain.registry import Draft
from vedette.controller.rooms import MIGRATIONS
from vedette.controller.settings import ControllerSettings
from vedette.models.assignment import SlotAssignment
from vedette.wire import convert
from vedette.wire.token import EnrolmentToken
from vedette.wire.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifacts_pb2_grpc,
    enrolment_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    telemetry_pb2_grpc,
)
from vedette.wire.values import (
    DesiredState,
    EnrolRequest,
    EnrolResponse,
    Facts,
    GenerationResult,
    Hello,
    Status,
    Welcome,
)

TARGET = (("grpc.ssl_target_name_override", "vedette-controller"),)
FACTS = Facts(agent_version="0.1", hostname="edge", architecture="x86_64", cpu_cores=2)


class Changes:
    """An observer that lets a test wait for what agents say to be taken in."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Return once a condition holds; it is asked again at each change."""
        async with asyncio.timeout(10):
            while True:
                self._changed.clear()
                if await holds():
                    return
                await self._changed.wait()

    async def on_status(self, agent_id: str, status: Status) -> None:
        self._changed.set()

    async def on_result(self, agent_id: str, result: GenerationResult) -> None:
        self._changed.set()

    async def on_presence(self, agent_id: str, *, is_online: bool) -> None:
        self._changed.set()

    async def on_enrolled(self, agent_id: str) -> None:
        self._changed.set()


@dataclass
class Running:
    """A controller that serves."""

    controller: Controller
    context: AdminContext
    keys: KeyRing
    changes: Changes = field(default_factory=Changes)

    def __post_init__(self) -> None:
        self.controller.rooms.fleet.subscribe(self.changes)

    @asynccontextmanager
    async def channel(
        self, port: int, ca: bytes, key: bytes | None = None, certificate: bytes | None = None
    ) -> AsyncIterator[aio.Channel]:
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        async with aio.secure_channel(f"127.0.0.1:{port}", credentials, options=TARGET) as channel:
            yield channel

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """Yield the Admin stub of the first admin."""
        pems = (self.context.ca.encode(), self.context.key.encode(), self.context.certificate.encode())
        async with self.channel(self.controller.port, *pems) as channel:
            yield admin_pb2_grpc.AdminStub(channel)

    async def token(self, **terms: Any) -> EnrolmentToken:
        """Return a new token."""
        async with self.admin() as admin:
            made = await admin.CreateToken(admin_pb2.CreateTokenRequest(**terms))
        return EnrolmentToken.decode(made.token)

    async def enrol(self, appliance: Appliance, token: EnrolmentToken, **changes: Any) -> EnrolResponse:
        """Enrol an appliance with a token."""
        request = EnrolRequest(**{
            "token_id": token.token_id,
            "token_secret": token.secret,
            "certificate_request": appliance.request,
            "facts": FACTS,
            **changes,
        })  # fmt: skip
        async with self.channel(self.controller.enrol_port, self.keys.authority.pem) as channel:
            stub: Any = enrolment_pb2_grpc.EnrolmentStub(channel)
            response = convert.ENROL_RESPONSE.from_wire(await stub.Enrol(convert.ENROL_REQUEST.to_wire(request)))
        appliance.enrolled(response)
        return response

    async def enrolled(self, name: str = "", **terms: Any) -> Appliance:
        """Return a new appliance that has enrolled."""
        appliance = Appliance(self)
        await self.enrol(appliance, await self.token(**terms), name=name)
        return appliance

    def release(self, version: int = 1, model: str = "flow-threat", repeats: int = 40_000) -> SlotAssignment:
        """Register the next version of a model, its blobs in the store; the same version again is the same."""
        blobs = self.controller.rooms.blobs
        content = f"{model} {version} ".encode() * repeats
        template = documents.release(
            model=model,
            builds=(documents.Build("onnx-fp32", blobs.put(content), documents.Tolerance(1e-5, 0.0)),),
            golden=blobs.put(b"golden" + content[:100]),
            reference=blobs.put(b"reference" + content[:100]),
        )
        draft = Draft(**{item.name: getattr(template, item.name) for item in fields(Draft)})
        store = RegistryStore(self.controller.database, self.keys.release)
        made = store.add(draft, template.builds[0].digest, documents.NOW)
        return SlotAssignment(model, model, made.number, made.digest, template.builds[0].digest)


class Appliance:
    """An agent as the controller sees it: a key, a certificate, a stream."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = b""
        self.id = ""
        self.name = ""

    @property
    def key(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    @property
    def request(self) -> bytes:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "appliance")])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def enrolled(self, response: EnrolResponse) -> None:
        self.id, self.name, self.certificate = response.agent_id, response.name, response.certificate

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[aio.Channel]:
        running = self._running
        async with running.channel(
            running.controller.port, running.keys.authority.pem, self.key, self.certificate
        ) as channel:
            yield channel

    @asynccontextmanager
    async def connected(self, **hello: Any) -> AsyncIterator[Stream]:
        """Yield the agent's stream, welcomed."""
        async with self.channel() as channel:
            stub: Any = fleet_pb2_grpc.FleetStub(channel)
            stream = Stream(stub.Connect())
            await stream.say(Hello(**{"facts": FACTS, "status": Status(), **hello}))
            assert isinstance(await stream.hear(), Welcome)
            yield stream
            stream.call.cancel()

    @asynccontextmanager
    async def telemetry(self) -> AsyncIterator[Any]:
        async with self.channel() as channel:
            yield telemetry_pb2_grpc.TelemetryStub(channel)

    @asynccontextmanager
    async def artifacts(self) -> AsyncIterator[Any]:
        async with self.channel() as channel:
            yield artifacts_pb2_grpc.ArtifactsStub(channel)


class Stream:
    """One Connect call."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def say(self, word: convert.AgentWord) -> None:
        await self.call.write(convert.agent_word_to_wire(word))

    async def hear(self) -> DesiredState | Welcome:
        """Return the next word of the controller, or raise what ended the stream."""
        message: fleet_pb2.ControllerMessage = await asyncio.wait_for(self.call.read(), 10)
        if message is aio.EOF:
            raise ConnectionError(await self.call.code(), await self.call.details())
        return convert.controller_word_from_wire(message)


def prepare(data_dir: Path) -> ControllerSettings:
    """Initialise a controller that will serve on free loopback ports."""
    plan = Plan(
        data_dir=data_dir,
        listen="127.0.0.1:0",
        enrol_listen="127.0.0.1:0",
        addresses=("127.0.0.1:0",),
        admin_address="127.0.0.1:1",
    )
    initialise(plan, MIGRATIONS)
    return ControllerSettings(data_dir=data_dir, listen="127.0.0.1:0", enrol_listen="127.0.0.1:0", status_interval_s=1)


@asynccontextmanager
async def running(settings: ControllerSettings, *, clock: Clock | None = None) -> AsyncIterator[Running]:
    """Serve an initialised data directory until the block ends."""
    keys = KeyRing.load(settings.data_dir)
    with opened(settings) as database:
        controller = Controller(settings, keys, database, clock or SystemClock())
        await controller.start()
        try:
            yield Running(controller, AdminContext.load(settings.data_dir / "admin.toml"), keys)
        finally:
            await controller.stop()


def code_of(error: aio.AioRpcError) -> str:
    """Return our code of a failed call."""
    return str(dict(error.trailing_metadata() or ()).get("vedette-code", ""))
