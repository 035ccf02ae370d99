"""What one connection may do, and how many there may be."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from service import descriptors
from service.bounds import Bounds
from tests.support.harness import Serve, Service, ended
from tests.support.prompts import STUCK

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


async def connect(service: Service, stack: AsyncExitStack) -> Any:
    """Return a stub with its own connection."""
    channel = grpc.aio.insecure_channel(service.address, OWN_CONNECTION)
    await stack.enter_async_context(channel)
    return GenerationServiceStub(channel)


async def is_open(reader: asyncio.StreamReader) -> bool:
    """Read until the peer closes, or for a while."""
    try:
        async with asyncio.timeout(0.5):
            while await reader.read(1_000):
                pass
    except TimeoutError:
        return True
    except ConnectionError:
        pass
    return False


async def test_a_stream_beyond_those_of_a_connection_waits_in_the_client(
    serve: Serve, stack: AsyncExitStack
) -> None:
    service = await stack.enter_async_context(serve(max_streams_per_connection=2))
    created = await service.create(STUCK)
    request = pb.WatchTaskRequest(task_id=created.id)
    stub = await connect(service, stack)
    watches = [stub.WatchTask(request) for _ in range(3)]
    reads = [asyncio.create_task(watch.read()) for watch in watches]
    async with asyncio.timeout(10):
        while sum(read.done() for read in reads) < 2:
            await asyncio.wait(
                [read for read in reads if not read.done()], return_when="FIRST_COMPLETED"
            )
    other = await connect(service, stack)
    assert (await other.QueryTask(pb.QueryTaskRequest(task_id=created.id))).task.id == created.id
    [waiting] = [read for read in reads if not read.done()]  # no error, and no answer yet
    watches[next(n for n, read in enumerate(reads) if read.done())].cancel()
    assert (await waiting).task.id == created.id


async def test_a_connection_beyond_the_limit_is_closed_and_the_others_continue(
    serve: Serve, stack: AsyncExitStack
) -> None:
    service = await stack.enter_async_context(serve(max_connections=3))
    created = await service.create(STUCK)  # the first one
    host, _, port = service.address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
    opened = [await is_open(reader) for reader, _ in silent]
    assert opened.count(True) <= 2
    assert (await service.query(created.id)).id == created.id
    for _, writer in silent:
        writer.close()


async def test_a_connection_that_never_speaks_is_closed(
    serve: Serve, stack: AsyncExitStack
) -> None:
    service = await stack.enter_async_context(serve(bounds=Bounds(handshake_seconds=0.2)))
    host, _, port = service.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(10):
        while await is_open(reader):
            pass
    writer.close()


async def test_an_idle_connection_is_closed_and_reopened_without_an_error(
    serve: Serve, stack: AsyncExitStack
) -> None:
    service = await stack.enter_async_context(serve(connection_idle_seconds=0.2))
    created = await service.create(STUCK)
    state = grpc.ChannelConnectivity.READY
    assert service.channel.get_state() is state
    async with asyncio.timeout(10):
        await service.channel.wait_for_state_change(state)
    assert (await service.query(created.id)).id == created.id


async def test_an_old_connection_is_replaced_while_its_watches_continue(
    serve: Serve, stack: AsyncExitStack
) -> None:
    service = await stack.enter_async_context(serve(connection_age_seconds=0.3))
    created = await service.create(STUCK)
    watch: Any = service.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
    assert (await watch.read()).task.id == created.id
    state = grpc.ChannelConnectivity.READY
    async with asyncio.timeout(10):
        await service.channel.wait_for_state_change(state)
    service.kie.finish(created.provider_task_id)
    while (answer := await watch.read()) is not grpc.aio.EOF:
        last = answer.task
    assert ended(last), "the watch survived its connection's age"
    assert (await service.query(created.id)).status == pb.TASK_STATUS_SUCCESS


@pytest.mark.parametrize(
    ("setting", "limit", "connections"),
    [(0, 1 << 20, (1 << 20) - 1_000), (0, 20_000, 19_000), (0, 256, 128), (50, 20_000, 50)],
)
def test_some_descriptors_are_left_for_everything_else(
    setting: int, limit: int, connections: int
) -> None:
    assert descriptors.connections_max(setting, limit) == connections


@pytest.mark.parametrize(("limit", "missing"), [(20_500, 0), (20_000, 500), (1_024, 19_476)])
def test_missing_descriptors_for_watches_are_counted(limit: int, missing: int) -> None:
    assert descriptors.missing(20_000, limit) == missing


@pytest.mark.parametrize("milliseconds", [1_000, 2_000])
async def test_an_idle_client_that_pings_is_not_disconnected(
    serve: Serve, milliseconds: int
) -> None:
    options = [
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        *OWN_CONNECTION,
    ]
    async with serve() as service, grpc.aio.insecure_channel(service.address, options) as channel:
        stub: Any = GenerationServiceStub(channel)
        await stub.ListTasks(pb.ListTasksRequest(), timeout=10)
        state = grpc.ChannelConnectivity.READY
        assert channel.get_state() is state
        with pytest.raises(TimeoutError):  # three pings too many would end it
            async with asyncio.timeout(4.5 * milliseconds / 1_000):
                await channel.wait_for_state_change(state)
