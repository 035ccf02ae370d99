"""The hub: from the poller that saved a snapshot to the streams that watch its task."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from service.waiter import Waiter
from storage.task import Task


class Subscription(Waiter):
    """Holds only the newest snapshot of a task for one reader, however slow it is.

    Attributes:
        newest: The snapshot that it holds.
        put_time: When it was put here, by the monotonic clock.
        to_the_end: Whether the reader stays until the task has ended, so that the task counts as
            watched.
        draining: Whether the process is shutting down.
    """

    __slots__ = ("_wants", "draining", "newest", "put_time", "to_the_end")

    def __init__(
        self, *, to_the_end: bool = False, wants: Callable[[Task], bool] | None = None
    ) -> None:
        super().__init__()
        self.newest: Task | None = None
        self._wants = wants
        self.put_time = 0.0
        self.draining = False
        self.to_the_end = to_the_end

    def put(self, task: Task) -> None:
        """Replace the snapshot if this one is newer, and wake the reader."""
        if self.newest is None or task.revision > self.newest.revision:
            self.newest = task
            self.put_time = time.monotonic()
            if self._wants is None or self._wants(task):
                self.wake()

    def drain(self) -> None:
        """Tell the reader that nothing more will come."""
        self.draining = True
        self.wake()

    async def newer(self, revision: int, timeout: float) -> Task | None:
        """Wait for a snapshot above `revision` that the reader wants, and return the newest one.

        Return None after `timeout` seconds without one, or when draining.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._is_news(revision):
            if self.draining or loop.time() >= deadline:
                return None
            await self.wait(deadline)
        return self.newest

    def _is_news(self, revision: int) -> bool:
        newest = self.newest
        if newest is None or newest.revision <= revision:
            return False
        return self._wants is None or self._wants(newest)


class _Topic:
    """A subscribed task: the newest revision seen in this process, and its subscriptions."""

    __slots__ = ("revision", "subscriptions")

    def __init__(self) -> None:
        self.revision = 0
        self.subscriptions: set[Subscription] = set()


class Hub:
    """Passes snapshots to the subscriptions of their task."""

    def __init__(self) -> None:
        self._topics: defaultdict[str, _Topic] = defaultdict(_Topic)
        self.draining = False

    @contextmanager
    def subscribe(
        self,
        task_id: str,
        *,
        to_the_end: bool = False,
        wants: Callable[[Task], bool] | None = None,
    ) -> Iterator[Subscription]:
        """Receive the snapshots of a task that are published from now on.

        Args:
            task_id: The task.
            to_the_end: Whether the reader stays until the task has ended.
            wants: Which snapshots wake the reader; all of them by default.
        """
        subscription = Subscription(to_the_end=to_the_end, wants=wants)
        subscription.draining = self.draining
        self._topics[task_id].subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            subscription.close()
            topic = self._topics[task_id]
            topic.subscriptions.discard(subscription)
            if not topic.subscriptions:
                del self._topics[task_id]

    def is_watched(self, task_id: str) -> bool:
        """Return whether a reader in this process stays until the task has ended."""
        topic = self._topics.get(task_id)
        return topic is not None and any(s.to_the_end for s in topic.subscriptions)

    def publish(self, task: Task) -> None:
        """Put a committed snapshot into each subscription; an older one changes nothing."""
        topic = self._topics.get(task.id)
        if topic is None or task.revision <= topic.revision:
            return
        topic.revision = task.revision
        for subscription in topic.subscriptions:
            subscription.put(task)

    def seen_revisions(self) -> dict[str, int]:
        """Return the tasks with subscriptions, and the newest revision seen of each."""
        return {task_id: topic.revision for task_id, topic in self._topics.items()}

    def outdated(self, revisions: Mapping[str, int]) -> dict[str, int]:
        """Return the tasks with subscriptions that are at a higher revision elsewhere.

        Args:
            revisions: The revisions that other processes have committed.

        Returns:
            The newest revision seen here of each such task.
        """
        return {
            task_id: topic.revision
            for task_id, revision in revisions.items()
            if (topic := self._topics.get(task_id)) and topic.revision < revision
        }

    def drain(self) -> None:
        """End every wait: the process is shutting down."""
        self.draining = True
        for topic in self._topics.values():
            for subscription in topic.subscriptions:
                subscription.drain()
