"""Callbacks: a hint to poll at once, an orphan's way home, and nothing else."""

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.callbacks import CallbackUrls
from service.schedule import Overdue
from tests.support.calling_back import (
    OFTEN,
    a_while,
    callback_url,
    polls_of,
    post,
    verdicts,
    with_callbacks,
)
from tests.support.databases import change, rows
from tests.support.harness import Serve, Service, ended, has_artifacts, poller_bounds, serving
from tests.support.prompts import STUCK
from tests.support.waiting import eventually

MODELS: dict[str, dict[str, Any]] = {
    "imagen4": {"prompt": "a cat"},
    "midjourney": {"prompt": "a cat", "task_type": "TASK_TYPE_TXT2IMG"},
    "veo3": {"prompt": "a cat"},
    "sora2": {"prompt": "a cat"},
}


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


async def test_a_watcher_sees_the_end_within_50_ms_at_the_median(serve: Serve, port: int) -> None:
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
async def test_a_create_whose_response_was_lost_is_recovered_by_its_callback(
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
        await eventually(lambda: service.kie.tasks)
        url = callback_url(service.kie)
        other = await service.create({"imagen4": {"prompt": "another's [sim:stuck]"}})
        other = await service.until(other.id, lambda task: bool(task.provider_task_id))
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
        late = await service.until(failed.id, has_artifacts)
        assert late.status == pb.TASK_STATUS_FAILED
        assert late.failure == failed.failure


async def test_an_orphan_is_recovered_after_a_restart(serve: Serve, port: int) -> None:
    settings = with_callbacks(port, create_wait_seconds=0)
    async with serve(**settings) as service:
        service.kie.add_fault("create:accept_then_reset")
        created = await service.create(STUCK)
        await eventually(lambda: service.kie.tasks)
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


async def test_a_callback_for_a_missing_task_is_404(serve: Serve, port: int) -> None:
    secret = {"callback_secret": SecretStr("s")}
    async with serve(**with_callbacks(port, **secret)) as service:
        urls = CallbackUrls(f"http://127.0.0.1:{port}", b"s")
        assert await post(urls.url("nobody")) == 404
        assert service.kie.tasks == []


# --- many callbacks ---


async def test_one_poll_runs_at_a_time_however_many_callbacks_arrive(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    async with serving(tmp_path, kie, **with_callbacks(port, poll_interval_seconds=60)) as service:
        created = await service.create(STUCK)
        kie.add_fault("record:slow,seconds=1.5,times=100")
        url = callback_url(kie)
        async with asyncio.timeout(20):
            started = time.monotonic()
            while time.monotonic() - started < 1.4:
                assert await post(url) == 200
        assert kie.stats["requests"].get("/api/v1/jobs/recordInfo", 0) == 1
        kie.finish(created.provider_task_id)  # it is a callback, too: while the poll is in progress
        await service.until(created.id, ended)


async def test_a_callback_that_repeats_within_a_second_costs_no_status_request(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    async with serving(tmp_path, kie, **with_callbacks(port, poll_interval_seconds=60)) as service:
        created = await service.create(STUCK)
        url = callback_url(kie)
        assert await asyncio.gather(*(post(url) for _ in range(50))) == [200] * 50
        await eventually(lambda: polls_of(kie, created.provider_task_id) >= 1)
        await a_while(service)
        assert polls_of(kie, created.provider_task_id) == 1


async def test_a_different_callback_within_a_second_causes_a_poll_a_second_later(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    async with serving(tmp_path, kie, **with_callbacks(port, poll_interval_seconds=60)) as service:
        created = await service.create(STUCK)
        url = callback_url(kie)
        assert await post(url, {"data": {"state": "generating"}}) == 200
        await eventually(lambda: polls_of(kie, created.provider_task_id) == 1)
        kie.add_fault("callback:drop")
        kie.finish(created.provider_task_id)
        assert await post(url, {"data": {"state": "success"}}) == 200
        await service.until(created.id, ended)
        assert polls_of(kie, created.provider_task_id) == 2


async def test_callbacks_of_one_task_do_not_starve_the_polls_of_others(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    settings = with_callbacks(port, kie_status_per_second=4, poll_interval_seconds=0.5)
    async with serving(tmp_path, kie, **settings) as service:
        await service.create(STUCK)
        url = callback_url(kie)
        other = await service.create({"imagen4": {"prompt": "other [sim:seconds=1]"}})
        kie.add_fault("callback:drop")

        async def flood() -> None:
            async with aiohttp.ClientSession() as session:
                while True:
                    async with session.post(url, json={}) as response:
                        assert response.status == 200

        floods = [asyncio.create_task(flood()) for _ in range(4)]
        started = time.monotonic()
        end = await service.end(other.id)
        took = time.monotonic() - started
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert took < 5


async def test_a_scanner_of_the_callback_port_is_counted_and_not_logged(
    tmp_path: Path, kie: Simulator, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = with_callbacks(port, admin_address="127.0.0.1:0")
    async with serving(tmp_path, kie, **settings) as service:
        base = f"http://127.0.0.1:{port}"
        for path in ("/", "/wp-login.php", "/callbacks/kie/", "/callbacks/kie/x", "/%1b[2Jx"):
            assert await post(f"{base}{path}") == 404
        for _ in range(20):
            assert await post(f"{base}/callbacks/kie/%1b[2J%0aINFO/%c2%85") == 401
        counted = await verdicts(service)
    assert counted == {"no callback": 5, "forged": 20}
    assert "\x1b" not in caplog.text
    assert "[2J" not in caplog.text


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


async def test_without_a_public_url_no_callback_is_requested(service: Service) -> None:
    await service.create()
    assert service.kie.tasks[-1]["callBackUrl"] is None


async def test_a_task_that_nobody_watches_costs_at_most_two_status_requests(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        created = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.5]"}})
        await service.until(created.id, ended)
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


async def test_a_watch_makes_a_task_due_that_another_process_left_to_its_callback(
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


async def test_a_lost_callback_is_noticed_once_it_is_overdue(serve: Serve, port: int) -> None:
    bounds = poller_bounds(overdue=Overdue(factor=0.0, min_seconds=0.3))
    async with serve(bounds=bounds, **with_callbacks(port, **OFTEN)) as service:
        service.kie.add_fault("callback:drop")
        created = await service.create()
        await service.until(created.id, ended)
        assert polls_of(service.kie, created.provider_task_id) == 1


async def test_a_record_that_lags_behind_its_callback_is_polled_again(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        service.kie.add_fault("record:late,times=3")
        created = await service.create()
        await service.until(created.id, ended)
        assert polls_of(service.kie, created.provider_task_id) == 4
