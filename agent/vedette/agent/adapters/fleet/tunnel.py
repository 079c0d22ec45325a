"""A TCP connection to a controller, straight or through a proxy, for whoever speaks TLS on it himself.

grpc has its own way through a proxy (see :mod:`vedette.agent.adapters.fleet.channels`); this one is for the first look
at an enrolment port, whose certificate nobody vouches for yet, and for ``doctor``. Every wait counts against one
deadline, and a proxy's answer has a limit.
"""

from __future__ import annotations

import re
import socket
import time
from http import HTTPStatus

from vedette.agent.adapters.fleet.channels import ControllerUnreachable, ProxyUnreachable, proxy_refused
from vedette.agent.domain.advice import AdvisedError
from vedette.agent.domain.proxy import Proxy
from vedette.models.toml_settings import parse_address

_MOST_ANSWER_BYTES = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")


def open_tunnel(address: str, proxy: Proxy | None, timeout_s: float) -> socket.socket:
    """Return a connection to HOST:PORT.

    Args:
        address: Of the controller.
        proxy: The way there; None is straight.
        timeout_s: For all of it: names, connection, the proxy's answer.

    Raises:
        ControllerUnreachable: Nobody answers there.
        ProxyUnreachable, ProxyRefused: The proxy does not answer, or does not let through.
    """
    deadline = time.monotonic() + timeout_s
    if proxy is None:
        return _connected(address, timeout_s)
    try:
        made = socket.create_connection((proxy.host, proxy.port), timeout_s)
    except OSError as exc:
        raise ProxyUnreachable.at(proxy.address, address, _reason(exc)) from exc
    try:
        made.sendall(_request(address, proxy))
        _check(_answer(made, deadline), proxy, address)
        made.settimeout(max(deadline - time.monotonic(), 0.1))
    except OSError as exc:
        made.close()
        raise ProxyUnreachable.at(proxy.address, address, _reason(exc)) from exc
    except AdvisedError:
        made.close()
        raise
    return made


def _connected(address: str, timeout_s: float) -> socket.socket:
    try:
        return socket.create_connection(parse_address(address), timeout_s)
    except OSError as exc:
        raise ControllerUnreachable(
            f"no answer from the controller at {address}",
            _reason(exc),
            "check the name, the route and the firewall (TCP)",
        ) from exc


def _request(address: str, proxy: Proxy) -> bytes:
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return "\r\n".join([*lines, "", ""]).encode()


def _answer(made: socket.socket, deadline: float) -> bytes:
    """Return the head of a proxy's answer; shorter or longer than a head is what it is not."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MOST_ANSWER_BYTES:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took the request and did not answer in time")
        made.settimeout(left)
        part = made.recv(4096)
        if not part and not head:
            raise ConnectionResetError("it took the request and closed the connection")
        if not part:
            break
        head += part
    return head


def _check(head: bytes, proxy: Proxy, address: str) -> None:
    status = _STATUS.match(head)
    if status is None or b"\r\n\r\n" not in head:
        raise proxy_refused(0, proxy, address)
    if int(status[1]) // 100 != HTTPStatus.OK // 100:
        raise proxy_refused(int(status[1]), proxy, address)


def _reason(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return f"its name cannot be resolved: {exc.strerror}"
    return exc.strerror or str(exc) or type(exc).__name__
