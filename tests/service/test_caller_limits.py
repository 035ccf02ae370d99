"""The limits of callers: each refuses or delays its own caller and no other."""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.holds import HoldTimes
from storage.pages import ListFilter
from storage.store import Store
from storage.task import Task
from tests.support.callers import ONE_RUNS, Caller, Files, Serving, all_waiting, bounds
from tests.support.databases import change
from tests.support.harness import Service, serving, upload_messages
from tests.support.prompts import STUCK
from tests.support.refusals import Refusal, refused
from tests.support.waiting import DEADLINE_SECONDS, eventually

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


# --- queue ---


async def test_a_caller_whose_queue_is_full_is_refused_and_others_are_not(
    serve_both: Serving,
) -> None:
    async with serve_both(ONE_RUNS + "queue = 3\n") as (alice, bob):
        await all_waiting(alice, 3)
        for _ in range(3):
            error = await alice.create_refused()
            assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
            assert error.metadata == {"limit": "queue", "max": "3", "scope": "caller"}
            assert error.retry_seconds
            assert "caller alice" in error.message
            assert "`queue`" in error.message
        assert await bob.is_sent((await bob.create(STUCK)).id)


async def test_a_place_in_the_queue_is_free_at_once_when_a_task_is_cancelled(
    serve_both: Serving,
) -> None:
    async with serve_both(ONE_RUNS + "queue = 2\n") as (alice, _):
        *_, last = await all_waiting(alice, 2)
        await alice.create_refused()
        await alice.cancel(last.id)
        await alice.create(STUCK)
        await alice.create_refused()


async def test_a_known_request_id_is_answered_whatever_the_limits_say(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both(ONE_RUNS) as (alice, _):
        first = await alice.create(STUCK, request_id="r")
        assert await alice.is_sent(first.id)
        await alice.create(STUCK)
        files.limit(ONE_RUNS + 'queue = 1\ncreates_per_minute = 1\nmodels = ["veo3"]\n')
        assert (await alice.create_refused(request_id="new")).reason == "MODEL_NOT_ALLOWED"
        assert (await alice.create(STUCK, request_id="r")).id == first.id
        files.limit(ONE_RUNS + "queue = 1\ncreates_per_minute = 1\n")
        assert (await alice.create_refused(request_id="new")).reason == "RATE_LIMITED"
        assert (await alice.create(STUCK, request_id="r")).id == first.id
        assert (await alice.create_refused(request_id="r", prompt_id="q")).reason == (
            "REQUEST_ID_REUSED"
        )


async def test_the_whole_queue_is_limited_too(serve_both: Serving) -> None:
    async with serve_both("[default]\nrunning = 1\nqueue = 9\n", queue_max_tasks=2) as (alice, bob):
        await all_waiting(alice, 2)
        error = await bob.create_refused()
        assert error.metadata == {"limit": "queue", "max": "2", "scope": "service"}


async def test_the_queue_of_a_caller_is_that_of_all_replicas_together(
    tmp_path: Path, kie: Simulator, postgresql_url: str, files: Files, stack: AsyncExitStack
) -> None:
    files.limit(ONE_RUNS + "queue = 4\n")
    alices = [
        Caller("alice", service)
        for service in await replicas(tmp_path, kie, postgresql_url, files, stack)
    ]
    await all_waiting(alices[0], 3)
    await alices[1].create(STUCK)
    for alice in alices:
        assert (await alice.create_refused()).metadata["limit"] == "queue"


async def replicas(
    tmp_path: Path, kie: Simulator, database_url: str, files: Files, stack: AsyncExitStack
) -> list[Service]:
    settings: dict[str, Any] = {"database_url": database_url, "create_wait_seconds": 0}
    settings |= {"auth_tokens_file": files.tokens, "caller_limits_file": files.limits}
    return [await stack.enter_async_context(serving(tmp_path, kie, **settings)) for _ in range(2)]


# --- creates_per_minute ---


async def test_creates_in_a_minute_are_limited_for_one_caller_and_not_for_another(
    serve_both: Serving,
) -> None:
    async with serve_both("[callers.alice]\ncreates_per_minute = 3\n") as (alice, bob):
        for _ in range(3):
            await alice.create(STUCK)
        error = await alice.create_refused()
        assert error.metadata == {"limit": "creates_per_minute", "max": "3", "scope": "caller"}
        assert error.retry_seconds is not None
        assert 50 < error.retry_seconds <= 60, "the oldest has to be a minute old"
        for _ in range(5):
            await bob.create(STUCK)


async def test_tasks_that_cost_nothing_count_as_creates(serve_both: Serving) -> None:
    limits = "[callers.alice]\nrunning = 1\ncreates_per_minute = 3\n"
    async with serve_both(limits) as (alice, bob):
        _, waiting = await all_waiting(alice, 1)
        await alice.cancel(waiting.id)
        alice.service.kie.add_fault("create:code,code=422,msg=no,times=0")
        await alice.create()
        assert (await alice.create_refused()).metadata["limit"] == "creates_per_minute"
        await bob.create(STUCK)


async def test_a_create_fits_again_when_an_earlier_one_is_a_minute_old(
    serve_both: Serving,
) -> None:
    async with serve_both("[callers.alice]\ncreates_per_minute = 2\n") as (alice, _):
        first, _ = await alice.create(STUCK), await alice.create(STUCK)
        sql = "UPDATE tasks SET create_time = create_time - 60 WHERE id = ?"
        change(alice.service.database_url, sql, first.id)
        await alice.create(STUCK)
        await alice.create_refused()


async def test_creates_in_a_minute_are_those_of_all_replicas_together(
    tmp_path: Path, kie: Simulator, postgresql_url: str, files: Files, stack: AsyncExitStack
) -> None:
    files.limit("[callers.alice]\ncreates_per_minute = 4\n")
    services = await replicas(tmp_path, kie, postgresql_url, files, stack)
    for service in [*services, *services]:
        await Caller("alice", service).create(STUCK)
    for service in services:
        await Caller("alice", service).create_refused()
        await Caller("bob", service).create(STUCK)


# --- running ---


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the poller looked for tasks to send."""
    times: list[float] = []
    claim_in_turns = Store.claim_in_turns

    async def noted(store: Store, *args: Any, **kwargs: Any) -> Any:
        times.append(time.monotonic())
        return await claim_in_turns(store, *args, **kwargs)

    monkeypatch.setattr(Store, "claim_in_turns", noted)
    return times


async def test_a_caller_that_runs_all_it_may_waits_and_others_are_sent_at_once(
    serve_both: Serving, kie: Simulator
) -> None:
    async with serve_both(ONE_RUNS) as (alice, bob):
        first, second, third = await all_waiting(alice, 2)
        assert not await alice.is_sent(second.id, 0.2)
        for _ in range(3):
            assert await bob.is_sent((await bob.create(STUCK)).id)
        assert not await alice.is_sent(second.id, 0.2)
        kie.finish((await alice.query(first.id)).provider_task_id)
        assert await alice.is_sent(second.id), "in its order, as soon as there is room"
        assert not await alice.is_sent(third.id, 0.2)


async def test_a_caller_that_has_to_wait_does_not_keep_the_poller_busy(
    serve_both: Serving, claims: list[float]
) -> None:
    async with serve_both(ONE_RUNS, poll_interval_seconds=5) as (alice, bob):
        await all_waiting(alice, 20)
        await asyncio.sleep(0.3)
        claims.clear()
        started = time.monotonic()
        await eventually(lambda: time.monotonic() - started > 2)
        assert len(claims) <= 1
        assert await bob.is_sent((await bob.create(STUCK)).id)


async def test_a_hold_and_a_waiting_caller_do_not_delay_others(
    serve_both: Serving, kie: Simulator
) -> None:
    short = bounds(holds=HoldTimes(first_seconds=0.1))
    async with serve_both(ONE_RUNS, bounds=short) as (alice, bob):
        await all_waiting(alice, 3)
        kie.add_fault("create:code,code=455,times=2")
        assert await bob.is_sent((await bob.create(STUCK)).id)


async def test_half_of_what_may_run_is_left_to_others_when_there_are_several_callers(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both(kie_running_max=4) as (alice, bob):
        tasks = [await alice.create(STUCK) for _ in range(5)]
        assert all([await alice.is_sent(task.id) for task in tasks[:2]])
        assert not await alice.is_sent(tasks[2].id, 0.2)
        for _ in range(2):
            assert await bob.is_sent((await bob.create(STUCK)).id)
    files.name("alice")


async def test_a_single_caller_may_use_all(serve_both: Serving, files: Files) -> None:
    files.name("alice")
    async with serve_both(kie_running_max=4, watch_max_streams=3) as (alice, _):
        tasks = [await alice.create(STUCK) for _ in range(4)]
        assert all([await alice.is_sent(task.id) for task in tasks])
        watches = [alice.watch(tasks[0].id) for _ in range(3)]
        for watch in watches:
            await watch.read()
        error = await refused(alice.watch(tasks[0].id).read())
        assert error.metadata == {"limit": "watches", "max": "3", "scope": "caller"}


async def test_what_a_caller_runs_is_counted_over_all_replicas(
    tmp_path: Path, kie: Simulator, postgresql_url: str, files: Files, stack: AsyncExitStack
) -> None:
    files.limit("[callers.alice]\nrunning = 2\n")
    services = await replicas(tmp_path, kie, postgresql_url, files, stack)
    alices = [Caller("alice", service) for service in services]
    tasks = [await alice.create(STUCK) for alice in alices * 3]
    await eventually(lambda: kie.stats["purchases"]["total"] == 2)
    assert await Caller("bob", services[1]).is_sent(
        (await Caller("bob", services[1]).create(STUCK)).id
    )
    assert kie.stats["purchases"]["total"] == 3
    for sent in (3, 4, 5, 6):
        in_progress = await two_in_progress(alices[sent % 2], [task.id for task in tasks])
        kie.finish(in_progress[0])
        await eventually(lambda n=sent: kie.stats["purchases"]["total"] == n + 1)  # type: ignore[misc]


async def two_in_progress(caller: Caller, task_ids: list[str]) -> list[str]:
    """Wait until the provider has two of the tasks, and never more; return its ids of them."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            snapshots = [await caller.query(task_id) for task_id in task_ids]
            running = [s for s in snapshots if s.status == pb.TASK_STATUS_PENDING]
            in_progress = [s.provider_task_id for s in running if s.provider_task_id]
            assert len(in_progress) <= 2
            if len(in_progress) == 2:
                return in_progress


# --- watches, uploads, lists ---


async def test_open_streams_of_one_caller_are_limited_until_one_ends(serve_both: Serving) -> None:
    async with serve_both("[callers.alice]\nwatches = 2\n") as (alice, bob):
        task, other = await alice.create(STUCK), await bob.create(STUCK)
        watches = [alice.watch(task.id) for _ in range(2)]
        for watch in watches:
            await watch.read()
        error = await refused(alice.watch(task.id).read())
        assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
        assert error.metadata == {"limit": "watches", "max": "2", "scope": "caller"}
        assert error.retry_seconds
        for _ in range(3):
            await bob.watch(other.id).read()
        watches[0].cancel()
        async with asyncio.timeout(5):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await alice.watch(task.id).read()
                    break


async def test_all_open_streams_are_limited_too(serve_both: Serving) -> None:
    async with serve_both("[default]\nwatches = 9\n", watch_max_streams=1) as (alice, bob):
        task, other = await alice.create(STUCK), await bob.create(STUCK)
        await (watch := alice.watch(task.id)).read()
        error = await refused(bob.watch(other.id).read())
        assert error.metadata == {"limit": "watches", "max": "1", "scope": "service"}
        watch.cancel()


@pytest.mark.parametrize(
    ("limits", "uploads_max", "metadata"),
    [
        ("[callers.alice]\nuploads = 1\n", 9, {"max": "1", "scope": "caller"}),
        ("[callers.alice]\nuploads = 9\n", 1, {"max": "1", "scope": "service"}),
        ("", 2, {"max": "1", "scope": "caller"}),
    ],
)
async def test_uploads_at_a_time_are_limited_until_one_ends(
    serve_both: Serving, limits: str, uploads_max: int, metadata: dict[str, str]
) -> None:
    async with serve_both(limits, uploads_max=uploads_max) as (alice, bob):
        first = alice.upload(None)
        head, *chunks = upload_messages(b"x" * 10)
        await first.write(head)

        async def second() -> None:
            await alice.upload(iter(upload_messages(b"y")))

        error = Refusal(grpc.StatusCode.OK, "", "", {}, [], None)
        async with asyncio.timeout(10):
            while not error.reason:  # until the first is in progress
                with suppress(pytest.fail.Exception):
                    error = await refused(second())
        assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
        assert error.metadata == {"limit": "uploads"} | metadata
        if metadata["scope"] == "caller":
            await bob.upload(iter(upload_messages(b"z")))
        for chunk in chunks:
            await first.write(chunk)
        await first.done_writing()
        await first
        await second()


async def test_lists_at_a_time_are_limited_and_others_may_list(
    serve_both: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = asyncio.Event()
    page = Store.page

    async def slow(store: Store, which: ListFilter, *args: Any) -> list[Task]:
        if which.caller == "alice":
            await opened.wait()
        return await page(store, which, *args)

    monkeypatch.setattr(Store, "page", slow)
    async with serve_both() as (alice, bob):
        lists = {asyncio.ensure_future(alice.list()) for _ in range(9)}
        done, lists = await asyncio.wait(lists, return_when=asyncio.FIRST_COMPLETED)
        [one_too_many] = done
        error = await refused(one_too_many)
        assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
        assert error.metadata == {"limit": "lists", "max": "8", "scope": "caller"}
        await bob.list()
        opened.set()
        await asyncio.gather(*lists)
        await alice.list()


# --- alice takes all she can, and bob is not affected ---


async def test_a_caller_that_hammers_its_full_queue_does_not_slow_others_down(
    serve_both: Serving,
) -> None:
    async with serve_both("[callers.alice]\nrunning = 1\nqueue = 2000\n") as (alice, bob):
        for _ in range(40):
            await asyncio.gather(*(alice.create(STUCK) for _ in range(50)))

        async def hammer() -> None:
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await alice.create(STUCK, request_id="hammer" * 20)

        hammers = [asyncio.ensure_future(hammer()) for _ in range(8)]
        seconds = []
        for _ in range(40):
            started = time.monotonic()
            task = await bob.create(STUCK)
            seconds.append(time.monotonic() - started)
            assert await bob.is_sent(task.id)
        for each in hammers:
            each.cancel()
        await asyncio.gather(*hammers, return_exceptions=True)
    assert statistics.median(seconds) < 0.2, seconds
