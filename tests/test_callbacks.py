"""Callbacks: a hint to poll at once, an orphan's way home, and nothing else."""

import asyncio
import io
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulated.callbacks import signature
from providers.kie.simulator import Simulator
from service.callbacks import CallbackUrls
from tests.conftest import Serve
from tests.databases import change, rows
from tests.harness import INSTANT, Service, ended, eventually, serving

STUCK: dict[str, Any] = {"imagen4": {"prompt": "x [sim:stuck]"}}
MODELS: dict[str, dict[str, Any]] = {
    "imagen4": {"prompt": "a cat"},
    "midjourney": {"prompt": "a cat", "task_type": "TASK_TYPE_TXT2IMG"},
    "veo3": {"prompt": "a cat"},
    "sora2": {"prompt": "a cat"},
}
SLOW_POLLS: dict[str, Any] = {"poll_interval_seconds": 5}


@pytest.fixture
def port(unused_tcp_port: int) -> int:
    """A free port for the callback server."""
    return unused_tcp_port


def with_callbacks(port: int, **settings: Any) -> dict[str, Any]:
    return {
        "http_address": f"127.0.0.1:{port}",
        "public_url": f"http://127.0.0.1:{port}",
        **SLOW_POLLS,
        **settings,
    }


async def post(url: str, body: Any = None, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body if body is not None else {}, headers=headers) as response,
    ):
        return response.status


async def post_bytes(url: str, body: bytes) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=io.BytesIO(body)) as response,
    ):
        return response.status


def callback_url(kie: Simulator) -> str:
    url: str = kie.tasks[-1]["callBackUrl"]
    return url


@pytest.mark.parametrize("model", MODELS)
async def test_a_callback_ends_a_task_long_before_its_next_poll(
    serve: Serve, port: int, model: str
) -> None:
    async with serve(**with_callbacks(port)) as service:
        service.kie.update(seconds={model: [0.1, 0.1]})
        started = time.monotonic()
        end = await service.end((await service.create({model: MODELS[model]})).id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert time.monotonic() - started < 4


async def test_from_done_at_the_provider_to_the_watcher_takes_less_than_50_ms_at_the_median(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port)) as service:
        took = []
        for _ in range(15):
            created = await service.create(STUCK)
            watch = service.watch(created.id, after_revision=created.revision)
            waiting = asyncio.ensure_future(anext(watch))
            await service.query(created.id)
            started = time.monotonic()
            service.kie.finish(created.provider_task_id)
            assert ended(await waiting)
            took.append(time.monotonic() - started)
            await watch.aclose()  # type: ignore[attr-defined]
    assert statistics.median(took) < 0.05, took


async def test_callbacks_arrive_under_the_path_of_the_public_url(serve: Serve, port: int) -> None:
    base = f"http://127.0.0.1:{port}/behind/a/proxy"
    async with serve(**with_callbacks(port, public_url=base)) as service:
        service.kie.update(seconds={"imagen4": [0.1, 0.1]})
        started = time.monotonic()
        await service.end((await service.create()).id)
        assert time.monotonic() - started < 4
        assert callback_url(service.kie).startswith(f"{base}/callbacks/kie/")
        assert await post(f"http://127.0.0.1:{port}/elsewhere") == 404


LOST = [
    "create:accept_then_reset",
    "create:accept_then_http,status=502",
    "create:accept_then_garbage",
    "create:accept_then_empty",
    "create:accept_then_no_id",
]


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("model", ["imagen4", "midjourney"])
async def test_a_create_whose_answer_was_lost_comes_home_by_its_callback(
    serve: Serve, port: int, fault: str, model: str
) -> None:
    async with serve(**with_callbacks(port, create_wait_seconds=0)) as service:
        service.kie.update(seconds={model: [0.2, 0.2]})
        service.kie.add_fault(fault)
        created = await service.create({model: MODELS[model]}, request_id="r")
        end = await service.end(created.id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert end.provider_task_id == service.kie.tasks[0]["id"]
        assert (await service.create({model: MODELS[model]}, request_id="r")).id == created.id
    assert len(service.kie.tasks) == 1


async def test_a_callback_that_names_another_request_is_not_believed(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, create_wait_seconds=0)) as service:
        service.kie.add_fault("create:accept_then_reset")
        orphan = await service.create({"imagen4": {"prompt": "mine [sim:stuck]"}})
        await until_bought(service)
        url = callback_url(service.kie)
        other = await service.create({"imagen4": {"prompt": "another's [sim:stuck]"}})
        other = await service.query(other.id)
        async with asyncio.timeout(10):
            while not other.provider_task_id:
                other = await service.query(other.id)
        assert await post(url, {"data": {"taskId": other.provider_task_id}}) == 200
        polls = polls_of(service.kie, other.provider_task_id)
        async with asyncio.timeout(10):
            while polls_of(service.kie, other.provider_task_id) == polls:
                await service.query(orphan.id)
        assert (await service.query(orphan.id)).stage == pb.TASK_STAGE_SUBMITTING
        assert not (await service.query(orphan.id)).provider_task_id


async def test_an_unknown_create_without_a_callback_ends_once_its_wait_is_over(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, unknown_wait_seconds=0.2)) as service:
        service.kie.add_fault("create:reset")
        end = await service.end((await service.create()).id)
        assert end.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN


async def test_a_callback_after_the_wait_adds_the_paid_result_to_the_failed_task(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, unknown_wait_seconds=0)) as service:
        service.kie.add_fault("create:accept_then_reset")
        failed = await service.create(STUCK)
        assert failed.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
        service.kie.finish(service.kie.tasks[0]["id"])
        late = failed
        async with asyncio.timeout(10):
            while not late.artifacts:
                late = await service.query(failed.id)
        assert late.status == pb.TASK_STATUS_FAILED
        assert late.failure == failed.failure


async def test_an_orphan_comes_home_after_a_restart_in_between(serve: Serve, port: int) -> None:
    settings = with_callbacks(port, create_wait_seconds=0)
    async with serve(**settings) as service:
        service.kie.add_fault("create:accept_then_reset")
        created = await service.create(STUCK)
        await until_bought(service)
    async with serve(**settings) as service:
        service.kie.finish(service.kie.tasks[0]["id"])
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS


async def test_a_duplicate_or_late_callback_is_received_and_changes_nothing(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port)) as service:
        end = await service.end((await service.create()).id)
        body = {"data": {"taskId": end.provider_task_id, "state": "fail"}}
        assert [await post(callback_url(service.kie), body) for _ in range(3)] == [200] * 3
        assert await service.query(end.id) == end


async def test_a_callback_for_a_task_that_is_not_there_is_unknown(serve: Serve, port: int) -> None:
    secret = {"callback_secret": SecretStr("s")}
    async with serve(**with_callbacks(port, **secret)) as service:
        urls = CallbackUrls(f"http://127.0.0.1:{port}", b"s")
        assert await post(urls.url("nobody")) == 404
        assert service.kie.tasks == []


async def test_a_forged_callback_is_refused(serve: Serve, port: int) -> None:
    async with serve(**with_callbacks(port)) as service:
        first = await service.create(STUCK)
        second = await service.create(STUCK)
        base, seal = callback_url(service.kie).rsplit("/", 1)
        assert base.endswith(second.id)
        forged = base.removesuffix(second.id) + first.id
        for url in (f"{forged}/{seal}", f"{base}/{'0' * 64}", f"{base}/%00%ff", f"{base}/x"):
            assert await post(url, {"data": {"taskId": "x"}}) == 401


async def test_a_callback_too_large_is_refused_and_garbage_in_a_true_one_is_only_a_hint(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port)) as service:
        created = await service.create(STUCK)
        url = callback_url(service.kie)
        assert await post_bytes(url, bytes(1_048_577)) == 413
        bodies: list[Any] = [
            [],
            "x",
            {"data": []},
            {"data": {"taskId": 5}},
            {"taskId": None},
            [[]] * 99,
        ]
        for body in bodies:
            assert await post(url, body) == 200
        assert await post_bytes(url, b"[" * 100_000) == 200
        assert not ended(await service.query(created.id))


async def test_with_a_webhook_key_a_callback_needs_kies_own_fresh_signature(
    tmp_path: Any, port: int
) -> None:
    key = "webhook-key-of-the-tests"
    async with Simulator(replace(INSTANT, webhook_key=key)) as kie:
        settings = with_callbacks(port, kie_webhook_key=SecretStr(key))
        async with serving(tmp_path, kie, **settings) as service:
            kie.update(seconds={"imagen4": [0.1, 0.1]})
            started = time.monotonic()
            end = await service.end((await service.create()).id)
            assert end.status == pb.TASK_STATUS_SUCCESS
            assert time.monotonic() - started < 4, "the simulator's signed callback was accepted"

            url, body = callback_url(kie), {"data": {"taskId": end.provider_task_id}}

            async def signed(taskId: str, when: float, by: str) -> int:  # noqa: N803
                stamp = str(int(when))
                return await post(
                    url,
                    body,
                    **{
                        "X-Webhook-Timestamp": stamp,
                        "X-Webhook-Signature": signature(taskId, stamp, by),
                    },
                )

            now = time.time()
            assert await signed(end.provider_task_id, now, key) == 200
            assert await signed(end.provider_task_id, now - 3_600, key) == 401
            assert await signed(end.provider_task_id, now, "another key") == 401
            assert await signed("another task", now, key) == 401
            assert await post(url, body) == 401
            assert await post(url, body, **{"X-Webhook-Timestamp": "²"}) == 401


async def test_callback_urls_are_kept_out_of_results_messages_and_the_database(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port)) as service:
        end = await service.end((await service.create()).id)
        url = callback_url(service.kie)
        seal = url.rsplit("/", 1)[1]
        assert url.startswith(f"http://127.0.0.1:{port}/callbacks/kie/{end.id}/")
        assert seal not in str(end)
        [row] = rows(service.database_url, "SELECT * FROM tasks")
        assert end.provider_task_id in row
        assert not any(seal in str(value) for value in row)


async def test_without_a_public_url_no_callback_is_asked_for(service: Service) -> None:
    await service.create()
    assert service.kie.tasks[-1]["callBackUrl"] is None


OFTEN: dict[str, Any] = {"poll_interval_seconds": 0.02}


async def test_a_task_that_nobody_watches_costs_at_most_two_status_requests(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        created = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.5]"}})
        await until_ended(service, created.id)
        assert polls_of(service.kie, created.provider_task_id) <= 2


async def test_a_task_is_polled_while_it_is_watched_and_left_to_its_callback_before_and_after(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        created = await service.create(STUCK)
        await a_while(service)
        assert polls_of(service.kie, created.provider_task_id) == 0
        watch = service.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= 5)
        watch.cancel()
        await a_while(service)
        left = polls_of(service.kie, created.provider_task_id)
        await a_while(service)
        assert polls_of(service.kie, created.provider_task_id) == left


async def test_a_task_that_was_watched_before_it_was_sent_is_polled(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, create_wait_seconds=0, **OFTEN)) as service:
        service.kie.add_fault("create:slow,seconds=0.2")
        service.kie.add_fault("callback:drop")
        assert ended(await service.end((await service.create()).id))


async def test_a_watch_hastens_a_task_that_another_process_left_to_its_callback(
    tmp_path: Path, kie: Simulator, postgresql_url: str, port: int
) -> None:
    settings = with_callbacks(port, watch_heartbeat_seconds=0.05, poll_interval_seconds=0.2)
    async with serving(tmp_path, kie, database_url=postgresql_url, **settings) as service:
        created = await service.create(STUCK)
        watching = asyncio.ensure_future(service.end(created.id))
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= 1)
        sql = "UPDATE tasks SET due_time = due_time + 9999, version = version + 1"
        change(postgresql_url, sql)
        polls = polls_of(service.kie, created.provider_task_id)
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= polls + 3)
        service.kie.finish(created.provider_task_id)
        assert ended(await watching)


async def test_a_lost_callback_is_noticed_once_it_is_overdue(
    serve: Serve, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.schedule.OVERDUE_FACTOR", 0.0)
    monkeypatch.setattr("service.schedule.OVERDUE_MIN_SECONDS", 0.3)
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        service.kie.add_fault("callback:drop")
        created = await service.create()
        await until_ended(service, created.id)
        assert polls_of(service.kie, created.provider_task_id) == 1


async def test_a_record_that_lags_behind_its_callback_is_asked_for_again(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        service.kie.add_fault("record:late,times=3")
        created = await service.create()
        await until_ended(service, created.id)
        assert polls_of(service.kie, created.provider_task_id) == 4


async def until_ended(service: Service, task_id: str) -> None:
    """Wait for the end of a task without watching it."""
    async with asyncio.timeout(10):
        while not ended(await service.query(task_id)):
            pass


async def a_while(service: Service) -> None:
    """Let another task of 0.5 s come and go: many intervals."""
    another = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.5]"}})
    await until_ended(service, another.id)


async def until_bought(service: Service) -> None:
    """Wait until the provider has a task."""
    async with asyncio.timeout(10):
        while len(service.kie.tasks) < 1:
            await service.stub.ListTasks(pb.ListTasksRequest())


def polls_of(kie: Simulator, task_id: str) -> int:
    [task] = [task for task in kie.tasks if task["id"] == task_id]
    count: int = task["polls"]["count"]
    return count
