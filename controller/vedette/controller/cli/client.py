"""The connection to the controller's Admin service. The only place of the CLI that knows gRPC."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")  # before grpc: TLS 1.3 only
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its log lines would stand between ours
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from vedette.controller.cli.problems import CliError, Failed, Missing, Refused, Unreachable, Usage
from vedette.controller.context import AdminContext
from vedette.wire.limits import MAX_MESSAGE_BYTES
from vedette.wire.v1.admin_pb2_grpc import AdminStub

TIMEOUT_S = 60.0
UPLOAD_TIMEOUT_S = 6 * 3600.0

_Code = grpc.StatusCode
_ERRORS: dict[grpc.StatusCode, type[CliError]] = {
    _Code.NOT_FOUND: Missing,
    _Code.PERMISSION_DENIED: Refused,
    _Code.FAILED_PRECONDITION: Refused,
    _Code.ALREADY_EXISTS: Refused,
    _Code.UNAUTHENTICATED: Refused,
    _Code.INVALID_ARGUMENT: Usage,
    _Code.UNAVAILABLE: Unreachable,
    _Code.DEADLINE_EXCEEDED: Unreachable,
}

R = TypeVar("R")


class AdminClient:
    """Calls the Admin service.

    Args:
        channel: To the controller.
        address: What to call it in errors.
    """

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        self._channel = channel
        self._address = address
        self._stub = AdminStub(channel)

    def ask(self, method: str, request: Any, *, timeout_s: float = TIMEOUT_S) -> Any:
        """Return the answer to one request.

        Raises:
            CliError: The controller refused, failed or did not answer.
        """
        try:
            return getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.RpcError as exc:
            raise self._told(exc) from exc

    def follow(self, method: str, request: Any) -> Iterator[Any]:
        """Yield answers until the controller ends them; leaving early ends the call.

        Raises:
            CliError: As :meth:`ask`.
        """
        call = getattr(self._stub, method)(request)
        try:
            yield from call
        except grpc.RpcError as exc:
            raise self._told(exc) from exc
        finally:
            call.cancel()

    def send(self, method: str, requests: Iterable[Any]) -> Any:
        """Return the answer to a stream of requests.

        Raises:
            CliError: As :meth:`ask`.
        """
        try:
            return getattr(self._stub, method)(iter(requests), timeout=UPLOAD_TIMEOUT_S)
        except grpc.RpcError as exc:
            raise self._told(exc) from exc

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _told(self, error: grpc.RpcError) -> CliError:
        code, details = _code_of(error), _details_of(error)
        is_ours = any(key == "vedette-code" for key, _ in _metadata_of(error))
        kind = _ERRORS.get(code, Failed)
        if is_ours:
            what, why, remedy = [*details.split("\n"), "", "", ""][:3]
            return kind(what, why, remedy)
        if code is _Code.UNIMPLEMENTED:
            return Failed("the controller does not know this verb", "it is of another version", "update one of the two")
        if kind is Unreachable:
            return _unreachable(self._address, code, details)
        return kind(details or f"the call ended with {code.name}", f"the controller at {self._address} said so")


def _unreachable(address: str, code: grpc.StatusCode, details: str) -> Unreachable:
    what = f"the controller at {address} does not answer"
    if code is _Code.DEADLINE_EXCEEDED:
        return Unreachable(what, "it took longer than allowed", "try again; look at its log")
    if any(word in details.lower() for word in ("certificate", "ssl", "handshake")):
        what = f"what answers at {address} is not the controller of this context"
        return Unreachable(what, _shortened(details), "was it set up anew? get a new context file: vedette login FILE")
    return Unreachable(what, _reason(details), "is it running, and is this the right context? see: vedette login")


def _reason(details: str) -> str:
    """Return the last word of gRPC's chain of reasons: the one that names what went wrong."""
    return _shortened(details.rpartition(": ")[2].strip() or details)


def _shortened(details: str) -> str:
    return details if len(details) <= 200 else details[:197] + "…"


def _code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN


def _details_of(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, grpc.Call) else str(error)


def _metadata_of(error: grpc.RpcError) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(error.trailing_metadata() or ()) if isinstance(error, grpc.Call) else ()


def connect(context: AdminContext) -> AdminClient:
    """Return a client for a context; nothing is sent before the first call."""
    credentials = grpc.ssl_channel_credentials(
        context.ca.encode(), private_key=context.key.encode(), certificate_chain=context.certificate.encode()
    )
    options = (
        # The private CA signs server certificates for the controller alone, so one fixed name serves every address.
        ("grpc.ssl_target_name_override", "vedette-controller"),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_http_proxy", 0),
    )
    return AdminClient(grpc.secure_channel(context.address, credentials, options), context.address)
