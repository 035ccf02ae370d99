"""Attacks by connections that send nothing, little, or nonsense."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp

from benchmarks.h2 import request
from tests.hostile.frames import Sender, Stream, headers
from tests.hostile.target import SERVICE, Outcome, Target, calling, imagen4
from tests.support.prompts import STUCK_PROMPT

DRIP_SECONDS = 0.5
AT_ONCE = 20
LONGEST_ID = "x" * 255
REPEAT_SECONDS = 0.005
LOOK_SECONDS = 0.02
KINDS = (
    b"",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Drip: ",
    b"POST /callbacks/kie/x/x HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n",
)


class Held:
    """A connection that this side never closes. It can send a byte at a time."""

    def __init__(self, address: str, begin: bytes) -> None:
        self._address = address
        self._begin = begin
        self.has_begun = asyncio.Event()
        self.is_open = False

    async def hold(self, connecting: asyncio.Semaphore) -> None:
        """Connect, and hold the connection until the server closes it."""
        host, port = self._address.rsplit(":", 1)
        with suppress(OSError):
            async with connecting:
                self.has_begun.set()
                reader, writer = await asyncio.open_connection(host, int(port))
            self.is_open = True
            writer.write(self._begin)
            dripping = asyncio.create_task(self._drip(writer) if self._begin else asyncio.sleep(0))
            with suppress(OSError):
                while await reader.read(1 << 16):
                    pass
            dripping.cancel()
            writer.close()
        self.is_open = False

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            await asyncio.sleep(DRIP_SECONDS)
            writer.write(b"x")


async def dripping_http(target: Target) -> Outcome:
    """Open `count` connections of each kind to both HTTP ports; wait for `seconds`."""
    addresses = (target.http_address, target.admin_address)
    held = [Held(address, kind) for address in addresses for kind in KINDS * target.count]
    return await _hold(held, target.seconds)


async def idle_connections(target: Target) -> Outcome:
    """Open `count` connections to the gRPC port, of which every other one makes a call; wait."""
    frames = request(headers(target, SERVICE + "ListTasks"), b"")
    held = [Held(target.address, b"") for _ in range(target.count // 2)]
    outcome = await _hold(held, 0.2)
    opened = 0
    for _ in range(target.count // 2):
        with suppress(OSError):
            connection = await Sender.connect(target)
            connection.call(frames, Stream())
            connection.flush()
            opened += 1
    await asyncio.sleep(target.seconds)
    return {"silent": outcome["open"], "calling": opened}


async def _hold(connections: list[Held], seconds: float) -> Outcome:
    # Fewer at a time than the server's backlog: beyond it, connections open many seconds later.
    connecting = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.create_task(held.hold(connecting)) for held in connections]
    await asyncio.gather(*(held.has_begun.wait() for held in connections))
    await asyncio.sleep(seconds)
    outcome = {"open": float(sum(held.is_open for held in connections))}
    _kept.extend(tasks)
    return outcome


_kept: list["asyncio.Task[None]"] = []  # the attacker's process keeps them open


# --- callbacks ---


async def forged_callbacks(target: Target) -> Outcome:
    """Send callbacks that are not the provider's, and a scanner's requests, for `seconds`."""
    paths = (f"/callbacks/kie/{LONGEST_ID}/{LONGEST_ID}", f"/{LONGEST_ID}.php?{LONGEST_ID}")
    urls = itertools.cycle(f"http://{target.http_address}{path}" for path in paths)

    async def send(session: aiohttp.ClientSession) -> int:
        async with session.post(next(urls), json={"data": {"taskId": LONGEST_ID}}) as response:
            return response.status

    return await _send(target, send)


async def repeated_callbacks(target: Target) -> Outcome:
    """Repeat a callback for `seconds`; return how many requests reached the provider."""
    async with calling(target) as calls, aiohttp.ClientSession() as session:
        assert await calls.create(imagen4(STUCK_PROMPT))
        url = await _callback_url(session, target)

        async def send(session: aiohttp.ClientSession) -> int:
            await asyncio.sleep(REPEAT_SECONDS)
            async with session.post(url, json={}) as response:
                return response.status

        before = await _status_requests(session, target)
        outcome = await _send(target, send)
        polled = await _status_requests(session, target) - before
    return {"callbacks": outcome["requests"], "status requests": polled}


async def _callback_url(session: aiohttp.ClientSession, target: Target) -> str:
    """Return the callback URL of the task that is stuck."""
    while not (tasks := await _stuck_tasks(session, target)):  # noqa: ASYNC110 - another process's
        await asyncio.sleep(LOOK_SECONDS)
    return str(tasks[0]["callBackUrl"])


async def _status_requests(session: aiohttp.ClientSession, target: Target) -> int:
    """Count the requests to the provider about tasks that only this attack creates."""
    return sum(task["polls"]["count"] for task in await _stuck_tasks(session, target))


async def _stuck_tasks(session: aiohttp.ClientSession, target: Target) -> list[dict[str, Any]]:
    async with session.get(f"{target.simulator_url}/simulator/tasks") as response:
        tasks = (await response.json())["tasks"]
    return [task for task in tasks if STUCK_PROMPT in str(task["body"])]


async def _send(target: Target, send: Callable[[aiohttp.ClientSession], Awaitable[int]]) -> Outcome:
    loop = asyncio.get_running_loop()
    end = loop.time() + target.seconds

    async def flood() -> int:
        sent = 0
        while loop.time() < end:
            with suppress(aiohttp.ClientError):
                await send(session)
            sent += 1
        return sent

    async with aiohttp.ClientSession() as session:
        sent = await asyncio.gather(*(flood() for _ in range(AT_ONCE)))
    return {"requests": sum(sent)}
