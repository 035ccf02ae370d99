"""Ids of new tasks: UUIDs of version 7, without hyphens.

They begin with their time, so that new rows are neighbours in every index by id. Random ids would
dirty a page of the index for each new task: a quarter of a commit on SQLite.
"""

import secrets

AT_A_TIME = 256  # reading random bytes releases the GIL, which costs more than the bytes
RANDOM_BYTES = 10
VERSION_7 = 0x7 << 76
VARIANT = 0b10 << 62
RANDOM_BITS = ~(0xF << 76 | 0b11 << 62)


class TaskIds:
    """Makes ids."""

    def __init__(self) -> None:
        self._random: list[int] = []

    def new(self, unix_seconds: float) -> str:
        """Return an id that was never returned before: 32 hexadecimal digits."""
        if not self._random:
            taken = secrets.token_bytes(AT_A_TIME * RANDOM_BYTES)
            self._random = [
                int.from_bytes(taken[i : i + RANDOM_BYTES])
                for i in range(0, len(taken), RANDOM_BYTES)
            ]
        number = self._random.pop() & RANDOM_BITS | VERSION_7 | VARIANT
        return f"{int(unix_seconds * 1_000) << 80 | number:032x}"
