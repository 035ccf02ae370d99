"""The follower: shows the watchers here what other processes on the database commit.

Hints tell at once which tasks have moved; they may be lost, so every watched task is compared with
the database from time to time all the same, in one query.
"""

import asyncio
import time

import structlog

from service.hub import Hub
from service.outage_log import OutageLog
from storage.errors import StorageUnavailableError
from storage.store import Store

SWEEP_SECONDS = 5.0
SWEEP_WITHOUT_HINTS_SECONDS = 1.0
SWEEP_MAX_TASKS = 2_000  # in one query
STORAGE_RETRY_SECONDS = 1.0

log = structlog.get_logger()


class Follower:
    """Publishes here what was committed elsewhere."""

    def __init__(self, store: Store, hub: Hub, outage_log: OutageLog) -> None:
        self._store = store
        self._hub = hub
        self._swept = 0.0
        self._outage_log = outage_log

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.run_once()
            except StorageUnavailableError as error:
                self._outage_log.failed("storage unavailable, watchers wait", error)
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
            except Exception:
                log.exception("the follower stumbled, and goes on")
                await asyncio.sleep(STORAGE_RETRY_SECONDS)

    async def run_once(self) -> None:
        """Wait for hints, or until it is time to compare; then publish what is new."""
        pause = SWEEP_SECONDS if self._store.hinted else SWEEP_WITHOUT_HINTS_SECONDS
        heard = await self._store.heard(max(self._swept + pause - time.monotonic(), 0))
        if heard:
            await self._catch_up(self._hub.outdated(heard))
        if not heard or time.monotonic() - self._swept >= pause:
            self._swept = time.monotonic()
            await self._catch_up(self._hub.seen_revisions())

    async def _catch_up(self, revisions: dict[str, int]) -> None:
        tasks = list(revisions.items())
        for start in range(0, len(tasks), SWEEP_MAX_TASKS):
            for task in await self._store.newer(dict(tasks[start : start + SWEEP_MAX_TASKS])):
                self._hub.publish(task)
