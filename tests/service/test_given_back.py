"""Tasks that were claimed and not sent before a shutdown go back to the queue."""

import asyncio

from generated.generation.v1 import generation_pb2 as pb
from service.jobs import JobTimes
from tests.support.databases import rows
from tests.support.harness import Serve, poller_bounds
from tests.support.waiting import eventually

NEVER_FRESH = poller_bounds(jobs=JobTimes(slot_seconds=-1))  # each request takes a second slot
STAGES = "SELECT stage, setbacks FROM tasks"


async def test_a_task_that_waits_for_a_slot_is_sent_after_the_restart(serve: Serve) -> None:
    limits = {"create_wait_seconds": 0, "kie_creates_per_10_seconds": 1}
    async with asyncio.timeout(9):  # a slot would be free after 10.3 s
        async with serve(bounds=NEVER_FRESH, **limits) as service:
            created = await service.create()
            await service.until(created.id, lambda task: task.stage == pb.TASK_STAGE_SUBMITTING)
        assert rows(service.database_url, STAGES) == [("ACCEPTED", 1)]
        assert not service.kie.tasks
    async with serve(kie_creates_per_10_seconds=0) as service:
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS
    assert len(service.kie.tasks) == 1


async def test_nothing_is_claimed_for_sending_once_the_shutdown_has_begun(serve: Serve) -> None:
    async with serve(create_wait_seconds=0, kie_creates_in_flight_max=1) as service:
        service.kie.add_fault("create:slow,seconds=1")
        created = [await service.create() for _ in range(3)]
        await eventually(lambda: service.kie.stats["faults_struck"])
    assert len(service.kie.tasks) == 1
    async with serve() as service:
        ends = await asyncio.gather(*(service.end(task.id) for task in created))
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    assert len(service.kie.tasks) == 3
