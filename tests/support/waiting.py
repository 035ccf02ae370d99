"""How the tests wait."""

import asyncio
from collections.abc import Awaitable, Callable
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


async def eventually_answered(
    ask: Callable[[], Awaitable[Found | None]], seconds: float = DEADLINE_SECONDS
) -> Found:
    """Ask until there is an answer that is not empty, and return it."""
    async with asyncio.timeout(seconds):
        while not (found := await ask()):  # noqa: ASYNC110 - other processes change it, too
            await asyncio.sleep(0.02)
    return found
