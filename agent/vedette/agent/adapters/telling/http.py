"""A small HTTP server for ``/metrics`` on loopback and for ``status`` on a unix socket.

It answers GET for the few paths it is given and closes; requests are bounded in size, time and number.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from vedette.agent.domain.advice import AdvisedError
from vedette.agent.domain.errors import AgentError

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 8192
_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 16


class AddressInUse(AdvisedError):
    """Another program listens there: the operator must choose; the agent goes on without."""

    code = "address-in-use"


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    content_type: str
    body: Callable[[], bytes]


class HttpServer:
    """Serves pages by path."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._servers: list[asyncio.Server] = []
        self._open = 0

    async def listen(self, host: str, port: int) -> int:
        """Listen on TCP and return the port.

        Raises:
            AddressInUse: The port is taken or the address is not this machine's.
        """
        try:
            server = await asyncio.start_server(self._serve, host, port, limit=_MAX_REQUEST_BYTES)
        except OSError as exc:
            raise AddressInUse(
                f"nothing can listen on {host}:{port}", exc.strerror or str(exc), "choose another metrics.listen"
            ) from exc
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_unix(self, path: Path) -> None:
        """Listen on a unix socket, mode 0600; one left by a killed process is replaced.

        Raises:
            AddressInUse: The socket cannot be made.
        """
        try:
            made = _bound(path)
            server = await asyncio.start_unix_server(self._serve, sock=made, limit=_MAX_REQUEST_BYTES)
        except OSError as exc:
            remedy = f"check status.socket or state_dir; the socket's path is {len(str(path))} bytes, limit 107"
            raise AddressInUse(f"nothing can listen on {path}", str(exc), remedy) from exc
        self._servers.append(server)

    async def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                if self._open > _MAX_CONNECTIONS:
                    status, kind, body = _plain(HTTPStatus.SERVICE_UNAVAILABLE)
                else:
                    status, kind, body = self._answer(await _request_line(reader))
                writer.write(_head(status, kind, len(body)) + body)
                await writer.drain()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as exc:
            logger.debug("HTTP request dropped: %s", exc)
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, line: str) -> tuple[HTTPStatus, str, bytes]:
        words = line.split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _plain(HTTPStatus.BAD_REQUEST)
        if words[0] != "GET":
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        page = self._pages.get(words[1].partition("?")[0])
        if page is None:
            return _plain(HTTPStatus.NOT_FOUND)
        try:
            return HTTPStatus.OK, page.content_type, page.body()
        except AgentError as exc:
            logger.warning("%s cannot be shown: %s", words[1], exc)
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.bind(str(path))
        path.chmod(0o600)  # before it listens, so that nobody connects in between
    except OSError:
        made.close()
        raise
    return made


async def _request_line(reader: asyncio.StreamReader) -> str:
    """Return the first line of a request, read to the end of its head.

    Raises:
        ValueError: The head is larger than the limit.
        asyncio.IncompleteReadError: The peer left.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as exc:
        raise ValueError(f"request head is over {_MAX_REQUEST_BYTES} bytes") from exc
    return head.split(b"\r\n", 1)[0].decode("latin-1")


def _plain(status: HTTPStatus) -> tuple[HTTPStatus, str, bytes]:
    return status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode()


def _head(status: HTTPStatus, content_type: str, size: int) -> bytes:
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
