"""Deletes tasks that have ended, and their request_ids with them.

Deleting tasks by age is off by default. A cancelled task, which was never sent, is always deleted
after a day, or earlier if its caller has very many: otherwise a caller that creates and cancels in
a loop could fill the disk at no cost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from service.results.objects import Objects
from storage.store import Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PurgeBounds:
    """How often tasks are deleted, how many at a time, and which cancelled tasks are kept.

    Attributes:
        pause_seconds: Between two runs.
        batch_tasks: How many tasks are deleted in one transaction, which has to stay short even if
            the database takes 20 ms for each.
        batch_pause_seconds: Between two batches, so that others can write.
        cancelled_kept_seconds: How long a cancelled task is kept.
        cancelled_kept_max: How many cancelled tasks of a caller are kept.
        cancelled_kept_min_seconds: How long they are kept however many there are: the limit
            creates_per_minute counts them.
    """

    pause_seconds: float = 60.0
    batch_tasks: int = 100
    batch_pause_seconds: float = 0.05
    cancelled_kept_seconds: float = 86_400.0
    cancelled_kept_max: int = 10_000
    cancelled_kept_min_seconds: float = 60.0


BOUNDS = PurgeBounds()


class Purger:
    """Deletes tasks that ended longer ago than `retention_seconds`; 0 keeps them forever."""

    def __init__(
        self,
        store: Store,
        retention_seconds: float,
        bounds: PurgeBounds = BOUNDS,
        objects: Objects | None = None,
    ) -> None:
        """Keep what is needed.

        Args:
            store: The tasks.
            retention_seconds: How long they are kept.
            bounds: How tasks are deleted.
            objects: Where the copies of their results are; None leaves the copies.
        """
        self._store = store
        self._retention_seconds = retention_seconds
        self._objects = objects
        self._bounds = bounds

    async def run_once(self) -> None:
        """Delete what is no longer kept, in small batches."""
        purged = 0
        if self._retention_seconds:
            ended_before = self._now() - self._retention_seconds
            purged = await self._in_batches(lambda limit: self._purge(ended_before, limit))
        purged += await self._purge_cancelled()
        if purged:
            log.info("ended tasks purged", tasks=purged)

    def _now(self) -> float:
        """Return the time, without jumps ahead: they make no task older."""
        return self._store.clock.without_jumps(self._store.now())

    async def _purge(self, ended_before: float, limit: int) -> int:
        """Delete a batch, and the copies of its results before it: none is left without a task."""
        if self._objects is None:
            return await self._store.purge(ended_before, limit)
        tasks = await self._store.purgeable(ended_before, limit)
        copies = [artifact.copy for task in tasks for artifact in task.artifacts]
        keys = [self._objects.place.key_of(copy.uri) for copy in copies if copy]
        await self._objects.delete([key for key in keys if key])
        return await self._store.purge_each(tasks)

    async def _purge_cancelled(self) -> int:
        purged = 0
        kept_max = self._bounds.cancelled_kept_max
        for caller, tasks, oldest in await self._store.cancelled():
            old = self._now() - self._bounds.cancelled_kept_seconds
            if oldest < old:
                purged += await self._purge_cancelled_of(caller, old, tasks)
            elif tasks > kept_max:
                recent = self._now() - self._bounds.cancelled_kept_min_seconds
                purged += await self._purge_cancelled_of(caller, recent, tasks - kept_max)
        return purged

    async def _purge_cancelled_of(self, caller: str, ended_before: float, most: int) -> int:
        return await self._in_batches(
            lambda limit: self._store.purge_cancelled(caller, ended_before, limit), most
        )

    async def _in_batches(
        self, purge: Callable[[int], Awaitable[int]], most: int | None = None
    ) -> int:
        """Delete until nothing is left, or `most` tasks are deleted; return how many."""
        batch_tasks = self._bounds.batch_tasks
        purged = 0
        while (limit := batch_tasks if most is None else min(batch_tasks, most - purged)) > 0:
            batch = await purge(limit)
            purged += batch
            if batch < limit:
                break
            await asyncio.sleep(self._bounds.batch_pause_seconds)
        return purged
