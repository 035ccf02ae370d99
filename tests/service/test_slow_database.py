"""A slow database: the service does what callers still wait for, and says when to retry."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import aiohttp
import grpc
import pytest

from providers.kie.simulator import Simulator
from service.bounds import BOUNDS
from storage.engine import DatabaseTimeouts
from storage.postgresql.hints import Hints
from tests.support.databases import locked, rows
from tests.support.harness import Service, serving
from tests.support.metrics_page import ADMIN, scrape
from tests.support.prompts import STUCK
from tests.support.refusals import refused
from tests.support.slowness import slow_down
from tests.support.waiting import eventually_answered

CREATES = 600
DEADLINE_SECONDS = 1.0
ROW_SECONDS = 0.02
PATIENT_SECONDS = 8.0  # all the creates together take 12 s
QUICK = replace(BOUNDS, database=DatabaseTimeouts(sqlite_busy_seconds=0.2, lock_milliseconds=200))


Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def start(tmp_path: Path, kie: Simulator) -> Start:
    """Start the service on a database."""
    return partial(serving, tmp_path, kie)


async def ready(service: Service) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{service.admin_address}/readyz") as response,
    ):
        return response.status, await response.text()


async def create_in_time(service: Service) -> bool:
    """Create a task as a caller that leaves soon; return whether it was stored in time."""
    try:
        await service.create(STUCK, timeout=DEADLINE_SECONDS)
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_creates_that_nobody_waits_for_any_more_delay_no_others(
    start: Start, postgresql_url: str
) -> None:
    async with start(database_url=postgresql_url, create_wait_seconds=0) as service:
        await service.create(STUCK)
        slow_down(postgresql_url, ROW_SECONDS)
        await asyncio.gather(*(create_in_time(service) for _ in range(CREATES)))
        await service.create(STUCK, timeout=PATIENT_SECONDS)
    [(stored,)] = rows(postgresql_url, "SELECT count(*) FROM tasks")
    assert stored < CREATES / 2


async def test_retry_info_grows_while_the_database_is_unavailable(
    start: Start, database_url: str
) -> None:
    async with start(database_url=database_url, bounds=QUICK) as service:
        await service.create(STUCK)

        async def retry_seconds() -> float:
            refusal = await refused(service.create(STUCK))
            assert refusal.reason == "STORAGE_UNAVAILABLE"
            assert refusal.retry_seconds is not None
            return refusal.retry_seconds

        with locked(database_url):
            first = await retry_seconds()

            async def is_later() -> bool:
                return await retry_seconds() >= first + 1

            await eventually_answered(is_later)
    assert first >= 1


async def test_calls_do_not_wait_behind_a_statement_that_takes_too_long(
    start: Start, postgresql_url: str
) -> None:
    database = DatabaseTimeouts(lock_milliseconds=4_000, waiting_seconds=0.5)
    bounds = replace(BOUNDS, database=database)
    async with start(database_url=postgresql_url, bounds=bounds) as service:
        await service.create(STUCK)
        with locked(postgresql_url):
            waiting = asyncio.ensure_future(refused(service.create(STUCK)))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(3):
                refusal = await refused(service.create(STUCK))
            assert refusal.reason == "STORAGE_UNAVAILABLE"
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_replica_without_hints_says_so_and_stays_ready(
    start: Start, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = threading.Event()
    listen = Hints._connect_and_listen

    def refuse(hints: Hints) -> None:
        if not allowed.is_set():
            raise OSError(24, "Too many open files")
        listen(hints)

    monkeypatch.setattr(Hints, "_connect_and_listen", refuse)
    async with start(database_url=postgresql_url, **ADMIN) as service:

        async def missed() -> float | None:
            return (await scrape(service)).value("generation_hints_missed")

        async def is_listening() -> bool:
            return await missed() == 0

        assert await missed() == 1
        status, text = await ready(service)
        assert status == 200
        assert "no hints between replicas" in text
        allowed.set()
        await eventually_answered(is_listening)
        assert "hints" not in (await ready(service))[1]


async def test_a_service_that_expects_no_hints_misses_none(start: Start, database_url: str) -> None:
    async with start(database_url=database_url, database_hints=False, **ADMIN) as service:
        assert (await scrape(service)).value("generation_hints_missed") == 0
