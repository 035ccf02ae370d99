"""The store on real SQLite files: what it keeps, what it refuses, and what it survives."""

import asyncio
import os
import random
import re
import sqlite3
import sys
import threading
import types
import typing
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from peewee import IntegrityError, SqliteDatabase
from playhouse.schema_diff import diff_models

from storage.schema import TaskRow
from storage.store import (
    Created,
    Existing,
    ListFilter,
    QueueFull,
    StorageConfigError,
    StorageUnavailableError,
    Store,
    Waiting,
)
from storage.task import Artifact, Failure, Lane, Stage, Status, Task

NOW = 1_800_000_000.0
NO_LIMIT = 1_000_000
REPOSITORY = Path(__file__).parents[1]


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/generation.db"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    store = Store.open(url(tmp_path))
    yield store
    await store.close()


def new(task_id: str, **changes: Any) -> Task:
    """A task as CreateTask makes it, due since `NOW`."""
    task = Task(
        id=task_id,
        caller="c",
        request_id="",
        prompt_id="p",
        model="imagen4",
        params=b"\x0a\x00",
        create_time=NOW,
        update_time=NOW,
        due_time=NOW,
    )
    return replace(task, **changes)


async def stored(store: Store, *tasks: Task) -> None:
    answers = await asyncio.gather(*(store.create(task, NO_LIMIT) for task in tasks))
    assert answers == [Created(task) for task in tasks]


async def saved(store: Store, before: Task, after: Task) -> Task:
    task = await store.save(before, after)
    assert task is not None
    return task


def change(folder: Path, sql: str, *params: object) -> None:
    """Change the database behind the store's back."""
    with closing(sqlite3.connect(folder / "generation.db")) as db, db:
        db.execute(sql, params)


def rows(folder: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "generation.db")) as db:
        return db.execute(sql).fetchall()


def off(seconds: float) -> Callable[[Task], Task]:
    """A claim's move: put the task off."""
    return lambda task: task.scheduled(NOW + seconds, task.setbacks)


def send(task: Task) -> Task:
    """A claim's move: send the task."""
    return task.submitting(NOW, NOW + 120)


# --- the schema ---


def schema(folder: Path) -> set[Any]:
    """Return every table and index as SQLite wrote it down, but for the migrations' history."""
    master = rows(folder, "SELECT type, name, tbl_name, sql FROM sqlite_master")
    return {row for row in master if row[2] != "schema_migration"}


async def test_the_migrations_make_exactly_the_tables_of_the_schema(
    store: Store, tmp_path: Path
) -> None:
    by_peewee = tmp_path / "by_peewee"
    by_peewee.mkdir()
    database = SqliteDatabase(str(by_peewee / "generation.db"))
    with database, database.bind_ctx([TaskRow]):
        database.create_tables([TaskRow])
    assert schema(tmp_path) == schema(by_peewee)
    assert "tasks_due" in {row[1] for row in schema(tmp_path)}

    migrated = SqliteDatabase(str(tmp_path / "generation.db"))
    with migrated:
        assert not diff_models(migrated, [TaskRow])


async def test_opening_again_migrates_nothing_and_keeps_everything(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path))
    await stored(store, new("t"))
    await store.close()
    before = schema(tmp_path), rows(tmp_path, "SELECT * FROM schema_migration")

    store = Store.open(url(tmp_path))
    assert store.get("t") == new("t")
    await store.close()
    assert (schema(tmp_path), rows(tmp_path, "SELECT * FROM schema_migration")) == before


def test_every_field_of_a_task_has_a_column() -> None:
    columns = set(TaskRow._meta.fields)
    kept_in_parts = {"failure"}
    derived = {"lane", "failure_reason", "failure_message", "failure_code"}
    assert columns - derived == {field.name for field in fields(Task)} - kept_in_parts


async def test_a_write_is_on_the_disk_before_it_is_acknowledged(store: Store) -> None:
    def pragma(name: str) -> Any:
        return store._writes.execute_sql(f"PRAGMA {name}").fetchone()[0]

    settings = await store._writer.run(lambda: [pragma("journal_mode"), pragma("synchronous")])
    assert settings == ["wal", 2], "2 is FULL: every commit is flushed"


# --- a task as it comes back ---

TEXTS = [
    "",
    "a",
    "Größe 猫 חתול 👨\u200d👩\u200d👧 𐍈 \u202f \uffff",
    "before\0after",
    "'; DROP TABLE tasks; --",
    '{"resultUrls": ["https://x.example/?a=1&b=%00"]}',
    "\r\n\t \\ \" '",
    "[]",
    "x" * 3_000_000,
]
FLOATS = [0.0, -1.5, 5e-324, 1e300, 1_800_000_000.123456, 0.1 + 0.2]
INTEGERS = [0, 1, -1, 2**31, 2**53 + 1, 2**63 - 2]
HINTS = typing.get_type_hints(Task)


def any_value(kind: Any, rng: random.Random) -> Any:
    """Return a value that a field of this type may have."""
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:
        return any_value(rng.choice(typing.get_args(kind)), rng)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return rng.choice(list(kind))
    if kind == tuple[Artifact, ...]:
        return tuple(
            Artifact(rng.choice(TEXTS), rng.choice(TEXTS)) for _ in range(rng.choice([0, 1, 9]))
        )
    choices: dict[Any, Callable[[], Any]] = {
        str: lambda: rng.choice(TEXTS),
        bytes: lambda: rng.choice([b"", bytes(range(256)), rng.randbytes(100_000)]),
        float: lambda: rng.choice(FLOATS),
        int: lambda: rng.choice(INTEGERS),
        types.NoneType: lambda: None,
        Failure: lambda: Failure("GENERATION_FAILED", rng.choice(TEXTS), rng.choice(TEXTS)),
    }
    return choices[kind]()


def any_task(seed: int) -> Task:
    rng = random.Random(seed)
    return Task(**{name: any_value(kind, rng) for name, kind in HINTS.items()})


FULL = Task(
    id="t",
    caller="c",
    request_id="r",
    prompt_id="p",
    model="veo3",
    params=b"\x01",
    create_time=1.5,
    update_time=2.5,
    due_time=3.5,
    status=Status.FAILED,
    stage=Stage.GENERATING,
    revision=7,
    progress_percent=42,
    artifacts=(Artifact("https://x.example/1", "image/png"), Artifact("https://x.example/2", "")),
    result_json="{}",
    failure=Failure("GENERATION_FAILED", "no", "501"),
    provider_task_id="k",
    credits_consumed=4.5,
    complete_time=5.5,
    submit_time=6.5,
    accept_time=7.5,
    unknown_time=8.5,
    hinted_id="h",
    setbacks=3,
    version=9,
)
EMPTY = Task(
    id="",
    caller="",
    request_id="",
    prompt_id="",
    model="",
    params=b"",
    create_time=0.0,
    update_time=0.0,
    due_time=None,
    stage=None,
)


def test_the_full_task_differs_from_the_empty_one_in_every_field() -> None:
    for field in fields(Task):
        assert getattr(FULL, field.name) != getattr(EMPTY, field.name), field.name


@pytest.mark.parametrize("task", [FULL, EMPTY], ids=["full", "empty"])
async def test_a_task_comes_back_as_it_was_created(store: Store, task: Task) -> None:
    assert await store.create(task, NO_LIMIT) == Created(task)
    assert store.get(task.id) == task
    assert await store.page(ListFilter(task.caller), None, 10) == [task]


@pytest.mark.parametrize("seed", range(40))
async def test_any_task_comes_back_as_it_was_created_and_as_it_was_saved(
    store: Store, seed: int
) -> None:
    task = any_task(seed)
    await stored(store, task)
    assert store.get(task.id) == task

    kept = ("id", "caller", "request_id", "prompt_id", "model", "params", "create_time")
    other = replace(any_task(seed + 1_000), **{name: getattr(task, name) for name in kept})
    after = await saved(store, task, other)
    assert after == replace(other, version=task.version + 1)
    assert store.get(task.id) == after


async def test_a_task_comes_back_after_the_store_was_closed(tmp_path: Path) -> None:
    tasks = [replace(any_task(seed), id=f"t{seed}", request_id="") for seed in range(10)]
    store = Store.open(url(tmp_path))
    await stored(store, *tasks)
    await store.close()
    store = Store.open(url(tmp_path))
    assert [store.get(task.id) for task in tasks] == tasks
    await store.close()


async def test_a_task_that_is_not_there_is_none(store: Store) -> None:
    assert store.get("nobody") is None
    assert store.find_request("c", "nobody") is None


# --- request_ids ---


async def test_a_request_id_of_one_caller_makes_one_task_whatever_becomes_of_it(
    store: Store,
) -> None:
    first = new("first", request_id="r")
    await stored(store, first)
    assert await store.create(new("second", request_id="r", prompt_id="q"), NO_LIMIT) == Existing(
        first
    )

    ended = await saved(store, first, first.failed(Failure("CANCELLED", "no"), NOW))
    assert await store.create(new("third", request_id="r"), NO_LIMIT) == Existing(ended)
    assert store.find_request("c", "r") == ended
    assert store.get("second") is None


async def test_a_request_id_of_another_caller_is_another(store: Store) -> None:
    first, second = new("first", request_id="r"), new("second", request_id="r", caller="d")
    await stored(store, first, second)
    assert store.find_request("c", "r") == first
    assert store.find_request("d", "r") == second


async def test_tasks_without_a_request_id_are_never_the_same(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(3)))
    assert store.find_request("c", "") is None


async def test_racing_creates_with_one_request_id_make_one_task(
    store: Store, tmp_path: Path
) -> None:
    racing = (store.create(new(f"t{i}", request_id="r"), NO_LIMIT) for i in range(50))
    answers = await asyncio.gather(*racing)
    assert Counter(map(type, answers)) == {Created: 1, Existing: 49}
    assert len({answer.task for answer in answers if not isinstance(answer, QueueFull)}) == 1
    assert rows(tmp_path, "SELECT count(*) FROM tasks") == [(1,)]


async def test_an_id_that_is_taken_is_a_bug_and_harms_nobody(store: Store) -> None:
    await stored(store, new("t"))
    answers = await asyncio.gather(
        store.create(new("t", prompt_id="q"), NO_LIMIT),
        store.create(new("u"), NO_LIMIT),
        return_exceptions=True,
    )
    assert isinstance(answers[0], IntegrityError)
    assert answers[1] == Created(new("u"))
    assert store.get("t") == new("t")


# --- the queue's limit ---


async def test_only_tasks_that_wait_to_be_sent_count_for_the_queues_limit(store: Store) -> None:
    first, second = new("t0"), new("t1", due_time=NOW + 900)
    await stored(store, first, second)
    assert await store.create(new("t2"), 2) == QueueFull()
    assert store.get("t2") is None

    await saved(store, first, send(first))
    assert await store.create(new("t2"), 2) == Created(new("t2"))
    assert await store.create(new("t3"), 2) == QueueFull()

    await saved(store, second, second.failed(Failure("CANCELLED", "no"), NOW))
    assert await store.create(new("t3"), 2) == Created(new("t3"))


async def test_a_full_queue_still_knows_its_request_ids(store: Store) -> None:
    first = new("first", request_id="r")
    await stored(store, first)
    assert await store.create(new("second", request_id="r"), 1) == Existing(first)


async def test_racing_creates_do_not_pass_the_queues_limit(store: Store) -> None:
    answers = await asyncio.gather(*(store.create(new(f"t{i}"), 7) for i in range(50)))
    assert Counter(map(type, answers)) == {Created: 7, QueueFull: 43}
    assert store.count(Lane.SUBMIT) == 7


# --- compare-and-set ---


async def test_a_save_of_a_stale_snapshot_changes_nothing(store: Store) -> None:
    first = new("t")
    await stored(store, first)
    second = await saved(store, first, send(first))
    assert await store.save(first, first.failed(Failure("CANCELLED", "no"), NOW)) is None
    assert store.get("t") == second


async def test_a_move_that_nobody_sees_makes_earlier_snapshots_stale_too(store: Store) -> None:
    first = new("t")
    await stored(store, first)
    second = await saved(store, first, first.scheduled(NOW + 1, 1))
    assert second.revision == first.revision
    assert await store.save(first, first.scheduled(NOW + 2, 2)) is None
    assert store.get("t") == second


async def test_a_task_goes_on_from_what_a_save_returned(store: Store) -> None:
    task = new("t")
    await stored(store, task)
    task = await saved(store, task, send(task))
    task = await saved(store, task, task.queued("k", NOW, NOW))
    task = await saved(store, task, task.progressed(True, 5, NOW))
    assert (task.revision, task.version) == (4, 4)
    assert store.get("t") == task


async def test_one_of_racing_saves_wins(store: Store) -> None:
    first = new("t")
    await stored(store, first)
    racing = (store.save(first, first.scheduled(NOW + i, i)) for i in range(20))
    [winner] = filter(None, await asyncio.gather(*racing))
    assert store.get("t") == winner


async def test_a_save_of_a_task_that_was_never_created_stores_nothing(store: Store) -> None:
    assert await store.save(new("t"), send(new("t"))) is None
    assert store.get("t") is None


async def test_a_task_is_cancelled_or_claimed_and_never_both(store: Store) -> None:
    tasks = [new(f"t{i}") for i in range(30)]
    await stored(store, *tasks)
    no = Failure("CANCELLED", "no")
    claims = [store.claim(Lane.SUBMIT, NOW, 10, send) for _ in range(3)]
    cancels = [store.save(task, task.failed(no, NOW)) for task in tasks]
    mixed = [job for pair in zip(claims, cancels[:3], strict=True) for job in pair] + cancels[3:]
    answers = await asyncio.gather(*mixed)
    claimed = {task.id for answer in answers if isinstance(answer, list) for task in answer}
    cancelled = {answer.id for answer in answers if isinstance(answer, Task)}
    assert not claimed & cancelled
    assert len(claimed | cancelled) == 30


# --- claims ---


async def test_a_claim_takes_what_is_longest_due_first_and_at_most_the_limit(store: Store) -> None:
    ages = [5, 1, 9, 3, 7]
    await stored(store, *(new(f"t{age}", due_time=NOW - age) for age in ages))
    claimed = await store.claim(Lane.SUBMIT, NOW, 3, send)
    assert [task.id for task in claimed] == ["t9", "t7", "t5"]
    claimed = await store.claim(Lane.SUBMIT, NOW, 3, send)
    assert [task.id for task in claimed] == ["t3", "t1"]
    assert await store.claim(Lane.SUBMIT, NOW, 3, send) == []


async def test_a_claim_takes_only_what_is_due_now(store: Store) -> None:
    due_times = {"before": NOW - 1, "now": NOW, "after": NOW + 0.001, "never": None}
    await stored(store, *(new(name, due_time=time) for name, time in due_times.items()))
    claimed = await store.claim(Lane.SUBMIT, NOW, 10, send)
    assert [task.id for task in claimed] == ["before", "now"]


LANES = {
    Lane.SUBMIT: new("submit"),
    Lane.POLL: new("poll", stage=Stage.QUEUED),
    Lane.LATE: new("late", stage=None, status=Status.FAILED),
}


@pytest.mark.parametrize("lane", Lane)
async def test_a_claim_takes_only_from_its_lane(store: Store, lane: Lane) -> None:
    await stored(store, *LANES.values(), new("done", status=Status.SUCCESS, due_time=None))
    claimed = await store.claim(lane, NOW, 10, off(60))
    assert [task.id for task in claimed] == [lane]


async def test_a_claim_stores_and_returns_what_the_move_made(store: Store) -> None:
    await stored(store, new("t"))
    [claimed] = await store.claim(Lane.SUBMIT, NOW, 10, send)
    assert claimed == replace(send(new("t")), version=2)
    assert store.get("t") == claimed


async def test_no_task_is_claimed_twice_by_racing_claims(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(100)))
    racing = (store.claim(Lane.SUBMIT, NOW, 10, send) for _ in range(20))
    claimed = [task.id for tasks in await asyncio.gather(*racing) for task in tasks]
    assert len(claimed) == len(set(claimed)) == 100


async def test_what_was_put_off_is_claimed_again_when_it_is_due(store: Store) -> None:
    await stored(store, LANES[Lane.POLL])
    assert await store.claim(Lane.POLL, NOW, 10, off(60))
    assert await store.claim(Lane.POLL, NOW + 59, 10, off(120)) == []
    assert await store.claim(Lane.POLL, NOW + 60, 10, off(120))


async def test_a_move_that_breaks_claims_nothing_and_the_writer_goes_on(store: Store) -> None:
    await stored(store, new("t"))

    def broken(task: Task) -> Task:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.claim(Lane.SUBMIT, NOW, 10, broken)
    assert store.get("t") == new("t")
    assert await store.claim(Lane.SUBMIT, NOW, 10, send)


DAMAGES = {
    "a status that is none": "status = 'WHAT'",
    "a stage that is none": "stage = 'WHAT'",
    "artifacts cut short": "artifacts = '[[\"https://'",
    "artifacts of another form": "artifacts = '[[1]]'",
    "artifacts that are a number": "artifacts = '7'",
    "params that are text": "params = 'text'",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("limit", [1, 10])
async def test_a_damaged_row_leaves_its_lane_and_the_others_are_claimed(
    store: Store, tmp_path: Path, damage: str, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    await stored(store, new("broken", due_time=NOW - 9), new("t0"), new("t1"))
    change(tmp_path, f"UPDATE tasks SET {damage} WHERE id = 'broken'")  # noqa: S608 - it is ours
    claimed = []
    for _ in range(3):
        claimed += await store.claim(Lane.SUBMIT, NOW, limit, send)
    assert {task.id for task in claimed} == {"t0", "t1"}
    assert store.count(Lane.SUBMIT) == 0
    assert [vars(record)["task_id"] for record in caplog.records] == ["broken"], "said once"
    assert rows(tmp_path, "SELECT id FROM tasks WHERE lane IS NULL") == [("broken",)]


# --- claims in turns ---


async def test_tasks_wait_in_turns_of_their_callers_by_their_creation(store: Store) -> None:
    tasks = [
        new(f"{caller}{age}", caller=caller, create_time=NOW - age)
        for caller in "cd"
        for age in (1, 3, 2)
    ]
    not_yet = new("later", due_time=NOW + 1, create_time=NOW - 9)
    await stored(store, *tasks, not_yet, LANES[Lane.POLL])
    seen: list[Waiting] = []

    def pick(waiting: Sequence[Waiting]) -> Sequence[str]:
        seen.extend(waiting)
        return ["d2", "c3"]

    claimed = await store.claim_in_turns(NOW, 2, pick, send)
    assert [task.id for task in claimed] == ["d2", "c3"]
    assert set(seen) == {
        Waiting("c3", "c", 1, 0),
        Waiting("c2", "c", 2, 0),
        Waiting("d3", "d", 1, 0),
        Waiting("d2", "d", 2, 0),
    }
    assert store.get("d2") == claimed[0]
    assert store.count(Lane.SUBMIT) == 5


async def test_no_task_is_claimed_twice_by_racing_claims_in_turns(store: Store) -> None:
    await stored(store, *(new(f"t{i}", caller=f"c{i % 3}") for i in range(60)))

    def first(waiting: Sequence[Waiting]) -> Sequence[str]:
        return [each.task_id for each in waiting][:5]

    racing = (store.claim_in_turns(NOW, 5, first, send) for _ in range(20))
    claimed = [task.id for tasks in await asyncio.gather(*racing) for task in tasks]
    assert len(claimed) == len(set(claimed)) == 60


# --- at the start, and after an outage ---


async def test_a_release_makes_due_what_waits_for_workers_that_are_gone(store: Store) -> None:
    later = NOW + 900
    waiting = [
        new("accepted", due_time=later),
        new("submitting", stage=Stage.SUBMITTING, due_time=later),
        new("queued", stage=Stage.QUEUED, due_time=later),
        new("generating", stage=Stage.GENERATING, due_time=later),
    ]
    others = [
        new("waits for its callback", stage=Stage.SUBMITTING, unknown_time=NOW, due_time=later),
        new("waits for a late delivery", status=Status.FAILED, stage=None, due_time=later),
        new("was due", due_time=NOW - 5),
        new("ended", status=Status.SUCCESS, stage=None, due_time=None),
    ]
    await stored(store, *waiting, *others)
    await store.release(NOW)
    for task in waiting:
        assert store.get(task.id) == replace(task, due_time=NOW, version=task.version + 1)
    for task in others:
        assert store.get(task.id) == task


async def test_what_was_released_is_stale_for_whoever_still_works_on_it(store: Store) -> None:
    await stored(store, new("t"))
    [claimed] = await store.claim(Lane.SUBMIT, NOW, 1, send)
    await store.release(NOW)
    assert await store.save(claimed, claimed.queued("k", NOW, NOW)) is None


async def test_what_had_setbacks_is_polled_at_once_when_the_provider_answers_again(
    store: Store,
) -> None:
    later = NOW + 900
    hurried = new("t", stage=Stage.QUEUED, setbacks=2, due_time=later)
    others = [
        new("without setbacks", stage=Stage.QUEUED, due_time=later),
        new("not sent", setbacks=2, due_time=later),
        new("was due", stage=Stage.QUEUED, setbacks=2, due_time=NOW - 5),
        new(
            "waits for its callback",
            stage=Stage.SUBMITTING,
            setbacks=2,
            unknown_time=1.0,
            due_time=later,
        ),
    ]
    await stored(store, hurried, *others)
    await store.hasten(NOW)
    assert store.get("t") == replace(hurried, due_time=NOW, version=2)
    for task in others:
        assert store.get(task.id) == task


# --- questions about many tasks ---


@pytest.mark.parametrize("lane", Lane)
async def test_a_lane_knows_how_many_wait_and_when_the_first_is_due(
    store: Store, lane: Lane
) -> None:
    assert (store.count(lane), store.next_due_time(lane)) == (0, None)
    others = [task for other, task in LANES.items() if other is not lane]
    await stored(store, *(replace(task, due_time=NOW - 100) for task in others))
    assert (store.count(lane), store.next_due_time(lane)) == (0, None)
    await stored(store, *(replace(LANES[lane], id=f"t{i}", due_time=NOW + i) for i in (3, 1, 2)))
    assert (store.count(lane), store.next_due_time(lane)) == (3, NOW + 1)


async def test_recent_submit_times_are_those_after_a_moment_oldest_first(store: Store) -> None:
    assert await store.recent_submit_times(0) == []
    times = [NOW - 3, NOW - 1, None, NOW, NOW - 2]
    await stored(store, *(new(f"t{i}", submit_time=time) for i, time in enumerate(times)))
    assert await store.recent_submit_times(NOW - 2) == [NOW - 1, NOW]
    assert await store.recent_submit_times(0) == [NOW - 3, NOW - 2, NOW - 1, NOW]


def some_tasks() -> list[Task]:
    """Many tasks, some of which were created at the same moment."""
    rng = random.Random(7)
    return [
        new(
            f"{rng.randrange(10**9):09}",
            caller=rng.choice("cd"),
            prompt_id=rng.choice("pq"),
            status=rng.choice(list(Status)),
            create_time=NOW + rng.randrange(20),
        )
        for _ in range(200)
    ]


def newest_first(task: Task) -> tuple[float, str]:
    return task.create_time, task.id


FILTERS = [
    ListFilter("c"),
    ListFilter("d", prompt_id="p"),
    ListFilter("c", status=Status.SUCCESS),
    ListFilter("c", prompt_id="q", status=Status.PENDING),
    ListFilter("nobody"),
    ListFilter("c", prompt_id="nothing"),
]


@pytest.mark.parametrize("which", FILTERS, ids=str)
@pytest.mark.parametrize("limit", [1, 7, 1_000])
async def test_pages_hold_every_task_of_the_filter_once_and_newest_first(
    store: Store, which: ListFilter, limit: int
) -> None:
    tasks = some_tasks()
    await stored(store, *tasks)
    listed: list[Task] = []
    before = None
    while page := await store.page(which, before, limit):
        assert len(page) <= limit
        listed += page
        before = (page[-1].create_time, page[-1].id)
    expected = [
        task
        for task in tasks
        if task.caller == which.caller
        and which.prompt_id in {"", task.prompt_id}
        and which.status in {None, task.status}
    ]
    assert listed == sorted(expected, key=newest_first, reverse=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 10])
async def test_damaged_rows_are_left_out_of_pages_and_do_not_end_them(
    store: Store, tmp_path: Path, limit: int
) -> None:
    tasks = [new(f"t{i}", create_time=NOW + i) for i in range(9)]
    await stored(store, *tasks)
    change(tmp_path, "UPDATE tasks SET status = 'WHAT' WHERE id IN ('t0', 't3', 't6', 't7')")
    readable = [task for task in reversed(tasks) if task.id not in {"t0", "t3", "t6", "t7"}]
    assert await store.page(ListFilter("c"), None, limit) == readable[:limit]


async def test_a_task_created_meanwhile_does_not_shift_the_pages(store: Store) -> None:
    await stored(store, *(new(f"t{i}", create_time=NOW + i) for i in range(4)))
    first = await store.page(ListFilter("c"), None, 2)
    await stored(store, new("newer", create_time=NOW + 10))
    before = (first[-1].create_time, first[-1].id)
    second = await store.page(ListFilter("c"), before, 2)
    assert [task.id for task in first + second] == ["t3", "t2", "t1", "t0"]


# --- how the questions are answered ---

STATEMENTS = {
    "get": ("t",),
    "find_request": ("c", "r"),
    "due": (Lane.POLL, NOW, 10),
    "next_due": (Lane.POLL,),
    "count": (Lane.POLL,),
}


def plan(store: Store, sql: str, params: Sequence[object]) -> str:
    steps = store._reads.execute_sql(f"EXPLAIN QUERY PLAN {sql}", params).fetchall()
    return "\n".join(step[3] for step in steps)


def assert_indexed(how: str) -> None:
    assert "SEARCH" in how
    assert "SCAN" not in how
    assert "TEMP B-TREE" not in how


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_hot_statements_use_an_index_and_sort_nothing(store: Store, name: str) -> None:
    await stored(store, *some_tasks())
    assert_indexed(plan(store, getattr(store._sql, name), STATEMENTS[name]))


@pytest.mark.parametrize("which", FILTERS[:4], ids=str)
@pytest.mark.parametrize("before", [None, (NOW, "t")], ids=["first page", "next page"])
async def test_pages_use_an_index_and_sort_nothing(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    which: ListFilter,
    before: tuple[float, str] | None,
) -> None:
    await stored(store, *some_tasks())
    plans = plans_of_reads(store, monkeypatch)
    await store.page(which, before, 10)
    [how] = plans
    assert_indexed(how)


async def test_recent_submit_times_use_an_index_and_sort_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = plans_of_reads(store, monkeypatch)
    await store.recent_submit_times(NOW)
    [how] = plans
    assert_indexed(how)


def plans_of_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the plan of each read collected in place of its rows."""
    plans = []

    async def explain(query: Any) -> list[Any]:
        sql, params = query.bind(store._reads).sql()
        plans.append(plan(store, sql, params))
        return []

    monkeypatch.setattr(store, "_read_many", explain)
    return plans


@pytest.mark.parametrize("name", ["waiting", "release", "hasten"])
async def test_ended_tasks_cost_the_other_statements_nothing(store: Store, name: str) -> None:
    sql = getattr(store._sql, name)
    how = plan(store, sql, (NOW,) * sql.count("?"))
    assert re.search(r"SEARCH (tasks|t1) USING .*INDEX tasks_due", how)
    assert not re.search(r"SCAN (tasks|t1)", how)


# --- batches of writes ---


class Gate:
    """Keeps the writer busy, so that what is written meanwhile comes into one batch."""

    def __init__(self, store: Store) -> None:
        self._open = threading.Event()
        self._reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            loop.call_soon_threadsafe(self._reached.set)
            self._open.wait(10)

        self._waiting = asyncio.create_task(store._writer.run(wait))

    async def reached(self) -> None:
        async with asyncio.timeout(10):
            await self._reached.wait()

    async def open(self) -> None:
        self._open.set()
        await self._waiting


async def enqueued(*jobs: Any) -> list[asyncio.Task[Any]]:
    """Start jobs up to where they wait for the writer."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    await asyncio.sleep(0)
    return tasks


async def test_a_job_that_raises_fails_alone_and_leaves_nothing(store: Store) -> None:
    def insert_and_raise() -> None:
        store._create(new("half"), NO_LIMIT)
        raise ZeroDivisionError

    gate = Gate(store)
    await gate.reached()
    jobs = await enqueued(
        store.create(new("first"), NO_LIMIT),
        store._writer.run(insert_and_raise),
        store.create(new("second"), NO_LIMIT),
        store.create(new("first"), NO_LIMIT),
        store.create(new("third", request_id="r"), NO_LIMIT),
        store.create(new("fourth", request_id="r"), NO_LIMIT),
    )
    await gate.open()
    first, broken, second, taken, third, fourth = await asyncio.gather(
        *jobs, return_exceptions=True
    )
    assert first == Created(new("first"))
    assert isinstance(broken, ZeroDivisionError)
    assert second == Created(new("second"))
    assert isinstance(taken, IntegrityError)
    assert third == Created(new("third", request_id="r"))
    assert fourth == Existing(new("third", request_id="r"))
    assert store.get("half") is None
    listed = await store.page(ListFilter("c"), None, 10)
    assert {task.id for task in listed} == {"first", "second", "third"}


def committed(store: Store) -> int:
    """Count what another connection sees, from any thread."""
    with store._reads.connection_context():
        return store.count(Lane.SUBMIT)


async def test_writes_that_wait_together_are_committed_together(store: Store) -> None:
    gate = Gate(store)
    await gate.reached()
    jobs = await enqueued(*(store.create(new(f"t{i}"), NO_LIMIT) for i in range(20)))
    seen = await enqueued(store._writer.run(lambda: committed(store)))
    await gate.open()
    await asyncio.gather(*jobs)
    assert await asyncio.gather(*seen) == [0], "the one behind them saw none committed"
    assert store.count(Lane.SUBMIT) == 20


async def test_a_write_whose_caller_is_gone_is_done_all_the_same(store: Store) -> None:
    gate = Gate(store)
    await gate.reached()
    [gone, stays] = await enqueued(
        store.create(new("gone"), NO_LIMIT), store.create(new("stays"), NO_LIMIT)
    )
    gone.cancel()
    await gate.open()
    assert await stays == Created(new("stays"))
    assert gone.cancelled()
    assert store.get("gone") == new("gone")


async def test_a_thousand_writes_at_once_are_all_done(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(1_000)))
    assert store.count(Lane.SUBMIT) == 1_000


# --- a database that is away ---


async def test_a_locked_database_is_unavailable_and_works_again_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.store.BUSY_TIMEOUT_SECONDS", 0.02)
    store = Store.open(url(tmp_path))
    await stored(store, new("t"))
    with closing(sqlite3.connect(tmp_path / "generation.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        writes = (
            store.create(new("u"), NO_LIMIT),
            store.save(new("t"), send(new("t"))),
            store.claim(Lane.SUBMIT, NOW, 10, send),
            store.claim_in_turns(NOW, 10, lambda *_: [], send),
            store.release(NOW),
            store.hasten(NOW),
            store.ping(),
        )
        for write in writes:
            with pytest.raises(StorageUnavailableError, match="locked"):
                await write
        assert store.get("t") == new("t"), "reads go on"
        assert await store.page(ListFilter("c"), None, 10) == [new("t")]
    assert store.get("u") is None
    await store.ping()
    await stored(store, new("u"))
    assert len(await store.claim(Lane.SUBMIT, NOW, 10, send)) == 2
    await store.close()


async def test_a_ping_does_not_wait_long_for_a_busy_database(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.store.PING_SECONDS", 0.05)
    gate = Gate(store)
    await gate.reached()
    with pytest.raises(StorageUnavailableError, match="busy"):
        await store.ping()
    await gate.open()
    monkeypatch.undo()
    await store.ping()


async def test_a_full_disk_is_unavailable_and_leaves_nothing_half_written(
    store: Store, tmp_path: Path
) -> None:
    def pages(most: int | None) -> Any:
        if most is None:
            return store._writes.execute_sql("PRAGMA page_count").fetchone()[0]
        return store._writes.execute_sql(f"PRAGMA max_page_count = {most}").fetchone()

    await store._writer.run(lambda: pages(pages(None) + 40))
    large = [new(f"t{i}", params=bytes(20_000)) for i in range(50)]
    created: list[Task] = []

    async def create_all() -> None:
        for task in large:
            await store.create(task, NO_LIMIT)
            created.append(task)

    with pytest.raises(StorageUnavailableError, match="disk is full"):
        await create_all()
    assert 0 < len(created) < 50
    listed = await store.page(ListFilter("c"), None, 100)
    assert sorted(listed, key=lambda task: task.id) == sorted(created, key=lambda task: task.id)

    together = await asyncio.gather(
        *(store.create(task, NO_LIMIT) for task in large[len(created) :]), return_exceptions=True
    )
    assert all(isinstance(answer, StorageUnavailableError) for answer in together)
    assert len(await store.page(ListFilter("c"), None, 100)) == len(created)
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]

    await store._writer.run(lambda: pages(100_000))
    await stored(store, *large[len(created) :])
    assert store.count(Lane.SUBMIT) == 50


FILE_LIMIT = """
import asyncio, resource, sys
from dataclasses import replace
from pathlib import Path
from storage.store import Created, ListFilter, StorageUnavailableError, Store
from tests.test_storage import new, url

def largest_file(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    store = Store.open(url(Path(sys.argv[1])))
    largest_file(300_000)
    created = 0
    while True:
        try:
            await store.create(new(f"t{created}", params=bytes(20_000)), 1_000)
        except StorageUnavailableError as error:
            print(error)
            break
        created += 1
    assert 0 < created < 20, created
    listed = await store.page(ListFilter("c"), None, 100)
    assert {task.id for task in listed} == {f"t{i}" for i in range(created)}
    largest_file(resource.RLIM_INFINITY)
    task = new("after", params=bytes(20_000))
    assert await store.create(task, 1_000) == Created(task)
    await store.close()
    store = Store.open(url(Path(sys.argv[1])))
    assert len(await store.page(ListFilter("c"), None, 100)) == created + 1
    await store.close()
    print("recovered")

asyncio.run(main())
"""


async def test_a_file_that_cannot_grow_is_unavailable_until_it_can(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FILE_LIMIT, str(tmp_path)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().splitlines()[-1] == "recovered"
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_database_damaged_on_the_disk_is_unavailable(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path))
    await stored(store, *some_tasks())
    await store.close()
    path = tmp_path / "generation.db"
    [(page_size,)] = rows(tmp_path, "PRAGMA page_size")
    roots = rows(tmp_path, "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'tasks'")
    with path.open("r+b") as file:
        for (root,) in roots:
            file.seek((root - 1) * page_size)
            file.write(b"\xff" * page_size)

    store = Store.open(url(tmp_path))
    with pytest.raises(StorageUnavailableError, match="malformed"):
        store.get("t")
    with pytest.raises(StorageUnavailableError, match="malformed"):
        await store.page(ListFilter("c"), None, 10)
    with pytest.raises(StorageUnavailableError, match="malformed"):
        await store.create(new("t", request_id="r"), NO_LIMIT)
    await store.close()


# --- opening and closing ---


async def test_a_second_store_on_the_same_file_is_refused_until_the_first_is_closed(
    tmp_path: Path,
) -> None:
    first = Store.open(url(tmp_path))
    with pytest.raises(StorageConfigError, match=r"generation\.db is in use by another process"):
        Store.open(url(tmp_path))
    await stored(first, new("t"))
    await first.close()
    second = Store.open(url(tmp_path))
    assert second.get("t") == new("t")
    await second.close()


async def test_stores_on_different_files_live_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = Store.open(url(tmp_path)), Store.open(url(tmp_path / "other"))
    await stored(first, new("t"))
    assert second.get("t") is None
    await first.close()
    await second.close()


async def test_closing_finishes_the_writes_that_wait(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path))
    gate = Gate(store)
    await gate.reached()
    tasks = [new(f"t{i}") for i in range(600)]
    jobs = await enqueued(*(store.create(task, NO_LIMIT) for task in tasks))
    [closed] = await enqueued(store.close())
    await gate.open()
    assert await asyncio.gather(*jobs) == [Created(task) for task in tasks]
    await closed
    assert rows(tmp_path, "SELECT count(*) FROM tasks") == [(600,)]


async def test_closing_leaves_no_thread_and_no_file_of_its_own(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path))
    await stored(store, new("t"))
    await store.page(ListFilter("c"), None, 1)
    threads = [store._writer._thread, *store._reader._threads]
    await store.close()
    assert not any(thread.is_alive() for thread in threads)
    assert set(os.listdir(tmp_path)) == {"generation.db", "generation.db.lock"}  # noqa: PTH208


async def test_a_file_in_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError) as caught:
        Store.open(url(tmp_path / "nowhere"))
    assert (
        str(caught.value)
        == f"cannot open {tmp_path}/nowhere/generation.db: No such file or directory"
    )


async def test_a_folder_in_place_of_the_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "generation.db").mkdir()
    for _ in range(2):  # the first try keeps no lock
        with pytest.raises(StorageUnavailableError, match="cannot open"):
            Store.open(url(tmp_path))


async def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "generation.db"
    content = b"my other notes\n" * 1_000
    path.write_bytes(content)
    for _ in range(2):  # the first try keeps no lock
        with pytest.raises(StorageConfigError, match=re.escape(f"{path} is no SQLite database")):
            Store.open(url(tmp_path))
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["generation.db"]  # noqa: PTH208 - and no lock beside it


@pytest.mark.parametrize(
    "database_url",
    ["", "generation.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://x/y"],
)
async def test_a_url_that_names_no_database_is_a_mistake_of_the_configuration(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageConfigError, match="DATABASE_URL"):
        Store.open(database_url)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
