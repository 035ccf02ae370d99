"""Streams of a task's snapshots, from the hub to a caller."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from service.errors import ServiceError, invalid, not_found
from service.hub import Hub
from service.metrics import Metrics
from service.open_calls import OpenCalls
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Task

JITTER = 0.1  # of a stream's maximum age, so that streams opened together do not end together


class Attention(Protocol):
    """Who polls tasks, and lets those rest that nobody watches."""

    async def watched(self, task: Task) -> None:
        """Hear that somebody watches a task."""


class Watcher:
    """Streams of snapshots.

    The present one, each newer one, heartbeats, and the terminal one last.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        metrics: Metrics,
        attention: Attention,
        *,
        open_streams: OpenCalls,
        heartbeat_seconds: float,
        max_age_seconds: float,
    ) -> None:
        self._store = store
        self._hub = hub
        self._metrics = metrics
        self._attention = attention
        self._open_streams = open_streams
        self._heartbeat_seconds = heartbeat_seconds
        self._max_age_seconds = max_age_seconds

    async def watch(
        self,
        caller: str,
        task_id: str,
        after_revision: int,
        show: Callable[[Task], Awaitable[None]],
    ) -> None:
        """Show snapshots until the terminal one.

        Raises:
            ServiceError: TASK_NOT_FOUND, INVALID_PARAMS, RATE_LIMITED; STREAM_EXPIRED or
                SHUTTING_DOWN later.
        """
        with (
            self._open_streams.counted(caller),
            self._hub.subscribe(task_id, to_the_end=True) as subscription,
        ):
            # Subscribed first: a change from here on is seen twice and dropped by its revision,
            # never missed.
            task = await self._first(caller, task_id, after_revision)
            age = self._max_age_seconds * random.uniform(1 - JITTER, 1)
            try:
                # The writes are within it: one to a reader that has stopped may wait for ever.
                async with asyncio.timeout(age) as life:
                    if task.ended or task.revision != after_revision:
                        await show(task)
                    if not task.ended:
                        await self._attention.watched(task)
                    while not task.ended:
                        newer = await subscription.newer(task.revision, self._heartbeat_seconds)
                        if newer is None and subscription.draining:
                            words = "the server is going down: call again"
                            raise ServiceError("SHUTTING_DOWN", words)
                        task = newer or await self._present(task)
                        await show(task)
                        if newer:
                            self._metrics.fan_out(time.monotonic() - subscription.put_time)
            except TimeoutError:
                if not life.expired():
                    raise
                raise ServiceError("STREAM_EXPIRED", "the stream is old: call again") from None

    async def _first(self, caller: str, task_id: str, after_revision: int) -> Task:
        """Return the snapshot that a stream begins with.

        Raises:
            ServiceError: TASK_NOT_FOUND, INVALID_PARAMS.
        """
        task = await self._store.get(task_id)
        if task is None or task.caller != caller:
            raise not_found(task_id)
        self._hub.publish(task)
        if after_revision > task.revision:
            raise invalid("after_revision", f"must be at most {task.revision}, the present one")
        return task

    async def _present(self, task: Task) -> Task:
        """Return what a heartbeat repeats: others may have taken the task on, and their hint lost.

        Another process that polled it knows no streams but its own, and left it to its callback.
        """
        if not self._store.shared:
            return task
        try:
            task = await self._store.get(task.id) or task
        except StorageUnavailableError:
            return task
        self._hub.publish(task)
        await self._attention.watched(task)
        return task
