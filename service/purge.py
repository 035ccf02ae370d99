"""Forgets what ended long ago, if the operator says so: off by default, as request_ids go too."""

import asyncio

import structlog

from storage.errors import StorageUnavailableError
from storage.store import Store

PURGE_SECONDS = 60.0
BATCH_TASKS = 500
BATCH_PAUSE_SECONDS = 0.05  # others write in between

log = structlog.get_logger()


class Purger:
    """Deletes tasks that ended longer ago than `retention_seconds`."""

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
        """Delete all that is old enough, in small batches; return how many tasks."""
        ended_before = self._store.now() - self._retention_seconds
        purged = 0
        while batch := await self._store.purge(ended_before, BATCH_TASKS):
            purged += batch
            if batch < BATCH_TASKS:
                break
            await asyncio.sleep(BATCH_PAUSE_SECONDS)
        return purged
