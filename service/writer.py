"""Writes snapshots: every change of a task after its creation goes through here."""

import asyncio
from collections.abc import Callable

import structlog

from service.agenda import Agenda
from service.hub import Hub
from service.limits import Limits
from service.metrics import Metrics
from service.outage_log import RETRY_SECONDS, OutageLog
from service.verdicts import Verdicts
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Lane, Task

# From the current task and time to the next snapshot; None leaves the task as it is.
Decide = Callable[[Task, float], Task | None]

log = structlog.get_logger()


class Writer:
    """Decides and saves until nobody else has changed the task in between; then publishes."""

    def __init__(
        self,
        *,
        store: Store,
        hub: Hub,
        agenda: Agenda,
        limits: Limits,
        verdicts: Verdicts,
        metrics: Metrics,
        outage_log: OutageLog,
    ) -> None:
        self._store = store
        self._hub = hub
        self._agenda = agenda
        self._limits = limits
        self._verdicts = verdicts
        self._metrics = metrics
        self._outage_log = outage_log

    async def write(self, task: Task, decide: Decide, *, patient: bool = False) -> Task | None:
        """Save the snapshot that `decide` returns, and return it; None if `decide` returns None.

        A task of a newer version stays as it is.

        Compare-and-set: if the task has changed in the meantime, it is read and decided on again.

        Args:
            task: The task as it was last read.
            decide: Called with the current task and time.
            patient: Whether to wait while the database is unavailable.

        Raises:
            StorageUnavailableError: The database is unavailable, and the writer is not patient.
        """
        current: Task | None = task
        while current is not None and not current.of_newer_version:
            if (after := decide(current, self._store.now())) is None:
                return None
            try:
                if saved := await self._store.save(current, after):
                    self._announce(current, saved)
                    return saved
                current = await self._store.get(task.id)
            except StorageUnavailableError as error:
                if not patient:
                    raise
                self._outage_log.failed("storage unavailable, a snapshot waits", error)
                await asyncio.sleep(RETRY_SECONDS)
        return None

    def _announce(self, before: Task, after: Task) -> None:
        """Publish a saved snapshot, learn from it, and count it."""
        if after.revision > before.revision:
            self._hub.publish(after)
        self._agenda.add(after)
        if before.lane is Lane.POLL and after.lane is not Lane.POLL:
            self._limits.task_left_provider(after.caller)
        if after.stage and after.stage is not before.stage:
            self._metrics.task_moved(after.model, after.stage)
        if before.provider_end_time is None:
            self._verdicts.learn(after)
        if after.ended and not before.ended:
            self._announce_end(after)

    def _announce_end(self, task: Task) -> None:
        reason = task.failure.reason if task.failure else ""
        self._metrics.task_ended(task.model, task.status, reason, task.caller)
        log.info("task ended", status=task.status, **({"reason": reason} if reason else {}))
