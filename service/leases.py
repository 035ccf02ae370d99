"""Leases: a claimed task is due again after a while, unless its holder renews the lease."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass

from service.outage_log import RETRY_SECONDS
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Lane, Task


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """How long a lease lasts.

    Attributes:
        lease_seconds: A task is due again this long after its holder has died.
        renew_seconds: How often leases are renewed.
    """

    lease_seconds: float = 10.0
    renew_seconds: float = 3.0


class Leases:
    """The leases that this process holds. Times are unix seconds."""

    def __init__(self, store: Store, times: LeaseTimes) -> None:
        self._store = store
        self._times = times
        self._held: dict[str, Task] = {}
        self._sending: set[str] = set()
        self._unconfirmed: list[tuple[Lane, Task]] = []
        self._connected_since = math.inf

    def end_time(self, now: float) -> float:
        """Return when a lease that is taken now ends."""
        return now + self._times.lease_seconds

    # --- held ---

    def hold(self, lane: Lane, task: Task) -> None:
        """Hold the lease of a task that was claimed from a lane."""
        self._held[task.id] = task
        if lane is Lane.SUBMIT:
            self._sending.add(task.id)

    def drop(self, lane: Lane, task: Task) -> None:
        """Release a lease: the work has ended.

        A task that is still being sent may have been claimed a second time, from another lane; then
        the lease is its sender's.
        """
        if lane is Lane.SUBMIT:
            self._sending.discard(task.id)
        if task.id not in self._sending:
            self._held.pop(task.id, None)

    def is_held(self, task_id: str) -> bool:
        """Return whether this process works on a task."""
        return task_id in self._held

    def is_sending(self, task_id: str) -> bool:
        """Return whether this process is sending a task."""
        return task_id in self._sending

    def is_polling(self, task_id: str) -> bool:
        """Return whether this process is polling a task that the provider has."""
        task = self._held.get(task_id)
        return task is not None and bool(task.provider_task_id)

    # --- renewed ---

    async def renew_once(self) -> None:
        """Renew leases on tasks that have been in progress for a while.

        Short jobs finish before theirs expires. A lease that ends later than any that is taken now
        is from before the clock was set back.
        """
        now = self._store.now()
        end_time = self.end_time(now)
        aging = end_time - self._times.renew_seconds
        old = [
            task for task in self._held.values() if not aging <= (task.due_time or now) <= end_time
        ]
        for task in await self._store.renew(old, end_time) if old else ():
            if task.id in self._held:
                self._held[task.id] = task

    async def may_send(self, task: Task) -> bool:
        """Return whether a task may be sent: the claim is ours, and nobody sent the task before."""
        return await self.is_ours(task) and self._held[task.id].unknown_time is None

    async def is_ours(self, task: Task) -> bool:
        """Renew the lease of a task if it has expired, before anything irreversible is done.

        Returns:
            True unless another process took over while this one was paused.
        """
        while lease := self._held.get(task.id):
            if (now := self._store.now()) <= (lease.due_time or now):
                return True
            try:
                renewed = await self._store.renew([lease], self.end_time(now))
            except StorageUnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not renewed:
                return False
            self._held[task.id] = renewed[0]
        return False

    # --- confirmed ---

    def add_unconfirmed(self, lane: Lane, tasks: Iterable[Task]) -> None:
        """Remember claims of which it is not known whether they were committed."""
        self._unconfirmed += [(lane, task) for task in tasks]

    async def confirm(self) -> list[tuple[Lane, Task]]:
        """Return the remembered claims that were committed.

        A claim is ours only if every field matches: another process could have produced the same
        version number.
        """
        if not self._unconfirmed:
            return []
        claims, self._unconfirmed = self._unconfirmed, []
        try:
            current = await asyncio.gather(*(self._store.get(task.id) for _, task in claims))
        except StorageUnavailableError:
            self._unconfirmed = claims
            raise
        return [c for c, found in zip(claims, current, strict=True) if _is_claimed(*c, found)]

    # --- judged ---

    def connected(self, now: float) -> None:
        """Note that the database is available."""
        self._connected_since = min(self._connected_since, now)

    def disconnected(self) -> None:
        """Note that the database is unavailable, so that leases cannot be renewed."""
        self._connected_since = math.inf

    def clock_jumped(self, now: float) -> None:
        """Note that the clock has jumped, so that leases may seem to have expired."""
        if self._connected_since < math.inf:
            self._connected_since = now

    def judgement_time(self) -> float:
        """Return the time from which an expired lease shows that its holder has died.

        After an outage of the database the holder first gets the time to renew it. Infinity while
        the database is unavailable.
        """
        return self._connected_since + self._times.lease_seconds


def _is_claimed(lane: Lane, claimed: Task, found: Task | None) -> bool:
    """Return whether a claim was committed.

    The end of the lease is not compared: after a jump of the clock it may have been moved. The time
    of sending also tells the claims of two processes apart.
    """
    if found is not None and lane is Lane.SUBMIT:
        found = found._replace(due_time=claimed.due_time)
    return found == claimed
