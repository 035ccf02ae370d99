"""Slow down callers whose calls are refused again and again.

A refused call costs the service as much as a valid one. A caller that repeats an invalid call as
soon as it is refused would keep the event loop busy and delay all others. A pause before the
response delays that caller instead.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

PAUSE_SECONDS = 0.25, 0.5  # random, or all would retry at the same moment


@dataclass(frozen=True, slots=True)
class RefusalLimits:
    """How many refused calls are answered at once.

    Attributes:
        window_seconds: The time in which they are counted.
        free_per_window: Calls of one caller that are answered at once.
        paused_max: Calls that may wait at a time: each takes some 15 KB.
    """

    window_seconds: float = 1.0
    free_per_window: int = 100
    paused_max: int = 4_000


REFUSAL_LIMITS = RefusalLimits()


class RefusalPace:
    """Counts the refused calls of each caller, and delays those beyond the free ones."""

    def __init__(self, limits: RefusalLimits = REFUSAL_LIMITS) -> None:
        self._limits = limits
        self._refused: Counter[str] = Counter()
        self._window_end = 0.0
        self._paused = 0

    async def hold(self, caller: str) -> None:
        """Wait before the response to a refused call: usually not at all."""
        now = time.monotonic()
        if now >= self._window_end:
            self._refused.clear()
            self._window_end = now + self._limits.window_seconds
        self._refused[caller] += 1
        free = self._refused[caller] <= self._limits.free_per_window
        if free or self._paused >= self._limits.paused_max:
            return
        self._paused += 1
        try:
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))
        finally:
            self._paused -= 1
