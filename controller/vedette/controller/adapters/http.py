"""The small HTTP port: ``/healthz`` for supervisors, ``/metrics`` in Prometheus text for scrapers.

Rules: GET and HEAD only, one request a connection, limits on the request's bytes and time. It asks nobody who they
are, so it names no agent and belongs on loopback or a management network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vedette.controller.domain.errors import StoreFailed
from vedette.models.toml_settings import parse_address

logger = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 8192
_TIMEOUT_S = 5.0
_MOST_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number.

    Attributes:
        name: As Prometheus wants it: ``vedette_controller_agents``.
        kind: ``counter`` or ``gauge``.
        text: What it says.
        value: The number.
        labels: What it is the number of.
    """

    name: str
    kind: str
    text: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def exposition(metrics: Iterable[Metric]) -> str:
    """Return metrics in Prometheus text format, each name described once.

    Source: Prometheus exposition formats, text format version 0.0.4.
    """
    lines: list[str] = []
    described: set[str] = set()
    for metric in sorted(metrics, key=lambda item: (item.name, sorted(item.labels.items()))):
        if metric.name not in described:
            described.add(metric.name)
            lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}"]
        labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(metric.labels.items()))
        lines.append(
            f"{metric.name}{{{labels}}} {metric.value:.17g}" if labels else f"{metric.name} {metric.value:.17g}"
        )
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path answers."""

    status: str
    body: str
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[], Awaitable[Answer]]


class HttpServer:
    """Serves a few pages."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._open = 0
        self.port = 0

    async def start(self, listen: str) -> None:
        """Listen.

        Raises:
            StoreFailed: The address cannot be had.
        """
        host, port = parse_address(listen)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_REQUEST_BYTES)
        except OSError as exc:
            raise StoreFailed("address-unusable", f"cannot serve HTTP on {listen}", exc.strerror or str(exc)) from exc
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening; harmless before the start."""
        if self._server:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _MOST_CONNECTIONS:
                async with asyncio.timeout(_TIMEOUT_S):
                    writer.write(await self._response(reader))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            logger.debug("HTTP request failed: %r", exc)
        finally:
            self._open -= 1
            writer.close()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            answer = Answer("405 Method Not Allowed", "only GET\n")
        elif path not in self._pages:
            answer = Answer("404 Not Found", f"pages: {', '.join(sorted(self._pages))}\n")
        else:
            answer = await self._page(path)
        body = answer.body.encode()
        header = (
            f"HTTP/1.1 {answer.status}\r\nContent-Type: {answer.content_type}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n"
        )
        return header.encode() + (body if method == "GET" else b"")

    async def _page(self, path: str) -> Answer:
        try:
            return await self._pages[path]()
        except Exception:  # a page that fails must not take the server with it
            logger.exception("page %s failed", path)
            return Answer("500 Internal Server Error", "the controller's log says why\n")
