"""How this agent opens gRPC channels, and what a failed call means.

grpcio tells nearly every trouble of a connection as UNAVAILABLE and only its text says which (measured with grpcio
1.85); this is the one place that reads those texts. Nothing from grpc leaves the adapters: callers see typed errors.

The server's certificate is issued by a private CA that signs servers for nobody else, so the pinned CA is the identity
and one fixed name is asked for, whatever address leads there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, Self

import grpc

from vedette.agent.domain.advice import EXIT_REFUSED, EXIT_UNREACHABLE, AdvisedError
from vedette.agent.domain.proxy import Proxy
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
    ("grpc.enable_http_proxy", 0),  # of environment variables; see way()
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


class ProxyUnreachable(AdvisedError):
    """The proxy on the way does not answer: wait and retry; the agent keeps serving."""

    code = "proxy-unreachable"
    exit_code = EXIT_UNREACHABLE

    @classmethod
    def at(cls, proxy: str, address: str, why: str) -> Self:
        """Return the error of a proxy's address on the way to the controller's."""
        remedy = "check link.proxy, its name, the route and the firewall; whom to reach without it: link.no_proxy"
        return cls(f"no answer from the proxy {proxy} on the way to {address}", why, remedy)


class ProxyRefused(AdvisedError):
    """The proxy answers and does not let through to the controller: who runs it, or the settings, must change."""

    code = "proxy-refused"
    exit_code = EXIT_REFUSED


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


def way(address: str, proxy: Proxy | None) -> tuple[str, tuple[tuple[str, str | int], ...]]:
    """Return target and options of a channel to an address: grpc's own client of CONNECT, told by options alone.

    Its mapping by a proxy's URL is not used: it reads no_proxy of the environment and splits a password at an "@".
    """
    if proxy is None:
        return address, ()
    asked: tuple[tuple[str, str | int], ...] = (("grpc.http_connect_server", address),)
    if proxy.authorization:
        asked = (*asked, ("grpc.http_connect_headers", f"Proxy-Authorization:{proxy.authorization}"))
    return proxy.address, asked


_PROXY_STATUS = re.compile(r"HTTP proxy returned response code (\d+)")
_NO_PROXY_TEXTS = ("Expected 'H'", "Bad version string")
_NAME_TEXTS = ("DNS resolution failed", "errors resolving")  # of grpc's two resolvers
_PROXY_DOWN_TEXTS = ("failed to connect to all addresses", *_NAME_TEXTS)
_LET_THROUGH_TEXTS = ("Handshake read failed", "Socket closed", *_CERTIFICATE_TEXTS)  # or left without a word
_PROXY_REMEDIES = {
    HTTPStatus.FORBIDDEN: "have it allow CONNECT to the controller's ports (7443 and 7444)",
    HTTPStatus.METHOD_NOT_ALLOWED: "have it allow CONNECT to the controller's ports (7443 and 7444)",
}
_NOT_HTTP = 0


def proxy_refused(status: int, proxy: Proxy, address: str) -> ProxyRefused:
    """Return what a proxy's answer to CONNECT means; status 0 is one that is no HTTP."""
    what = f"the proxy {proxy.address} does not let through to {address}"
    if status == _NOT_HTTP:
        return ProxyRefused(what, "it does not answer as an HTTP proxy does", "check the address in link.proxy")
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        why = "does not take the user and password" if proxy.authorization else "wants a user and password"
        return ProxyRefused(
            what, f"it {why} (407)", 'link.proxy = "http://USER:PASSWORD@HOST:PORT"; only Basic is known'
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        remedy = f"it may not reach or not know {address}: check from there; it is tried again"
        return ProxyRefused(what, f"it answers {status} ({_phrase(status)})", remedy)
    remedy = _PROXY_REMEDIES.get(HTTPStatus(status) if _phrase(status) else HTTPStatus.OK, "ask who runs it")
    return ProxyRefused(what, f"it answers {status} ({_phrase(status)})", remedy)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in frozenset(HTTPStatus) else ""


def _proxy_error(text: str, proxy: Proxy, address: str) -> AdvisedError | None:
    """Return what grpc's text says of the proxy; None when the proxy let through."""
    if (found := _PROXY_STATUS.search(text)) is not None:
        return proxy_refused(int(found[1]), proxy, address)
    if any(part in text for part in _NO_PROXY_TEXTS):
        return proxy_refused(_NOT_HTTP, proxy, address)
    if any(part in text for part in _PROXY_DOWN_TEXTS) and not any(part in text for part in _LET_THROUGH_TEXTS):
        return ProxyUnreachable.at(proxy.address, address, text[:300])
    return None


def call_error(error: grpc.RpcError, address: str, proxy: Proxy | None = None) -> AdvisedError:
    """Return what a failed call to an address means to the agent, given the proxy on the way."""
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
    if status is grpc.StatusCode.UNAVAILABLE:
        return (_proxy_error(text, proxy, address) if proxy else None) or _unavailable(text, address)
    return _unreachable(f"{status.name}: {text[:300]}", address)


def _unavailable(text: str, address: str) -> AdvisedError:
    if any(part in text for part in _CERTIFICATE_TEXTS):
        return ControllerCertificateWrong(
            f"{address} is not the controller this agent enrolled with",
            text[:300],
            "look for a proxy that opens TLS or a captive portal; after a move to another controller, enrol again",
        )
    if any(part in text for part in _NAME_TEXTS):
        name = address.rpartition(":")[0] or address
        return ControllerUnreachable(
            f"the controller's name {name} cannot be resolved",
            text[:300],
            f"look from here: getent ahosts {name}; set a name server, or an address as controller",
        )
    return _unreachable(f"UNAVAILABLE: {text[:300]}", address)


def _unreachable(why: str, address: str) -> ControllerUnreachable:
    hint = "the link may be down, or the controller closed the connection because it no longer knows this agent"
    remedy = (
        hint if any(part in why for part in _REJECTED_TEXTS) else "it is tried again; models keep serving meanwhile"
    )
    return ControllerUnreachable(f"no answer from the controller at {address}", why, remedy)


def _trailing_code(error: grpc.RpcError) -> str:
    trailing: Callable[[], object] | None = getattr(error, "trailing_metadata", None)
    for key, item in trailing() or () if trailing else ():  # type: ignore[attr-defined]  # an iterable of pairs
        if key == CODE_KEY:
            return item if isinstance(item, str) else bytes(item).decode("ascii", "replace")
    return ""


def credentials(ca: bytes, key: bytes | None = None, certificate: bytes | None = None) -> grpc.ChannelCredentials:
    """Return TLS credentials that believe one CA (or one leaf certificate) alone."""
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)
