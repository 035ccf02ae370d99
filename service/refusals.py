"""Slow down callers whose calls are refused again and again.

A refused call costs the service as much as a valid one. A caller that repeats an invalid call as
soon as it is refused would keep the event loop busy and delay all others. A pause before the answer
delays that caller instead.
"""

import asyncio
import random
import time
from collections import Counter

WINDOW_SECONDS = 1.0
FREE_PER_WINDOW = 100  # refused calls of one caller that are answered at once
PAUSE_SECONDS = 0.25, 0.5  # random, or all would retry at the same moment
PAUSED_MAX = 4_000  # calls that wait at a time: each takes some 15 KB


class RefusalPace:
    """Counts the refused calls of each caller, and delays those beyond FREE_PER_WINDOW."""

    def __init__(self) -> None:
        self._refused: Counter[str] = Counter()
        self._window_end = 0.0
        self._paused = 0

    async def hold(self, caller: str) -> None:
        """Wait before the answer to a refused call: usually not at all."""
        now = time.monotonic()
        if now >= self._window_end:
            self._refused.clear()
            self._window_end = now + WINDOW_SECONDS
        self._refused[caller] += 1
        if self._refused[caller] <= FREE_PER_WINDOW or self._paused >= PAUSED_MAX:
            return
        self._paused += 1
        try:
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))
        finally:
            self._paused -= 1
