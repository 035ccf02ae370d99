"""Polls that callbacks cause: at once if possible, and at most one a second for each task."""

from functools import partial

from service.agenda import Agenda
from service.callback_pace import CallbackPace
from service.jobs import Jobs
from service.leases import Leases
from service.limits import Limits
from service.outage_log import OutageLog
from service.seen import Seen
from service.writer import Writer
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Lane, Stage, Status, Task


class NewerVersionError(Exception):
    """Only replicas of a newer version can work on a task."""


class CallbackPolls:
    """Polls tasks for which the provider has called back."""

    def __init__(
        self,
        *,
        store: Store,
        agenda: Agenda,
        leases: Leases,
        limits: Limits,
        jobs: Jobs,
        writer: Writer,
        seen: Seen,
        outage_log: OutageLog,
    ) -> None:
        self._store = store
        self._agenda = agenda
        self._leases = leases
        self._limits = limits
        self._jobs = jobs
        self._writer = writer
        self._seen = seen
        self._outage_log = outage_log
        self._pace = CallbackPace()

    async def on_callback(
        self,
        task_id: str,
        provider_task_id: str,
        hosts: frozenset[str] = frozenset(),
        content: int | None = None,
    ) -> bool:
        """Poll a task now, as the provider has called back for it.

        A callback during a poll causes another poll after it: the provider may have answered the
        first one before the callback was due.

        Args:
            task_id: Our id of the task.
            provider_task_id: The provider's id in the callback, or "".
            hosts: Those of the results that the callback names. They are logged if the task ends
                without a result.
            content: The hash of the callback, if known: one that repeats another one of the last
                second changes nothing.

        Returns:
            False if there is no such task.

        Raises:
            StorageUnavailableError: The database is unavailable.
            NewerVersionError: The callback is for replicas of a newer version.
        """
        self._seen.called_back(task_id, hosts)
        if self._is_covered(task_id, content):
            return True
        if (task := await self._store.get(task_id)) is None:
            return False
        if task.of_newer_version:
            raise NewerVersionError
        await self._poll(task, provider_task_id, content)
        return True

    def _is_covered(self, task_id: str, content: int | None) -> bool:
        """Return whether a callback needs no poll: it is a repetition, or a poll is in progress."""
        if self._pace.is_repeated(task_id, content, self._store.now()):
            return True
        if self._leases.is_polling(task_id):
            self._jobs.follow_up(task_id, partial(self._poll_again, task_id))
            return True
        return False

    async def _poll(self, task: Task, provider_task_id: str, content: int | None) -> None:
        due_time, at_once = 0.0, False

        def make_due(current: Task, now: float) -> Task | None:
            nonlocal due_time, at_once
            if self._is_covered(current.id, content):
                return None
            due_time = self._pace.next_time(current.id, now)
            after = after_callback(current, provider_task_id, due_time)
            if after is None or after == current:
                return None
            at_once = due_time <= now and self._can_poll(after, now)
            if not at_once:
                return after
            # Before everything that is due, and without a claim: saving it takes the lease.
            return after.scheduled(self._leases.end_time(now), after.setbacks)

        if saved := await self._writer.write(task, make_due):
            if saved.provider_task_id:
                self._pace.remember(saved.id, due_time, content)
            if at_once and not self._leases.is_held(saved.id):
                self._jobs.start(Lane.POLL, saved)

    def _can_poll(self, task: Task, now: float) -> bool:
        return (
            task.lane is Lane.POLL
            and bool(task.provider_task_id)
            and not self._agenda.is_stopped()
            and self._limits.room(Lane.POLL, now) > 0
        )

    async def _poll_again(self, task_id: str) -> None:
        try:
            await self.on_callback(task_id, "")
        except StorageUnavailableError as error:
            self._outage_log.failed("storage unavailable, a callback is lost", error)
        except NewerVersionError:
            return  # a newer version has taken over the task


def after_callback(task: Task, provider_task_id: str, now: float) -> Task | None:
    """Make a task due after a callback; None if that changes nothing.

    A callback shows that the provider accepted the task. So the record of `provider_task_id`, which
    the callback named, is looked up before the task is sent again, and even if it was refused.
    """
    if task.provider_task_id:
        delivered = task.status is Status.SUCCESS or task.artifacts
        return None if delivered else task.called_back(now)
    if task.candidate_id:
        return None  # the record that an earlier callback named is looked up first
    if task.stage is Stage.ACCEPTED:
        return task.suspended(provider_task_id, now)
    answer_may_come = task.stage is Stage.SUBMITTING and task.unknown_time is None
    if not provider_task_id:
        return task.unknown(now, task.due_time or now) if answer_may_come else None
    return task.with_candidate(provider_task_id, task.due_time if answer_may_come else now)
