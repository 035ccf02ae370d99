"""The hub: from the poller that saved a snapshot to the streams that watch its task."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from service.errors import ServiceError, invalid, not_found
from storage.store import Store
from storage.task import Task

JITTER = 0.1  # of a stream's maximum age, so that streams opened together do not end together


class Subscription:
    """One slot that holds the newest snapshot of a task, however slow its reader is.

    Attributes:
        to_the_end: Whether its reader stays until the task has ended, and so watches it.
    """

    __slots__ = ("_newest", "_waiter", "draining", "to_the_end")

    def __init__(self, *, to_the_end: bool = False) -> None:
        self._newest: Task | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.draining = False
        self.to_the_end = to_the_end

    def put(self, task: Task) -> None:
        """Replace what the slot holds, and wake the reader."""
        if self._newest is None or task.revision > self._newest.revision:
            self._newest = task
            self._wake()

    def drain(self) -> None:
        """Tell the reader that nothing more will come."""
        self.draining = True
        self._wake()

    async def newer(self, revision: int, timeout: float) -> Task | None:
        """Wait for a snapshot above `revision`.

        None after `timeout` seconds without one, or when draining.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._newest is None or self._newest.revision <= revision:
            if self.draining or loop.time() >= deadline:
                return None
            await self._wait_until(deadline, loop)
        return self._newest

    async def _wait_until(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self._waiter = loop.create_future()
        timer = loop.call_at(deadline, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """Passes snapshots to the subscriptions of their task."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[str, set[Subscription]] = defaultdict(set)
        self.draining = False

    @contextmanager
    def subscribe(self, task_id: str, *, to_the_end: bool = False) -> Iterator[Subscription]:
        """Receive what is published of a task from now on."""
        subscription = Subscription(to_the_end=to_the_end)
        subscription.draining = self.draining
        self._subscriptions[task_id].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[task_id].discard(subscription)
            if not self._subscriptions[task_id]:
                del self._subscriptions[task_id]

    def is_watched(self, task_id: str) -> bool:
        """Whether somebody in this process waits for the end of a task."""
        return any(reader.to_the_end for reader in self._subscriptions.get(task_id, ()))

    def publish(self, task: Task) -> None:
        """Hand a committed snapshot to everybody who waits for it."""
        for subscription in self._subscriptions.get(task.id, ()):
            subscription.put(task)

    def drain(self) -> None:
        """End every wait: the process is going down."""
        self.draining = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.drain()


class Watcher:
    """Streams of snapshots.

    The present one, each newer one, heartbeats, and the terminal one last.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        watched: Callable[[str], Awaitable[None]],
        *,
        heartbeat_seconds: float,
        max_age_seconds: float,
        max_streams: int,
    ) -> None:
        self._store = store
        self._hub = hub
        self._watched = watched
        self._heartbeat_seconds = heartbeat_seconds
        self._max_age_seconds = max_age_seconds
        self._max_streams = max_streams
        self._open_streams = 0

    async def watch(self, caller: str, task_id: str, after_revision: int) -> AsyncIterator[Task]:
        """Yield snapshots until the terminal one.

        Raises:
            ServiceError: TASK_NOT_FOUND, INVALID_PARAMS, RATE_LIMITED; STREAM_EXPIRED or
                SHUTTING_DOWN later.
        """
        with self._counted(), self._hub.subscribe(task_id, to_the_end=True) as subscription:
            # Subscribed first: a change from here on is seen twice and dropped by its revision,
            # never missed.
            task = self._store.get(task_id)
            if task is None or task.caller != caller:
                raise not_found(task_id)
            if after_revision > task.revision:
                raise invalid("after_revision", f"must be at most {task.revision}, the present one")
            if task.ended or task.revision != after_revision:
                yield task
            expiry = time.monotonic() + self._max_age_seconds * random.uniform(1 - JITTER, 1)
            while not task.ended:
                # Said at each heartbeat, too: another process may have polled it, and knows no
                # streams but its own.
                await self._watched(task_id)
                wait = min(self._heartbeat_seconds, expiry - time.monotonic())
                newer = await subscription.newer(task.revision, wait)
                if newer is None:
                    _end_if_due(subscription, expiry)
                task = newer or task
                yield task

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._open_streams >= self._max_streams:
            raise ServiceError("RATE_LIMITED", f"{self._max_streams} streams are open already")
        self._open_streams += 1
        try:
            yield
        finally:
            self._open_streams -= 1


def _end_if_due(subscription: Subscription, expiry: float) -> None:
    if subscription.draining:
        raise ServiceError("SHUTTING_DOWN", "the server is going down: call again")
    if time.monotonic() >= expiry:
        raise ServiceError("STREAM_EXPIRED", "the stream is old: call again")
