"""Watchers that stop to read: what is written to them waits, and they hold up nothing else."""

import asyncio
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from service.watch import Watcher
from storage.task import Task
from tests.support.harness import Serve
from tests.support.metrics_page import ADMIN, Page, page_when
from tests.support.refusals import refusal

STREAMS = 50
BEAT_SECONDS = 0.01
QUIET_BEATS = 50  # without a beat of any stream: all of them wait for their readers
LIFE_SECONDS = 5
LONG_STUCK: dict[str, Any] = {"imagen4": {"prompt": "😀" * 4_900 + "[sim:stuck]"}}


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The heartbeats that were begun."""
    begun: list[Task] = []
    current = Watcher._current

    async def noted(watcher: Watcher, task: Task) -> Task:
        begun.append(task)
        return await current(watcher, task)

    monkeypatch.setattr(Watcher, "_current", noted)
    return begun


async def stalled(stub: Any, task_id: str, beats: list[Task]) -> list[Any]:
    """Open streams, read the first message of each, and wait until their writes are blocked."""
    calls = [stub.WatchTask(pb.WatchTaskRequest(task_id=task_id)) for _ in range(STREAMS)]
    await asyncio.gather(*(call.read() for call in calls))
    seen = -1
    while seen < len(beats):
        seen = len(beats)
        await asyncio.sleep(BEAT_SECONDS * QUIET_BEATS)
    return calls


async def read_out(call: Any) -> None:
    while await call.read():
        pass


def none_open(page: Page) -> bool:
    return page.value("generation_watches_open") == 0


async def test_a_client_that_stalls_and_disconnects_is_a_cancelled_call(
    serve: Serve, beats: list[Task]
) -> None:
    async with serve(**ADMIN, watch_heartbeat_seconds=BEAT_SECONDS) as service:
        created = await service.create(LONG_STUCK)
        async with grpc.aio.insecure_channel(service.address) as channel:
            await stalled(GenerationServiceStub(channel), created.id, beats)
        page = await page_when(service, none_open)
        assert page.calls("WatchTask", "CANCELLED") == STREAMS
        assert page.calls("WatchTask", "INTERNAL") == 0


async def test_the_stream_of_a_stalled_client_expires_and_frees_its_place(
    serve: Serve, beats: list[Task]
) -> None:
    settings = {"watch_heartbeat_seconds": BEAT_SECONDS, "watch_max_age_seconds": LIFE_SECONDS}
    async with serve(**ADMIN, **settings, watch_max_streams=STREAMS) as service:
        created = await service.create(LONG_STUCK)
        calls = await stalled(service.stub, created.id, beats)
        await page_when(service, none_open)
        await service.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id)).read()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_out(calls[0])
        assert refusal(caught.value).reason == "STREAM_EXPIRED"
