"""An HTTP proxy as companies have it at their border, and a server with TLS behind it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.support.certificates import Authority
from tests.support.tcp_proxy import proxied

CHUNK_BYTES = 1 << 16
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class EgressProxy:
    """A proxy that leads every request to one address, whatever its URL is.

    Attributes:
        behaviour: What it does instead, if it is set.
        asked: The request lines that it got.
        authorizations: The values of Proxy-Authorization that it got.
        readable: The headers that it could read.
    """

    upstream: tuple[str, int]
    url: str = ""
    behaviour: Behaviour | None = None
    asked: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    readable: bytes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.readable += head
            first, *lines = head.decode().splitlines()
            self.asked.append(first)
            for name, _, value in (line.partition(": ") for line in lines):
                if name.lower() == "proxy-authorization":
                    self.authorizations.append(value)
            if self.behaviour:
                await self.behaviour(writer)
            else:
                await self._pass_on(head, (reader, writer))
        writer.close()

    async def _pass_on(self, head: bytes, client: Streams) -> None:
        server = await asyncio.open_connection(*self.upstream)
        if head.startswith(b"CONNECT "):
            client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            server[1].write(head)
        await asyncio.gather(_copy(client[0], server[1]), _copy(server[0], client[1]))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def egress_proxy(host: str, port: int) -> AsyncIterator[EgressProxy]:
    """Run a proxy that leads every request to this address."""
    proxy = EgressProxy((host, port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield proxy


@asynccontextmanager
async def with_tls(address: str, authority: Authority, name: str) -> AsyncIterator[int]:
    """Accept TLS for a server without it, with a certificate; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert(name), authority.key(name))
    async with proxied(address) as (tcp, _):
        server = await asyncio.start_server(tcp.serve, "127.0.0.1", 0, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]
            server.close()
            tcp.cut()


# --- what a proxy may do instead ---


def answering(status: str) -> Behaviour:
    async def answer(writer: asyncio.StreamWriter) -> None:
        page = b"<html>no</html>"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(page)}\r\n\r\n"
        writer.write(head.encode() + page)
        await writer.drain()

    return answer


def writing(content: bytes) -> Behaviour:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return write


async def resetting(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
