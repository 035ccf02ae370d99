"""The follower: publishes in this process what other processes on the database commit.

Hints tell at once which tasks have changed. Hints may be lost, so every watched task is also
compared with the database from time to time, in one query.
"""

import time
from dataclasses import dataclass

from service.feed import Feed
from service.hub import Hub
from storage.store import Store


@dataclass(frozen=True, slots=True)
class FollowTimes:
    """How often watched tasks are compared with the database.

    Attributes:
        sweep_seconds: Between two comparisons.
        sweep_without_hints_seconds: The same while no hints can be received.
        sweep_max_tasks: How many tasks are compared in one query.
    """

    sweep_seconds: float = 5.0
    sweep_without_hints_seconds: float = 1.0
    sweep_max_tasks: int = 2_000


class Follower:
    """Publishes what other processes commit."""

    def __init__(self, store: Store, hub: Hub, feed: Feed, times: FollowTimes) -> None:
        self._store = store
        self._hub = hub
        self._feed = feed
        self._times = times
        self._swept = 0.0

    async def run_once(self) -> None:
        """Wait for hints, or until the next comparison is due; then publish what is new."""
        times = self._times
        pause = (
            times.sweep_seconds if self._store.is_listening else times.sweep_without_hints_seconds
        )
        hints = await self._store.wait_for_hints(max(self._swept + pause - time.monotonic(), 0))
        if hints:
            self._feed.wake()
            await self._catch_up(self._hub.outdated(hints))
        if not hints or time.monotonic() - self._swept >= pause:
            self._swept = time.monotonic()
            await self._catch_up(self._hub.seen_revisions())

    async def _catch_up(self, revisions: dict[str, int]) -> None:
        tasks = list(revisions.items())
        batch = self._times.sweep_max_tasks
        for start in range(0, len(tasks), batch):
            for task in await self._store.newer(dict(tasks[start : start + batch])):
                self._hub.publish(task)
