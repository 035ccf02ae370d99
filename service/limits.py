"""Whose turn it is to be sent, as the provider takes only so many."""

import itertools
from collections.abc import Sequence

from storage.store import Waiting


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
