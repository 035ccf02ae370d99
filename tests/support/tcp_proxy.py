"""A TCP connection to a server that tests cut or silence, as networks do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 1 << 16


class TcpProxy:
    """Passes bytes between clients and a server.

    Attributes:
        flowing: While it is cleared, no byte arrives, and no connection is closed.
    """

    def __init__(self, server_address: str) -> None:
        self._host, _, port = server_address.rpartition(":")
        self._port = int(port)
        self._open: set[asyncio.StreamWriter] = set()
        self.flowing = asyncio.Event()
        self.flowing.set()

    def cut(self) -> None:
        """Abort all connections; new ones are accepted."""
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection of a client."""
        upstream, to_server = await asyncio.open_connection(self._host, self._port)
        both = {writer, to_server}
        self._open |= both
        try:
            await asyncio.gather(self._pass(reader, to_server), self._pass(upstream, writer))
        finally:
            self._open -= both

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def proxied(server_address: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """Run a proxy in front of a server; yield it and its address."""
    proxy = TcpProxy(server_address)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield proxy, f"{host}:{port}"
    finally:
        server.close()
        proxy.flowing.set()
        proxy.cut()
        await server.wait_closed()
