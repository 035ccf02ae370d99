"""The clock of the machine is set by hours, again and again, while the service works."""

import asyncio
import time
from collections.abc import Iterator, Sequence

import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.clocks import HOUR, MachineClock, machine_clock
from tests.support.postgres import Cluster
from tests.support.processes import Launch, Served, to
from tests.support.prompts import STUCK_PROMPT

JUMPS = [hours * HOUR for hours in (3, -6, 3, 24, -24, -100, 100, 0.2, -0.2)]
WATCHED_SECONDS = 12.0  # after a jump: it is noticed, leases are renewed, tasks are polled
ENDED_SECONDS = 60.0
PENDING, SUCCESS = pb.TASK_STATUS_PENDING, pb.TASK_STATUS_SUCCESS
SETTINGS = {
    "CREATE_WAIT_SECONDS": "15",
    "KIE_CREATES_PER_10_SECONDS": "4",
    "POLL_INTERVAL_SECONDS": "1",
    "TASK_MAX_AGE_SECONDS": "600",
}


@pytest.fixture
def clock() -> Iterator[MachineClock]:
    """The clock of a process, which the test sets."""
    with machine_clock() as clock:
        yield clock


async def create(process: Served, count: int) -> list[pb.GenerationTask]:
    """Create tasks, which the provider has to get soon."""
    tasks = [await process.create(STUCK_PROMPT) for _ in range(count)]
    assert all(task.provider_task_id for task in tasks), tasks
    return tasks


async def statuses(process: Served, tasks: Sequence[pb.GenerationTask]) -> set[int]:
    requests = [pb.QueryTaskRequest(task_id=task.id) for task in tasks]
    answers = await asyncio.gather(
        *(process.stub.QueryTask(request, timeout=20) for request in requests)
    )
    return {answer.task.status for answer in answers}


async def jump(
    process: Served, clock: MachineClock, seconds: float, tasks: Sequence[pb.GenerationTask]
) -> None:
    """Set the clock, and expect no task to end for a while."""
    clock.jump(seconds)
    until = time.monotonic() + WATCHED_SECONDS
    while time.monotonic() < until:
        assert await statuses(process, tasks) == {PENDING}, process.process.text
        await asyncio.sleep(0.2)


async def end(process: Served, kie: Simulator, tasks: Sequence[pb.GenerationTask]) -> None:
    """Let the provider end the tasks, and expect the result of each."""
    for task in tasks:
        kie.finish(task.provider_task_id)
    async with asyncio.timeout(ENDED_SECONDS):
        while (found := await statuses(process, tasks)) != {SUCCESS}:
            assert found <= {PENDING, SUCCESS}, process.process.text
            await asyncio.sleep(0.2)


async def work_while_the_clock_is_set(
    launch: Launch, kie: Simulator, clock: MachineClock, **variables: str
) -> None:
    settings = SETTINGS | to(kie.url) | variables
    async with launch(**settings) as process:
        tasks = await create(process, 4)
        for seconds in JUMPS:
            await jump(process, clock, seconds, tasks)
            tasks += await create(process, 2)
        early, late = tasks[::2], tasks[1::2]
        await end(process, kie, early)
        await process.stop()
    clock.jump(-5 * HOUR)
    async with launch(**settings) as process:
        late += await create(process, 4)
        await end(process, kie, late)
        await process.stop()
    assert len(kie.tasks) == len(early) + len(late), "each was bought once"


@pytest.mark.torture
async def test_setting_the_clock_of_a_service_on_sqlite_loses_and_delays_no_task(
    launch: Launch, kie: Simulator, clock: MachineClock
) -> None:
    await work_while_the_clock_is_set(launch, kie, clock, **clock.environment)


@pytest.mark.torture
async def test_setting_the_clock_of_the_database_loses_and_delays_no_task(
    launch: Launch, kie: Simulator, clock: MachineClock
) -> None:
    with Cluster(variables=clock.environment) as cluster:
        await work_while_the_clock_is_set(launch, kie, clock, DATABASE_URL=cluster.url)
