"""The clock of the database is set while several replicas send tasks."""

import asyncio
from typing import Any

import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.clocks import HOUR, DatabaseTime
from tests.support.harness import Service
from tests.support.waiting import eventually

REPLICAS = 3
SENDING_SECONDS = 25  # longer than a lease, and than every process takes to notice a jump
DEADLINE_SECONDS = 90.0


@pytest.mark.parametrize("seconds", [2 * HOUR, -2 * HOUR])
async def test_a_paid_request_in_progress_survives_a_jump_of_the_databases_clock(
    fleet: Any,
    kie: Simulator,
    postgresql_url: str,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
) -> None:
    database_time = DatabaseTime(postgresql_url)
    kie.add_fault(f"create:slow,seconds={SENDING_SECONDS},times=0")
    settings = {"create_wait_seconds": 0, "database_url": database_time.url}
    async with fleet(REPLICAS, **settings) as services:
        created = [await service.create() for service in services for _ in range(3)]
        await eventually(lambda: kie.stats["faults_struck"].get("slow") == len(created))
        database_time.jump(seconds)
        await eventually(lambda: caplog.text.count("has jumped by") == REPLICAS)
        ends = await asyncio.gather(*(_end(services[0], task.id) for task in created))
        assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    assert len(kie.tasks) == len(created)


async def _end(service: Service, task_id: str) -> pb.GenerationTask:
    return [task async for task in service.watch(task_id, timeout=DEADLINE_SECONDS)][-1]
