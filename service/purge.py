"""Forgets tasks that ended, and their request_ids with them.

Deleting tasks by age is off by default. A cancelled task, which was never sent, is always deleted
after a day, or earlier if its caller has very many: otherwise a caller that creates and cancels in
a loop could fill the disk without paying anything.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from storage.errors import StorageUnavailableError
from storage.store import Store

PURGE_SECONDS = 60.0
BATCH_TASKS = 500
BATCH_PAUSE_SECONDS = 0.05  # others write in between
CANCELLED_KEPT_SECONDS = 86_400.0
CANCELLED_KEPT_MAX = 10_000  # of each caller
CANCELLED_KEPT_MIN_SECONDS = 60.0  # however many: creates_per_minute counts them

log = structlog.get_logger()


class Purger:
    """Deletes tasks that ended longer ago than `retention_seconds`; 0 keeps them forever."""

    def __init__(self, store: Store, retention_seconds: float) -> None:
        self._store = store
        self._retention_seconds = retention_seconds

    async def run(self) -> None:
        """Purge until cancelled."""
        while True:
            try:
                if purged := await self.run_once():
                    log.info("ended tasks purged", tasks=purged)
            except StorageUnavailableError as error:
                log.warning("storage unavailable, nothing is purged", error=str(error))
            except Exception:
                log.exception("the purge stumbled, and goes on")
            await asyncio.sleep(PURGE_SECONDS)

    async def run_once(self) -> int:
        """Delete what is not kept any longer, in small batches; return how many tasks."""
        purged = 0
        if self._retention_seconds:
            ended_before = self._store.now() - self._retention_seconds
            purged = await _in_batches(lambda limit: self._store.purge(ended_before, limit))
        return purged + await self._purge_cancelled()

    async def _purge_cancelled(self) -> int:
        purged = 0
        for caller, tasks, oldest in await self._store.cancelled():
            old = self._store.now() - CANCELLED_KEPT_SECONDS
            if oldest < old:
                purged += await self._purge_cancelled_of(caller, old, tasks)
            elif tasks > CANCELLED_KEPT_MAX:
                recent = self._store.now() - CANCELLED_KEPT_MIN_SECONDS
                purged += await self._purge_cancelled_of(caller, recent, tasks - CANCELLED_KEPT_MAX)
        return purged

    async def _purge_cancelled_of(self, caller: str, ended_before: float, most: int) -> int:
        return await _in_batches(
            lambda limit: self._store.purge_cancelled(caller, ended_before, limit), most
        )


async def _in_batches(purge: Callable[[int], Awaitable[int]], most: int | None = None) -> int:
    """Delete until there is nothing left, or `most` are gone; return how many."""
    purged = 0
    while (limit := BATCH_TASKS if most is None else min(BATCH_TASKS, most - purged)) > 0:
        batch = await purge(limit)
        purged += batch
        if batch < limit:
            break
        await asyncio.sleep(BATCH_PAUSE_SECONDS)
    return purged
