"""The gRPC server of the Open Inference Protocol: a unix socket for this appliance's programs, and TCP where wanted.

Rules: nothing is offered to a network without TLS and a token; the unix socket is for its owner and its group, from the
first instant it can be connected to. A caller costs what it sends and no more: streams of a connection, calls,
messages in progress on a stream and bytes as a whole are bounded, a call that is cancelled or late is dropped. No fault
of one call reaches another. The messages themselves are :mod:`vedette.agent.adapters.oip.service`'s.

Handlers run on the agent's own loop, since a worker's answer comes there, and get messages as bytes; what lies between
them and gRPC's core is :mod:`vedette.agent.adapters.oip.engine`.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from vedette.agent.adapters.inference.serving import Serving
from vedette.agent.adapters.oip.counts import RequestCounts
from vedette.agent.adapters.oip.engine import Call, Engine, Metadata, Method
from vedette.agent.adapters.oip.errors import NotAllowed, NotOffered, code_of, text_of, trailers_of
from vedette.agent.adapters.oip.service import InferenceService, parsed
from vedette.agent.adapters.telling.http import AddressInUse
from vedette.agent.domain.advice import AdvisedError
from vedette.agent.domain.errors import AgentError, InvalidRequest, Overloaded
from vedette.agent.settings import OipSettings
from vedette.wire.oip import inference_pb2 as pb

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
SOCKET_MODE = 0o660

_STREAM_WINDOW = 8  # requests of one stream in progress
_MOST_STREAMS = 256  # of one connection, calls included
_MOST_CALLS = 1024
_MOST_OPEN = 512  # of these that may stay open for long: streams and watches; the rest is for calls that end
_OPEN_S = 1.0
_LOOK_S = 0.5  # at readiness, for those who watch it
_MOST_SECRET_BYTES = 64 * 1024
_LEAST_TOKEN = 16
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),  # bounded by the ring
    ("grpc.max_concurrent_streams", _MOST_STREAMS),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.so_reuseport", 0),  # else a second agent would share the port and nobody would know
    # A client may ask as often as tritonclient's KeepAliveOptions are commonly set, and is told when it has gone.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_UNSERVED = (
    *(f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")),
    "TraceSetting",
    "LogSettings",
)


class SecretUnusable(AdvisedError):
    """A certificate, key or token cannot be used as it lies there: the operator must mend the file."""

    code = "inference-secret"


class InferenceServer:
    """Listens and answers until it is stopped."""

    def __init__(self, serving: Serving, settings: OipSettings) -> None:
        self._settings = settings
        self.counts = RequestCounts()
        self.service = InferenceService(serving, self.counts, settings.max_message_bytes)
        self._servers: list[Engine] = []
        self._bound: Path | None = None
        self.port: int | None = None  # of TCP

    async def start_unix(self) -> None:
        """Listen on the unix socket; one left by a killed process is replaced.

        Raises:
            AddressInUse: The socket cannot be made, or another program answers there.
        """
        path = self._settings.socket
        if path is None:
            return
        server = self._server(None)
        try:
            _bind_unix(server, path)
        except (OSError, RuntimeError) as exc:
            why = f"{exc}; the socket's path is {len(str(path))} bytes, limit 107"
            raise AddressInUse(f"programs cannot ask on {path}", why, "check inference.socket") from exc
        self._bound = path
        self._start(server)
        logger.info("programs may ask on unix:%s, mode %o", path, SOCKET_MODE)

    async def start_tcp(self) -> None:
        """Listen on TCP.

        Raises:
            AddressInUse: The port is taken or the address is not this machine's.
            SecretUnusable: A file of TLS or the token cannot be used.
        """
        if self._settings.listen is None:
            return
        host, port = self._settings.listen
        token = self._settings.token_file
        credentials = self._credentials()
        server = self._server(None if token is None else read_token(token))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.listen(address, credentials)
        except RuntimeError as exc:
            remedy = "choose another inference.listen"
            raise AddressInUse(f"programs cannot ask on {address}", "the address is taken or not here", remedy) from exc
        self._start(server)
        self.port = bound
        logger.info("programs may ask on %s:%d%s", host, bound, "" if credentials is None else ", TLS")

    async def stop(self, grace_s: float) -> None:
        """Take no more, answer what was asked for within the grace, and cut the rest."""
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
        self._servers.clear()
        if self._bound is not None:
            with suppress(OSError):
                self._bound.unlink()

    def _start(self, server: Engine) -> None:
        server.start()
        self._servers.append(server)

    def _credentials(self) -> grpc.ServerCredentials | None:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        pair = (read_secret(settings.tls_key), _read(settings.tls_certificate))
        _check_pair(settings.tls_certificate, settings.tls_key)
        return grpc.ssl_server_credentials([pair])

    def _server(self, token: bytes | None) -> Engine:
        options = (*_OPTIONS, ("grpc.max_receive_message_length", self._settings.max_message_bytes))
        services: dict[str, Calls | Health | Reflection] = {
            SERVICE: Calls(self.service),
            HEALTH: Health(self.service),
            REFLECTION: Reflection(),
        }
        methods = {
            f"/{service}/{name}": method
            for service, calls in services.items()
            for name, method in calls.methods().items()
        }
        checks = () if token is None else (TokenCheck(token), self.counts.add_stranger)
        return Engine(methods, options, _MOST_CALLS, *checks)


def _bind_unix(server: Engine, path: Path) -> None:
    """Make the socket in a folder that nobody else enters, and only when its mode is right put it in its place."""
    if _is_answered(path):
        raise OSError("another program answers there")
    nursery = path.with_name(".oip")
    with suppress(FileExistsError):
        nursery.mkdir(0o700)
    made = nursery / "s"
    made.unlink(missing_ok=True)
    try:
        server.listen(f"unix:{made}")
        made.chmod(SOCKET_MODE)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
        nursery.rmdir()


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_SECRET_BYTES + 1)
    except PermissionError as exc:
        remedy = f"chgrp vedette-agent {path} && chmod 0640 {path}, and restart (the group is the agent's own)"
        raise SecretUnusable(f"{path} cannot be read", str(exc.strerror), remedy) from exc
    except OSError as exc:
        raise SecretUnusable(f"{path} cannot be read", str(exc.strerror), "put the right file there") from exc
    if not 0 < len(data) <= _MOST_SECRET_BYTES:
        why = f"it is {len(data)} bytes or more, limits 1 and {_MOST_SECRET_BYTES}"
        raise SecretUnusable(f"{path} cannot be used", why, "put the right file there")
    return data


def read_secret(path: Path) -> bytes:
    """Return the content of a file that only its owner, and its group to read, can open.

    Raises:
        SecretUnusable: It cannot be read, is too large, or is open to others.
    """
    data = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o027:
        why = f"its mode is {mode:04o}: others can read or change it"
        raise SecretUnusable(f"{path} is no secret", why, f"chmod 0640 {path}, and make a new one if it was seen")
    return data


def _check_pair(certificate: Path, key: Path) -> None:
    """Make sure that these are a certificate and its key: grpc would only say that it cannot bind.

    Raises:
        SecretUnusable: They are not.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as exc:
        why = f"OpenSSL says: {exc}"
        remedy = "put a PEM certificate chain there and its own key, not encrypted"
        raise SecretUnusable(f"{certificate} and {key} cannot be used", why, remedy) from exc


def read_token(path: Path) -> bytes:
    """Return the token in a file.

    Raises:
        SecretUnusable: As :func:`read_secret`, or it is short or not of printable characters.
    """
    token = read_secret(path).strip()
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.decode().isprintable() or b" " in token:
        why = f"a token has at least {_LEAST_TOKEN} printable characters without a space, this one {len(token)}"
        raise SecretUnusable(f"{path} holds no token", why, f"openssl rand -hex 32 > {path}")
    return token


class TokenCheck:
    """Lets a call in that shows the token."""

    def __init__(self, token: bytes) -> None:
        self._wanted = b"Bearer " + token
        self._refusal = NotAllowed("show the token of inference.token_file: metadata 'authorization: Bearer TOKEN'")

    def __call__(self, metadata: Metadata) -> tuple[grpc.StatusCode, str] | None:
        """Return how a call is refused, None where it may go on."""
        given = [value for key, value in metadata if key == "authorization"]
        shown = given[0] if len(given) == 1 else ""
        shown = shown.encode() if isinstance(shown, str) else shown
        if hmac.compare_digest(shown, self._wanted):
            return None
        return code_of(self._refusal), text_of(self._refusal)


async def _abort(context: Call, error: AgentError) -> None:
    await context.abort(code_of(error), text_of(error), trailers_of(error))


class Calls:
    """The calls of the service as gRPC handlers over bytes."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    def methods(self) -> dict[str, Method]:
        """Return a handler for each call, by name."""
        service = self._service
        asked: dict[str, tuple[type[Message], Callable[[Any], Any]]] = {
            "ServerLive": (pb.ServerLiveRequest, service.server_live),
            "ServerReady": (pb.ServerReadyRequest, service.server_ready),
            "ModelReady": (pb.ModelReadyRequest, service.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, service.server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, service.model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, service.model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, service.model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, service.repository_index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, service.model_load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, service.model_unload),
        }
        return {
            "ModelInfer": Method(self._infer),
            "ModelStreamInfer": Method(self._stream, takes_many=True, gives_many=True),
            **{name: Method(_asked(kind, work)) for name, (kind, work) in asked.items()},
            **{name: Method(_unserved(name)) for name in _UNSERVED},
        }

    async def _infer(self, body: bytes, context: Call) -> bytes:
        try:
            return await self._service.infer(body, context.time_remaining(), "ModelInfer")
        except AgentError as exc:
            error = exc
        except Exception:
            error = _bug("ModelInfer")
        await _abort(context, error)
        return b""

    async def _stream(self, requests: Call, context: Call) -> None:
        """Answer the requests of a stream in their order, several in progress at once."""
        await _check_open(self._service, context)
        ends_at_error = _wants_grpc_errors(context)
        waiting: asyncio.Queue[asyncio.Task[bytes | AgentError] | None] = asyncio.Queue(_STREAM_WINDOW)
        tasks: set[asyncio.Task[Any]] = set()

        def begun(work: Any) -> asyncio.Task[Any]:
            task: asyncio.Task[Any] = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return task

        async def take() -> None:
            try:
                async for body in requests:
                    # In a full window this waits, nothing more is read, and HTTP/2 holds the sender back.
                    await waiting.put(begun(self._streamed(body, context.time_remaining(), ends_at_error)))
            except Exception as exc:  # grpc's own, of a call that broke; who waits for more must not wait for ever
                logger.debug("a stream broke: %s", exc)
            await waiting.put(None)

        self._service.counts.streams += 1
        begun(take())
        try:
            while (task := await waiting.get()) is not None:
                answer = await task
                if isinstance(answer, AgentError):
                    await _abort(context, answer)
                else:
                    await context.write(answer)
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                self._service.counts.streams -= 1

    async def _streamed(self, body: bytes, left_s: float | None, ends_at_error: bool) -> bytes | AgentError:
        """Return a serialised ModelStreamInferResponse, or the error that ends the stream."""
        try:
            answer = await self._service.infer(body, left_s, "ModelStreamInfer")
        except AgentError as exc:
            return exc if ends_at_error else _error_in_stream(body, exc)
        except Exception:
            return _error_in_stream(body, _bug("ModelStreamInfer"))
        return _in_stream(body, answer)


async def _check_open(service: InferenceService, context: Call) -> None:
    """Refuse one more stream or watch where too many are open."""
    if service.counts.streams >= _MOST_OPEN:
        await _abort(context, Overloaded(f"{_MOST_OPEN} streams and watches are open, limit {_MOST_OPEN}", _OPEN_S))


def _wants_grpc_errors(context: Call) -> bool:
    """Return whether an error shall end the stream with its status: Triton's header of that name."""
    metadata = context.invocation_metadata() or ()
    return any(key == "triton_grpc_error" and value == "true" for key, value in metadata)


_FINAL = pb.InferParameter(bool_param=True)
_ASKS_FOR_FINAL = b"triton_enable_empty_final_response"


def _in_stream(body: bytes, answer: bytes) -> bytes:
    """Return an answer as an answer of a stream; with the mark of the last one where it was asked for.

    A model here gives one answer to a request, so each is the last (Triton, docs/user_guide/decoupled_models.md).
    """
    if _ASKS_FOR_FINAL in body:  # seldom, and then looked at
        asked = pb.ModelInferRequest.FromString(body).parameters
        name = _ASKS_FOR_FINAL.decode()
        if name in asked and asked[name].bool_param:
            last = pb.ModelInferResponse(parameters={"triton_final_response": _FINAL})
            answer += last.SerializeToString()
    whole = pb.ModelStreamInferResponse()
    whole.infer_response.MergeFromString(answer)
    return whole.SerializeToString()


def _error_in_stream(body: bytes, error: AgentError) -> bytes:
    """Return an error of one request, with its id so that the client knows of which."""
    known = pb.ModelInferResponse()
    with suppress(InvalidRequest):
        request = parsed(pb.ModelInferRequest, body)
        known = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
    text = f"[{code_of(error).name}] {text_of(error)}"
    return pb.ModelStreamInferResponse(error_message=text, infer_response=known).SerializeToString()


def _bug(call: str) -> AgentError:
    logger.exception("a call of %s failed for a fault of the agent's own; please report it", call)
    return AgentError("the agent could not answer for a fault of its own; its log has more")


Handler = Callable[[bytes, Any], Awaitable[bytes]]


def _asked(kind: type[Message], work: Callable[[Any], Any]) -> Handler:
    """Return the handler of a question."""

    async def answer(body: bytes, context: Call) -> bytes:
        try:
            found = work(parsed(kind, body))
            message: Message = await found if inspect.isawaitable(found) else found
            return message.SerializeToString()
        except AgentError as exc:
            error = exc
        except Exception:
            error = _bug(kind.DESCRIPTOR.name)
        await _abort(context, error)
        return b""

    return answer


def _unserved(name: str) -> Handler:
    what = "shared memory" if "SharedMemory" in name else "settings of traces and logs"
    remedy = "send tensors as bytes" if "SharedMemory" in name else "see agent.toml"

    async def refuse(body: bytes, context: Call) -> bytes:
        await _abort(context, NotOffered(f"{name}: this server has no {what}; {remedy}"))
        return b""

    return refuse


class Health:
    """gRPC's health service: the server as a whole, the service, and each slot by its name.

    Source: grpc/doc/health-checking.md.
    """

    def __init__(self, service: InferenceService) -> None:
        from grpc_health.v1 import health_pb2

        self._pb: Any = health_pb2
        self._service = service

    def methods(self) -> dict[str, Method]:
        """Return the handlers of Check and Watch."""
        return {"Check": Method(self._check), "Watch": Method(self._watch, gives_many=True)}

    async def _check(self, body: bytes, context: Call) -> bytes:
        name = await self._name(body, context)
        status = self._status(name)
        if status == self._pb.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service or slot {name[:80]!r} is here")
        return bytes(self._pb.HealthCheckResponse(status=status).SerializeToString())

    async def _watch(self, body: bytes, context: Call) -> None:
        name = await self._name(body, context)
        await _check_open(self._service, context)
        told = None
        self._service.counts.streams += 1
        try:
            while True:
                status = self._status(name)
                if status != told:
                    told = status
                    await context.write(self._pb.HealthCheckResponse(status=status).SerializeToString())
                await asyncio.sleep(_LOOK_S)
        finally:
            self._service.counts.streams -= 1

    async def _name(self, body: bytes, context: Call) -> str:
        try:
            return str(parsed(self._pb.HealthCheckRequest, body).service)
        except InvalidRequest as exc:
            await _abort(context, exc)
            raise

    def _status(self, name: str) -> int:
        kinds = self._pb.HealthCheckResponse
        if name in ("", SERVICE):
            good = self._service.is_ready
        elif self._service.is_known(name):
            good = self._service.is_model_ready(name, "")
        else:
            return int(kinds.SERVICE_UNKNOWN)
        return int(kinds.SERVING if good else kinds.NOT_SERVING)


class Reflection:
    """gRPC's reflection service: what is served here, for tools that have no ``.proto`` file."""

    def __init__(self) -> None:
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        self._request: Any = reflection_pb2.ServerReflectionRequest
        self._answers: Any = reflection.ReflectionServicer((SERVICE, HEALTH, REFLECTION)).ServerReflectionInfo

    def methods(self) -> dict[str, Method]:
        """Return the handler of its one call."""
        return {"ServerReflectionInfo": Method(self._tell, takes_many=True, gives_many=True)}

    async def _tell(self, requests: Call, context: Call) -> None:
        async for body in requests:
            try:
                asked = parsed(self._request, body)
            except InvalidRequest as exc:
                await _abort(context, exc)
            for answer in self._answers(iter((asked,)), context):
                await context.write(answer.SerializeToString())
