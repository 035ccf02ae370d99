"""The loop of everything that runs in the background."""

import asyncio

import pytest
from structlog.testing import capture_logs

from service.forever import forever
from service.outage_log import RETRY_SECONDS, OutageLog
from storage.errors import StorageUnavailableError


@pytest.mark.parametrize("error", [ZeroDivisionError(), StorageUnavailableError("no database")])
async def test_a_run_that_fails_is_logged_and_the_next_one_comes(error: Exception) -> None:
    runs = 0

    async def run_once() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise error

    with capture_logs() as logs:
        await forever(run_once, "counter", 0, OutageLog(), stopped=lambda: runs == 2)
    assert runs == 2
    assert len(logs) == 1


async def test_a_run_that_fails_is_not_repeated_at_once() -> None:
    started = asyncio.get_running_loop().time()
    runs = 0

    async def run_once() -> None:
        nonlocal runs
        runs += 1
        raise ZeroDivisionError

    with capture_logs():
        await forever(run_once, "counter", 0, OutageLog(), stopped=lambda: runs == 2)
    assert asyncio.get_running_loop().time() - started >= RETRY_SECONDS
