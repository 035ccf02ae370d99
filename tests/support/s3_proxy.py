"""A proxy in front of an S3 server that answers some requests with an error instead."""

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

BUSY = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP_BY_HOP = {"transfer-encoding", "content-length", "connection", "content-encoding"}
Fails = Callable[[web.Request], bool]


@dataclass
class S3Proxy:
    """Set `fails`; it counts what it refused.

    Attributes:
        endpoint: Its URL.
        fails: Whether a request is answered with 503.
        refused: The refused requests.
    """

    server: str
    session: aiohttp.ClientSession
    endpoint: str = ""
    fails: Fails = lambda _: False
    refused: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.fails(request):
            self.refused.append(f"{request.method} {request.raw_path}")
            return web.Response(status=503, text=BUSY, content_type="application/xml")
        async with self.session.request(
            request.method,
            URL(self.server + request.raw_path, encoded=True),
            data=io.BytesIO(body) if body else None,
            headers=request.headers,  # with the Host that was signed
            skip_auto_headers=("Content-Type", "User-Agent", "Accept"),
        ) as response:
            headers = {k: v for k, v in response.headers.items() if k.lower() not in HOP_BY_HOP}
            return web.Response(status=response.status, body=await response.read(), headers=headers)


def is_part(request: web.Request, number: int) -> bool:
    """Return whether a request uploads this part."""
    return request.method == "PUT" and request.query.get("partNumber") == str(number)


@asynccontextmanager
async def s3_proxy(server: str) -> AsyncIterator[S3Proxy]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        proxy = S3Proxy(server, session)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", proxy.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield proxy
        await runner.cleanup()
