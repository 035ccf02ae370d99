"""The poller: sending, polling, recovering."""

import asyncio
import itertools
import socket
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Accepted
from providers.kie.client import KieProvider
from providers.kie.http import Timeouts
from providers.kie.simulator import Simulator
from service.holds import HoldTimes
from service.leases import LeaseTimes
from service.limits import LimitBounds
from service.verdicts import VerdictBounds
from tests.support.databases import change
from tests.support.harness import (
    INSTANT,
    Serve,
    Service,
    create_request,
    ended,
    has_artifacts,
    poller_bounds,
)
from tests.support.prompts import STUCK
from tests.support.waiting import eventually

SHORT_HOLDS = poller_bounds(
    limits=LimitBounds(holds=HoldTimes(first_seconds=0.05)),
    verdicts=VerdictBounds(postpone_seconds=0.05),
)


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
    bounds = poller_bounds(leases=LeaseTimes(lease_seconds=0.5))
    async with serve(bounds=bounds) as service:
        created = await service.create(STUCK)
    change(
        service.database_url,
        "UPDATE tasks SET stage = 'SUBMITTING', provider_task_id = '', lane = 'poll', due_time = 0",
    )
    async with serve(bounds=bounds) as service:
        end = await service.end(created.id)
    assert end.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
    assert "imagen4" in end.failure.message
    assert len(service.kie.tasks) == 1


async def test_a_damaged_task_does_not_stop_the_others(serve: Serve) -> None:
    async with serve() as service:
        broken = await service.create(STUCK)
        healthy = await service.create(STUCK)
    sql = "UPDATE tasks SET artifacts = '7', due_time = 0 WHERE id = ?"
    change(service.database_url, sql, broken.id)
    async with serve() as service:
        service.kie.finish(healthy.provider_task_id)
        assert ended(await service.end(healthy.id))


async def test_a_task_whose_provider_cannot_be_reached_waits_and_is_then_sent(
    serve: Serve, stack: AsyncExitStack
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    settings: dict[str, Any] = {"create_wait_seconds": 0, "bounds": SHORT_HOLDS}
    async with serve(kie_api_url=f"http://127.0.0.1:{port}", **settings) as service:
        created = await service.create()
        await service.until_put_back(created.id)
        kie = Simulator(INSTANT)
        await kie.start(port=port)
        stack.push_async_callback(kie.stop)
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS
    assert len(kie.tasks) == 1


INCONCLUSIVE = [
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
@pytest.mark.parametrize("fault", INCONCLUSIVE)
async def test_a_task_survives_inconclusive_polls(service: Service, fault: str, model: str) -> None:
    service.kie.add_fault(fault)
    end = await service.end((await service.create({model: {"prompt": "a cat"}})).id)
    assert end.status == pb.TASK_STATUS_SUCCESS


async def test_a_late_delivery_is_added_to_the_failed_task(
    serve: Serve,
) -> None:
    settings: dict[str, Any] = {"task_max_age_seconds": 0.05, "watch_heartbeat_seconds": 0.01}
    bounds = poller_bounds(verdicts=VerdictBounds(late_poll_seconds=0.05))
    async with serve(bounds=bounds, **settings) as service:
        created = await service.create(STUCK)
        timed_out = await service.end(created.id)
        assert timed_out.failure.reason == pb.ERROR_REASON_TASK_TIMEOUT
        service.kie.finish(created.provider_task_id)
        late = await service.until(created.id, has_artifacts)
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


async def test_once_durations_are_known_no_poll_is_spent_before_a_task_can_have_ended(
    serve: Serve,
) -> None:
    async with serve(poll_interval_seconds=0.2) as service:
        # Records have whole seconds: a task seems to end up to a second earlier.
        service.kie.update(seconds={"imagen4": [3, 3]})
        for round_ in range(2):
            created = await asyncio.gather(*(service.create() for _ in range(10)))
            await asyncio.gather(*(service.end(task.id) for task in created))
            if round_ == 0:
                unlearned = sum(task["polls"]["count"] for task in service.kie.tasks)
    learned = sum(task["polls"]["count"] for task in service.kie.tasks) - unlearned
    assert learned <= unlearned / 2


async def test_polls_never_exceed_the_accounts_rate(serve: Serve) -> None:
    # A window of 2 s, as requests of a slow machine arrive up to a second late.
    bounds = poller_bounds(limits=LimitBounds(status_window_seconds=2))
    settings: dict[str, Any] = {"kie_status_per_second": 10, "poll_interval_seconds": 0.01}
    async with serve(bounds=bounds, **settings) as service:
        service.kie.update(records_per_second=10)
        created = await asyncio.gather(*(service.create(STUCK) for _ in range(20)))
        async with asyncio.timeout(60):
            while sum(task["polls"]["count"] for task in service.kie.tasks) < 25:
                await service.query(created[0].id)
    assert service.kie.stats["peaks"]["records_in_a_second"] <= 10


# --- pure parts ---


async def test_a_response_after_the_task_was_given_up_is_adopted_and_its_result_kept(
    serve: Serve,
) -> None:
    async with serve(create_wait_seconds=0) as service:
        service.kie.add_fault("create:slow,seconds=0.5")
        created = await service.create()
        async for task in service.watch(created.id):
            if task.stage == pb.TASK_STAGE_SUBMITTING:
                break
        change(
            service.database_url,
            "UPDATE tasks SET status = 'FAILED', stage = NULL, lane = NULL, due_time = NULL,"
            " failure_reason = 'SUBMISSION_UNKNOWN', failure_message = '', failure_code = '',"
            " revision = revision + 1, version = version + 1",
        )
        late = await service.until(created.id, has_artifacts)
        assert late.status == pb.TASK_STATUS_FAILED
        assert late.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
        assert late.provider_task_id == service.kie.tasks[0]["id"]


async def test_an_answer_that_came_while_the_process_was_paused_is_read() -> None:
    command = (sys.executable, "-m", "providers.kie.simulator", "--port", "0")
    fault = ("--fault", "create:slow,seconds=0.2")
    other = await asyncio.create_subprocess_exec(*command, *fault, stdout=asyncio.subprocess.PIPE)
    assert other.stdout is not None
    url = (await other.stdout.readline()).decode().split()[-1]
    provider = KieProvider(url, url, "key", timeouts=Timeouts(create_seconds=0.5))
    try:
        params = create_request().provider_params
        submitting = asyncio.ensure_future(provider.submit(params, None))
        async with aiohttp.ClientSession() as session:
            started = False
            while not started:
                async with session.get(f"{url}/simulator/stats") as answer:
                    started = bool((await answer.json())["faults_struck"])
        time.sleep(1.0)  # noqa: ASYNC251 - the pause itself: nothing in this process moves
        assert isinstance(await submitting, Accepted)
    finally:
        await provider.close()
        other.terminate()
        await other.wait()
        other._transport.close()  # type: ignore[attr-defined]


async def test_after_an_outage_postponed_tasks_are_polled_at_once(
    serve: Serve,
) -> None:
    async with serve(poll_interval_seconds=0.5) as service:
        service.kie.add_fault("record:http,status=502,times=0")
        created = await asyncio.gather(*(service.create(STUCK) for _ in range(5)))
        await eventually(lambda: service.kie.stats["faults_struck"].get("http", 0) >= 20)
        for task in created:
            service.kie.finish(task.provider_task_id)
        service.kie.clear_faults()
        first = await asyncio.wait(
            [asyncio.ensure_future(service.end(task.id)) for task in created],
            return_when=asyncio.FIRST_COMPLETED,
        )
        started = time.monotonic()
        await asyncio.gather(*first[1])
        assert time.monotonic() - started < 1.0, "not one by one as their waits run out"


@pytest.mark.parametrize("code", [429, 455])
async def test_a_model_that_the_provider_does_not_accept_does_not_delay_the_others(
    serve: Serve, code: int
) -> None:
    async with serve(create_wait_seconds=0, bounds=SHORT_HOLDS) as service:
        service.kie.add_fault(f"create:code,code={code},times=0,family=sora2")
        closed = await service.create({"sora2": {"prompt": "a cat"}})
        await service.until_put_back(closed.id)
        others = [await service.create() for _ in range(5)]
        ends = await asyncio.gather(*(service.end(task.id) for task in others))
        assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
        service.kie.clear_faults()
        assert (await service.end(closed.id)).status == pb.TASK_STATUS_SUCCESS


async def test_a_task_claimed_during_shutdown_is_still_sent(serve: Serve) -> None:
    for number in range(10):
        async with serve(create_wait_seconds=0) as service:
            created = [await service.create(request_id=f"{number}-{i}") for i in range(5)]
        async with serve() as service:
            ends = await asyncio.gather(*(service.end(task.id) for task in created))
        assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
