"""The poller: one loop that sends tasks and polls them, and that is the recovery code as well.

The database is the queue. The loop claims what is due, starts a job for each task, and waits for
the first of: a wake-up, the next due time, the end. It keeps nothing about a task in memory, so
after a restart, or in another process on the same database, the same loop continues.

    agenda (when to look) -> limits (may it start?) -> claim -> jobs -> work -> writer

A claim is a lease: it postpones the task, and is renewed while the work lasts. A task whose worker
has died is due again when the lease expires.
"""

import time
from contextlib import suppress

from service.agenda import Agenda
from service.forever import forever
from service.jobs import Jobs
from service.leases import Leases
from service.limits import Limits
from service.metrics import Metrics
from service.outage_log import OutageLog
from service.recovery import Recovery
from storage.claims import Claim
from storage.errors import CommitUnknownError, StorageUnavailableError
from storage.store import Store
from storage.task import Lane, Task


class Poller:
    """Claims what is due, and starts the work on it. Times are unix seconds.

    Attributes:
        progress_time: When it last made progress, by the monotonic clock.
        ended: Whether its loop has ended.
    """

    def __init__(
        self,
        *,
        store: Store,
        agenda: Agenda,
        leases: Leases,
        limits: Limits,
        jobs: Jobs,
        recovery: Recovery,
        metrics: Metrics,
        outage_log: OutageLog,
    ) -> None:
        self._store = store
        self._agenda = agenda
        self._leases = leases
        self._limits = limits
        self._jobs = jobs
        self._recovery = recovery
        self._metrics = metrics
        self._outage_log = outage_log
        self.progress_time = time.monotonic()
        self.ended = False

    async def run(self) -> None:
        """Work until `stop` is called."""
        try:
            await forever(
                self._run_and_wait, "poller", 0, self._outage_log, self._agenda.is_stopped
            )
            with suppress(StorageUnavailableError):  # what was claimed by then, and is not sent
                await self._start_confirmed()
        finally:
            self.ended = True

    def stop(self) -> None:
        """Claim and send nothing more: what is claimed and not sent goes back to the queue."""
        self._agenda.stop()

    async def finish(self, poll_seconds: float, send_seconds: float) -> None:
        """Wait for the jobs, then cancel those that take longer; call it after `run` has ended.

        Args:
            poll_seconds: How long polls may take.
            send_seconds: How long paid requests may take.
        """
        await self._jobs.finish(poll_seconds, send_seconds)

    async def _run_and_wait(self) -> None:
        try:
            await self.run_once()
            self._outage_log.worked()
        except StorageUnavailableError as error:
            self._leases.disconnected()
            self._outage_log.failed("storage unavailable, the poller waits", error)
        await self._agenda.wait(self._store.now())

    async def run_once(self) -> None:
        """Start jobs on all tasks that are due and allowed."""
        self.progress_time = time.monotonic()
        self._agenda.begin(self._store.now())
        await self._recovery.resume_once()
        await self._start_confirmed()
        now = self._store.now()
        await self._recovery.follow_clock(now)
        if self._store.shared:
            await self._limits.follow_holds(now)
        due = [lane for lane in Lane if self._look_time(lane) <= now]
        for lane in due:
            if not self._agenda.is_stopped():
                await self._serve(lane, now)
        if due or self._agenda.is_outdated(now):
            await self._read_due_times(now)
        self._agenda.plan(min(map(self._look_time, Lane)), now)

    def _look_time(self, lane: Lane) -> float:
        due_time = self._agenda.due_time(lane) + self._limits.left_seconds(lane)
        return max(due_time, self._limits.opening_time(lane))

    async def _read_due_times(self, now: float) -> None:
        due_times = await self._store.next_due_times()
        if self._limits.passes_over:  # the last claim knows when the first other task is due
            del due_times[Lane.SUBMIT]
        self._agenda.set_due_times(due_times, now)
        self._leases.connected(now)

    # --- after a lost commit ---

    async def _start_confirmed(self) -> None:
        """Start jobs on what was claimed although the claim's commit was not confirmed."""
        if confirmed := await self._leases.confirm():
            for lane, task in confirmed:
                self._jobs.start(lane, task)
            await self._leases.renew_once()

    # --- a lane ---

    async def _serve(self, lane: Lane, now: float) -> None:
        """Start jobs on the due tasks of a lane."""
        self.progress_time = time.monotonic()
        try:
            claim = await self._claim(lane, now)
        except CommitUnknownError as error:
            self._leases.add_unconfirmed(lane, error.result.tasks)
            raise
        self._leases.connected(now)
        self._limits.claimed(lane, claim, now)
        for task in claim.tasks:
            self._jobs.start(lane, task, slot_time=now)

    async def _claim(self, lane: Lane, now: float) -> Claim:
        """Lease tasks, so that they are due again if this process dies."""
        lease_end = self._leases.end_time(now)
        if lane is Lane.SUBMIT:
            return await self._limits.claim_to_send(self._store, now, lease_end)
        due_times: dict[str, float | None] = {}

        def lease(task: Task) -> Task:
            due_times[task.id] = task.due_time
            return task.scheduled(lease_end, task.setbacks)

        room, quota = self._limits.room(lane, now), self._limits.quota(lane)
        due_by = now - self._limits.left_seconds(lane)
        claim = await self._store.claim(lane, due_by, room, lease, quota)
        for task in claim.tasks if lane is not Lane.STORE else ():
            self._metrics.poll_started(now - (due_times[task.id] or now))
        return claim
