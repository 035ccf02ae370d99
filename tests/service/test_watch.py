"""WatchTask, through a real channel."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from service.hub import Hub
from storage.task import Task
from tests.support.harness import Serve, Service, ended
from tests.support.prompts import STUCK
from tests.support.refusals import refusal
from tests.support.waiting import DEADLINE_SECONDS


def snapshot(revision: int) -> Task:
    return Task(
        id="t",
        caller="c",
        request_id="",
        prompt_id="p",
        model="m",
        params=b"",
        create_time=0,
        update_time=0,
        due_time=None,
        revision=revision,
    )


async def exhaust(tasks: AsyncIterator[pb.GenerationTask]) -> None:
    async for _ in tasks:
        pass


async def noting(
    tasks: AsyncIterator[pb.GenerationTask], revisions: list[int]
) -> AsyncIterator[pb.GenerationTask]:
    """Pass a stream on, and note its revisions."""
    async for task in tasks:
        revisions.append(task.revision)
        yield task


async def test_a_watch_shows_the_current_snapshot_first(serve: Serve) -> None:
    async with serve(poll_interval_seconds=5) as service:
        created = await service.create(STUCK)
        async for task in service.watch(created.id):
            assert task == await service.query(created.id)
            break


async def test_a_watch_after_the_current_revision_waits_for_a_newer_one(service: Service) -> None:
    created = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.3]"}})
    async for task in service.watch(created.id, after_revision=created.revision):
        assert task.revision > created.revision
        break


async def test_a_watch_of_an_ended_task_shows_its_end_even_if_it_was_seen(
    service: Service,
) -> None:
    end = await service.end((await service.create()).id)
    assert [t async for t in service.watch(end.id, after_revision=end.revision)] == [end]


async def test_a_quiet_stream_repeats_the_current_snapshot(serve: Serve) -> None:
    async with serve(watch_heartbeat_seconds=0.02, poll_interval_seconds=5) as service:
        created = await service.create(STUCK)
        seen = []
        async for task in service.watch(created.id):
            seen.append(task)
            if len(seen) == 4:
                break
        assert seen == [seen[0]] * 4


async def test_every_watcher_of_a_task_sees_its_end(service: Service) -> None:
    created = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.2]"}})
    ends = await asyncio.gather(*(service.end(created.id) for _ in range(50)))
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    assert len({end.revision for end in ends}) == 1


async def test_an_old_stream_expires_and_another_resumes_from_its_revision(serve: Serve) -> None:
    async with serve(watch_max_age_seconds=0.5) as service:
        created = await service.create(STUCK)
        seen: list[int] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await exhaust(noting(service.watch(created.id), seen))
        error = refusal(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_EXPIRED")
        assert error.retry_seconds == 0
        service.kie.finish(created.provider_task_id)
        async for task in service.watch(created.id, after_revision=seen[-1]):
            last = task
        assert ended(last)


async def test_streams_beyond_the_limit_are_refused_until_one_ends(serve: Serve) -> None:
    async with serve(watch_max_streams=2) as service:
        created = await service.create(STUCK)
        request = pb.WatchTaskRequest(task_id=created.id)
        calls = [service.stub.WatchTask(request) for _ in range(2)]
        for call in calls:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.WatchTask(request).read()
        error = refusal(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert error.retry_seconds

        calls[0].cancel()
        while True:  # the server learns of the cancellation in its own time
            call = service.stub.WatchTask(request)
            try:
                await call.read()
            except grpc.aio.AioRpcError:
                continue
            break


async def test_five_thousand_watches_opened_at_once_all_see_the_end(service: Service) -> None:
    created = await service.create(STUCK)
    request = pb.WatchTaskRequest(task_id=created.id)
    # A connection allows a thousand streams; more would wait in the client.
    channels = [
        grpc.aio.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(6)
    ]
    stubs = [GenerationServiceStub(channel) for channel in channels]

    async def open_watch(number: int) -> Any:
        while True:
            call: Any = stubs[number % len(stubs)].WatchTask(request)
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                if rpc_status.from_call(error) is not None:
                    raise  # only C-core drops calls that cannot wait, and adds no details
                await asyncio.sleep(random.uniform(0, 0.5))  # as clients back off
            else:
                return call

    calls = await asyncio.gather(*map(open_watch, range(5_000)))
    service.kie.finish(created.provider_task_id)

    async def last(call: Any) -> Any:
        answer: Any = None
        while (newer := await call.read()) is not grpc.aio.EOF:
            answer = newer
        return answer.task

    ends = await asyncio.gather(*map(last, calls))
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    for channel in channels:
        await channel.close()


async def test_a_slot_holds_only_the_newest_snapshot() -> None:
    hub = Hub()
    with hub.subscribe("t") as subscription:
        for revision in (2, 3, 5, 4):
            hub.publish(snapshot(revision))
        assert await subscription.newer(1, timeout=1) == snapshot(5)
        assert await subscription.newer(5, timeout=0.01) is None


@pytest.mark.parametrize(("first", "second"), [(0.05, 0.2), (60, 0.05)])
async def test_each_wait_has_its_own_timeout(first: float, second: float) -> None:
    hub = Hub()
    loop = asyncio.get_running_loop()
    with hub.subscribe("t") as subscription:
        loop.call_soon(hub.publish, snapshot(2))
        assert await subscription.newer(1, timeout=first) == snapshot(2)
        started = loop.time()
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await subscription.newer(2, timeout=second) is None
        assert loop.time() - started >= second


async def test_a_snapshot_published_while_draining_is_still_shown() -> None:
    hub = Hub()
    with hub.subscribe("t") as subscription:
        hub.publish(snapshot(2))
        hub.drain()
        assert await subscription.newer(1, timeout=1) == snapshot(2)
        assert await subscription.newer(2, timeout=60) is None


async def test_a_subscription_made_after_draining_began_does_not_wait() -> None:
    hub = Hub()
    hub.drain()
    with hub.subscribe("t") as subscription:
        assert await subscription.newer(0, timeout=60) is None


async def test_a_hub_forgets_tasks_that_nobody_watches() -> None:
    hub = Hub()
    with hub.subscribe("t"), hub.subscribe("t"):
        pass
    assert not hub._topics
    hub.publish(snapshot(1))
    assert not hub._topics
