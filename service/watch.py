"""Streams of a task's snapshots, from the hub to a caller."""

import time
from collections.abc import Awaitable, Callable

from service.errors import invalid, not_found, shutting_down
from service.events import TaskEvents
from service.hub import Hub
from service.messages import size_of
from service.metrics import Metrics
from service.open_calls import OpenCalls
from service.outbox import StreamOutbox
from service.streams import LimitedAge
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Task


class Watcher:
    """Writes streams: the current snapshot, each newer one, heartbeats, and the final snapshot."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        metrics: Metrics,
        events: TaskEvents,
        *,
        open_streams: OpenCalls,
        outbox: StreamOutbox,
        heartbeat_seconds: float,
        max_age_seconds: float,
    ) -> None:
        self._store = store
        self._hub = hub
        self._metrics = metrics
        self._events = events
        self._open_streams = open_streams
        self._outbox = outbox
        self._heartbeat_seconds = heartbeat_seconds
        self._max_age_seconds = max_age_seconds

    async def watch(
        self,
        caller: str,
        task_id: str,
        after_revision: int,
        write: Callable[[Task], Awaitable[None]],
    ) -> None:
        """Write snapshots until the final one.

        Raises:
            ServiceError: TASK_NOT_FOUND, INVALID_PARAMS, RATE_LIMITED; RATE_LIMITED, STREAM_EXPIRED
                or SHUTTING_DOWN later.
        """
        outbox = self._outbox
        with (
            self._open_streams.counted(caller),
            self._hub.subscribe(task_id, to_the_end=True) as subscription,
        ):
            # Subscribe before reading: a change in between arrives twice and is dropped by its
            # revision, but never missed.
            task = await self._first(caller, task_id, after_revision)
            async with LimitedAge(self._max_age_seconds):
                if task.ended or task.revision != after_revision:
                    await outbox.write(caller, size_of(task), write, task)
                if not task.ended:
                    await self._events.on_watched(task)
                while not task.ended:
                    newer = await subscription.newer(task.revision, self._heartbeat_seconds)
                    if newer is None and subscription.draining:
                        raise shutting_down()
                    task = newer or await self._current(task)
                    await outbox.write(caller, size_of(task), write, task)
                    if newer:
                        self._metrics.fan_out(time.monotonic() - subscription.put_time)

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
            words = f"must be at most {task.revision}, the current revision"
            raise invalid("after_revision", words)
        return task

    async def _current(self, task: Task) -> Task:
        """Return the snapshot that a heartbeat repeats.

        Another process may have changed the task, and its hint may have been lost. That process
        does not know the streams of this one, so it may have postponed the next poll until the
        callback is overdue.
        """
        if not self._store.shared:
            return task
        try:
            task = await self._store.get(task.id) or task
        except StorageUnavailableError:
            return task
        self._hub.publish(task)
        await self._events.on_watched(task)
        return task
