"""How much of an untrusted document is read.

A document of a mebibyte can refer to the same large part a thousand times. Reading it takes time
that a thread cannot hide: while it runs, the event loop waits for the GIL.
"""

from collections.abc import Mapping
from typing import Any

STEPS_MAX = 100_000  # about 0.1 s; the largest published documents need a few thousand
LIST_STEPS_MAX = 500  # of longer lists, no more is read
TEXT_CHARACTERS_MAX = 800
CHARACTERS_PER_STEP = 16


class TooLargeError(Exception):
    """The document has too many parts, perhaps because they refer to each other."""


class Effort:
    """Counts the steps of reading one document."""

    def __init__(self) -> None:
        self._left = STEPS_MAX

    def spend(self, steps: int) -> None:
        """Count steps before they are made.

        Raises:
            TooLargeError: There were too many.
        """
        self._left -= steps
        if self._left < 0:
            raise TooLargeError

    def spend_on(self, node: Mapping[str, Any]) -> None:
        """Count the steps of reading the keywords of a schema.

        Raises:
            TooLargeError: There were too many.
        """
        self.spend(len(node) + 1)
        self.spend(sum(map(_steps, node.values())))


def _steps(value: Any) -> int:
    match value:
        case list():
            return min(len(value), LIST_STEPS_MAX)
        case str():
            return min(len(value), TEXT_CHARACTERS_MAX) // CHARACTERS_PER_STEP
        case _:
            return 0
