"""Purging by age: what ended long ago is deleted, in small batches, without side effects."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from service.bounds import BOUNDS, UpkeepBounds
from service.forever import forever
from service.outage_log import OutageLog
from service.purge import BOUNDS as PURGE
from service.purge import PurgeBounds, Purger
from storage.errors import StorageUnavailableError
from storage.opening import open_store
from storage.store import Store
from tests.support.databases import change, fill, rows
from tests.support.harness import Serve, Service
from tests.support.prompts import STUCK
from tests.support.refusals import refusal
from tests.support.waiting import DEADLINE_SECONDS, eventually

HOUR = 3_600.0
OFTEN = replace(BOUNDS, upkeep=UpkeepBounds(purge=PurgeBounds(pause_seconds=0.01)))
AGE = """
    UPDATE tasks SET complete_time = complete_time - ?, update_time = update_time - ? WHERE id = ?
"""


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks each purge of the store deleted."""
    deleted: list[int] = []
    purge_once = Store.purge

    async def noted(store: Store, ended_before: float, limit: int) -> int:
        assert limit == PURGE.batch_tasks
        deleted.append(await purge_once(store, ended_before, limit))
        return deleted[-1]

    monkeypatch.setattr(Store, "purge", noted)
    return deleted


async def gone(service: Service, task_id: str) -> bool:
    try:
        await service.query(task_id)
    except grpc.aio.AioRpcError as error:
        return refusal(error).reason == "TASK_NOT_FOUND"
    return False


async def until_gone(service: Service, task_id: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await gone(service, task_id):
            pass


async def test_a_task_that_ended_long_ago_is_purged_with_its_request_id(
    serve: Serve, batches: list[int]
) -> None:
    async with serve() as service:
        old = await service.end((await service.create(request_id="old")).id)
        young = await service.end((await service.create(request_id="young")).id)
    change(service.database_url, AGE, HOUR + 60, HOUR + 60, old.id)
    change(service.database_url, AGE, HOUR - 60, HOUR - 60, young.id)
    async with serve(task_retention_seconds=HOUR, bounds=OFTEN) as service:
        await eventually(lambda: sum(batches) > 0)
        await until_gone(service, old.id)
        assert (await service.query(young.id)).result_json == young.result_json
        assert (await service.create(request_id="young")).id == young.id
        assert len(service.kie.tasks) == 2
        again = await service.create(request_id="old")
        assert again.id != old.id
        assert (await service.end(again.id)).status == pb.TASK_STATUS_SUCCESS
        assert len(service.kie.tasks) == 3, "it was bought again, as the documents say"
    assert sum(batches) == 1


async def test_tasks_in_progress_or_with_a_possible_late_delivery_are_never_purged(
    serve: Serve, batches: list[int]
) -> None:
    async with serve(task_retention_seconds=HOUR, bounds=OFTEN) as service:
        stuck = await service.create(STUCK)
        service.kie.add_fault("record:no_urls,times=0")
        late = await service.end((await service.create({"veo3": {"prompt": "late"}})).id)
        assert late.failure.reason == pb.ERROR_REASON_RESULT_MISSING
        for task in (stuck, late):
            change(service.database_url, AGE, 100 * HOUR, 100 * HOUR, task.id)
            change(
                service.database_url,
                "UPDATE tasks SET create_time = create_time - 400000 WHERE id = ?",
                task.id,
            )
        await eventually(lambda: len(batches) > 3)
        assert (await service.query(stuck.id)).id == stuck.id
        assert (await service.query(late.id)).id == late.id
    assert sum(batches) == 0


async def test_a_purge_in_small_batches_does_not_disturb_watches(
    serve: Serve, batches: list[int]
) -> None:
    async with serve(task_retention_seconds=HOUR, bounds=OFTEN) as service:
        watched = await service.create(STUCK)
        watching = asyncio.ensure_future(service.end(watched.id))
        fill(service.database_url, 1_300, 1_000_000_000.0)
        await eventually(lambda: sum(batches) == 1_300)
        assert max(batches) == PURGE.batch_tasks
        created = await service.create()
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS
        service.kie.finish(watched.provider_task_id)
        assert (await watching).status == pb.TASK_STATUS_SUCCESS


async def test_by_default_nothing_is_ever_purged(serve: Serve, batches: list[int]) -> None:
    async with serve() as service:
        old = await service.end((await service.create()).id)
        change(service.database_url, AGE, 1_000_000_000, 1_000_000_000, old.id)
        young = await service.end((await service.create()).id)
    async with serve(bounds=OFTEN) as service:
        listed = await service.stub.ListTasks(pb.ListTasksRequest())
        assert [task.id for task in listed.tasks] == [young.id, old.id]
    assert batches == []


async def test_replicas_that_purge_at_once_delete_each_task_once(
    postgresql_url: str, batches: list[int]
) -> None:
    stores = [open_store(postgresql_url) for _ in range(3)]
    fill(postgresql_url, 2_000, 1_000_000_000.0)
    await asyncio.gather(*(Purger(store, HOUR).run_once() for store in stores))
    for store in stores:
        await store.close()
    assert sum(batches) == 2_000
    assert rows(postgresql_url, "SELECT count(*) FROM tasks") == [(0,)]


async def test_a_purge_continues_once_the_database_is_available_again(
    database_url: str, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(database_url)
    fill(database_url, 3, 1_000_000_000.0)
    counting, failures = Store.purge, iter([True, True, False])

    async def sometimes(*args: Any) -> int:
        if next(failures, False):
            raise StorageUnavailableError("away")
        return await counting(*args)

    monkeypatch.setattr(Store, "purge", sometimes)
    purging = asyncio.create_task(forever(Purger(store, HOUR).run_once, "purge", 0.01, OutageLog()))
    await eventually(lambda: sum(batches) == 3)
    purging.cancel()
    await asyncio.gather(purging, return_exceptions=True)
    await store.close()


# --- cancelled tasks, which cost nothing ---

CANCELLED = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO tasks (id, caller, request_id, prompt_id, model, params, create_time, update_time,
    status, revision, artifacts, result_json, failure_reason, failure_message, failure_code,
    provider_task_id, complete_time, hinted_id, setbacks, version)
SELECT ? || '-' || i, ?, ? || i, 'p', 'imagen4', ?, ? - i, ? - i,
    'FAILED', 2, '[]', '', 'CANCELLED', 'cancelled', '', '', ? - i, '', 0, 2
FROM n
"""


def cancel(database_url: str, caller: str, count: int, before: float) -> None:
    """Store tasks that a caller cancelled, one each second before a time."""
    change(database_url, CANCELLED, count, *[caller] * 3, b"\x0a\x00", *[before] * 3)


async def purged(database_url: str, bounds: PurgeBounds = PURGE) -> list[tuple[str, int]]:
    """Purge once; return how many tasks each caller has left."""
    store = open_store(database_url)
    await Purger(store, 0, bounds).run_once()
    await store.close()
    return rows(database_url, "SELECT caller, count(*) FROM tasks GROUP BY caller ORDER BY caller")


async def test_a_cancelled_task_is_kept_for_a_day_even_if_ended_tasks_are_kept_forever(
    database_url: str,
) -> None:
    store = open_store(database_url)
    now = store.now()
    await store.close()
    fill(database_url, 3, now - 1_000_000)
    cancel(database_url, "alice", 700, now - 24 * HOUR)
    cancel(database_url, "bob", 700, now - 23 * HOUR)
    assert await purged(database_url) == [("bob", 700), ("c", 3)]


async def test_only_the_newest_cancelled_tasks_of_a_caller_are_kept(
    database_url: str,
) -> None:
    store = open_store(database_url)
    now = store.now()
    await store.close()
    cancel(database_url, "alice", 1_800, now)
    cancel(database_url, "bob", 600, now)
    bounds = PurgeBounds(cancelled_kept_max=600)
    assert await purged(database_url, bounds) == [("alice", 600), ("bob", 600)]
    newest = rows(database_url, "SELECT min(complete_time) FROM tasks WHERE caller = 'alice'")
    assert newest[0][0] == pytest.approx(now - 600)


async def test_a_task_cancelled_within_the_last_minute_is_kept(database_url: str) -> None:
    store = open_store(database_url)
    now = store.now()
    await store.close()
    cancel(database_url, "alice", 80, now)
    [(caller, left)] = await purged(database_url, PurgeBounds(cancelled_kept_max=10))
    assert (caller, 50 <= left <= 60) == ("alice", True)


async def test_a_service_forgets_old_cancelled_tasks_and_their_request_ids(
    serve: Serve,
) -> None:
    async with serve(create_wait_seconds=0, kie_running_max=1, bounds=OFTEN) as service:
        running = await service.create(STUCK)
        await eventually(lambda: service.kie.stats["purchases"]["total"] == 1)
        task = await service.create(STUCK, request_id="r")
        await service.stub.CancelTask(pb.CancelTaskRequest(task_id=task.id))
        assert (await service.create(STUCK, request_id="r")).id == task.id
        change(service.database_url, AGE, 25 * HOUR, 25 * HOUR, task.id)
        await until_gone(service, task.id)
        assert (await service.create(STUCK, request_id="r")).id != task.id
        assert not await gone(service, running.id)
