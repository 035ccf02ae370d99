"""The provider of the benchmarks: a cheap stub with Kie's documented responses.

The bundled simulator checks Kie's rules, which costs more CPU than the service: on two cores, the
benchmarks would measure the simulator. This stub accepts any request, finds a task for any id, and
ends tasks on command. `python -m benchmarks.provider` answers commands, see child.py.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any, cast

import aiohttp
import uvloop

from benchmarks.child import Command, answer_commands

HEAD_END = b"\r\n\r\n"
MODEL = "google/imagen4-fast"
CALLBACK_SECONDS = 15


class Kie:
    """The provider's state: callback URLs, progress, and ends of tasks, and the polls of them."""

    def __init__(self) -> None:
        self._callback_urls: dict[str, str] = {}
        self._progress: dict[str, int] = {}
        self._ended_ms: dict[str, int] = {}
        self._polls: list[tuple[str, float]] = []
        self._created = 0
        self._session: aiohttp.ClientSession | None = None

    # --- HTTP ---

    def answer(self, path: str, body: bytes) -> Any:
        """Return the envelope for a request."""
        path, _, query = path.partition("?")
        if path.endswith("/createTask"):
            return _envelope(self._create(json.loads(body)))
        if path.endswith("/recordInfo"):
            return _envelope(self._record(query.removeprefix("taskId=")))
        return _envelope(_stored())

    def _create(self, body: Any) -> Any:
        self._created += 1
        provider_id = f"{self._created:032x}"
        self._callback_urls[provider_id] = body.get("callBackUrl", "")
        return {"taskId": provider_id, "recordId": provider_id}

    def _record(self, provider_id: str) -> Any:
        self._polls.append((provider_id, time.time()))
        ended_ms = self._ended_ms.get(provider_id)
        record = {
            "taskId": provider_id,
            "model": MODEL,
            "state": "success" if ended_ms else "generating",
            "param": json.dumps({"model": MODEL, "input": json.dumps({"prompt": "a lighthouse"})}),
            "resultJson": json.dumps({"resultUrls": [_url(provider_id)]}) if ended_ms else "",
            "failCode": None,
            "failMsg": None,
            "costTime": 12 if ended_ms else None,
            "completeTime": ended_ms,
            "createTime": 1_776_862_567_160,
        }
        if provider_id in self._progress:
            record["progress"] = self._progress[provider_id]
        return record

    # --- commands ---

    async def advance(self, *, ids: Sequence[str], percent: int) -> float:
        """Set the progress of tasks, and send a callback for each with a URL; return the time."""
        now = time.monotonic()
        for provider_id in ids:
            self._progress[provider_id] = percent
        await asyncio.gather(*(self._call_back(i) for i in ids if self._callback_urls.get(i)))
        return now

    async def finish(self, *, ids: Sequence[str], per_second: float) -> list[float]:
        """End tasks at random moments, `per_second` on average; return the time of each end."""
        loop = asyncio.get_running_loop()
        times: list[float] = []
        calling = set()
        due = loop.time()
        for provider_id in ids:
            due += random.expovariate(per_second)
            await asyncio.sleep(due - loop.time())
            self._ended_ms[provider_id] = int(time.time() * 1000)
            times.append(time.monotonic())
            calling.add(asyncio.create_task(self._call_back(provider_id)))
        await asyncio.gather(*calling)
        return times

    async def polls(self) -> list[tuple[str, float]]:
        """Return the polls since the last call: the provider's id and the Unix time of each."""
        polls, self._polls = self._polls, []
        return polls

    async def _call_back(self, provider_id: str) -> None:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            timeout = aiohttp.ClientTimeout(total=CALLBACK_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        body = {"code": 200, "msg": "success", "data": {"taskId": provider_id, "model": MODEL}}
        url = self._callback_urls[provider_id]
        async with self._session.post(url, json=body) as answer:
            answer.raise_for_status()

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()


class Http(asyncio.Protocol):
    """An HTTP/1.1 connection: requests with a Content-Length, one after the other."""

    def __init__(self, kie: Kie) -> None:
        self._kie = kie
        self._transport: asyncio.Transport
        self._head = b""
        self._body: list[bytes] = []
        self._missing_bytes = 0
        self._path = ""
        self._close = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        """Receive a head and a body; the body of an upload is counted and dropped."""
        if not self._path:
            self._head += data
            head, found, data = self._head.partition(HEAD_END)
            if not found:
                return
            self._read_head(head.decode("latin-1"))
        self._missing_bytes -= len(data)
        if self._path.endswith("/createTask"):
            self._body.append(data)
        if self._missing_bytes <= 0:
            self._answer()

    def _read_head(self, head: str) -> None:
        line, *fields = head.split("\r\n")
        headers = dict(field.lower().split(": ", 1) for field in fields)
        self._path = line.split(" ")[1]
        self._missing_bytes = int(headers.get("content-length", "0"))
        self._close = headers.get("connection") == "close"

    def _answer(self) -> None:
        text = json.dumps(self._kie.answer(self._path, b"".join(self._body))).encode()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
            % (len(text), b"Connection: close\r\n" if self._close else b"", text)
        )
        self._path, self._head = "", b""
        self._body.clear()
        if self._close:
            self._transport.close()


def _envelope(data: Any) -> Any:
    return {"code": 200, "msg": "success", "data": data}


def _url(provider_id: str) -> str:
    return f"https://tempfile.aiquickdraw.com/imagen/{provider_id}_0.png"


def _stored() -> Any:
    return {
        "fileName": "film.mp4",
        "filePath": "user-uploads/film.mp4",
        "downloadUrl": "https://tempfile.redpandaai.co/user-uploads/film.mp4",
        "mimeType": "video/mp4",
    }


async def main() -> None:
    """Serve and answer commands until stdin ends."""
    kie = Kie()
    server = await asyncio.get_running_loop().create_server(
        lambda: Http(kie), "127.0.0.1", 0, backlog=1024
    )
    port = server.sockets[0].getsockname()[1]
    commands: dict[str, Command] = {
        "advance": kie.advance,
        "finish": kie.finish,
        "polls": kie.polls,
    }
    await answer_commands(commands, {"url": f"http://127.0.0.1:{port}"})
    server.close()
    await kie.close()


if __name__ == "__main__":
    uvloop.run(main())
