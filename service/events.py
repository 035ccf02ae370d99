"""What callers do to tasks, and what the poller does about it."""

from service.agenda import Agenda
from service.limits import Limits
from service.logged_task import logging_task
from service.outage_log import OutageLog
from service.verdicts import Verdicts
from service.writer import Writer
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Failure, Lane, Stage, Task


class TaskEvents:
    """Passes on that a task was created, is watched or is to be cancelled."""

    def __init__(
        self,
        *,
        store: Store,
        agenda: Agenda,
        limits: Limits,
        verdicts: Verdicts,
        writer: Writer,
        outage_log: OutageLog,
        has_callbacks: bool,
    ) -> None:
        self._store = store
        self._agenda = agenda
        self._limits = limits
        self._verdicts = verdicts
        self._writer = writer
        self._outage_log = outage_log
        self._has_callbacks = has_callbacks

    def on_created(self, task: Task) -> None:
        """Send a new task at once, or soon if earlier tasks of its caller have to wait as well."""
        self._agenda.wake(Lane.SUBMIT, self._limits.send_time(task.caller, self._store.now()))

    async def on_watched(self, task: Task) -> None:
        """Poll a task by its age, instead of rarely until its callback is overdue."""
        if not self._has_callbacks:
            return
        try:
            await self._writer.write(task, self._verdicts.after_watch)
        except StorageUnavailableError as error:
            self._outage_log.failed("storage unavailable, a watched task waits", error)

    async def cancel(self, task: Task) -> None:
        """Cancel a task unless it is being sent by now. It is cancelled or sent, never both."""
        with logging_task(task):
            await self._writer.write(task, _cancelled)


def _cancelled(task: Task, now: float) -> Task | None:
    if task.stage is not Stage.ACCEPTED:
        return None
    return task.failed(Failure("CANCELLED", "cancelled by its caller"), now)
