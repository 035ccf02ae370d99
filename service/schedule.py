"""When to poll a task again.

At first a task's age decides; later, within the same bounds, how long the model's last tasks took.
That is kept in memory only: every process learns for itself, and learns again after a restart.
"""

import math
import random
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

# Up to an age in seconds, the longest wait between two polls, as a multiple of the interval.
FACTORS = ((30.0, 1.0), (120.0, 3.0))
TYPICAL_FACTOR = 5.0  # later, up to the age by which most tasks of the model have ended
LONGEST_FACTOR = 8.0
JITTER = 0.1

DURATIONS_MIN = 8  # fewer say too little about a model
DURATIONS_MAX = 256  # the last tasks only: a model may become faster or slower
TYPICAL_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Overdue:
    """The age from which the callback of a task is overdue.

    Attributes:
        factor: The age, as a multiple of the one by which most tasks have ended.
        min_seconds: The lowest age: the provider may repeat a callback three times, 15 s each.
    """

    factor: float = 2.0
    min_seconds: float = 60.0


OVERDUE = Overdue()


class Schedule:
    """Decides when to poll, from the durations of earlier tasks. Ages count from acceptance.

    Every wait costs the same expected delay: polls are an interval apart where tasks usually
    finish, and further apart elsewhere. None is made before the earliest known duration.

    Attributes:
        interval_seconds: The shortest time between two polls of one task.
    """

    def __init__(
        self,
        interval_seconds: float,
        typical_max_seconds: Callable[[str], float],
        overdue: Overdue = OVERDUE,
    ) -> None:
        """Start with nothing learned.

        Args:
            interval_seconds: The shortest time between two polls of one task.
            typical_max_seconds: Returns the time within which most tasks of a model end; used until
                enough has been learned.
            overdue: When a callback is overdue.
        """
        self.interval_seconds = interval_seconds
        self._typical_max_seconds = typical_max_seconds
        self._overdue = overdue
        self._durations: defaultdict[str, _Durations] = defaultdict(_Durations)

    def learn(self, model: str, seconds: float) -> None:
        """Learn that a task of the model ended `seconds` after its acceptance."""
        self._durations[model].add(seconds)

    def wait(
        self, model: str, age_seconds: float, setbacks: int, silent_seconds: float = 0.0
    ) -> float:
        """Return the seconds until the next poll: 1 to 8 intervals, and a little jitter.

        Args:
            model: The model of the task.
            age_seconds: The age of the task.
            setbacks: How many polls of it failed in a row; each doubles the wait.
            silent_seconds: For how long the provider has answered no poll; waits grow with it.
        """
        nominal = self.nominal_wait(model, age_seconds, setbacks)
        longest = LONGEST_FACTOR * self.interval_seconds
        return max(nominal, min(silent_seconds, longest)) * random.uniform(1, 1 + JITTER)

    def nominal_wait(self, model: str, age_seconds: float, setbacks: int) -> float:
        """Return the same wait without jitter, while the provider answers."""
        factor = self._factor(model, age_seconds) * 2.0 ** min(setbacks, 8)
        return self.interval_seconds * min(factor, LONGEST_FACTOR)

    def overdue_age(self, model: str) -> float:
        """Return the age from which the callback of a task is overdue."""
        return max(self._overdue.factor * self._typical(model), self._overdue.min_seconds)

    def _factor(self, model: str, age: float) -> float:
        longest = _age_factor(age, self._typical(model))
        durations = self._durations[model]
        if not durations.enough:
            return longest
        if age < durations.earliest:
            longest = LONGEST_FACTOR
        wait = durations.poll_age(age, self._loss(durations)) - age
        return min(max(wait / self.interval_seconds, 1.0), longest)

    def _typical(self, model: str) -> float:
        """Return the age by which most tasks of a model have ended."""
        durations = self._durations[model]
        if durations.enough:
            return durations.quantile(TYPICAL_SHARE)
        return self._typical_max_seconds(model)

    def _loss(self, durations: "_Durations") -> float:
        """Return the expected delay of an interval, where the middle half of all tasks end.

        A task that ends within the interval is noticed half an interval later on average.
        """
        middle = durations.quantile(0.75) - durations.quantile(0.25)
        ending = 0.5 * self.interval_seconds / max(middle, self.interval_seconds)
        return ending * self.interval_seconds / 2


def longest_wait(interval_seconds: float) -> float:
    """Return the longest time between two polls of a task, in seconds."""
    return interval_seconds * LONGEST_FACTOR * (1 + JITTER)


class _Durations:
    """How long the last tasks of a model took, in seconds."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=DURATIONS_MAX)
        self._ascending: list[float] = []

    @property
    def enough(self) -> bool:
        return len(self._ascending) >= DURATIONS_MIN

    @property
    def earliest(self) -> float:
        return self._ascending[0]

    def add(self, seconds: float) -> None:
        self._newest.append(seconds)
        self._ascending = sorted(self._newest)

    def quantile(self, share: float) -> float:
        return self._ascending[int(share * (len(self._ascending) - 1))]

    def poll_age(self, age: float, loss: float) -> float:
        """Return the age at which a poll notices ends `loss` seconds late on average.

        The average is over the tasks that took longer than `age`; an end after the poll counts as
        0. Between two known durations, ends are assumed to be spread evenly. Infinity if no task
        took longer.
        """
        ends = self._ascending
        after = bisect_right(ends, age)
        if after == len(ends):
            return math.inf
        left = loss * (len(ends) - after)
        ended = 0.0
        if after == 0:
            age, after, ended = ends[0], 1, 1.0
        for before, end in pairwise(ends[after - 1 :]):
            span = end - age
            share = span / (end - before) if end > before else 1.0  # of the task that ends by `end`
            cost = (ended + share / 2) * span
            if cost > left:  # the age is within this span: solve for it
                return age + 2 * left / (ended + math.sqrt(ended**2 + 2 * left * share / span))
            age, ended, left = end, ended + share, left - cost
        return age + left / ended


def _age_factor(age_seconds: float, typical_seconds: float) -> float:
    for up_to, factor in FACTORS:
        if age_seconds < up_to:
            return factor
    return TYPICAL_FACTOR if age_seconds < typical_seconds else LONGEST_FACTOR
