"""A server of results, some of which do not arrive."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer

from kie_generation.generated.generation.v1.generation_pb2 import Artifact

PNG = b"\x89PNG\r\n\x1a\n picture"


@dataclass
class Results:
    """A server of results: `files` by path, and redirects by path. It keeps what it was asked.

    `codings` are the Content-Encoding headers by path.
    """

    base: str = ""
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    codings: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, path: str, content: bytes, content_type: str = "image/png") -> Artifact:
        self.files[path.partition("?")[0]] = (content_type, content)
        return Artifact(url=self.base + path, mime_type="image/png")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        if location := self.redirects.get(request.path):
            return web.Response(status=302, headers={"Location": location})
        if request.path not in self.files:
            return web.Response(status=404)
        content_type, content = self.files[request.path]
        headers = {"Content-Type": content_type}
        if coding := self.codings.get(request.path):
            headers["Content-Encoding"] = coding
        return web.Response(body=content, headers=headers)


@asynccontextmanager
async def serving_results() -> AsyncIterator[Results]:
    results = Results()
    app = web.Application()
    app.router.add_get("/broken", _break_off)
    app.router.add_get("/drip", _drip)
    app.router.add_get("/drip-headers", _drip_headers)
    app.router.add_get("/{path:.*}", results.answer)
    async with TestServer(app) as server:
        results.base = str(server.make_url("")).rstrip("/")
        results.add("/picture.png", PNG)
        yield results


async def _break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"half")
    assert request.transport is not None
    request.transport.close()
    return response


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x")
        await asyncio.sleep(0.01)


async def _drip_headers(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\n")
    while not request.transport.is_closing():
        request.transport.write(b"x: y\r\n")
        await asyncio.sleep(0.01)
    return web.Response()
