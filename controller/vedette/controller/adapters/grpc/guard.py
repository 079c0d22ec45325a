"""Around every call: who calls, whether it may, and how what goes wrong is told.

One interceptor for both ports. It reads the identity from the client's certificate, checks it against the table of
services below on **each** call (a revoked agent's open connection is worth nothing), puts it where a servicer finds it,
and turns our errors into statuses. A service that is not in the table answers nobody.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
from grpc import aio
from vedette.controller.adapters.grpc.errors import CODE_KEY, public_error
from vedette.controller.adapters.pki import Identity, identity_of
from vedette.controller.domain.errors import ControllerError, Forbidden, Unauthenticated

logger = logging.getLogger(__name__)

CALLERS: dict[str, str | None] = {
    "vedette.wire.v1.Fleet": "agent",
    "vedette.wire.v1.Telemetry": "agent",
    "vedette.wire.v1.Artifacts": "agent",
    "vedette.wire.v1.Admin": "admin",
    "vedette.wire.v1.Enrolment": None,  # anyone: its own port, and it trusts nobody
}
"""Which kind of identity a service is for."""

_caller: ContextVar[Identity] = ContextVar("caller")

Handler = Any  # grpc.RpcMethodHandler: its attributes are not in the stubs
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
        return _rebuilt(handler, lambda inner: self._guarded(inner, method, is_streaming=handler.response_streaming))

    def _guarded(self, inner: Callable[..., Any], method: str, *, is_streaming: bool) -> Callable[..., Any]:
        async def unary(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            try:
                self._admit(method, context)
                answer = await inner(request, context)
            except Exception as exc:  # every kind: nothing but a status may leave
                await self._abort(method, context, exc)
            self.calls[method, "ok"] += 1
            return answer

        async def stream(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                self._admit(method, context)
                async for answer in inner(request, context):
                    yield answer
            except Exception as exc:  # every kind: nothing but a status may leave
                await self._abort(method, context, exc)
            self.calls[method, "ok"] += 1

        return stream if is_streaming else unary

    def _admit(self, method: str, context: aio.ServicerContext[Any, Any]) -> None:
        service = method.rpartition("/")[0].lstrip("/")
        if service not in CALLERS:
            raise Forbidden("method-forbidden", f"{method} is not for callers")
        wanted = CALLERS[service]
        if wanted is None:
            return
        identity = _identity(context)
        if identity.kind != wanted:
            why = f"{method} is for an {wanted}'s certificate, this is the {identity.kind} {identity.name}"
            raise Forbidden("method-forbidden", "this certificate may not do that", why)
        self._check(identity)
        _caller.set(identity)

    async def _abort(self, method: str, context: aio.ServicerContext[Any, Any], exc: Exception) -> None:
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


def _identity(context: aio.ServicerContext[Any, Any]) -> Identity:
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
