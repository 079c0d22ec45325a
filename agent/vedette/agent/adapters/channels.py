"""How this agent opens gRPC channels, and what a failed call means.

grpcio tells nearly every trouble of a connection as UNAVAILABLE and only its text says which (measured with grpcio
1.85); this is the one place that reads those texts. Nothing from grpc leaves the adapters: callers see typed errors.

The server's certificate is issued by a private CA that signs servers for nobody else, so the pinned CA is the identity
and one fixed name is asked for, whatever address leads there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import grpc

from vedette.agent.domain.advice import EXIT_REFUSED, EXIT_UNREACHABLE, AdvisedError
from vedette.wire.limits import MAX_MESSAGE_BYTES

SERVER_NAME = "vedette-controller"
CODE_KEY = "vedette-code"
"""Trailing metadata that carries the controller's error code."""

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A cut cable is noticed by neither side with the defaults; with these after 15 s, without the last after 70 s
    # (measured behind a relay that falls mute).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # the agent's own backoff decides when to try again
    ("grpc.use_local_subchannel_pool", 1),  # one connection per channel: bulk bytes never queue before control
    ("grpc.enable_http_proxy", 0),
)

_SLOW_MS = 60_000
_BULK_WINDOW_BYTES = 64 * 1024
BULK_OPTIONS: tuple[tuple[str, str | int], ...] = (
    # The answer to a ping waits behind what the sender has buffered: at 256 kbit/s longer than the 5 s above, which cut
    # a download of 1 MiB two times without any loss and for ever with 5 % (tc tbf, nftables). A dead line is noticed by
    # the control connection, whose end is this one's, and a download that stands still by its own silence.
    *((key, _SLOW_MS if "timeout" in key or key == "grpc.keepalive_time_ms" else value) for key, value in OPTIONS),
    # The controller's pings have 5 s on every connection, so no more than two seconds of such a line may be on its way:
    # grpc would take the wait in the queues for a long line and widen the window until the controller cuts it.
    ("grpc.http2.lookahead_bytes", _BULK_WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
)


class BulkLink(Protocol):
    """Where a connection for bulk comes from."""

    async def bulk(self) -> grpc.aio.Channel:
        """Wait until there is one and return it. It ends with its session; then ask again."""
        ...


class ControllerUnreachable(AdvisedError):
    """Nobody answers at the controller's address: wait and retry; the agent keeps serving."""

    code = "controller-unreachable"
    exit_code = EXIT_UNREACHABLE


class ControllerCertificateWrong(AdvisedError):
    """Something answers that is not the controller this agent enrolled with."""

    code = "controller-certificate-wrong"
    exit_code = EXIT_REFUSED


class ControllerRefused(AdvisedError):
    """The controller answered with an error of its own.

    ``reason`` is its code; ``is_final`` says that the same request will never be taken.
    """

    code = "controller-refused"
    exit_code = EXIT_REFUSED

    def __init__(self, what: str, why: str, remedy: str, reason: str = "", *, is_final: bool = False) -> None:
        super().__init__(what, why, remedy)
        self.reason = reason
        self.is_final = is_final


class MessageTooLarge(AdvisedError):
    """A message is over the limit of its size, ours or theirs."""

    code = "message-too-large"
    exit_code = EXIT_REFUSED


_CERTIFICATE_TEXTS = ("certificate", "CERTIFICATE", "Hostname Verification", "Peer name", "WRONG_VERSION_NUMBER")
_REJECTED_TEXTS = ("Socket closed", "alert", "ALERT")
# A code that only the controller itself sets: grpc makes neither of them for trouble on the way.
_OWN_CODES = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.ABORTED,
    }
)


def call_error(error: grpc.RpcError, address: str) -> AdvisedError:
    """Return what a failed call means to the agent."""
    status, text = error.code(), str(error.details() or "")
    reason = _trailing_code(error)
    if reason or status in _OWN_CODES:
        what, why, remedy = (*text.split("\n"), "", "")[:3]
        return ControllerRefused(
            what or f"the controller at {address} refused",
            why or status.name,
            remedy or "see docs/errors.md",
            reason,
            is_final=status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE),
        )
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return MessageTooLarge(
            f"a message from or to {address} is over its limit",
            f"{text[:300]}, limit {MAX_MESSAGE_BYTES} bytes",
            "update the controller or the agent so that both keep the same limit",
        )
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return ControllerCertificateWrong(
            f"{address} is not a controller's port for this", text, "check the address and port"
        )
    if status is grpc.StatusCode.UNAVAILABLE and any(part in text for part in _CERTIFICATE_TEXTS):
        return ControllerCertificateWrong(
            f"{address} is not the controller this agent enrolled with",
            text[:300],
            "look for a proxy that opens TLS or a captive portal; after a move to another controller, enrol again",
        )
    hint = "the link may be down, or the controller closed the connection because it no longer knows this agent"
    return ControllerUnreachable(
        f"no answer from the controller at {address}",
        f"{status.name}: {text[:300]}",
        hint if any(part in text for part in _REJECTED_TEXTS) else "it is tried again; models keep serving meanwhile",
    )


def _trailing_code(error: grpc.RpcError) -> str:
    trailing: Callable[[], object] | None = getattr(error, "trailing_metadata", None)
    for key, item in trailing() or () if trailing else ():  # type: ignore[attr-defined]  # an iterable of pairs
        if key == CODE_KEY:
            return item if isinstance(item, str) else bytes(item).decode("ascii", "replace")
    return ""


def credentials(ca: bytes, key: bytes | None = None, certificate: bytes | None = None) -> grpc.ChannelCredentials:
    """Return TLS credentials that believe one CA (or one leaf certificate) alone."""
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)
