"""The threads that talk to the database, as health checks see them."""

import math
import time
from dataclasses import dataclass
from typing import Protocol


class StorageThread(Protocol):
    """A thread that works for the store.

    Attributes:
        name: What logs and metrics call it.
        busy_since: Since when it works, by the monotonic clock; infinity while it has no work.
    """

    name: str
    busy_since: float

    def is_alive(self) -> bool:
        """Return whether the thread runs."""


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A thread at one moment.

    Attributes:
        name: What logs and metrics call it.
        alive: Whether it runs.
        busy_seconds: How long it has been doing what it does; 0 while it has no work.
        stalled_seconds: How much of that on its current connection; 0 while it has none, as a new
            one takes as long as the network and the name servers do.
    """

    name: str
    alive: bool
    busy_seconds: float
    stalled_seconds: float


def state_of(thread: StorageThread, connected_since: float | None = -math.inf) -> ThreadState:
    """Return the state of a thread.

    Args:
        thread: The thread.
        connected_since: When its connection was opened, by the monotonic clock; None without one.
    """
    now = time.monotonic()
    busy_since = thread.busy_since
    stalled_since = math.inf if connected_since is None else max(busy_since, connected_since)
    return ThreadState(
        thread.name,
        thread.is_alive(),
        busy_seconds=max(0.0, now - busy_since),
        stalled_seconds=max(0.0, now - stalled_since),
    )
