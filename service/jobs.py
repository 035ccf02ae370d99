"""The jobs in progress: one asyncio task for each task that is being worked on."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from service.agenda import Agenda
from service.hub import Hub
from service.leases import Leases
from service.limits import Limits
from service.logged_task import logged_task
from service.outage_log import RETRY_SECONDS
from storage.claims import Quota
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Lane, Task

log = structlog.get_logger()

LaneWork = Callable[[Task], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class JobTimes:
    """How jobs keep to the account's rate.

    Attributes:
        slot_seconds: How long a slot is valid: a request that starts later takes another one.
    """

    slot_seconds: float = 0.15


class Jobs:
    """Starts jobs, and isolates them from each other."""

    def __init__(
        self,
        *,
        works: Mapping[Lane, LaneWork],
        store: Store,
        hub: Hub,
        agenda: Agenda,
        leases: Leases,
        limits: Limits,
        times: JobTimes,
    ) -> None:
        self._works = works
        self._store = store
        self._hub = hub
        self._agenda = agenda
        self._leases = leases
        self._limits = limits
        self._times = times
        self._running: dict[asyncio.Task[None], Lane] = {}
        self._follow_ups: dict[str, Callable[[], Awaitable[None]]] = {}

    def start(self, lane: Lane, task: Task, slot_time: float = 0.0) -> None:
        """Start the work of a lane on a task whose lease was taken just now.

        Args:
            lane: Where the task was claimed from.
            task: The claimed task.
            slot_time: When a slot was taken for its request; 0 if none was.
        """
        self._hub.publish(task)
        self._limits.job_started(lane)
        self._leases.hold(lane, task)
        job = asyncio.create_task(self._run(lane, task, slot_time))
        self._running[job] = lane
        job.add_done_callback(self._running.pop)

    def follow_up(self, task_id: str, call: Callable[[], Awaitable[None]]) -> None:
        """Call `call` when the job on a task has ended. A later call replaces an earlier one."""
        self._follow_ups[task_id] = call

    async def finish(self, poll_seconds: float, send_seconds: float) -> None:
        """Wait for the jobs, then cancel those that take longer. Start none from now on.

        Args:
            poll_seconds: How long polls may take: they are repeated after the next start.
            send_seconds: How long paid requests may take: they are never repeated.
        """
        sends = {job for job, lane in self._running.items() if lane is Lane.SUBMIT}
        polls = set(self._running) - sends
        _, unanswered = await asyncio.gather(_end(polls, poll_seconds), _end(sends, send_seconds))
        if unanswered:
            log.error("paid requests abandoned, as they were not answered", count=unanswered)

    async def _run(self, lane: Lane, task: Task, slot_time: float) -> None:
        """Isolate failures: an exception in one job must not stop the loop.

        The task is retried when its lease expires.
        """
        # A job is an asyncio task, so it has its own context variables.
        logged_task.set(task)
        try:
            await self._take_fresh_slot(self._limits.quota(lane), slot_time)
            if lane is Lane.SUBMIT or not self._agenda.is_stopped():
                await self._works[lane](task)
        except Exception:
            log.exception("task job failed")
        finally:
            self._leases.drop(lane, task)
            self._limits.job_ended(lane, task.model)
        if follow_up := self._follow_ups.pop(task.id, None):
            await follow_up()

    async def _take_fresh_slot(self, quota: Quota, slot_time: float) -> None:
        """Take another slot if the one that was taken is no longer valid.

        A slot is valid only briefly, and the request could not start in time. During a
        shutdown no slot is taken, as no request is started.
        """
        if not quota.limit:
            return
        while (now := self._store.now()) - slot_time > self._times.slot_seconds:
            if self._agenda.is_stopped():
                return
            try:
                free_time = await self._store.take_slot(quota, now)
            except StorageUnavailableError:
                free_time = now + RETRY_SECONDS
            if free_time:
                await self._agenda.sleep(free_time - now)
            else:
                slot_time = now


async def _end(jobs: set[asyncio.Task[None]], seconds: float) -> int:
    """Wait for jobs, then cancel those that take longer; return how many were cancelled."""
    if not jobs:
        return 0
    _, remaining = await asyncio.wait(jobs, timeout=max(0.0, seconds))
    for job in remaining:
        job.cancel()
    await asyncio.gather(*remaining, return_exceptions=True)
    return len(remaining)
