"""Two replicas with many connections, on a PostgreSQL that crawls and is then killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest

from benchmarks.h2 import Connection
from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import create_request, ended
from tests.support.metrics_page import Page
from tests.support.postgres import Cluster
from tests.support.processes import Served, served, to
from tests.support.prompts import STUCK_PROMPT
from tests.support.slowness import slow_down, speed_up
from tests.support.waiting import eventually_answered

ROW_SECONDS = 0.02
DEADLINE_SECONDS = 2.0
PATIENT_SECONDS = 20.0
AGAIN_SECONDS = 60.0
SPARE = 100  # connections that take the descriptors which the database's leave free
SETTINGS = {
    "KIE_CREATES_PER_10_SECONDS": "0",
    "KIE_STATUS_PER_SECOND": "0",
    "KIE_RUNNING_MAX": "0",
    "POLL_INTERVAL_SECONDS": "1",
}


@dataclass(frozen=True)
class Scale:
    """How hard it gets."""

    connections: int
    creates: int
    watches: int


@pytest.fixture(
    params=[
        pytest.param(Scale(connections=1_100, creates=200, watches=5), id="short"),
        pytest.param(
            Scale(connections=1_500, creates=2_000, watches=50),
            id="torture",
            marks=pytest.mark.torture,
        ),
    ]
)
def scale(request: pytest.FixtureRequest) -> Scale:
    """The short form with the other tests, the long one with `make torture`."""
    form: Scale = request.param
    return form


@asynccontextmanager
async def connected(service: Served, count: int) -> AsyncIterator[None]:
    """Keep connections open, as callers behind a balancer do."""
    host, _, port = service.address.rpartition(":")
    loop = asyncio.get_running_loop()
    connections = []
    try:
        for _ in range(count):
            _, connection = await loop.create_connection(Connection, host, int(port))
            connections.append(connection)
        for connection in connections:
            await connection.max_streams  # the server has taken it
        yield
    finally:
        for connection in connections:
            connection.close()


async def create_in_time(service: Served, number: int) -> None:
    """Create a task as a caller that leaves after a while."""
    request = create_request({"imagen4": {"prompt": "a cat"}}, request_id=f"r{number}")
    try:
        await service.stub.CreateTask(request, timeout=DEADLINE_SECONDS)
    except grpc.aio.AioRpcError as error:
        codes = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
        if error.code() not in codes:
            raise


async def last(service: Served, task_id: str) -> pb.GenerationTask:
    """Watch a task to its end."""
    watch = service.stub.WatchTask(pb.WatchTaskRequest(task_id=task_id), timeout=300)
    async for answer in watch:
        task = answer.task
    return task


async def tasks(service: Served) -> list[pb.GenerationTask]:
    found: list[pb.GenerationTask] = []
    token = ""
    while True:
        request = pb.ListTasksRequest(page_size=200, page_token=token)
        page = await service.stub.ListTasks(request, timeout=PATIENT_SECONDS)
        found += page.tasks
        token = page.next_page_token
        if not token:
            return found


async def is_ready_and_listens(service: Served) -> bool:
    """Return whether a replica is ready and gets the hints of others; it must be alive."""
    assert (await service.get("/healthz"))[0] == 200
    page = Page((await service.get("/metrics"))[1])
    ready, _ = await service.get("/readyz")
    return ready == 200 and page.value("generation_hints_missed") == 0


async def test_replicas_survive_a_database_that_crawls_and_is_killed(
    tmp_path: Path, kie: Simulator, cluster: Cluster, scale: Scale
) -> None:
    settings = SETTINGS | to(kie.url) | {"DATABASE_URL": cluster.url}
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(served(tmp_path, **settings))
        second = await stack.enter_async_context(served(tmp_path, **settings))
        watched = [await first.create(STUCK_PROMPT) for _ in range(scale.watches)]
        ends = asyncio.gather(*(last(second, task.id) for task in watched))
        await stack.enter_async_context(connected(second, scale.connections))

        slow_down(cluster.url, ROW_SECONDS, "INSERT OR UPDATE")
        await asyncio.gather(*(create_in_time(first, number) for number in range(scale.creates)))
        patient = create_request({"imagen4": {"prompt": "a cat"}}, request_id="patient")
        await first.stub.CreateTask(patient, timeout=PATIENT_SECONDS)

        await asyncio.to_thread(cluster.kill)
        await stack.enter_async_context(connected(second, SPARE))
        await asyncio.to_thread(cluster.start)
        speed_up(cluster.url)
        for replica in (first, second):
            await eventually_answered(partial(is_ready_and_listens, replica), AGAIN_SECONDS)
        for task in kie.tasks:
            kie.finish(task["id"])
        assert {task.status for task in await ends} == {pb.TASK_STATUS_SUCCESS}

        async def all_ended() -> list[pb.GenerationTask] | None:
            found = await tasks(second)
            return found if all(map(ended, found)) else None

        found = await eventually_answered(all_ended, AGAIN_SECONDS)
        assert {task.status for task in found} == {pb.TASK_STATUS_SUCCESS}
        assert len(kie.tasks) == len(found), "each was bought once"
        assert "patient" in {task.request_id for task in found}
