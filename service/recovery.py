"""Repairs what an earlier process or a jump of the clock left behind.

Due times and leases are times of the clock. If the clock was set back, by the operator of the
machine or because a standby with another clock took over, they are further ahead than anything is
ever scheduled, and their tasks would wait for as long as the clock jumped.
"""

from dataclasses import dataclass

from service.agenda import Agenda
from service.leases import Leases
from service.limits import Limits
from storage.clock import SKEW_SECONDS
from storage.store import Store
from storage.task import Lane


@dataclass(frozen=True, slots=True)
class LongestWaits:
    """How long a task may wait for its due time.

    Attributes:
        send_seconds: To be sent again.
        poll_seconds: To be polled.
        late_seconds: To be polled for a late delivery.
        store_seconds: For another attempt to copy its results.
    """

    send_seconds: float
    poll_seconds: float
    late_seconds: float
    store_seconds: float


class Recovery:
    """Brings the queue, and what this process knows of it, up to date with the clock."""

    def __init__(
        self, *, store: Store, agenda: Agenda, leases: Leases, limits: Limits, waits: LongestWaits
    ) -> None:
        self._store = store
        self._agenda = agenda
        self._leases = leases
        self._limits = limits
        self._waits = waits
        self._resumed = False
        self._jump = store.clock.last_jump

    async def resume_once(self) -> None:
        """Take over, once, what an earlier process left behind.

        Raises:
            StorageUnavailableError: The database is unavailable; the next call tries again.
        """
        if self._resumed:
            return
        for quota in {self._limits.quota(lane) for lane in Lane}:
            await self._store.add_slots(quota)
        now = self._store.now()
        await self._limits.follow_holds(now)
        if not self._store.shared:
            await self._store.make_abandoned_due(now)
        waits = self._waits
        await self._limit(Lane.SUBMIT, now, waits.send_seconds)
        await self._limit(Lane.POLL, now, waits.poll_seconds)
        await self._limit(Lane.LATE, now, waits.late_seconds)
        await self._limit(Lane.STORE, now, waits.store_seconds)
        await self._store.limit_leases(self._leases.end_time(now) + SKEW_SECONDS, now)
        self._agenda.set_due_times(await self._store.next_due_times(), now)
        self._resumed = True

    async def follow_clock(self, now: float) -> None:
        """Correct what depends on the clock, after each of its jumps.

        Args:
            now: The current time, read before this call: so the jump before it is known here.

        Raises:
            StorageUnavailableError: The database is unavailable; the next call tries again.
        """
        jump = self._store.clock.last_jump
        if jump is None or jump is self._jump:
            return
        # By then every process has followed the clock, and has renewed the leases that it holds.
        lease_end = self._leases.end_time(now)
        self._leases.clock_jumped(now)
        self._agenda.clock_jumped()
        await self._leases.renew_once()
        self._limits.clock_jumped(now, polls_from=lease_end)
        if jump.seconds < 0:
            await self._store.limit_due_times(Lane.SUBMIT, lease_end, now)
            await self._store.limit_due_times(Lane.POLL, lease_end, lease_end)
            await self._limit(Lane.LATE, now, self._waits.late_seconds)
            await self._limit(Lane.STORE, now, self._waits.store_seconds)
        self._agenda.set_due_times(await self._store.next_due_times(), now)
        self._jump = jump

    async def _limit(self, lane: Lane, now: float, longest_seconds: float) -> None:
        """Make those tasks due now that would wait for longer than they may."""
        await self._store.limit_due_times(lane, now + longest_seconds + SKEW_SECONDS, now)
