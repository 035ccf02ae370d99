"""When to ask for a task again.

As long as little is known of a model, a task's age decides; then, within the same bounds, how long
the model's last tasks took. That is kept in memory only: every process learns by itself, and a
restart learns again.
"""

import math
import random
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import pairwise

# (up to this age in seconds, times the interval): the longest wait between two polls
FACTORS = ((30.0, 1.0), (120.0, 3.0))
USUAL_FACTOR = 5.0  # later, while most tasks of the model are still under way
LONGEST_FACTOR = 8.0
JITTER = 0.1

DURATIONS_MIN = 8  # fewer say too little about a model
DURATIONS_MAX = 256  # of its last tasks; older ones may be of another time
USUAL_SHARE = 0.95

OVERDUE_FACTOR = 2.0  # times what most tasks take at the most
OVERDUE_MIN_SECONDS = 60.0  # Kie retries a callback three times, each for up to 15 s


class Schedule:
    """Places the polls of tasks, by the durations that it is told of. Ages count from acceptance.

    A wait may cost as much as an interval does where most tasks end, in time between done and
    known: so polls are an interval apart there, further apart where few tasks end, and none is
    spent before the earliest end known.
    """

    def __init__(self, interval_seconds: float, usual_seconds: Callable[[str], float]) -> None:
        """Start with nothing learned.

        Args:
            interval_seconds: The shortest time between two polls of one task.
            usual_seconds: The time within which most tasks of a model end, for a model of which
                this process has not seen enough tasks yet.
        """
        self._interval_seconds = interval_seconds
        self._usual_seconds = usual_seconds
        self._durations: defaultdict[str, _Durations] = defaultdict(_Durations)

    def learn(self, model: str, seconds: float) -> None:
        """Take in that a task of the model ended `seconds` after its acceptance."""
        self._durations[model].add(seconds)

    def wait(
        self, model: str, age_seconds: float, setbacks: int, silent_seconds: float = 0.0
    ) -> float:
        """Return the seconds until the next poll: 1 to 8 intervals, and a little jitter.

        Args:
            model: The task's.
            age_seconds: The task's.
            setbacks: How many polls of it failed in a row; each doubles the wait.
            silent_seconds: For how long the provider has answered no poll; waits grow with it.
        """
        nominal = self.nominal_wait(model, age_seconds, setbacks)
        longest = LONGEST_FACTOR * self._interval_seconds
        return max(nominal, min(silent_seconds, longest)) * random.uniform(1, 1 + JITTER)

    def nominal_wait(self, model: str, age_seconds: float, setbacks: int) -> float:
        """Return the same without jitter, while the provider answers."""
        factor = self._factor(model, age_seconds) * 2.0 ** min(setbacks, 8)
        return self._interval_seconds * min(factor, LONGEST_FACTOR)

    def overdue_age(self, model: str) -> float:
        """Return the age at which a task's callback should have come long ago."""
        return max(OVERDUE_FACTOR * self._usual(model), OVERDUE_MIN_SECONDS)

    def _factor(self, model: str, age: float) -> float:
        longest = _age_factor(age, self._usual(model))
        durations = self._durations[model]
        if not durations.enough:
            return longest
        if age < durations.earliest:
            longest = LONGEST_FACTOR
        wait = durations.poll_age(age, self._loss(durations)) - age
        return min(max(wait / self._interval_seconds, 1.0), longest)

    def _usual(self, model: str) -> float:
        durations = self._durations[model]
        return durations.quantile(USUAL_SHARE) if durations.enough else self._usual_seconds(model)

    def _loss(self, durations: "_Durations") -> float:
        """Return what an interval costs a task, where the middle half of all tasks end.

        Of those that end in it, half an interval on average.
        """
        middle = durations.quantile(0.75) - durations.quantile(0.25)
        ending = 0.5 * self._interval_seconds / max(middle, self._interval_seconds)
        return ending * self._interval_seconds / 2


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
        """Return the age at which a poll finds ends that are `loss` seconds old on average.

        The average is over the tasks that took longer than `age`, and an end after the poll counts
        as 0. Between two known durations ends are taken to be spread evenly. Infinite if no task
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
            share = span / (end - before) if end > before else 1.0  # of the one that ends by `end`
            cost = (ended + share / 2) * span
            if cost > left:  # solved for the age within the span where it is all spent
                return age + 2 * left / (ended + math.sqrt(ended**2 + 2 * left * share / span))
            age, ended, left = end, ended + share, left - cost
        return age + left / ended


def _age_factor(age_seconds: float, usual_seconds: float) -> float:
    for up_to, factor in FACTORS:
        if age_seconds < up_to:
            return factor
    return USUAL_FACTOR if age_seconds < usual_seconds else LONGEST_FACTOR
