"""Which tasks are held while the provider does not accept them.

A model that the provider does not accept holds only its own tasks; a provider that cannot be
reached, or that refuses the account, holds all. Once a hold is over, one task is sent as a probe
before the others.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from providers.base import Accepted, Postponed, Refused, Submission, Unknown
from service.account_hold import AccountHold, describe
from storage.claims import Waiting
from storage.task import Task

ACCOUNT, ALL_MODELS = "the account", "all models"
DOUBLINGS_MAX = 32  # of the length of a hold


@dataclass(frozen=True, slots=True)
class HoldTimes:
    """How long a hold lasts.

    Attributes:
        first_seconds: The first one; each further one lasts twice as long.
        max_seconds: The longest one.
        follow_seconds: How soon a hold of another process is noticed.
    """

    first_seconds: float = 2.0
    max_seconds: float = 30.0
    follow_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Learned:
    """What the outcome of a create means for its task, and for the tasks that wait.

    Attributes:
        outcome: The outcome. While the account is held, its refusal is a postponement.
        until: When a task that was postponed may be sent again.
        held: What is held because of the outcome: ACCOUNT, ALL_MODELS, a model, or "" for nothing.
    """

    outcome: Submission
    until: float
    held: str = ""


class Holds:
    """The holds of one process. Times are unix seconds."""

    def __init__(self, times: HoldTimes, account: AccountHold) -> None:
        new_hold = partial(_Hold, times)
        self.account = account
        self._follow_seconds = times.follow_seconds
        self._followed_time = -math.inf
        self._of_account = new_hold()
        self._of_all = new_hold()
        self._models: defaultdict[str, _Hold] = defaultdict(new_hold)

    async def follow(self, now: float) -> None:
        """Adopt what other processes have stored: a hold of the account, or its end.

        Raises:
            StorageUnavailableError: The database is unavailable.
        """
        if now - self._followed_time < self._follow_seconds:
            return
        is_new = await self.account.follow(now)
        self._followed_time = now
        if is_new and self.account.is_held:
            self._of_account.reopen()
        elif is_new:
            self._of_account.clear()

    def clock_jumped(self, now: float) -> None:
        """End all holds now: the clock may have been set back, and their ends be far ahead."""
        self._followed_time = -math.inf
        for hold in (self._of_account, self._of_all, *self._models.values()):
            hold.until = min(hold.until, now)
        self.account.clock_jumped(now)

    def room(self, now: float) -> float:
        """Return how many tasks may be sent, of whatever model."""
        return min(self._of_account.room(now), self._of_all.room(now))

    def opening_time(self) -> float:
        """Return when the hold of all models ends; infinity while its probe is in progress."""
        return max(self._of_account.opening_time(), self._of_all.opening_time())

    def next_opening_time(self) -> float:
        """Return when the next model may be tried again."""
        return min((hold.opening_time() for hold in self._models.values()), default=math.inf)

    @property
    def probes_account(self) -> bool:
        """Whether one task is to be tried by all processes together."""
        return self._of_account.half_open

    @property
    def probes_any(self) -> bool:
        """Whether one task is to be tried before all others."""
        return self._of_account.half_open or self._of_all.half_open

    @property
    def probes(self) -> bool:
        """Whether some task is to be tried before others."""
        return self.probes_any or bool(self._models)

    def closed_models(self, now: float) -> list[str]:
        """Return the models of which nothing may be sent now."""
        return [model for model, hold in self._models.items() if not hold.room(now)]

    def admitted(self, waiting: Sequence[Waiting]) -> Sequence[Waiting]:
        """Keep one task of each model to be probed: the one that was postponed least often."""
        if not self._models:
            return waiting
        probes: dict[str, Waiting] = {}
        for task in sorted(waiting, key=lambda task: (task.setbacks, task.turn)):
            if task.model in self._models:
                probes.setdefault(task.model, task)
        chosen = {task.task_id for task in probes.values()}
        return [t for t in waiting if t.model not in self._models or t.task_id in chosen]

    def sent(self, tasks: Sequence[Task]) -> None:
        """Record which tasks are being sent: some may be probes."""
        if tasks:
            self._of_account.start_probe()
            self._of_all.start_probe()
        for task in tasks:
            if task.model in self._models:
                self._models[task.model].start_probe()

    async def open(self, outcome: Submission, now: float) -> bool:
        """Store that the account is refused, if it is; return whether that opens the hold."""
        is_refused = isinstance(outcome, Refused) and outcome.account and self.account.seconds > 0
        if not is_refused or self._of_account.half_open:
            return False
        return await self.account.open(now)

    def learn(self, task: Task, outcome: Submission, now: float, *, opens: bool = False) -> Learned:
        """Learn from the outcome of a create whether tasks are accepted.

        Args:
            task: The task that was sent.
            outcome: What became of it.
            now: Unix seconds.
            opens: Whether the outcome opens the hold of the account; see `open`.
        """
        match outcome:
            case Unknown():
                return Learned(outcome, now)
            case Postponed(reached=False):
                self._of_all.extend(now)
                return Learned(outcome, self._of_all.until, ALL_MODELS)
            case Postponed():
                self._of_all.clear()
                hold = self._models[task.model]
                hold.extend(now)
                return Learned(outcome, hold.until, task.model)
            case Accepted() | Refused():
                self._of_all.clear()
                self._models.pop(task.model, None)
        if isinstance(outcome, Accepted):
            if self.account.accepted(task, now):
                self._of_account.clear()
        elif outcome.account and self.account.seconds:
            return self._refused(task, outcome, now, opens=opens)
        return Learned(outcome, now)

    def _refused(self, task: Task, refusal: Refused, now: float, *, opens: bool) -> Learned:
        """Hold all tasks. Only the task that opens the hold fails; others wait for its end."""
        if self._of_account.extend(now, self.account.first_expiry_time(now)):
            self.account.refused(refusal, now)
        if opens or self.account.has_expired(task, now):
            return Learned(refusal, now, ACCOUNT)
        waits = Postponed(describe(refusal), provider_task_id=refusal.provider_task_id)
        return Learned(waits, self._of_account.until, ACCOUNT)

    def ended(self, model: str) -> bool:
        """Record that a task is no longer being sent; return whether it was a probe."""
        holds = [self._of_account, self._of_all]
        if model in self._models:
            holds.append(self._models[model])
        was_probe = any(hold.probing for hold in holds)
        for hold in holds:
            hold.probing = False
        return was_probe


class _Hold:
    """Holds tasks for a while, then lets one of them go first as a probe."""

    def __init__(self, times: HoldTimes) -> None:
        self._times = times
        self.until = 0.0
        self.probing = False
        self._count = 0

    @property
    def half_open(self) -> bool:
        return self._count > 0

    def room(self, now: float) -> float:
        if not self.half_open:
            return math.inf
        return 0 if self.probing or now < self.until else 1

    def opening_time(self) -> float:
        return math.inf if self.probing else self.until

    def start_probe(self) -> None:
        self.probing = self.half_open

    def extend(self, now: float, latest: float = math.inf) -> bool:
        """Hold tasks again, until `latest` if that is sooner; return False if they are held."""
        if now < self.until:
            return False  # the response to a request that was sent before the hold
        first = self._times.first_seconds
        seconds = min(first * 2.0 ** min(self._count, DOUBLINGS_MAX), self._times.max_seconds)
        self.until = min(now + seconds, max(latest, now + first))
        self._count += 1
        return True

    def reopen(self) -> None:
        """Be over, but let one task go first."""
        self._count = max(self._count, 1)

    def clear(self) -> None:
        self.until = 0.0
        self._count = 0
