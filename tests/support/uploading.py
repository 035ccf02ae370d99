"""Uploads through a channel, and a provider that takes them as a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from generated.generation.v1 import generation_pb2 as pb
from tests.support.harness import Service, upload_messages
from tests.support.waiting import DEADLINE_SECONDS, eventually

MIB = 1 << 20
STREAM = "/api/file-stream-upload"
Messages = Iterable[pb.UploadFileRequest] | AsyncIterator[pb.UploadFileRequest]


def chunk(content: bytes) -> pb.UploadFileRequest:
    return pb.UploadFileRequest(chunk=content)


def metadata(**fields: Any) -> pb.UploadFileRequest:
    [message] = upload_messages(b"", **fields)
    return message


async def send(
    service: Service, messages: Messages, timeout: float = DEADLINE_SECONDS
) -> pb.UploadedFile:
    """Upload, and stop sending at the moment of the answer.

    A write that fails later overwrites the answer in grpcio 1.85 with "Internal error from Core".
    """
    call = service.stub.UploadFile(timeout=timeout)
    writing = asyncio.create_task(write(call, messages))

    def stop(_: object) -> None:
        writing.cancel()

    call.add_done_callback(stop)
    try:
        return (await call).file
    finally:
        await asyncio.gather(writing, return_exceptions=True)


async def write(call: Any, messages: Messages) -> None:
    if isinstance(messages, AsyncIterator):
        async for message in messages:
            await call.write(message)
    else:
        for message in messages:
            await call.write(message)
    await call.done_writing()


async def upload(service: Service, content: bytes = b"x", **fields: Any) -> pb.UploadedFile:
    return await send(service, upload_messages(content, **fields))


async def download(url: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return await response.read()


def open_sockets() -> int:
    """Count the sockets of this process: the channel's, the service's and the provider's."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            links.append(str(descriptor.readlink()))
    return sum(link.startswith("socket:") for link in links)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that the block leaves no call, no connection and no task behind."""
    tasks, sockets = len(asyncio.all_tasks()), open_sockets()
    yield
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks and open_sockets() <= sockets)


# An upload touches no database, and PostgreSQL's connections, opened as needed, would be counted.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def warm(service: Service) -> None:
    """Upload once, so that connections which stay open are open."""
    await upload(service)
    service.kie.reset()


@dataclass
class Received:
    """A request as the provider saw it."""

    headers: dict[str, str]
    parts: dict[str, bytes]
    file_headers: dict[str, str]


Answer = dict[str, Any]


class UploadHost:
    """Kie's upload host, reduced to what the tests observe or break."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.received: list[Received] = []
        self.data: Answer = {"fileName": "its-name.png", "downloadUrl": "https://x.example/its.png"}
        self.handle: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.read_and_store

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        return await self.handle(request)

    async def read_and_store(self, request: web.Request) -> web.StreamResponse:
        """Read a whole multipart body and say that it is stored."""
        parts, file_headers = {}, {}
        async for part in await request.multipart():
            assert isinstance(part, aiohttp.BodyPartReader)
            assert part.name is not None
            parts[part.name] = bytes(await part.read())
            if part.name == "file":
                file_headers = dict(part.headers)
        self.received.append(Received(dict(request.headers), parts, file_headers))
        return self.stored()

    async def read_and_drop(self, request: web.Request) -> web.StreamResponse:
        """Read a body of any size, keep nothing of it, and report its size."""
        size = 0
        async for some in request.content.iter_any():
            size += len(some)
        self.data["size"] = size
        return self.stored()

    async def hold(self, _: web.Request) -> web.StreamResponse:
        """Read nothing, answer nothing."""
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def read_and_hold(self, request: web.Request) -> web.StreamResponse:
        """Read everything, answer nothing."""
        await request.read()
        return await self.hold(request)

    async def refuse(self, _: web.Request) -> web.StreamResponse:
        """Answer before anything is read."""
        return web.json_response({"success": False, "code": 401, "msg": "no key"}, status=401)

    def stored(self) -> web.Response:
        return web.json_response({"success": True, "code": 200, "msg": "ok", "data": self.data})


async def at_the_end_no_file(service: Service) -> None:
    """Wait until the provider has finished every upload, and check that it stored none."""

    def all_refused() -> bool:
        stats = service.kie.stats
        return bool(stats["uploads"]["refused"] == stats["requests"].get(STREAM, 0))

    await eventually(all_refused)
    assert service.kie.stats["uploads"]["completed"] == 0


async def endless(
    sent: asyncio.Event, size_bytes: int | None = None, chunks: int = 3
) -> AsyncIterator[pb.UploadFileRequest]:
    """Send some chunks, and then nothing."""
    yield metadata() if size_bytes is None else metadata(size_bytes=size_bytes)
    for _ in range(chunks):
        yield chunk(b"x" * 10_000)
    sent.set()
    await asyncio.Event().wait()


async def begun(service: Service, uploads: int = 1) -> None:
    """Wait until the provider has been called so many times."""
    await eventually(lambda: service.kie.stats["requests"].get(STREAM, 0) >= uploads)


MESSAGE = 4 * MIB - 64
Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def raw_host(reply: Reply) -> AsyncIterator[str]:
    """An upload host that does with each connection what the test says; yield its URL."""
    writers = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reply(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=1_024)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.close()
        writer.transport.abort()
    await asyncio.gather(*(w.wait_closed() for w in writers), return_exceptions=True)


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read nothing more."""
    del reader
    writer.transport.pause_reading()  # type: ignore[attr-defined]
