"""Streams of all changes of a caller's tasks: the stored ones first, then each new one."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from generated.generation.v1 import generation_pb2 as pb
from service.callers import current_caller
from service.errors import ServiceError, invalid_params, shutting_down
from service.feed import Feed
from service.messages import Answers, size_of, timestamp
from service.open_calls import OpenCalls
from service.outbox import StreamOutbox
from service.resume_token import ChangeFilter, ResumePoint, expired, read_token, write_token
from service.rules import PROMPT_ID_MAX_CHARACTERS, text_rules
from service.streams import LimitedAge
from storage.changes import START, Change, ChangePage, Position
from storage.store import Store
from storage.task import Task

CATCHING_UP_MAX = 4  # streams that read pages at the same time
SENDING_MAX = 16  # streams of one caller that send at the same time
STALL_SECONDS = 0.25  # until a stream whose client does not read makes room for another one
PAGE_CHANGES = 256
READ_AT_ONCE = 16  # tasks, which are in memory together


class ChangeWriter:
    """Writes the messages of one stream, as bytes.

    Most of a message was serialized before: messages.Answers has the snapshot.
    """

    def __init__(
        self,
        write: Callable[[Any], Awaitable[None]],
        answers: Answers,
        now: Callable[[], float],
    ) -> None:
        self._write = write
        self._answers = answers
        self._now = now

    async def task(self, task: Task, token: str, *, is_new: bool) -> None:
        """Write a snapshot. A new one is cached, because other streams want it as well."""
        answer = self._answers.of(task) if is_new else self._answers.listed(task)
        # In every response with a task, the task is field 1: the bytes of another one fit here.
        await self._write(answer + pb.WatchTasksResponse(resume_token=token).SerializeToString())

    async def bookmark(self, token: str, *, initial_done: bool) -> None:
        """Write a bookmark."""
        bookmark = pb.Bookmark(initial_done=initial_done, read_time=timestamp(self._now()))
        await self._write(pb.WatchTasksResponse(bookmark=bookmark, resume_token=token))


def change_filter(request: pb.WatchTasksRequest) -> ChangeFilter:
    """Return the filter of a request.

    Raises:
        ServiceError: INVALID_PARAMS.
    """
    if broken := text_rules("prompt_id", request.prompt_id, PROMPT_ID_MAX_CHARACTERS):
        raise invalid_params(broken)
    return ChangeFilter(current_caller.get(), request.prompt_id, request.ended_only)


class ChangeWatcher:
    """Writes streams of all changes, and says how to resume them."""

    def __init__(
        self,
        store: Store,
        feed: Feed,
        *,
        open_streams: OpenCalls,
        outbox: StreamOutbox,
        heartbeat_seconds: float,
        max_age_seconds: float,
    ) -> None:
        self._store = store
        self._feed = feed
        self._open_streams = open_streams
        self._heartbeat_seconds = heartbeat_seconds
        self._max_age_seconds = max_age_seconds
        self._turns = _Turns(outbox)

    async def watch(
        self, which: ChangeFilter, resume_token: str, writer: ChangeWriter, *, from_now: bool
    ) -> None:
        """Write changes until the stream is too old, or the process shuts down.

        Raises:
            ServiceError: INVALID_PARAMS, RESUME_TOKEN_EXPIRED, RATE_LIMITED; STREAM_EXPIRED or
                SHUTTING_DOWN later.
        """
        with self._open_streams.counted(which.caller):
            run = _Run(self._store, self._feed, which, writer, self._turns)
            try:
                async with LimitedAge(self._max_age_seconds):
                    await run.begin(resume_token, from_now=from_now)
                    await run.follow(self._heartbeat_seconds)
            finally:
                run.end()


class _Turns:
    """Limits the streams that do something at a time, so that a caller may have thousands.

    Pages are read for one stream of each caller, and for a few in all. Tasks are read and sent for
    some streams of each caller.

    Attributes:
        outbox: What the clients have not read.
    """

    def __init__(self, outbox: StreamOutbox) -> None:
        self.outbox = outbox
        self._all = asyncio.Semaphore(CATCHING_UP_MAX)
        self._callers: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sending: defaultdict[str, asyncio.Semaphore] = defaultdict(
            partial(asyncio.Semaphore, SENDING_MAX)
        )

    async def to_send(self, caller: str) -> "_Turn":
        """Wait until a caller's stream may send."""
        places = self._sending[caller]
        await places.acquire()
        return _Turn(places)

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """Wait for a turn of a caller's stream, which lasts as long as the context."""
        async with self._callers[caller], self._all:
            yield


class _Turn:
    """The turn of one stream to send. It is over early if the client does not read.

    Attributes:
        tasks: What was read and not sent yet; dropped at the end of the turn.
    """

    __slots__ = ("_places", "_timer", "tasks")

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places
        self._timer: asyncio.TimerHandle | None = None
        self.tasks: deque[Task | None] = deque()

    def begin(self, tasks: Sequence[Task | None]) -> None:
        """Note what was read; from now on the client has to read it."""
        self.tasks.extend(tasks)
        self._timer = asyncio.get_running_loop().call_later(STALL_SECONDS, self.end)

    def end(self) -> None:
        """End the turn, unless it is over."""
        if self._places is None:
            return
        self._places.release()
        self._places = None
        self.tasks.clear()
        if self._timer is not None:
            self._timer.cancel()


class _Run:
    """One stream, from its first message to its end."""

    def __init__(
        self,
        store: Store,
        feed: Feed,
        which: ChangeFilter,
        writer: ChangeWriter,
        turns: "_Turns",
    ) -> None:
        self._store = store
        self._feed = feed
        self._writer = writer
        self._turns = turns
        self._binding = which.binding()
        self._epoch = b""
        self._start = 0
        self._stream = feed.add(which, START)
        self._is_initial = True  # until the first bookmark after catching up

    def end(self) -> None:
        """Forget the stream."""
        self._feed.remove(self._stream)

    async def begin(self, resume_token: str, *, from_now: bool) -> None:
        """Find the position from which to start.

        Raises:
            ServiceError: INVALID_PARAMS, RESUME_TOKEN_EXPIRED.
        """
        stream = self._stream
        if resume_token:
            point = read_token(resume_token, self._binding)
            if point is None:
                raise self._expired("version")
            self._epoch, self._start, stream.position = point
            self._check(await self._page(1))
            return
        page = await self._page(1)
        self._epoch, self._start = page.epoch, page.horizon
        if from_now:
            stream.position = Position(page.horizon)
            await self._bookmark()

    async def follow(self, heartbeat_seconds: float) -> None:
        """Catch up, pass on what the feed hands over, and catch up again after falling behind."""
        while True:
            has_sent = await self._catch_up(heartbeat_seconds)
            while not self._feed.join(self._stream):
                has_sent |= await self._catch_up(heartbeat_seconds)
            if has_sent or self._is_initial:
                await self._bookmark()
            await self._pass_on(heartbeat_seconds)

    async def _catch_up(self, heartbeat_seconds: float) -> bool:
        """Send what has changed until now; return whether anything has."""
        stream = self._stream
        bookmarked = time.monotonic()
        has_sent = is_last = False
        while not is_last:
            page = await self._page(PAGE_CHANGES)
            self._check(page)
            changes = list(filter(stream.wants, page.changes))
            for start in range(0, len(changes), READ_AT_ONCE):
                await self._send(changes[start : start + READ_AT_ONCE])
            has_sent |= bool(changes)
            stream.position = page.end
            is_last = page.is_last
            if not is_last and time.monotonic() - bookmarked > heartbeat_seconds:
                await self._write_bookmark(initial_done=False)
                bookmarked = time.monotonic()
        stream.all_sent()
        return has_sent

    async def _pass_on(self, heartbeat_seconds: float) -> None:
        """Send what the feed hands over, until the stream has fallen behind."""
        stream, now = self._stream, asyncio.get_running_loop().time
        while stream.is_live or stream.has_waiting:
            self._raise_if_over()  # before a wait, too: nobody wakes a stream that is writing
            if changes := stream.take(READ_AT_ONCE):
                await self._send(changes)
                is_bookmark_due = True
            else:
                deadline = now() + heartbeat_seconds
                await stream.wait(deadline)
                is_bookmark_due = now() >= deadline
            if is_bookmark_due and stream.is_live and not stream.has_waiting:
                await self._bookmark()

    async def _send(self, changes: Sequence[Change]) -> None:
        """Send tasks that have changed.

        Those that a client does not take in time are dropped, and read again later.
        """
        unsent = deque(changes)
        while unsent:
            turn = await self._turns.to_send(self._stream.which.caller)
            try:
                await self._send_in_turn(unsent, turn)
            finally:
                turn.end()

    async def _send_in_turn(self, unsent: deque[Change], turn: _Turn) -> None:
        self._raise_if_over()
        stream = self._stream
        ids = (change.task_id for change in unsent)
        turn.begin(await asyncio.gather(*map(self._store.get_readable, ids)))
        while turn.tasks:
            change, task = unsent.popleft(), turn.tasks.popleft()
            stream.position = change.position
            if task is not None:  # else it was deleted meanwhile, or is damaged
                write = partial(self._writer.task, task, self._token(), is_new=stream.is_live)
                await self._turns.outbox.write(stream.which.caller, size_of(task), write)

    async def _bookmark(self) -> None:
        """Write a bookmark: everything before the feed's position was sent."""
        stream = self._stream
        if stream.is_live:
            stream.position = max(stream.position, self._feed.position)
            stream.all_sent()
        await self._write_bookmark(initial_done=self._is_initial)
        self._is_initial = False

    async def _write_bookmark(self, *, initial_done: bool) -> None:
        await self._writer.bookmark(self._token(), initial_done=initial_done)

    def _token(self) -> str:
        point = ResumePoint(self._epoch, self._start, self._stream.position)
        return write_token(point, self._binding)

    async def _page(self, limit: int) -> ChangePage:
        self._raise_if_over()
        stream = self._stream
        async with self._turns.of(stream.which.caller):
            page = await self._store.changes(stream.which.caller, stream.position, limit)
        self._feed.metrics.page_read("one")
        return page

    def _check(self, page: ChangePage) -> None:
        """Raise RESUME_TOKEN_EXPIRED if changes after the position are missing."""
        number = max(self._start, self._stream.position.number)
        if page.epoch != self._epoch or number > page.horizon:
            raise self._expired("restored")
        if page.purged >= number:
            raise self._expired("deleted")

    def _expired(self, cause: str) -> ServiceError:
        self._feed.metrics.token_expired(cause)
        return expired(cause)

    def _raise_if_over(self) -> None:
        if self._feed.draining:
            raise shutting_down()
        if self._stream.is_over:
            raise self._expired("restored")
