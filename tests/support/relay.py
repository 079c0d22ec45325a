"""A TCP relay that can be cut as a cable is: connections stay open and nothing gets through any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Forwards connections to a port until it is cut."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._is_cut = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    def cut(self) -> None:
        """Let nothing through from now on, either way."""
        self._is_cut.set()

    def mend(self) -> None:
        """Let new connections through again; those that were cut stay mute."""
        self._is_cut = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, sink, self._is_cut)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_cut: asyncio.Event) -> None:
        try:
            while data := await source.read(65536):
                if is_cut.is_set():
                    await asyncio.Event().wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            sink.close()
