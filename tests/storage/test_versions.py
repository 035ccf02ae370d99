"""Rows of the next version: a store shows them, and neither claims nor changes them."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from storage.claims import LEFT_SECONDS, RunningMax, Sending
from storage.opening import open_store
from storage.pages import ListFilter
from storage.store import Store
from storage.task import Artifact, Lane, Stage, Status, Task
from tests.support.databases import change, rows
from tests.support.storing import (
    MODELS,
    NO_QUOTA,
    NOW,
    claim,
    claim_in_turns,
    new,
    off,
    read,
    saved,
    send,
    stored,
)

# What a newer version may store in a row, for each lane in which this version looks for work.
SUBMIT = {
    "a model": "model = 'market/of-tomorrow'",
    "a need": "needs = 'market'",
    "a stage": "stage = 'CHECKING'",
    "a status": "status = 'PAUSED'",
    "a lane": "lane = 'check'",
    "everything": "model = 'm', needs = 'n', stage = 'S', status = 'T', lane = 'l'",
    "quotes and braces": "model = 'it''s {} %s', stage = '''', status = ''",
}
POLL = {
    "a model": "model = 'market/of-tomorrow'",
    "a need": "needs = 'veo3 with sound'",
    "a stage": "stage = 'RESTORING'",
    "a stage and a lane": "stage = 'RESTORING', lane = 'restore'",
    "a status": "status = 'HELD'",
}
LATE = {
    "a model": "model = 'market/of-tomorrow'",
    "a stage": "stage = 'RESTORING'",
    "a lane": "lane = 'restore'",
    "a status": "status = 'EXPIRED'",
}
ROWS = [
    pytest.param(lane, values, id=f"{lane}-{name}")
    for lane, kinds in ((Lane.SUBMIT, SUBMIT), (Lane.POLL, POLL), (Lane.LATE, LATE))
    for name, values in kinds.items()
]
PARTS: dict[Lane, dict[str, Any]] = {
    Lane.SUBMIT: {},
    Lane.POLL: {"stage": Stage.QUEUED, "provider_task_id": "k", "setbacks": 1},
    Lane.LATE: {"stage": None, "status": Status.FAILED, "provider_task_id": "k"},
}


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store that knows the models of this version."""
    store = open_store(database_url, needs=MODELS)
    yield store
    await store.close()


def row(database_url: str, task_id: str) -> Any:
    [found] = rows(database_url, "SELECT * FROM tasks WHERE id = ?", task_id)
    return found


async def put(
    store: Store, database_url: str, lane: Lane, values: str, task_id: str = "newer", **parts: Any
) -> None:
    """Store a task of a lane, due for long, with values of the next version."""
    await stored(store, new(task_id, **{"due_time": NOW - 900} | PARTS[lane] | parts))
    change(database_url, f"UPDATE tasks SET {values} WHERE id = ?", task_id)  # noqa: S608 - ours
    store._recent.forget_all()


async def claimed(store: Store, lane: Lane, limit: int = 10) -> list[str]:
    """Claim from a lane in the ways in which the poller does."""
    tasks: list[Task] = []
    if lane is not Lane.SUBMIT:
        return [task.id for task in await claim(store, lane, NOW, limit, off(60))]
    for closed in ([], ["a model"]):

        def pick(waiting: Sequence[Any], room: int) -> list[str]:
            return [each.task_id for each in waiting][:room]

        sending = Sending(
            room=limit,
            depth=limit,
            pick=pick,
            move=send,
            quota=NO_QUOTA,
            running_max=RunningMax(1_000, lambda _: 500),
            closed_models=closed,
        )
        tasks += (await store.claim_in_turns(NOW, sending)).tasks
    return [task.id for task in tasks]


# --- left alone ---


@pytest.mark.parametrize(("lane", "values"), ROWS)
@pytest.mark.parametrize("limit", [1, 10])
async def test_a_row_of_the_next_version_is_not_claimed_and_holds_up_no_other(
    store: Store, database_url: str, lane: Lane, values: str, limit: int
) -> None:
    for number in range(3):
        await put(store, database_url, lane, values, f"newer-{number}")
    before = [row(database_url, f"newer-{number}") for number in range(3)]
    await stored(store, *(new(f"t{number}", **PARTS[lane]) for number in range(2)))
    taken = [task_id for _ in range(3) for task_id in await claimed(store, lane, limit)]
    assert sorted(taken) == ["t0", "t1"]
    assert [row(database_url, f"newer-{number}") for number in range(3)] == before


@pytest.mark.parametrize(("lane", "values"), ROWS)
async def test_a_row_of_the_next_version_is_never_due(
    store: Store, database_url: str, lane: Lane, values: str
) -> None:
    await put(store, database_url, lane, values)
    assert set((await store.next_due_times()).values()) == {math.inf}
    assert await store.waiting_since(NOW, NOW, 10) == []
    await stored(store, new("t", **PARTS[lane]))
    assert (await store.next_due_times())[lane] == NOW


@pytest.mark.parametrize(("lane", "values"), ROWS)
async def test_no_statement_on_many_tasks_changes_a_row_of_the_next_version(
    store: Store, database_url: str, lane: Lane, values: str
) -> None:
    await put(store, database_url, lane, values, due_time=NOW + 900)
    before = row(database_url, "newer")
    await store.make_abandoned_due(NOW)
    await store.make_polls_due(NOW)
    await store.limit_due_times(lane, NOW, NOW)
    await store.limit_leases(NOW, NOW)
    await store.purge(NOW + 1e9, 10)
    await store.purge_cancelled("c", NOW + 1e9, 10)
    assert row(database_url, "newer") == before


async def test_a_task_with_a_status_of_the_next_version_is_not_purged(
    store: Store, database_url: str
) -> None:
    await stored(store, new("t", due_time=None, stage=None, complete_time=NOW))
    change(database_url, "UPDATE tasks SET status = 'ARCHIVING'")
    assert await store.purge(NOW + 1e9, 10) == 0


async def test_a_task_of_the_next_version_is_never_saved(store: Store, database_url: str) -> None:
    await put(store, database_url, Lane.POLL, "stage = 'RESTORING'")
    task = await read(store, "newer")
    assert task is not None
    before = row(database_url, "newer")
    with pytest.raises(AssertionError):
        await store.save(task, task._replace(due_time=NOW))
    assert row(database_url, "newer") == before


async def test_a_task_that_a_newer_version_has_moved_is_not_saved_over(
    store: Store, database_url: str
) -> None:
    await stored(store, new("t", **PARTS[Lane.POLL]))
    [before] = await claim(store, Lane.POLL, NOW, 1, off(60))
    change(database_url, "UPDATE tasks SET stage = 'RESTORING', version = version + 1")
    assert await store.save(before, before.scheduled(NOW, 0)) is None
    current = await read(store, "t")
    assert current is not None
    assert current.of_newer_version


# --- shown ---


@pytest.mark.parametrize(("lane", "values"), ROWS)
async def test_a_row_of_the_next_version_is_read_wherever_tasks_are_read(
    store: Store, database_url: str, lane: Lane, values: str
) -> None:
    await put(store, database_url, lane, values, request_id="r")
    read_by_id = await read(store, "newer")
    assert read_by_id is not None
    assert read_by_id.of_newer_version
    assert read_by_id == await store.find_request("c", "r")
    assert await store.page(ListFilter("c"), None, 10) == [read_by_id]
    if store.shared:
        assert await store.newer({"newer": 0}) == [read_by_id]


async def test_what_is_unknown_of_a_task_is_a_missing_stage_and_the_status_pending(
    store: Store, database_url: str
) -> None:
    await put(store, database_url, Lane.POLL, "stage = 'RESTORING', status = 'HELD'")
    task = await read(store, "newer")
    assert task is not None
    assert (task.stage, task.status, task.ended) == (None, Status.PENDING, False)


async def test_tasks_in_unknown_lanes_are_counted_together(store: Store, database_url: str) -> None:
    await put(store, database_url, Lane.POLL, "lane = 'restore'", "a")
    await put(store, database_url, Lane.POLL, "lane = 'check', due_time = NULL", "b")
    await stored(store, new("t"))
    assert await store.queues() == {
        Lane.SUBMIT: (1, NOW),
        Lane.POLL: (0, math.inf),
        Lane.LATE: (0, math.inf),
        Lane.STORE: (0, math.inf),
        "unknown": (2, NOW - 900),
    }


# --- what a store may know besides models ---


async def test_a_task_is_claimed_by_what_it_needs_whatever_its_model_is(database_url: str) -> None:
    newer = open_store(database_url, needs=MODELS | {"market"})
    await stored(
        newer,
        new("market", model="kling/v2", needs="market"),
        new("like a typed one", model="imagen4", needs="market"),
        new("typed", model="imagen4"),
    )
    await newer.close()
    older = open_store(database_url, needs=MODELS)
    assert await claimed(older, Lane.SUBMIT) == ["typed"]
    await older.close()
    newer = open_store(database_url, needs=MODELS | {"market"})
    assert sorted(await claimed(newer, Lane.SUBMIT)) == ["like a typed one", "market"]
    await newer.close()


async def test_a_queue_may_contain_tasks_of_both_versions(store: Store, database_url: str) -> None:
    for number in range(40):
        await put(store, database_url, Lane.SUBMIT, "needs = 'veo3 with sound'", f"n{number}")
    await stored(store, *(new(f"t{number}", create_time=NOW + 1) for number in range(30)))
    tasks = await claim_in_turns(store, 100, lambda waiting, _: [w.task_id for w in waiting])
    assert sorted(task.id for task in tasks) == sorted(f"t{number}" for number in range(30))


# --- the limits ---


def sending(**limits: Any) -> Sending:
    everything = Sending(
        room=9,
        depth=9,
        pick=lambda waiting, room: [each.task_id for each in waiting][:room],
        move=send,
        quota=NO_QUOTA,
    )
    return replace(everything, **limits)


IN_ALL = {"running_max": RunningMax(2)}
OF_THE_CALLER = {"running_max": RunningMax(100, lambda _: 2)}
BEING_SENT = {"sending_max": 2}  # on SQLite, the only process knows what it sends


@pytest.mark.parametrize(
    ("database_url", "limit"),
    [
        ("sqlite", IN_ALL),
        ("sqlite", OF_THE_CALLER),
        ("postgresql", IN_ALL),
        ("postgresql", OF_THE_CALLER),
        ("postgresql", BEING_SENT),
    ],
    indirect=["database_url"],
)
async def test_running_tasks_of_the_next_version_count_while_that_version_looks_after_them(
    store: Store, database_url: str, limit: dict[str, Any]
) -> None:
    parts: dict[str, Any] = {"stage": Stage.SUBMITTING, "submit_time": NOW}
    for number, due_time in enumerate([NOW + 60, NOW - LEFT_SECONDS + 1]):
        name = f"newer-{number}"
        await put(store, database_url, Lane.POLL, "model = 'm'", name, due_time=due_time, **parts)
    await stored(store, new("t"))
    assert (await store.claim_in_turns(NOW, sending(**limit))).tasks == []
    change(database_url, "UPDATE tasks SET due_time = ? WHERE model = 'm'", NOW - LEFT_SECONDS)
    assert len((await store.claim_in_turns(NOW, sending(**limit))).tasks) == 1


async def test_overdue_tasks_of_this_version_always_count_as_running(store: Store) -> None:
    await stored(store, new("old", stage=Stage.QUEUED, due_time=NOW - 9 * LEFT_SECONDS), new("t"))
    limited = sending(running_max=RunningMax(1))
    assert (await store.claim_in_turns(NOW, limited)).tasks == []


# --- stored JSON ---


ARTIFACTS = (
    '[["https://x.example/1.png", "image/png"], {"url": "https://x.example/2.png", "mime_type":'
    ' "image/png", "sha256": "ab", "size_bytes": 3, "more": {"a": [1, null]}}]'
)


async def test_what_a_newer_version_stored_with_an_artifact_is_kept(
    store: Store, database_url: str
) -> None:
    await stored(store, new("t", stage=Stage.GENERATING))
    change(database_url, "UPDATE tasks SET artifacts = ?", ARTIFACTS)
    task = await read(store, "t")
    assert task is not None
    assert not task.of_newer_version
    assert [(a.url, a.mime_type) for a in task.artifacts] == [
        ("https://x.example/1.png", "image/png"),
        ("https://x.example/2.png", "image/png"),
    ]
    await saved(store, task, task.scheduled(NOW + 9, 0))
    assert rows(database_url, "SELECT artifacts FROM tasks") == [(ARTIFACTS,)]


async def test_artifacts_are_written_as_the_version_before_reads_them(
    store: Store, database_url: str
) -> None:
    artifacts = (Artifact("https://x.example/1.png", "image/png"),)
    await stored(store, new("t", artifacts=artifacts))
    assert rows(database_url, "SELECT artifacts, needs FROM tasks") == [
        ('[["https://x.example/1.png", "image/png"]]', None)
    ]


async def test_two_versions_claim_from_one_database_and_each_gets_its_own(
    postgresql_url: str,
) -> None:
    older = open_store(postgresql_url, needs=MODELS)
    newer = open_store(postgresql_url, needs=MODELS | {"market"})
    models = ["imagen4", "kling/v2"]
    tasks = [
        new(f"{model}-{number}", model=model, needs="market" if "/" in model else "")
        for model in models
        for number in range(100)
    ]
    await stored(newer, *tasks)

    async def all_of(store: Store) -> list[str]:
        taken: list[str] = []
        while (await store.next_due_times())[Lane.SUBMIT] <= NOW:
            taken += await claimed(store, Lane.SUBMIT, 7)
        return taken

    by_older, by_newer = await asyncio.gather(all_of(older), all_of(newer))
    assert all(task_id.startswith("imagen4") for task_id in by_older)
    assert sorted([*by_older, *by_newer]) == sorted(task.id for task in tasks)
    await older.close()
    await newer.close()
