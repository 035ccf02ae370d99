"""The limits on work in progress: may this lane start something now, and which task?

The account at the provider limits how many requests may be sent in a window of time, and how many
tasks may run. Tasks beyond these limits wait, and their callers are served round-robin. Tasks that
the provider does not accept right now wait, too: see service/holds.py.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from providers.base import Submission
from service.account_hold import AccountHold
from service.agenda import Agenda
from service.caller_limits import CallerLimits
from service.holds import Holds, HoldTimes, Learned
from service.metrics import Metrics
from storage.claims import Claim, Quota, RunningMax, Sending, Waiting
from storage.store import Store
from storage.task import Lane, Stage, Task

UNLIMITED = Quota("none", 0, 1.0)
PROBE_DEPTH = 1_000  # how many waiting tasks of a caller are looked at to find a probe


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What the account at the provider allows; 0 means no limit."""

    creates_per_10_seconds: int
    status_per_second: int
    running_max: int
    creates_in_flight_max: int = 0


@dataclass(frozen=True, slots=True)
class LimitBounds:
    """Limits that no setting changes.

    Attributes:
        creates_window_seconds: The account's window of 10 s, plus a margin for uneven latency.
        status_window_seconds: The account's window of 1 s, plus a margin as well.
        submit_jobs_max: How many tasks are sent at a time.
        poll_jobs_max: How many tasks are polled at a time.
        late_jobs_max: How many ended tasks are polled for a late delivery at a time.
        unkept_jobs_max: How many tasks in STORING are ended at a time if results are not kept.
        polls_claimed_max: How many polls start together at most, so that callbacks are not delayed
            by a burst of polls.
        recheck_seconds: How soon a limit of the account that was reached is checked again, as
            other processes may have made room.
        passed_over_seconds: The same for a limit of a caller.
        passed_over_pause_seconds: How long a new task waits if its caller is at its limit.
        holds: How long tasks are held while the provider does not accept them.
    """

    creates_window_seconds: float = 10.3
    status_window_seconds: float = 1.2
    submit_jobs_max: int = 128
    poll_jobs_max: int = 256
    late_jobs_max: int = 16
    unkept_jobs_max: int = 16
    polls_claimed_max: int = 16
    recheck_seconds: float = 3.0
    passed_over_seconds: float = 1.0
    passed_over_pause_seconds: float = 0.1
    holds: HoldTimes = field(default_factory=HoldTimes)


@dataclass(frozen=True, slots=True)
class StoreLane:
    """How tasks whose results are to be copied are claimed.

    Attributes:
        jobs_max: How many at a time.
        left_seconds: How long they are left to other processes once they are due.
    """

    jobs_max: int
    left_seconds: float = 0.0


class Limits:
    """Decides how much each lane may start. Times are unix seconds."""

    def __init__(
        self,
        *,
        account: AccountLimits,
        store_lane: StoreLane,
        bounds: LimitBounds,
        callers: CallerLimits,
        agenda: Agenda,
        metrics: Metrics,
        holds: Holds,
    ) -> None:
        self._account = account
        self._bounds = bounds
        self._callers = callers
        self._agenda = agenda
        self._metrics = metrics
        self._gates = _gates(account, bounds, store_lane)
        self._holds = holds
        self._turns = Turns()
        self._running_full = False
        self._passed_over: frozenset[str] = frozenset()

    # --- may this lane start now? ---

    def quota(self, lane: Lane) -> Quota:
        """Return the quota of the requests of a lane."""
        return self._gates[lane].quota

    def left_seconds(self, lane: Lane) -> float:
        """Return how long due tasks of a lane are left to other processes."""
        return self._gates[lane].left_seconds

    def room(self, lane: Lane, now: float) -> int:
        """Return how many jobs of a lane may start now."""
        room: float = self._gates[lane].free
        if lane is Lane.SUBMIT:
            room = min(room, self._holds.room(now))
        else:
            room = min(room, self._bounds.polls_claimed_max)
        return int(room)

    def opening_time(self, lane: Lane) -> float:
        """Return when this lane may accept work again.

        Infinity if it is full: a finishing job will wake the loop.
        """
        gate = self._gates[lane]
        if not gate.free:
            return math.inf
        if lane is not Lane.SUBMIT:
            return gate.opening_time
        return max(gate.opening_time, self._holds.opening_time())

    def send_time(self, caller: str, now: float) -> float:
        """Return when a new task is due: soon, if earlier tasks of its caller have to wait."""
        return now + self._bounds.passed_over_pause_seconds if caller in self._passed_over else 0.0

    @property
    def passes_over(self) -> bool:
        """Whether tasks are due that have to wait for other tasks of their callers to end."""
        return bool(self._passed_over)

    # --- claims ---

    async def claim_to_send(self, store: Store, now: float, lease_end: float) -> Claim:
        """Claim the tasks to be sent now. They are SUBMITTING from here on, also in the database.

        Raises:
            CommitUnknownError: The claim may have been committed.
        """
        room = self.room(Lane.SUBMIT, now)
        sending = Sending(
            room=room,
            depth=PROBE_DEPTH if self._holds.probes else room,
            admit=self._holds.admitted,
            pick=self._pick,
            move=lambda task: task.submitting(now, lease_end),
            quota=self.quota(Lane.SUBMIT),
            running_max=self._running_max(),
            sending_max=self._sending_max(),
            closed_models=self._holds.closed_models(now),
        )
        claim = await store.claim_in_turns(now, sending)
        self._holds.sent(claim.tasks)
        for task in claim.tasks:
            self._metrics.task_moved(task.model, Stage.SUBMITTING)
        return claim

    def _running_max(self) -> RunningMax:
        limits = self._callers.table()
        in_all = self._account.running_max or math.inf
        return RunningMax(in_all, lambda caller: limits.of(caller).running)

    def _sending_max(self) -> float:
        return 1 if self._holds.probes_account else self._account.creates_in_flight_max or math.inf

    def _pick(self, waiting: Sequence[Waiting], room: int) -> list[str]:
        if self._holds.probes_any:
            return self._turns.pick_probe(waiting)
        return self._turns.pick(waiting, room)

    def claimed(self, lane: Lane, claim: Claim, now: float) -> None:
        """Learn from a claim which limits were reached."""
        gate = self._gates[lane]
        gate.opening_time = min(claim.next_time, now + self._bounds.recheck_seconds)
        if claim.tasks and gate.limited_since is not None:
            self._metrics.limiter_waited(lane, now - gate.limited_since)
            gate.limited_since = None
        if claim.next_time and gate.limited_since is None:
            gate.limited_since = now
        if lane is Lane.SUBMIT:
            self._claimed_to_send(claim, now)

    def _claimed_to_send(self, claim: Claim, now: float) -> None:
        self._running_full = claim.next_time == math.inf
        self._passed_over = claim.passed_over
        # Tasks of callers that are passed over are due, but not to be claimed again and again.
        due_time = min(claim.due_time, now + self._bounds.passed_over_seconds)
        self._agenda.set_due_times({Lane.SUBMIT: due_time}, now)
        if not claim.tasks and self._holds.probes:
            next_time = self._holds.next_opening_time()
            self._agenda.hold_back(min(next_time, now + self._bounds.recheck_seconds))

    # --- jobs ---

    def job_started(self, lane: Lane) -> None:
        """Count a job."""
        self._gates[lane].jobs += 1

    def job_ended(self, lane: Lane, model: str) -> None:
        """Count a job as ended, and wake the poller if others may start now."""
        gate = self._gates[lane]
        was_full = not gate.free
        gate.jobs -= 1
        was_probe = lane is Lane.SUBMIT and self._holds.ended(model)
        if was_full or was_probe:
            self._agenda.wake()

    async def learn_availability(self, task: Task, outcome: Submission, now: float) -> Learned:
        """Learn whether the provider accepts tasks."""
        opens = await self._holds.open(outcome, now)
        return self._holds.learn(task, outcome, now, opens=opens)

    @property
    def account(self) -> AccountHold:
        """Whether the provider refuses the account."""
        return self._holds.account

    def clock_jumped(self, now: float, polls_from: float) -> None:
        """Correct all times that are from before a jump of the clock.

        Args:
            now: The current time.
            polls_from: When polls may be claimed again: until then, leases of other processes may
                only seem to have expired.
        """
        for lane, gate in self._gates.items():
            gate.opening_time = polls_from if lane is Lane.POLL else 0.0
            gate.limited_since = None
        self._holds.clock_jumped(now)

    async def follow_holds(self, now: float) -> None:
        """Follow a hold that another process, or an earlier one, has stored, and its end.

        Raises:
            StorageUnavailableError: The database is unavailable.
        """
        await self._holds.follow(now)

    def task_left_provider(self, caller: str) -> None:
        """Wake the poller if tasks wait because too many run, of this caller or of the account."""
        if self._running_full:
            self._gates[Lane.SUBMIT].opening_time = 0.0
            self._agenda.wake()
        if caller in self._passed_over:
            self._agenda.wake(Lane.SUBMIT)


class _Gate:
    """The jobs of a lane.

    Attributes:
        quota: How many requests they may send in a window of time.
        jobs_max: How many there may be at a time.
        jobs: How many there are.
        opening_time: When the account's limits may allow more.
        limited_since: Since when these limits have kept tasks waiting.
        left_seconds: How long due tasks are left to other processes.
    """

    __slots__ = ("jobs", "jobs_max", "left_seconds", "limited_since", "opening_time", "quota")

    def __init__(self, quota: Quota, jobs_max: int, left_seconds: float = 0.0) -> None:
        self.quota = quota
        self.jobs_max = jobs_max
        self.left_seconds = left_seconds
        self.jobs = 0
        self.opening_time = 0.0
        self.limited_since: float | None = None

    @property
    def free(self) -> int:
        return max(0, self.jobs_max - self.jobs)


def _gates(account: AccountLimits, bounds: LimitBounds, store_lane: StoreLane) -> dict[Lane, _Gate]:
    creates = Quota("creates", account.creates_per_10_seconds, bounds.creates_window_seconds)
    status = Quota("status", account.status_per_second, bounds.status_window_seconds)
    in_flight_max = account.creates_in_flight_max or bounds.submit_jobs_max
    return {
        Lane.SUBMIT: _Gate(creates, min(bounds.submit_jobs_max, in_flight_max)),
        Lane.POLL: _Gate(status, bounds.poll_jobs_max),
        Lane.LATE: _Gate(status, bounds.late_jobs_max),
        Lane.STORE: _Gate(UNLIMITED, store_lane.jobs_max, store_lane.left_seconds),
    }


class Turns:
    """Whose turn it is: callers are served round-robin, the tasks of each in their order."""

    def __init__(self) -> None:
        self._clock = itertools.count(1)
        self._served: dict[str, int] = {}

    def pick(self, waiting: Sequence[Waiting], limit: int) -> list[str]:
        """Return the ids of the next `limit` tasks: each caller's first, then each one's second.

        In each round the caller that was served longest ago comes first.
        """
        rounds = sorted(waiting, key=lambda w: (w.turn, self._served.get(w.caller, 0)))
        return [self._serve(chosen) for chosen in rounds[:limit]]

    def pick_probe(self, waiting: Sequence[Waiting]) -> list[str]:
        """Return the id of the task that was postponed least often.

        A model whose tasks are not accepted must not block the other models permanently.
        """
        least = min(waiting, key=lambda w: (w.setbacks, w.turn, self._served.get(w.caller, 0)))
        return [self._serve(least)]

    def _serve(self, chosen: Waiting) -> str:
        self._served[chosen.caller] = next(self._clock)
        return chosen.task_id
