"""The load generator: a process that calls a server and reports latencies and errors.

`python -m benchmarks.load` answers commands, see child.py. Times are those of `time.monotonic()`,
which is the same clock in all processes of a machine.
"""

import asyncio
import contextlib
import gc
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import uvloop

from benchmarks.child import answer_commands
from benchmarks.h2 import Connection, End, connect, request, request_headers
from benchmarks.measure import percentile
from benchmarks.tasks import creates, queries
from generated.generation.v1 import generation_pb2 as pb

SERVICE = "/generation.v1.GenerationService/"
DEADLINE = ("grpc-timeout", "20S")
CONNECTIONS = 4
WATCH_CONNECTIONS = 100
PREPARED_PER_SECOND = 12_000  # more than any server here answers
OPEN_SECONDS = 60.0
REOPEN_SECONDS, REOPEN_MAX_SECONDS = 0.1, 2.0  # doubled each time, with jitter
SMALL_WINDOW_BYTES = 4_096

Frames = Callable[[int], bytes]


class Caller:
    """A caller with one call in progress at all times, until the loop ends."""

    __slots__ = ("_answered", "_connection", "_loop", "_started")

    def __init__(self, loop: "ClosedLoop", connection: Connection) -> None:
        self._loop = loop
        self._connection = connection
        self.begin(time.monotonic())

    def begin(self, now: float) -> None:
        """Start the next call, unless the time is over."""
        frames = self._loop.next(now)
        if frames is not None:
            self._answered = False
            self._started = now
            self._connection.call(frames, self)

    def message(self, data: bytes, now: float) -> None:
        """Keep the response."""
        del now
        self._answered = True
        self._loop.answers.append(data)

    def ended(self, end: End, now: float) -> None:
        """Count the call, and start the next."""
        self._loop.count(end is End.OK and self._answered, now - self._started)
        self.begin(now)


class ClosedLoop:
    """Several callers; each starts its next call as soon as the last one has ended."""

    def __init__(self, requests: Iterator[Frames], seconds: float) -> None:
        self._requests = requests
        self._started = time.monotonic()
        self._deadline = self._started + seconds
        self._callers = 0
        self._ended = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []
        self.answers: list[bytes] = []
        self.errors = 0

    async def run(self, connections: Sequence[Connection], outstanding: int) -> float:
        """Run until the last call has ended; return the seconds.

        Raises:
            ConnectionError: The server closed a connection, so some calls would never end.
        """
        self._callers = outstanding * len(connections)
        for connection in connections:
            for _ in range(outstanding):
                Caller(self, connection)
            connection.flush()
        ends = [self._ended, *(connection.lost for connection in connections)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._ended.done():
            raise ConnectionError("the server closed a connection")
        return time.monotonic() - self._started

    def next(self, now: float) -> Frames | None:
        """Return the next request, or None when the time is over."""
        frames = next(self._requests, None) if now < self._deadline else None
        if frames is None:
            self._callers -= 1
            if not self._callers:
                self._ended.set_result(None)
        return frames

    def count(self, good: bool, seconds: float) -> None:
        """Count a call that has ended."""
        if good:
            self.latencies.append(seconds)
        else:
            self.errors += 1


@dataclass
class Group:
    """Streams that were opened together."""

    connections: list[Connection]
    opened: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    reopened: int = 0
    arrivals: list[float] = field(default_factory=list)
    ends: list[tuple[int, float]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition of the group."""
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Stream:
    """One watch, which is retried until the server accepts it."""

    __slots__ = ("_backoff_seconds", "_connection", "_frames", "_group", "_index")

    def __init__(self, group: Group, index: int, frames: Frames) -> None:
        self._group = group
        self._index = index
        self._frames = frames
        self._backoff_seconds = REOPEN_SECONDS
        self._connection = group.connections[index % len(group.connections)]
        self._connection.call(frames, self)

    def message(self, data: bytes, now: float) -> None:
        """Count the stream as opened on its first snapshot; note when the others arrive."""
        del data
        if self._index in self._group.opened:
            self._group.arrivals.append(now)
        else:
            self._group.opened.add(self._index)
        self._group.changed.set()

    def ended(self, end: End, now: float) -> None:
        """Retry a stream that was dropped before it opened; count any other as ended or lost."""
        if end is End.DROPPED and self._index not in self._group.opened:
            seconds = self._backoff_seconds * random.uniform(0.5, 1.5)
            asyncio.get_running_loop().call_later(seconds, self._reopen)
            self._backoff_seconds = min(self._backoff_seconds * 2, REOPEN_MAX_SECONDS)
            return
        if end is End.OK:
            self._group.ends.append((self._index, now))
        else:
            self._group.lost.add(self._index)
        self._group.changed.set()

    def _reopen(self) -> None:
        if not self._connection.lost.done():
            self._group.reopened += 1
            self._connection.call(self._frames, self)
            self._connection.flush()


class ChangeStream:
    """One stream of WatchTasks."""

    __slots__ = ("_group", "_index")

    def __init__(self, group: Group, index: int, frames: Frames) -> None:
        self._group = group
        self._index = index
        group.connections[index % len(group.connections)].call(frames, self)

    def message(self, data: bytes, now: float) -> None:
        """Note how long after its change a snapshot arrives; the streams begin with a bookmark."""
        del now
        answer = pb.WatchTasksResponse.FromString(data)
        if answer.HasField("task"):
            changed = answer.task.update_time.ToMicroseconds() / 1e6
            self._group.arrivals.append(time.time() - changed)
        else:
            self._group.opened.add(self._index)
        self._group.changed.set()

    def ended(self, end: End, now: float) -> None:
        """Count the stream as lost: it never ends by itself."""
        del end, now
        self._group.lost.add(self._index)
        self._group.changed.set()


class Load:
    """The commands."""

    def __init__(self) -> None:
        self._connections: dict[str, list[Connection]] = {}
        self._groups: dict[str, Group] = {}

    async def query(
        self,
        *,
        address: str,
        token: str,
        seconds: float,
        outstanding: int,
        pattern: str,
        first: int,
        count: int,
    ) -> Any:
        """Query tasks in a closed loop."""
        prepared = _prepared(queries(pattern, first, count), seconds)
        frames = list(_frames("QueryTask", token, prepared, DEADLINE))
        return await self._unary(address, frames, seconds, outstanding)

    async def create(
        self,
        *,
        address: str,
        token: str,
        seconds: float,
        outstanding: int,
        of_market: bool = False,
    ) -> Any:
        """Create tasks in a closed loop."""
        prepared = _prepared(creates(of_market=of_market), seconds)
        frames = list(_frames("CreateTask", token, prepared, DEADLINE))
        return await self._unary(address, frames, seconds, outstanding)

    async def _unary(
        self, address: str, frames: Sequence[Frames], seconds: float, outstanding: int
    ) -> Any:
        connections = await self._connected(address)
        loop = ClosedLoop(iter(frames), seconds)
        took = await loop.run(connections, outstanding)
        return {
            "calls": len(loop.latencies),
            "errors": loop.errors,
            "seconds": took,
            "p50": percentile(loop.latencies, 0.50),
            "p99": percentile(loop.latencies, 0.99),
        }

    async def create_tasks(self, *, address: str, token: str, count: int, characters: int) -> Any:
        """Create tasks; return for each the service's id and the provider's."""
        requests = itertools.islice(creates(characters), count)
        frames = _frames("CreateTask", token, requests, DEADLINE)
        loop = ClosedLoop(frames, OPEN_SECONDS)
        await loop.run(await self._connected(address), 8)
        tasks = [pb.CreateTaskResponse.FromString(answer).task for answer in loop.answers]
        assert not loop.errors, f"{loop.errors} of {count} creates failed"
        return [(task.id, task.provider_task_id) for task in tasks]

    async def fetch(self, *, address: str, token: str, task_id: str) -> Any:
        """Query one task; return the response's bytes in hexadecimal."""
        query = pb.QueryTaskRequest(task_id=task_id).SerializeToString()
        loop = ClosedLoop(_frames("QueryTask", token, iter([query])), OPEN_SECONDS)
        await loop.run((await self._connected(address))[:1], 1)
        return loop.answers[0].hex()

    async def open(
        self,
        *,
        group: str,
        address: str,
        token: str,
        task_ids: Sequence[str],
        streams: int,
        connections: int = WATCH_CONNECTIONS,
    ) -> Any:
        """Open streams at once, distributed over the tasks; wait for their first messages.

        The connections are opened before, as when a load balancer has just recovered: `connections`
        of them, or more if the server limits the streams of each. A stream that the server drops
        before it accepts it is retried. A stream that is not open in the end counts as lost.
        """
        opening = Group(await _enough_connections(address, streams, connections))
        watches = [pb.WatchTaskRequest(task_id=task_id).SerializeToString() for task_id in task_ids]
        requests = _frames("WatchTask", token, itertools.cycle(watches))
        started = time.monotonic()
        for index in range(streams):
            Stream(opening, index, next(requests))
        for connection in opening.connections:
            connection.flush()
        with contextlib.suppress(TimeoutError):
            await opening.until(lambda: len(opening.opened | opening.lost) >= streams, OPEN_SECONDS)
        self._groups[group] = opening
        opened = len(opening.opened)
        return {
            "seconds": time.monotonic() - started,
            "opened": opened,
            "lost": streams - opened,
            "reopened": opening.reopened,
        }

    async def open_stopped(self, *, group: str, address: str, token: str, task_id: str) -> Any:
        """Open a stream whose client stops reading after the first message."""
        stopping = Group([await connect(address, SMALL_WINDOW_BYTES)])
        watch = pb.WatchTaskRequest(task_id=task_id).SerializeToString()
        Stream(stopping, 0, next(_frames("WatchTask", token, iter([watch]))))
        stopping.connections[0].flush()
        await asyncio.sleep(0.5)  # its window is too small for a whole message
        stopping.connections[0].stop_reading()
        self._groups[group] = stopping

    async def open_changes(
        self, *, group: str, address: str, tokens: Sequence[str], streams: int
    ) -> Any:
        """Open streams of all changes from now on, distributed over the callers; return how many.

        Their arrivals are the seconds since the change.
        """
        opening = Group(await _enough_connections(address, streams, WATCH_CONNECTIONS))
        request_bytes = pb.WatchTasksRequest(from_now=True).SerializeToString()
        for index in range(streams):
            token = tokens[index % len(tokens)]
            ChangeStream(opening, index, next(_frames("WatchTasks", token, iter([request_bytes]))))
        for connection in opening.connections:
            connection.flush()
        await opening.until(lambda: len(opening.opened | opening.lost) >= streams, OPEN_SECONDS)
        self._groups[group] = opening
        return len(opening.opened - opening.lost)

    async def trickle(
        self, *, address: str, tokens: Sequence[str], per_second: float, seconds: float
    ) -> Any:
        """Create tasks of one caller after the other, at a steady rate; return how many."""
        channel_options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=channel_options) as channel:
            create: Any = channel.unary_unary(SERVICE + "CreateTask")
            count = int(per_second * seconds)
            loop = asyncio.get_running_loop()
            started = loop.time()
            calls = []
            for number, message in enumerate(itertools.islice(creates(), count)):
                await asyncio.sleep(started + number / per_second - loop.time())
                token = tokens[number % len(tokens)]
                calls.append(create(message, metadata=_authorization(token)))
            await asyncio.gather(*calls)
        return count

    async def take(self, *, group: str, count: int, seconds: float) -> Any:
        """Wait for `count` messages; return when each arrived."""
        streams = self._groups[group]
        await streams.until(lambda: len(streams.arrivals) >= count, seconds)
        taken, streams.arrivals = streams.arrivals, []
        return taken

    async def ends(self, *, group: str, count: int, seconds: float) -> Any:
        """Wait until `count` streams have ended OK; return the number and time of each."""
        streams = self._groups[group]
        await streams.until(lambda: len(streams.ends) >= count, seconds)
        return streams.ends

    async def close(self, *, group: str) -> Any:
        """Close the connections of a group."""
        for connection in self._groups.pop(group).connections:
            connection.close()

    async def upload(self, *, address: str, token: str, size_bytes: int, chunk_bytes: int) -> Any:
        """Upload a file of zeros; return the seconds."""
        metadata = pb.UploadMetadata(file_name="film.mp4", size_bytes=size_bytes)
        started = time.monotonic()
        async with grpc.aio.insecure_channel(address) as channel:
            call: Any = channel.stream_unary(SERVICE + "UploadFile")
            answer = await call(
                _upload_messages(metadata, chunk_bytes), metadata=_authorization(token)
            )
        seconds = time.monotonic() - started
        assert pb.UploadFileResponse.FromString(answer).file.size_bytes == size_bytes
        return seconds

    async def _connected(self, address: str) -> list[Connection]:
        if address not in self._connections:
            self._connections[address] = [await connect(address) for _ in range(CONNECTIONS)]
        return self._connections[address]


async def _enough_connections(address: str, streams: int, minimum: int) -> list[Connection]:
    """Open as many connections as the streams need, and at least `minimum`."""
    first = await connect(address)
    needed = max(minimum, math.ceil(streams / await first.max_streams))
    return [first, *[await connect(address) for _ in range(needed - 1)]]


def _prepared(requests: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """Return enough requests for a loop: prepared before it starts, so that it only sends."""
    return itertools.islice(requests, int(PREPARED_PER_SECOND * seconds))


def _authorization(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def _frames(
    method: str, token: str, requests: Iterator[bytes], *metadata: tuple[str, str]
) -> Iterator[Frames]:
    headers = request_headers(SERVICE + method, (*_authorization(token), *metadata))
    return (request(headers, message) for message in requests)


async def _upload_messages(metadata: pb.UploadMetadata, chunk_bytes: int) -> AsyncIterator[bytes]:
    yield pb.UploadFileRequest(metadata=metadata).SerializeToString()
    whole, rest = divmod(metadata.size_bytes, chunk_bytes)
    chunk = pb.UploadFileRequest(chunk=bytes(chunk_bytes)).SerializeToString()
    for _ in range(whole):
        yield chunk
    if rest:
        yield pb.UploadFileRequest(chunk=bytes(rest)).SerializeToString()


async def main() -> None:
    """Answer commands until stdin ends."""
    gc.disable()  # its pauses would count as latency of the server
    load = Load()
    commands = ("query", "create", "create_tasks", "trickle", "fetch", "open", "open_stopped",
                "open_changes", "take", "ends", "close", "upload")  # fmt: skip
    await answer_commands({name: getattr(load, name) for name in commands}, {})


if __name__ == "__main__":
    uvloop.run(main())
