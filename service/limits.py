"""The account's limits at the provider, kept here because it refuses and does not queue."""

import itertools
import math
from collections import deque
from collections.abc import Sequence

from storage.store import Waiting


class SlidingWindow:
    """At most `limit` requests in any `seconds`; a limit of 0 is none."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._taken: deque[float] = deque(maxlen=limit or None)

    def free(self, now: float) -> float:
        """Return how many requests may be sent at `now`."""
        if not self._limit:
            return math.inf
        self._forget(now)
        return self._limit - len(self._taken)

    def take(self, count: int, now: float) -> None:
        """Note that `count` requests are sent at `now`."""
        if self._limit:
            self._taken.extend([now] * count)

    def fill(self, now: float) -> None:
        """Take all there is."""
        self.take(self._limit, now)

    def next_free_time(self, now: float) -> float:
        """Return when the next request may be sent, `now` at the earliest."""
        return now if self.free(now) > 0 else self._taken[0] + self._seconds

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0] <= now - self._seconds:
            self._taken.popleft()


class Turns:
    """Whose turn it is: callers go round, and within each the first come is the first served."""

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
        """Return the id of the task that was put back least often.

        What keeps one model's tasks from being taken must not keep the others for ever.
        """
        least = min(waiting, key=lambda w: (w.setbacks, w.turn, self._served.get(w.caller, 0)))
        return [self._serve(least)]

    def _serve(self, chosen: Waiting) -> str:
        self._served[chosen.caller] = next(self._clock)
        return chosen.task_id
