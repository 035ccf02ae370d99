"""Attacks by streams that thousands of clients open, or that nobody reads."""

import asyncio

from google.protobuf.message import Message

from benchmarks.h2 import WINDOW_MAX, request
from generated.generation.v1 import generation_pb2 as pb
from tests.hostile.frames import Sender, Stream, comes_true, headers, pieces
from tests.hostile.target import (
    SERVICE,
    Outcome,
    Target,
    calling,
    create_request,
    imagen4,
)

STREAMS_PER_CONNECTION = 900
OPENING_SECONDS = 20.0
CREATES_AT_ONCE = 8
INPUT_BYTES = 240_000
LONG_TASKS = 16


async def busy_feeds(target: Target) -> Outcome:
    """Open `count` streams of all changes, and create tasks without a pause, for `seconds`."""
    streams = await _open(target, "WatchTasks", pb.WatchTasksRequest(from_now=True))
    await comes_true(lambda: all(s.messages or not s.is_open for s in streams), OPENING_SECONDS)
    loop = asyncio.get_running_loop()
    end = loop.time() + target.seconds
    async with calling(target) as calls:

        async def create() -> None:
            while loop.time() < end:
                await calls.create(imagen4())

        await asyncio.gather(*(create() for _ in range(CREATES_AT_ONCE)))
    return {"messages": sum(stream.messages for stream in streams)}


async def unread_feeds(target: Target) -> Outcome:
    """Open `count` streams of tasks with large inputs, and read none of them, for `seconds`."""
    async with calling(target) as calls:
        for _ in range(LONG_TASKS):
            await calls.create(_large())
    streams = await _open(target, "WatchTasks", pb.WatchTasksRequest(), window_bytes=0)
    await asyncio.sleep(target.seconds)
    return {"open": sum(stream.is_open for stream in streams)}


async def unread_watches(target: Target) -> Outcome:
    """Open `count` watches of a task with a large input, and read none of them, for `seconds`."""
    async with calling(target) as calls:
        task_id = await calls.create(_large()) or ""
    asked = pb.WatchTaskRequest(task_id=task_id)
    streams = await _open(target, "WatchTask", asked, window_bytes=0)
    await asyncio.sleep(target.seconds)
    return {"open": sum(stream.is_open for stream in streams)}


def _large() -> bytes:
    market = pb.MarketParams(model="google/nano-banana")
    market.input.update({"prompt": "x", "note": "x" * INPUT_BYTES})
    return create_request(pb.KieParams(market=market))


async def _open(
    target: Target, method: str, asked: Message, window_bytes: int = WINDOW_MAX
) -> list[Stream]:
    frames = request(headers(target, SERVICE + method), asked.SerializeToString())
    streams = []
    for count in pieces(target.count, STREAMS_PER_CONNECTION):
        connection = await Sender.connect(target, window_bytes)
        opened = [Stream() for _ in range(count)]
        for stream in opened:
            connection.call(frames, stream)
        connection.flush()
        streams += opened
    return streams
