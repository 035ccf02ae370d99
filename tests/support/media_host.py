"""A provider whose results are files of the test's choice, on a host that misbehaves on request."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MIB = 1 << 20
MP4_START = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"
PNG_START = b"\x89PNG\r\n\x1a\n"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def media(size_bytes: int, seed: int = 0, start: bytes = MP4_START) -> bytes:
    """Return a file that is recognised as a video; no two seeds give the same."""
    return (start + random.Random(seed).randbytes(size_bytes))[:size_bytes]


@dataclass
class Cut:
    """Where the connection breaks while a file is sent, and how many times."""

    offset: int
    times: int = 1


@dataclass
class MediaHost:
    """Set its `files`; a task's results are those that its prompt lists.

    Attributes:
        base: The base URL of the provider's API and of the files.
        files: The content of each file.
        types: The media types that are sent with them.
        cuts: Where the connection breaks, once each.
        chunked: Whether no length is announced.
        answers: Other answers to requests for files, and to "download-url".
        fresh: What download-url answers for a URL.
        asked: How often each file was asked for.
        pace_seconds: The pause after each mebibyte.
        is_late: Whether tasks are still in progress.
        tasks: The URLs of the results of each task.
    """

    base: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, list[Cut]] = field(default_factory=lambda: defaultdict(list))
    chunked: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    pace_seconds: float = 0.0
    is_late: bool = False
    tasks: dict[str, list[str]] = field(default_factory=dict)

    def url(self, name: str) -> str:
        return f"{self.base}/results/{name}"

    def add(self, name: str, content: bytes) -> str:
        self.files[name] = content
        return self.url(name)

    # --- the provider ---

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Accept a task; its prompt is a JSON list of files or URLs."""
        body = await request.json()
        task_id = f"{len(self.tasks):032x}"
        names = json.loads(body["input"]["prompt"])
        self.tasks[task_id] = [name if "://" in name else self.url(name) for name in names]
        return _envelope({"taskId": task_id})

    async def record(self, request: web.Request) -> web.StreamResponse:
        if self.is_late:
            return _envelope({"taskId": request.query["taskId"], "state": "generating"})
        urls = self.tasks[request.query["taskId"]]
        result = json.dumps({"resultUrls": urls})
        record = {"taskId": request.query["taskId"], "state": "success", "resultJson": result}
        return _envelope(record)

    async def download_url(self, request: web.Request) -> web.StreamResponse:
        url = (await request.json())["url"]
        self.asked[f"fresh {url}"] += 1
        if answer := self.answers.get("download-url"):
            return await answer(request)
        return _envelope(self.fresh.get(url))

    # --- the files ---

    async def send(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] += 1
        if answer := self.answers.get(name):
            return await answer(request)
        if name not in self.files:
            return web.Response(status=404)
        return await self.send_file(request, name)

    async def send_file(self, request: web.Request, name: str) -> web.StreamResponse:
        content = self.files[name]
        response = web.StreamResponse(headers={"Content-Type": self.types.get(name, "video/mp4")})
        if self.chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(content)
        await response.prepare(request)
        end = self._next_cut(name)
        for start in range(0, min(len(content), end), MIB):
            await response.write(content[start : min(start + MIB, end)])
            if self.pace_seconds:
                await asyncio.sleep(self.pace_seconds)
        if end < len(content):
            assert request.transport is not None
            await asyncio.sleep(0.01)  # let the client read what was sent
            request.transport.abort()
        return response

    def _next_cut(self, name: str) -> int:
        cuts = self.cuts[name]
        if not cuts:
            return len(self.files[name])
        cuts[0].times -= 1
        return cuts[0].offset if cuts[0].times else cuts.pop(0).offset


def _envelope(data: Any) -> web.Response:
    code = 422 if data is None else 200
    return web.json_response({"code": code, "msg": "", "data": data})


@asynccontextmanager
async def media_host() -> AsyncIterator[MediaHost]:
    """Run a provider."""
    host = MediaHost()
    app = web.Application()
    app.router.add_post("/api/v1/jobs/createTask", host.create)
    app.router.add_get("/api/v1/jobs/recordInfo", host.record)
    app.router.add_post("/api/v1/common/download-url", host.download_url)
    app.router.add_get("/results/{name}", host.send)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield host
    await runner.cleanup()


def endless_media(size_mib: int) -> Answer:
    """Return an answer with a video of so many mebibytes, which takes no memory."""

    async def send(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "video/mp4"})
        response.content_length = size_mib * MIB
        await response.prepare(request)
        piece = MP4_START.ljust(MIB, b"x")
        for _ in range(size_mib):
            await response.write(piece)
        return response

    return send


def raw(response: bytes) -> Answer:
    """Return an answer of these bytes, whatever HTTP says of them."""

    async def send(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(response)
        request.transport.close()
        return web.Response()

    return send
