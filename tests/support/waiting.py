"""How the tests wait."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

DEADLINE_SECONDS = 20.0
START_SECONDS = 30  # for a process
Found = TypeVar("Found")


async def eventually(
    condition: Callable[[], Found | None], seconds: float = DEADLINE_SECONDS
) -> Found:
    """Wait until a condition holds, and return what it returned."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - other processes change it, too
            await asyncio.sleep(0.005)
    return found
