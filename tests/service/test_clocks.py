"""A clock that is set by hours, in both directions, while the service is stopped or running."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.leases import LeaseTimes
from tests.support.clocks import HOUR, DatabaseTime, set_while_stopped
from tests.support.harness import Service, poller_bounds, serving
from tests.support.prompts import STUCK
from tests.support.waiting import eventually

SOON_SECONDS = 20.0
SETTINGS: dict[str, Any] = {
    "task_max_age_seconds": 1_800.0,
    "poll_interval_seconds": 0.5,
    "kie_creates_per_10_seconds": 3,
    "kie_status_per_second": 50,
}
REFUSED = "create:code,code=402,times=0"


def refusals(kie: Simulator) -> int:
    return sum(kie.stats["faults_struck"].values())


async def running(service: Service, count: int) -> list[pb.GenerationTask]:
    """Create tasks that the provider accepts soon."""
    async with asyncio.timeout(SOON_SECONDS):
        created = [await service.create(STUCK, timeout=SOON_SECONDS) for _ in range(count)]
        return [
            await service.until(task.id, lambda t: bool(t.provider_task_id)) for task in created
        ]


async def finished(service: Service, *tasks: pb.GenerationTask) -> None:
    """Let the provider end tasks, and expect their results soon."""
    for task in tasks:
        service.kie.finish(task.provider_task_id)
    async with asyncio.timeout(SOON_SECONDS):
        ends = await asyncio.gather(*(service.end(task.id) for task in tasks))
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}, ends


# --- while it was stopped ---


@pytest.mark.parametrize("seconds", [2 * HOUR, -2 * HOUR])
async def test_a_clock_that_was_set_before_a_start_ends_and_delays_no_task(
    tmp_path: Path, kie: Simulator, database_url: str, seconds: float
) -> None:
    async with serving(tmp_path, kie, database_url=database_url, **SETTINGS) as service:
        before = await running(service, 3)
    set_while_stopped(database_url, seconds)
    async with serving(tmp_path, kie, database_url=database_url, **SETTINGS) as service:
        await finished(service, *before)
        await finished(service, *await running(service, 3))


async def test_a_clock_that_was_set_back_does_not_make_a_held_task_wait_longer(
    tmp_path: Path, kie: Simulator, database_url: str
) -> None:
    settings = {"database_url": database_url, "account_hold_seconds": 2, "create_wait_seconds": 0}
    kie.add_fault(REFUSED)
    async with serving(tmp_path, kie, **SETTINGS | settings) as service:
        first = await service.create()
        await service.end(first.id)
        held = await service.create()
    set_while_stopped(database_url, -2 * HOUR)
    async with serving(tmp_path, kie, **SETTINGS | settings) as service:
        async with asyncio.timeout(SOON_SECONDS):
            end = await service.end(held.id)
        assert end.failure.reason == pb.ERROR_REASON_CREDITS_EXHAUSTED


# --- while it runs ---


Jumping = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def database_time(postgresql_url: str) -> DatabaseTime:
    """The clock of a database, which can be set."""
    return DatabaseTime(postgresql_url)


@pytest.fixture
def jumping(tmp_path: Path, kie: Simulator, database_time: DatabaseTime) -> Jumping:
    """Start a service on that database; leases are short, as it is the only one."""

    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Service]:
        bounds = poller_bounds(leases=LeaseTimes(3.0, 1.0))
        settings = SETTINGS | {"database_url": database_time.url} | settings
        async with serving(tmp_path, kie, bounds=bounds, **settings) as service:
            yield service

    return start


@pytest.mark.parametrize(
    "jumps",
    [
        (2 * HOUR,),
        (-2 * HOUR,),
        pytest.param((6 * HOUR, -6 * HOUR), marks=pytest.mark.torture),
        pytest.param((-6 * HOUR, 6 * HOUR), marks=pytest.mark.torture),
    ],
)
async def test_a_jump_of_the_databases_clock_ends_and_delays_no_task(
    jumping: Jumping,
    database_time: DatabaseTime,
    caplog: pytest.LogCaptureFixture,
    jumps: tuple[float, ...],
) -> None:
    async with jumping(create_wait_seconds=0) as service:
        before = await running(service, 3)
        for seconds in jumps:
            database_time.jump(seconds)
            noticed = f"jumped by {seconds:.1f} s"
            await eventually(lambda: noticed in caplog.text)  # noqa: B023 - awaited here
        await finished(service, *before)
        await finished(service, *await running(service, 3))


@pytest.mark.parametrize("seconds", [2 * HOUR, -2 * HOUR])
async def test_a_jump_of_the_databases_clock_does_not_fail_tasks_while_the_account_is_held(
    jumping: Jumping,
    database_time: DatabaseTime,
    kie: Simulator,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
) -> None:
    kie.add_fault(REFUSED)
    settings = {"create_wait_seconds": 0, "kie_creates_per_10_seconds": 0}
    async with jumping(account_hold_seconds=1_800, **settings) as service:
        await service.end((await service.create()).id)
        held = await service.create()
        database_time.jump(seconds)
        await eventually(lambda: f"jumped by {seconds:.1f} s" in caplog.text)
        tried = refusals(kie)
        await eventually(lambda: refusals(kie) > tried + 1, 2 * SOON_SECONDS)
        assert (await service.query(held.id)).status == pb.TASK_STATUS_PENDING
        kie.clear_faults()
        async with asyncio.timeout(2 * SOON_SECONDS):  # a hold grows up to 30 s
            assert (await service.end(held.id)).status == pb.TASK_STATUS_SUCCESS
