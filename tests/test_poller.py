"""The poller: sending, asking, recovering."""

import asyncio
import itertools
import socket
import sqlite3
from contextlib import AsyncExitStack, closing
from typing import Any

import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.limits import SlidingWindow
from service.schedule import poll_delay
from tests.conftest import Serve
from tests.harness import INSTANT, Service, ended

STUCK: dict[str, Any] = {"imagen4": {"prompt": "x [sim:stuck]"}}


async def test_a_task_created_before_a_restart_is_ended_after_it(serve: Serve) -> None:
    async with serve() as service:
        created = await service.create(STUCK)
    service.kie.finish(created.provider_task_id)
    async with serve() as service:
        end = await service.end(created.id)
    assert end.status == pb.TASK_STATUS_SUCCESS
    assert len(service.kie.tasks) == 1


async def test_a_task_that_was_not_sent_before_a_restart_is_sent_after_it(serve: Serve) -> None:
    async with serve(create_wait_seconds=0) as service:
        service.kie.add_fault("create:code,code=455,times=0")
        created = await service.until_put_back((await service.create()).id)
        service.kie.clear_faults()
    async with serve() as service:
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS
    assert len(service.kie.tasks) == 1


async def test_a_task_found_submitting_at_start_is_unknown_and_not_sent_again(
    serve: Serve,
) -> None:
    async with serve() as service:
        created = await service.create(STUCK)
        folder = service.folder
    with closing(sqlite3.connect(folder / "generation.db")) as db, db:
        db.execute("UPDATE tasks SET stage = 'SUBMITTING', provider_task_id = '', lane = 'poll'")
    async with serve() as service:
        end = await service.end(created.id)
    assert end.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
    assert "imagen4" in end.failure.message
    assert len(service.kie.tasks) == 1


async def test_a_damaged_task_does_not_stop_the_others(serve: Serve) -> None:
    async with serve() as service:
        broken = await service.create(STUCK)
        healthy = await service.create(STUCK)
        folder = service.folder
    with closing(sqlite3.connect(folder / "generation.db")) as db, db:
        db.execute("UPDATE tasks SET status = 'WHAT', due_time = 0 WHERE id = ?", (broken.id,))
    async with serve() as service:
        service.kie.finish(healthy.provider_task_id)
        assert ended(await service.end(healthy.id))


async def test_a_task_whose_provider_cannot_be_reached_waits_and_is_then_sent(
    serve: Serve, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.poller.HOLD_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    async with serve(create_wait_seconds=0, kie_api_url=f"http://127.0.0.1:{port}") as service:
        created = await service.create()
        await service.until_put_back(created.id)
        kie = Simulator(INSTANT)
        await kie.start(port=port)
        stack.push_async_callback(kie.stop)
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS
    assert len(kie.tasks) == 1


WEATHER = [
    "record:code,code=401,times=3",
    "record:code,code=402,times=3",
    "record:code,code=429,times=3",
    "record:code,code=455,times=3",
    "record:code,code=500,times=3",
    "record:http,status=502,times=3",
    "record:reset,times=3",
    "record:garbage,times=3",
    "record:empty,times=3",
    "record:null_data,times=3",
    "record:wrong_types,times=3",
    "record:not_visible,times=3",
    "record:unknown_state,times=3",
    "record:result_object",
    "record:late",
]


@pytest.mark.parametrize("model", ["imagen4", "veo3"])
@pytest.mark.parametrize("fault", WEATHER)
async def test_a_poll_survives_weather(service: Service, fault: str, model: str) -> None:
    service.kie.add_fault(fault)
    end = await service.end((await service.create({model: {"prompt": "a cat"}})).id)
    assert end.status == pb.TASK_STATUS_SUCCESS


async def test_a_late_delivery_is_added_to_the_failed_task(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.task.LATE_POLL_SECONDS", 0.05)
    async with serve(task_max_age_seconds=0.05, watch_heartbeat_seconds=0.01) as service:
        created = await service.create(STUCK)
        timed_out = await service.end(created.id)
        assert timed_out.failure.reason == pb.ERROR_REASON_TASK_TIMEOUT
        service.kie.finish(created.provider_task_id)
        late = timed_out
        async with asyncio.timeout(10):
            while not late.artifacts:
                late = await service.query(created.id)
    assert late.status == pb.TASK_STATUS_FAILED
    assert late.failure == timed_out.failure
    assert late.revision == timed_out.revision + 1


async def test_a_thousand_tasks_in_flight_all_end_and_none_is_polled_too_often(
    serve: Serve,
) -> None:
    interval = 0.5
    async with serve(poll_interval_seconds=interval, create_wait_seconds=30) as service:
        service.kie.update(seconds={"imagen4": [0.5, 2.0]})
        params = {"imagen4": {"prompt": "a cat"}}
        created = await asyncio.gather(*(service.create(params, timeout=60) for _ in range(1_000)))
        ends = await asyncio.gather(*(service.end(task.id) for task in created))
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    assert len(service.kie.tasks) == 1_000
    for task in service.kie.tasks:
        times = task["polls"]["times_ms"]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert min(gaps, default=1_000) >= interval * 1_000 * 0.8, times


async def test_polls_never_pass_the_accounts_rate(serve: Serve) -> None:
    async with serve(kie_status_per_second=10, poll_interval_seconds=0.01) as service:
        service.kie.update(records_per_second=10)
        created = await asyncio.gather(*(service.create(STUCK) for _ in range(20)))
        async with asyncio.timeout(10):
            while sum(task["polls"]["count"] for task in service.kie.tasks) < 25:
                await service.query(created[0].id)
    assert service.kie.stats["peaks"]["records_in_a_second"] <= 10


# --- pure parts ---


def test_a_window_never_lets_more_through_than_its_limit() -> None:
    window = SlidingWindow(3, 10.0)
    window.take(2, now=0.0)
    window.take(1, now=4.0)
    assert window.free(now=9.9) == 0
    assert window.next_free_time(now=9.9) == 10.0
    assert window.free(now=10.0) == 2
    assert window.free(now=14.0) == 3


def test_a_window_without_a_limit_is_always_open() -> None:
    window = SlidingWindow(0, 10.0)
    window.take(1_000_000, now=0.0)
    assert window.free(now=0.0) == float("inf")
    assert window.next_free_time(now=5.0) == 5.0


@pytest.mark.parametrize(
    ("age", "setbacks", "least", "most"),
    [
        (0, 0, 2.0, 2.2),
        (29, 0, 2.0, 2.2),
        (31, 0, 6.0, 6.6),
        (121, 0, 10.0, 11.0),
        (400, 0, 16.0, 17.6),
        (0, 1, 4.0, 4.4),
        (0, 50, 16.0, 17.6),
        (400, 50, 16.0, 17.6),
    ],
)
def test_polls_start_early_and_back_off_by_age_and_setbacks(
    age: float, setbacks: int, least: float, most: float
) -> None:
    for _ in range(100):
        assert least <= poll_delay(2.0, age, usual_seconds=313, setbacks=setbacks) <= most
