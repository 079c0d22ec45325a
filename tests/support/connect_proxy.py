"""An HTTP proxy with CONNECT that works, and can refuse, wait, talk nonsense and die."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from vedette.models.toml_settings import parse_address


@dataclass
class ConnectProxy:
    """A proxy on loopback. Its wishes may change while it runs; they count for the next connection."""

    user: str = ""  # "USER:PASSWORD" that it wants; "" lets anybody through
    refuse: int = 0  # a status to answer instead of letting through
    answer: bytes | None = None  # bytes to answer instead, whatever they are
    is_mute: bool = False  # takes the request and says nothing
    asked: list[str] = field(default_factory=list)  # targets, in order
    bytes_through: int = 0
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1") -> AsyncIterator[ConnectProxy]:
        server = await asyncio.start_server(self._accept, host, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.die()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def die(self) -> None:
        """Cut every connection that is open, in the middle of whatever it carries."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
        method, target, _ = head[0].split()
        assert method == "CONNECT", head[0]
        self.asked.append(target)
        if self.is_mute:
            await asyncio.Event().wait()
        writer.write(self._said(head) if self.answer is None else self.answer)
        await writer.drain()
        if self.answer is not None or not self._lets_through(head):
            return
        host, port = parse_address(target)
        far_reader, far_writer = await asyncio.open_connection(host, port)
        self._writers.add(far_writer)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    def _lets_through(self, head: list[str]) -> bool:
        return self._said(head).split()[1] == b"200"

    def _said(self, head: list[str]) -> bytes:
        wanted = f"Proxy-Authorization: Basic {base64.b64encode(self.user.encode()).decode()}"
        if self.user and wanted not in head:
            return b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"
        return f"HTTP/1.1 {self.refuse or 200} Said\r\n\r\n".encode()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                self.bytes_through += len(data)
                sink.write(data)
                await sink.drain()
        sink.close()
