"""Around every call: who calls, whether it may, and how what goes wrong is told.

One interceptor for both ports. It reads the identity from the client's certificate, checks it against the table of
services below on **each** call (a revoked agent's open connection is worth nothing), puts it where a servicer finds it,
and turns our errors into statuses. A service that is not in the table answers nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from grpc import aio

from vedette.controller.adapters.grpc.errors import CODE_KEY, public_error
from vedette.controller.adapters.pki import Identity, identity_of
from vedette.controller.domain.errors import ControllerError, Forbidden, TooMany, Unauthenticated

logger = logging.getLogger(__name__)

CALLERS: dict[str, str | None] = {
    "vedette.wire.v1.Fleet": "agent",
    "vedette.wire.v1.Telemetry": "agent",
    "vedette.wire.v1.Artifacts": "agent",
    "vedette.wire.v1.Admin": "admin",
    "vedette.wire.v1.Enrolment": None,  # anyone: its own port, and it trusts nobody
}
"""Which kind of identity a service is for."""

MOST_CALLS = {"agent": 16, "admin": 64}
"""Calls at once of one identity, over all its connections: an agent needs a stream, a report and a download or two."""

_caller: ContextVar[Identity] = ContextVar("caller")

Handler = Any  # grpc.RpcMethodHandler: its attributes are not in the stubs
Context = aio.ServicerContext[Any, Any]
Check = Callable[[Identity], None]


def caller() -> Identity:
    """Return who makes the call that is being served."""
    return _caller.get()


class Guard(aio.ServerInterceptor):
    """Checks callers and translates errors.

    Args:
        check: Raises Unauthenticated when an identity is not (or no longer) good.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        self._in_flight: Counter[Identity] = Counter()
        self._unread: set[asyncio.Task[Any] | None] = set()  # calls whose request has not come yet
        self.calls: Counter[tuple[str, str]] = Counter()  # (method, code): "ok" or the code of the error

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler of a call, guarded."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        self._watch_unread(method)
        return _rebuilt(handler, lambda inner: self._guarded(inner, method, is_streaming=handler.response_streaming))

    def _watch_unread(self, method: str) -> None:
        """Count this call when it ends without a request: one over the size limit never comes to a handler.

        grpc.aio asks interceptors in the call's own task, which is also the one its handler runs in.
        """
        call = asyncio.current_task()
        if call is None:
            return
        self._unread.add(call)

        def ended(task: asyncio.Task[Any]) -> None:
            if task in self._unread:
                self._unread.discard(task)
                self.calls[method, "message-unread"] += 1

        call.add_done_callback(ended)

    def _guarded(self, inner: Callable[..., Any], method: str, *, is_streaming: bool) -> Callable[..., Any]:
        async def unary(request: Any, context: Context) -> Any:
            async with self._call(method, context):
                return await inner(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._call(method, context):
                async for answer in inner(request, context):
                    yield answer

        return stream if is_streaming else unary

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        """Stand around one call: who makes it is known inside, and no error leaves but as a status."""
        identity = None
        self._unread.discard(asyncio.current_task())
        try:
            identity = self._admitted(method, context)
            yield
        except Exception as exc:  # every kind: nothing but a status may leave
            await self._abort(method, context, exc)
        else:
            self.calls[method, "ok"] += 1
        finally:
            self._leave(identity)

    def _admitted(self, method: str, context: Context) -> Identity | None:
        service = method.rpartition("/")[0].lstrip("/")
        if service not in CALLERS:
            raise Forbidden("method-forbidden", f"{method} is not for callers")
        wanted = CALLERS[service]
        if wanted is None:
            return None
        identity = _identity(context)
        if identity.kind != wanted:
            why = f"{method} is for an {wanted}'s certificate, this is the {identity.kind} {identity.name}"
            raise Forbidden("method-forbidden", "this certificate may not do that", why)
        self._check(identity)
        self._enter(identity)
        _caller.set(identity)
        return identity

    def _enter(self, identity: Identity) -> None:
        limit = MOST_CALLS[identity.kind]
        if self._in_flight[identity] >= limit:
            why = f"{limit} of {identity.kind} {identity.name} are in progress, which is the limit"
            raise TooMany("calls-too-many", "too many calls at once", why, "let some end first")
        self._in_flight[identity] += 1

    def _leave(self, identity: Identity | None) -> None:
        if identity is None:
            return
        self._in_flight[identity] -= 1
        if not self._in_flight[identity]:
            del self._in_flight[identity]

    async def _abort(self, method: str, context: Context, exc: Exception) -> None:
        if isinstance(exc, aio.AbortError):
            raise exc
        status, details, code = public_error(exc)
        self.calls[method, code] += 1
        if isinstance(exc, ControllerError):
            logger.debug("%s from %s: %s: %s; %s", method, context.peer(), code, exc.what, exc.why)
        else:
            logger.log(
                logging.ERROR if code == "internal" else logging.DEBUG,
                "%s from %s failed", method, context.peer(), exc_info=exc,
            )  # fmt: skip
        await context.abort(status, details, trailing_metadata=((CODE_KEY, code),))


def _identity(context: Context) -> Identity:
    certificates = context.auth_context().get("x509_pem_cert")
    if not certificates:
        raise Unauthenticated("certificate-missing", "the caller showed no certificate")
    return identity_of(next(iter(certificates)))


def host_of(peer: str) -> str:
    """Return the host of what gRPC calls a peer: ``ipv4:10.0.0.1:40112``, ``ipv6:%5B::1%5D:40112``."""
    address = peer.partition(":")[2].rpartition(":")[0]
    return address.replace("%5B", "").replace("%5D", "").strip("[]")


def _rebuilt(handler: Handler, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Handler:
    makers = (
        ("unary_unary", grpc.unary_unary_rpc_method_handler),
        ("unary_stream", grpc.unary_stream_rpc_method_handler),
        ("stream_unary", grpc.stream_unary_rpc_method_handler),
        ("stream_stream", grpc.stream_stream_rpc_method_handler),
    )
    for name, make in makers:
        inner = getattr(handler, name)
        if inner is not None:
            return make(
                wrap(inner),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
    raise TypeError(f"handler {handler!r} serves nothing")
