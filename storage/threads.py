"""The threads that talk to the database: how they end, and how health checks see them."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol


class LoopThread(threading.Thread):
    """A thread that an event loop starts, and whose end it waits for."""

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        """Prepare the thread, inside the event loop that waits for its end.

        Args:
            name: The thread's, without `store-`.
            target: All that the thread does.
        """
        super().__init__(target=target, name=f"store-{name}", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            with suppress(RuntimeError):  # it is abandoned
                self._loop.call_soon_threadsafe(self._ended.set)

    @property
    def is_abandoned(self) -> bool:
        """Whether the event loop was closed without waiting."""
        return self._loop.is_closed()

    async def ended(self) -> None:
        """Wait until the thread has done all."""
        await self._ended.wait()


class StorageThread(Protocol):
    """A thread that works for the store.

    Attributes:
        name: What logs and metrics call it.
    """

    name: str

    @property
    def busy_since(self) -> float:
        """Since when it works, by the monotonic clock; infinity while it has no work."""

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
