"""The database becomes unavailable in every way it can, and everything resumes by itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import psycopg2
import pytest

from generated.generation.v1 import generation_pb2 as pb
from kie_generation import GenerationClient, TaskStatus
from providers.kie.simulator import Simulator
from tests.support.databases import locked
from tests.support.harness import Service, create_request, serving
from tests.support.killing import PATIENT, create
from tests.support.postgres import Cluster
from tests.support.prompts import STUCK
from tests.support.refusals import refusal
from tests.support.waiting import eventually
from tests.support.wire import Wire

RESUMES_SECONDS = 15.0
STREAM_SECONDS = 90.0
CONNECTIONS_MAX = 4
SERVICES = "FROM pg_stat_activity WHERE application_name = 'generation'"


def execute(url: str, statement: str) -> list[Any]:
    with closing(psycopg2.connect(url, application_name="test")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description is not None else []


def connections(url: str) -> int:
    [(count,)] = execute(url, f"SELECT count(*) {SERVICES}")
    return int(count)


def terminate(url: str) -> None:
    """Cut every connection of the services."""
    execute(url, f"SELECT pg_terminate_backend(pid) {SERVICES}")


async def cut_off(url: str) -> None:
    """Cut every connection of the services, and wait until it is gone."""
    lost = {pid for (pid,) in execute(url, f"SELECT pid {SERVICES}")}
    terminate(url)
    await eventually(lambda: not lost & {pid for (pid,) in execute(url, f"SELECT pid {SERVICES}")})


def read_only(url: str, value: str) -> None:
    execute(url, f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    execute(url, "SELECT pg_reload_conf()")


async def calls(service: Service, task_id: str) -> Sequence[grpc.aio.AioRpcError | None]:
    """Make a call of each kind that needs the database, and return the results."""

    async def outcome(call: Awaitable[Any]) -> grpc.aio.AioRpcError | None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error
        return None

    stub = service.stub
    watch = stub.WatchTask(pb.WatchTaskRequest(task_id=task_id), timeout=20)
    try:
        return await asyncio.gather(
            outcome(stub.CreateTask(create_request(STUCK), timeout=20)),
            outcome(stub.QueryTask(pb.QueryTaskRequest(task_id=task_id), timeout=20)),
            outcome(stub.ListTasks(pb.ListTasksRequest(), timeout=20)),
            outcome(stub.CancelTask(pb.CancelTaskRequest(task_id=task_id), timeout=20)),
            outcome(watch.read()),
        )
    finally:
        watch.cancel()


async def create_until_refused(service: Service) -> None:
    """Create tasks until one is refused: the server's processes apply a setting one by one."""
    while True:
        await service.create(STUCK)


def assert_unavailable(error: grpc.aio.AioRpcError | None) -> None:
    """Expect an error that says that the database is unavailable, and when to retry."""
    assert error is not None
    refused = refusal(error)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
    assert refused.retry_seconds is not None
    assert refused.retry_seconds >= 1


class Watched:
    """Tasks in progress, each with an open stream, which have to survive."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ends: list[asyncio.Future[pb.GenerationTask]] = []
        self.task_ids: list[str] = []

    async def open(self, count: int) -> None:
        """Create tasks and watch them, until each stream has its first snapshot."""
        for _ in range(count):
            task_id = (await self._service.create(STUCK)).id
            snapshots = self._service.watch(task_id, timeout=STREAM_SECONDS)
            await anext(snapshots)
            self._ends.append(asyncio.ensure_future(_last(snapshots)))
            self.task_ids.append(task_id)

    async def end(self) -> float:
        """Let the provider end them; return the seconds until every stream has ended."""
        kie = self._service.kie
        started = time.monotonic()
        for task in kie.tasks:
            kie.finish(task["id"])
        ends = await asyncio.gather(*self._ends)
        assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
        return time.monotonic() - started

    async def stop(self) -> None:
        for watching in self._ends:
            watching.cancel()
        await asyncio.gather(*self._ends, return_exceptions=True)


async def _last(snapshots: AsyncIterator[pb.GenerationTask]) -> pb.GenerationTask:
    async for task in snapshots:
        last = task
    return last


Watching = Callable[..., Any]


@pytest.fixture
def watching(tmp_path: Path, kie: Simulator) -> Watching:
    """Start a service with tasks in progress, each of them watched."""

    @asynccontextmanager
    async def start(database_url: str, **settings: Any) -> AsyncIterator[tuple[Service, Watched]]:
        settings = {"poll_interval_seconds": 0.2} | settings
        async with serving(tmp_path, kie, database_url=database_url, **settings) as service:
            watched = Watched(service)
            try:
                await watched.open(10)
                yield service, watched
            finally:
                await watched.stop()

    return start


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_calls_fail_while_the_server_is_down_and_open_streams_end_after_it(
    watching: Watching, cluster: Cluster, way: str
) -> None:
    async with watching(cluster.url) as (service, watched):
        await asyncio.to_thread(getattr(cluster, way))
        for error in await calls(service, watched.task_ids[0]):
            assert_unavailable(error)
        await asyncio.to_thread(cluster.start)
        assert await watched.end() < RESUMES_SECONDS
        assert (await service.create(STUCK)).provider_task_id
    assert len(service.kie.tasks) == 11


async def test_tasks_created_while_connections_are_cut_are_bought_once_each(
    watching: Watching, cluster: Cluster
) -> None:
    async with (
        watching(cluster.url) as (service, watched),
        GenerationClient(service.address, retry=PATIENT) as client,
    ):
        creating = asyncio.gather(*(create(client, f"r-{number}") for number in range(100)))
        for cut in range(1, 11):  # one for every few that are bought
            await eventually(lambda: len(service.kie.tasks) > 10 * cut)  # noqa: B023 - awaited here
            await asyncio.to_thread(terminate, cluster.url)
        created = await creating
        ends = await asyncio.gather(*(client.wait(task.id, timeout=60) for task in created))
        assert await watched.end() < RESUMES_SECONDS
        assert connections(cluster.url) <= CONNECTIONS_MAX
    assert {end.status for end in ends} == {TaskStatus.TASK_STATUS_SUCCESS}
    assert len(service.kie.tasks) == 110


async def test_calls_fail_while_there_are_too_many_connections(
    watching: Watching, cluster: Cluster
) -> None:
    execute(cluster.url, "CREATE ROLE app LOGIN")
    execute(cluster.url, "GRANT ALL ON SCHEMA public TO app")
    url = cluster.url.replace("//postgres@", "//app@")
    async with watching(url) as (service, watched):
        execute(cluster.url, "ALTER ROLE app CONNECTION LIMIT 0")
        await cut_off(cluster.url)
        for error in await calls(service, watched.task_ids[0]):
            assert_unavailable(error)
        execute(cluster.url, f"ALTER ROLE app CONNECTION LIMIT {CONNECTIONS_MAX}")
        assert await watched.end() < RESUMES_SECONDS
        assert (await service.create(STUCK)).provider_task_id
    assert len(service.kie.tasks) == 11


async def test_calls_fail_when_statements_wait_too_long_for_a_lock(
    watching: Watching, cluster: Cluster
) -> None:
    async with watching(cluster.url) as (service, watched):
        with locked(cluster.url):
            started = time.monotonic()
            for error in await calls(service, watched.task_ids[0]):
                assert_unavailable(error)
            assert time.monotonic() - started < RESUMES_SECONDS
        assert await watched.end() < RESUMES_SECONDS
        assert (await service.create(STUCK)).provider_task_id
    assert len(service.kie.tasks) == 11


async def test_calls_fail_while_the_server_is_read_only(
    watching: Watching, cluster: Cluster
) -> None:
    async with watching(cluster.url) as (service, watched):
        read_only(cluster.url, "on")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create_until_refused(service)
        assert_unavailable(caught.value)
        await cut_off(cluster.url)
        for error in await calls(service, watched.task_ids[0]):
            assert_unavailable(error)
        read_only(cluster.url, "off")
        assert await watched.end() < RESUMES_SECONDS
        assert (await service.create(STUCK)).provider_task_id


async def test_calls_fail_when_the_connection_dies_silently(
    watching: Watching, cluster: Cluster
) -> None:
    with Wire(cluster.url) as wire:
        async with watching(wire.url) as (service, watched):
            wire.freeze()
            started = time.monotonic()
            asked = []
            for _ in range(3):  # some wait for the database, others wait behind them
                asked.append(asyncio.ensure_future(calls(service, watched.task_ids[0])))
                await asyncio.sleep(0.2)
            for errors in await asyncio.gather(*asked):
                for error in errors:
                    assert_unavailable(error)
            assert time.monotonic() - started < RESUMES_SECONDS
            wire.thaw()
            assert await watched.end() < RESUMES_SECONDS
            assert (await service.create(STUCK)).provider_task_id
    assert len(service.kie.tasks) == 11


async def test_a_service_has_at_most_four_connections_whatever_is_asked_of_it(
    watching: Watching, cluster: Cluster
) -> None:
    async with watching(cluster.url) as (service, watched):
        counts = []
        for _ in range(10):
            asked = [calls(service, task_id) for task_id in watched.task_ids * 5]
            busy = asyncio.gather(*asked)
            while not busy.done():
                counts.append(await asyncio.to_thread(connections, cluster.url))
            await busy
    assert 3 <= max(counts) <= CONNECTIONS_MAX
    await eventually(lambda: connections(cluster.url) == 0)
