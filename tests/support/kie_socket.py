"""A Kie on a bare socket: it answers exactly the bytes that a test gives it, with headers."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """A received request: `task_id` of a poll, `body` of a create; an upload's body is skipped."""

    method: str
    path: str
    task_id: str = ""
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        if self.method == "GET":
            return "record"
        return "upload" if self.path.startswith("/api/file") else "create"


@dataclass(frozen=True)
class Raw:
    """The exact bytes of an answer. With `stays_open` the announced end never arrives."""

    data: bytes
    stays_open: bool = False


def http(
    body: bytes | str,
    status: int = 200,
    headers: dict[str, str] | None = None,
    announced: int | None = None,
    stays_open: bool = False,
) -> Raw:
    """Return an answer; `announced` is a Content-Length that differs from the body's length."""
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    length = len(data) if announced is None else announced
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {length}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return Raw("\r\n".join([*lines, "", ""]).encode() + data, stays_open)


def envelope(code: Any = 200, data: Any = None, msg: Any = "success") -> Raw:
    return http(json.dumps({"code": code, "msg": msg, "data": data}))


Answer = Callable[[Request], Raw]


class SocketKie:
    """Set its `answer`; it records the `requests`."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self._server: asyncio.Server
        self._open: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for connection in self._open:
            connection.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def count(self, endpoint: str) -> int:
        return sum(request.endpoint == endpoint for request in self.requests)

    async def _answered(self, request: Request) -> Raw:
        return self.answer(request)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            request = await _read(reader)
            self.requests.append(request)
            raw = await self._answered(request)
            writer.write(raw.data)
            await writer.drain()
            if raw.stays_open:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await _body(reader, headers)
    url = urlsplit(target)
    task_id = parse_qs(url.query).get("taskId", [""])[0]
    is_json = headers.get("content-type", "").startswith("application/json")
    return Request(method, url.path, task_id, json.loads(body) if is_json else {})


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body
