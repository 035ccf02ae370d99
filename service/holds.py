"""Which tasks are held while the provider does not accept them.

A model that the provider does not accept holds only its own tasks; a provider that cannot be
reached holds all. Once a hold is over, one task is sent as a probe before the others.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from providers.base import Postponed, Submission, Unknown
from storage.claims import Waiting
from storage.task import Task


@dataclass(frozen=True, slots=True)
class HoldTimes:
    """How long a hold lasts.

    Attributes:
        first_seconds: The first one; each further one lasts twice as long.
        max_seconds: The longest one.
    """

    first_seconds: float = 2.0
    max_seconds: float = 30.0


class Holds:
    """The holds of one process. Times are unix seconds."""

    def __init__(self, times: HoldTimes) -> None:
        new_hold = partial(_Hold, times)
        self._provider = new_hold()
        self._models: defaultdict[str, _Hold] = defaultdict(new_hold)

    def room(self, now: float) -> float:
        """Return how many tasks may be sent, of whatever model."""
        return self._provider.room(now)

    def opening_time(self) -> float:
        """Return when the hold of all models ends; infinity while its probe is in progress."""
        return self._provider.opening_time()

    def next_opening_time(self) -> float:
        """Return when the next model may be tried again."""
        return min((hold.opening_time() for hold in self._models.values()), default=math.inf)

    @property
    def probes_any(self) -> bool:
        """Whether one task is to be tried before all others."""
        return self._provider.half_open

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
            self._provider.start_probe()
        for task in tasks:
            if task.model in self._models:
                self._models[task.model].start_probe()

    def learn(self, model: str, outcome: Submission, now: float) -> float:
        """Learn whether tasks are accepted; return when a postponed task may be sent again."""
        if isinstance(outcome, Unknown):
            return now
        if not isinstance(outcome, Postponed):
            self._provider.clear()
            self._models.pop(model, None)
            return now
        if outcome.reached:
            self._provider.clear()
        hold = self._models[model] if outcome.reached else self._provider
        hold.extend(now)
        return hold.until

    def ended(self, model: str) -> bool:
        """Record that a task is no longer being sent; return whether it was a probe."""
        holds = [self._provider, *([self._models[model]] if model in self._models else [])]
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

    def extend(self, now: float) -> None:
        if now < self.until:
            return  # the answer to a request that was sent before the hold
        seconds = self._times.first_seconds * 2.0**self._count
        self.until = now + min(seconds, self._times.max_seconds)
        self._count += 1

    def clear(self) -> None:
        self.until = 0.0
        self._count = 0
