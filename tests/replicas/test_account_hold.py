"""While the provider refuses the account, all replicas hold their tasks, whichever found it out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.account import (
    NO_CREDITS,
    SHORT_HOLDS,
    Account,
    listening,
    until_held,
    until_probed,
)
from tests.support.databases import rows
from tests.support.harness import Service, serving
from tests.support.waiting import eventually

TASKS = 24
FAILED = "SELECT id FROM tasks WHERE status = 'FAILED'"

Start = Callable[[], AbstractAsyncContextManager[Service]]


@pytest.fixture
async def account() -> AsyncIterator[Account]:
    """An account without credits, whose creates take long enough to overlap."""
    async with listening(Account(NO_CREDITS, seconds=0.05)) as found:
        yield found


@pytest.fixture
def start(tmp_path: Path, postgresql_url: str, account: Account) -> Start:
    """Start a replica."""
    settings: dict[str, Any] = {"database_url": postgresql_url, "create_wait_seconds": 0}
    settings |= {"kie_creates_in_flight_max": 0}
    return lambda: serving(tmp_path, account.kie, bounds=SHORT_HOLDS, **settings)


async def create(services: Sequence[Service], count: int = TASKS) -> list[str]:
    """Create tasks on all replicas at once."""
    calls = (services[n % len(services)].create() for n in range(count))
    return [task.id for task in await asyncio.gather(*calls)]


async def test_of_tasks_that_several_replicas_send_at_once_one_fails(
    start: Start, account: Account
) -> None:
    account.seconds = 1.0  # all are sent before the first answer
    async with start() as first, start() as second:
        ids = await create([first, second])
        await until_held(first)
        account.seconds = 0.01
        await until_probed(account, 5)
        assert len(rows(first.database_url, FAILED)) == 1
        account.answer = None
        ends = [await second.end(task_id) for task_id in ids]
    assert sum(end.status == pb.TASK_STATUS_SUCCESS for end in ends) == TASKS - 1


async def test_a_hold_of_one_replica_lets_all_together_try_one_task_at_a_time(
    start: Start, account: Account
) -> None:
    async with start() as first, start() as second:
        await create([first], 1)
        await until_held(first)
        account.in_flight.clear()
        await create([first, second])
        await until_probed(account, 10)
        assert set(account.in_flight) == {1}
        assert len(rows(first.database_url, FAILED)) == 1


async def test_a_replica_that_starts_during_a_hold_fails_no_task(
    start: Start, account: Account
) -> None:
    async with start() as first:
        await create([first], 1)
        await until_held(first)
        async with start() as second:
            account.in_flight.clear()
            await create([second])
            await until_probed(account, 10)
            assert set(account.in_flight) == {1}
            assert len(rows(first.database_url, FAILED)) == 1


async def test_a_create_that_one_replica_gets_accepted_ends_the_hold_of_the_others(
    start: Start, account: Account
) -> None:
    async with start() as first, start() as second:
        ids = await create([first, second])
        await until_held(first)
        await until_probed(account, 5)
        account.answer = None
        account.in_flight.clear()
        for task_id in ids:
            await first.end(task_id)
        await eventually(lambda: not rows(first.database_url, "SELECT since FROM holds"))
        await create([first, second])
        await eventually(lambda: max(account.in_flight) > 1)
