"""The store on both databases: what it stores, what it refuses, and what it survives."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from peewee import IntegrityError, OperationalError, PostgresqlDatabase, SqliteDatabase
from playhouse.migrations import Runner
from playhouse.schema_diff import diff_models

from storage.claims import Claim, Quota, RunningMax, Sending, Waiting
from storage.creation import (
    Created,
    CreateLimits,
    Creation,
    Existing,
    LimitReached,
)
from storage.errors import CommitUnknownError, StorageUnavailableError
from storage.opening import open_store
from storage.pages import ListFilter
from storage.postgresql.connection import is_postgres
from storage.schema import MIGRATIONS, TABLES, TaskRow
from storage.sqlite import sqlite_path
from storage.store import Store
from storage.task import Artifact, Failure, Lane, Stage, Status, Task
from tests.support.databases import change, rows
from tests.support.storing import (
    NO_LIMIT,
    NO_QUOTA,
    NOW,
    Gate,
    any_task,
    claim,
    claim_in_turns,
    enqueued,
    new,
    off,
    read,
    saved,
    send,
    some_tasks,
    stored,
)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An empty store."""
    store = open_store(database_url)
    yield store
    await store.close()


# --- the schema ---


SCHEMA = {
    "sqlite": "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name LIKE '%s'",
    "postgresql": (
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name LIKE '%s'"
        " UNION ALL SELECT tablename, indexname, replace(indexdef, current_schema(), ''), ''"
        " FROM pg_indexes WHERE schemaname = current_schema() AND tablename LIKE '%s'"
    ),
}


def schema(database_url: str) -> set[Any]:
    """Return every table and index of the database, except the history of migrations."""
    sql = SCHEMA["postgresql" if is_postgres(database_url) else "sqlite"]
    return set(rows(database_url, sql.replace("%s", "tasks"))) | set(
        rows(database_url, sql.replace("%s", "slots"))
    )


def by_peewee(database_url: str) -> Any:
    """Return a Peewee database."""
    if is_postgres(database_url):
        return PostgresqlDatabase(database_url)
    return SqliteDatabase(str(sqlite_path(database_url)))


async def test_the_migrations_make_exactly_the_tables_of_the_schema(database_url: str) -> None:
    database = by_peewee(database_url)
    with database.connection_context(), database.bind_ctx(TABLES):
        database.create_tables(TABLES)
        made_by_peewee = schema(database_url)
        database.drop_tables(TABLES)
    store = open_store(database_url)
    await store.close()
    assert schema(database_url) == made_by_peewee
    assert {"tasks_due", "tasks_purgeable"} <= {row[1] for row in schema(database_url)}
    with database.connection_context():
        assert not diff_models(database, TABLES)


async def test_migrating_down_and_up_again_makes_the_same_tables(database_url: str) -> None:
    store = open_store(database_url)
    await store.close()
    before = schema(database_url)
    database = by_peewee(database_url)
    with database.connection_context():
        runner = Runner(database, str(MIGRATIONS))
        while runner.applied():
            runner.down()
        assert schema(database_url) == set()
        runner.up()
    assert schema(database_url) == before


async def test_opening_again_migrates_nothing_and_keeps_everything(database_url: str) -> None:
    store = open_store(database_url)
    await stored(store, new("t"))
    await store.close()
    before = schema(database_url), rows(database_url, "SELECT * FROM schema_migration")

    store = open_store(database_url)
    assert await read(store, "t") == new("t")
    await store.close()
    assert (schema(database_url), rows(database_url, "SELECT * FROM schema_migration")) == before


def test_every_field_of_a_task_has_a_column() -> None:
    columns = set(TaskRow._meta.fields)
    kept_in_parts = {"failure"}
    derived = {"lane", "failure_reason", "failure_message", "failure_code"}
    assert columns - derived == set(Task._fields) - kept_in_parts


# --- a task as it is read ---

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
    candidate_id="h",
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
    for field in Task._fields:
        assert getattr(FULL, field) != getattr(EMPTY, field), field


@pytest.mark.parametrize("task", [FULL, EMPTY], ids=["full", "empty"])
async def test_a_task_is_read_as_it_was_created(store: Store, task: Task) -> None:
    assert await store.create(task, NO_LIMIT) == Created(task)
    assert await read(store, task.id) == task
    assert await store.page(ListFilter(task.caller), None, 10) == [task]


@pytest.mark.parametrize("seed", range(40))
async def test_any_task_is_read_as_it_was_created_and_saved(store: Store, seed: int) -> None:
    task = any_task(seed)
    await stored(store, task)
    assert await read(store, task.id) == task

    kept = ("id", "caller", "request_id", "prompt_id", "model", "params", "create_time")
    other = any_task(seed + 1_000)._replace(**{name: getattr(task, name) for name in kept})
    after = await saved(store, task, other)
    assert after == other._replace(version=task.version + 1)
    assert await read(store, task.id) == after


async def test_a_task_is_read_after_the_store_was_closed(database_url: str) -> None:
    tasks = [any_task(seed)._replace(id=f"t{seed}", request_id="") for seed in range(10)]
    store = open_store(database_url)
    await stored(store, *tasks)
    await store.close()
    store = open_store(database_url)
    assert [await read(store, task.id) for task in tasks] == tasks
    await store.close()


async def test_a_missing_task_is_none(store: Store) -> None:
    assert await read(store, "nobody") is None
    assert await store.find_request("c", "nobody") is None


# --- request_ids ---


async def test_a_request_id_of_one_caller_makes_one_task_whatever_its_state(
    store: Store,
) -> None:
    first = new("first", request_id="r")
    await stored(store, first)
    assert await store.create(new("second", request_id="r", prompt_id="q"), NO_LIMIT) == Existing(
        first
    )

    ended = await saved(store, first, first.failed(Failure("CANCELLED", "no"), NOW))
    assert await store.create(new("third", request_id="r"), NO_LIMIT) == Existing(ended)
    assert await store.find_request("c", "r") == ended
    assert await read(store, "second") is None


async def test_a_request_id_of_another_caller_is_another(store: Store) -> None:
    first, second = new("first", request_id="r"), new("second", request_id="r", caller="d")
    await stored(store, first, second)
    assert await store.find_request("c", "r") == first
    assert await store.find_request("d", "r") == second


async def test_tasks_without_a_request_id_are_never_the_same(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(3)))
    assert await store.find_request("c", "") is None


async def test_racing_creates_with_one_request_id_make_one_task(
    store: Store, database_url: str
) -> None:
    racing = (store.create(new(f"t{i}", request_id="r"), NO_LIMIT) for i in range(50))
    answers = await asyncio.gather(*racing)
    assert Counter(map(type, answers)) == {Created: 1, Existing: 49}
    assert len({answer.task for answer in answers if not isinstance(answer, LimitReached)}) == 1
    assert rows(database_url, "SELECT count(*) FROM tasks") == [(1,)]


async def test_a_duplicate_id_is_a_bug_and_affects_no_other_task(store: Store) -> None:
    await stored(store, new("t"))
    answers = await asyncio.gather(
        store.create(new("t", prompt_id="q"), NO_LIMIT),
        store.create(new("u"), NO_LIMIT),
        return_exceptions=True,
    )
    assert isinstance(answers[0], IntegrityError)
    assert answers[1] == Created(new("u"))
    assert await read(store, "t") == new("t")


# --- the queue's limit ---


async def test_only_tasks_that_wait_to_be_sent_count_for_the_queues_limit(store: Store) -> None:
    first, second = new("t0"), new("t1", due_time=NOW + 900)
    await stored(store, first, second)
    assert await store.create(new("t2"), CreateLimits(2)) == LimitReached("queue", 2, "service")
    assert await read(store, "t2") is None

    await saved(store, first, send(first))
    assert await store.create(new("t2"), CreateLimits(2)) == Created(new("t2"))
    assert await store.create(new("t3"), CreateLimits(2)) == LimitReached("queue", 2, "service")

    await saved(store, second, second.failed(Failure("CANCELLED", "no"), NOW))
    assert await store.create(new("t3"), CreateLimits(2)) == Created(new("t3"))


async def test_a_full_queue_still_knows_its_request_ids(store: Store) -> None:
    first = new("first", request_id="r")
    await stored(store, first)
    assert await store.create(new("second", request_id="r"), CreateLimits(1)) == Existing(first)


async def test_racing_creates_do_not_pass_the_queues_limit(store: Store) -> None:
    answers = await asyncio.gather(
        *(store.create(new(f"t{i}"), CreateLimits(7)) for i in range(50))
    )
    assert Counter(map(type, answers)) == {Created: 7, LimitReached: 43}
    assert await store.count(Lane.SUBMIT) == 7


# --- compare-and-set ---


async def test_a_save_of_a_stale_snapshot_changes_nothing(store: Store) -> None:
    first = new("t")
    await stored(store, first)
    second = await saved(store, first, send(first))
    assert await store.save(first, first.failed(Failure("CANCELLED", "no"), NOW)) is None
    assert await read(store, "t") == second


async def test_an_invisible_move_makes_earlier_snapshots_stale_too(store: Store) -> None:
    first = new("t")
    await stored(store, first)
    second = await saved(store, first, first.scheduled(NOW + 1, 1))
    assert second.revision == first.revision
    assert await store.save(first, first.scheduled(NOW + 2, 2)) is None
    assert await read(store, "t") == second


async def test_a_saved_snapshot_can_be_saved_again(store: Store) -> None:
    task = new("t")
    await stored(store, task)
    task = await saved(store, task, send(task))
    task = await saved(store, task, task.queued("k", NOW, NOW))
    task = await saved(store, task, task.progressed(True, 5, NOW))
    assert (task.revision, task.version) == (4, 4)
    assert await read(store, "t") == task


async def test_one_of_racing_saves_wins(store: Store) -> None:
    first = new("t")
    await stored(store, first)
    racing = (store.save(first, first.scheduled(NOW + i, i)) for i in range(20))
    [winner] = filter(None, await asyncio.gather(*racing))
    assert await read(store, "t") == winner


async def test_a_save_of_a_task_that_was_never_created_stores_nothing(store: Store) -> None:
    assert await store.save(new("t"), send(new("t"))) is None
    assert await read(store, "t") is None


async def test_a_task_is_cancelled_or_claimed_and_never_both(store: Store) -> None:
    tasks = [new(f"t{i}") for i in range(30)]
    await stored(store, *tasks)
    no = Failure("CANCELLED", "no")
    claims = [claim(store, Lane.SUBMIT, NOW, 10, send) for _ in range(3)]
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
    claimed = await claim(store, Lane.SUBMIT, NOW, 3, send)
    assert [task.id for task in claimed] == ["t9", "t7", "t5"]
    claimed = await claim(store, Lane.SUBMIT, NOW, 3, send)
    assert [task.id for task in claimed] == ["t3", "t1"]
    assert await claim(store, Lane.SUBMIT, NOW, 3, send) == []


async def test_a_claim_takes_only_what_is_due_now(store: Store) -> None:
    due_times = {"before": NOW - 1, "now": NOW, "after": NOW + 0.001, "never": None}
    await stored(store, *(new(name, due_time=time) for name, time in due_times.items()))
    claimed = await claim(store, Lane.SUBMIT, NOW, 10, send)
    assert [task.id for task in claimed] == ["before", "now"]


LANES = {
    Lane.SUBMIT: new("submit"),
    Lane.POLL: new("poll", stage=Stage.QUEUED),
    Lane.LATE: new("late", stage=None, status=Status.FAILED),
}


@pytest.mark.parametrize("lane", Lane)
async def test_a_claim_takes_only_from_its_lane(store: Store, lane: Lane) -> None:
    await stored(store, *LANES.values(), new("done", status=Status.SUCCESS, due_time=None))
    claimed = await claim(store, lane, NOW, 10, off(60))
    assert [task.id for task in claimed] == [lane]


async def test_a_claim_stores_and_returns_what_the_move_made(store: Store) -> None:
    await stored(store, new("t"))
    [claimed] = await claim(store, Lane.SUBMIT, NOW, 10, send)
    assert claimed == send(new("t"))._replace(version=2)
    assert await read(store, "t") == claimed


async def test_no_task_is_claimed_twice_by_racing_claims(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(100)))
    racing = (claim(store, Lane.SUBMIT, NOW, 10, send) for _ in range(20))
    claimed = [task.id for tasks in await asyncio.gather(*racing) for task in tasks]
    assert len(claimed) == len(set(claimed)) == 100


async def test_a_claimed_task_is_claimed_again_when_it_is_due(store: Store) -> None:
    await stored(store, LANES[Lane.POLL])
    assert await claim(store, Lane.POLL, NOW, 10, off(60))
    assert await claim(store, Lane.POLL, NOW + 59, 10, off(120)) == []
    assert await claim(store, Lane.POLL, NOW + 60, 10, off(120))


async def test_a_move_that_raises_claims_nothing_and_the_writer_continues(store: Store) -> None:
    await stored(store, new("t"))

    def broken(task: Task) -> Task:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await claim(store, Lane.SUBMIT, NOW, 10, broken)
    assert await read(store, "t") == new("t")
    assert await claim(store, Lane.SUBMIT, NOW, 10, send)


DAMAGES = {
    "a status that is none": "status = 'WHAT'",
    "a stage that is none": "stage = 'WHAT'",
    "artifacts cut short": "artifacts = '[[\"https://'",
    "artifacts of another form": "artifacts = '[[1]]'",
    "artifacts that are a number": "artifacts = '7'",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("limit", [1, 10])
async def test_a_damaged_row_leaves_its_lane_and_the_others_are_claimed(
    store: Store, database_url: str, damage: str, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    await stored(store, new("broken", due_time=NOW - 9), new("t0"), new("t1"))
    change(database_url, f"UPDATE tasks SET {damage} WHERE id = 'broken'")  # noqa: S608 - it is ours
    claimed: list[Task] = []
    for _ in range(3):
        claimed += await claim(store, Lane.SUBMIT, NOW, limit, send)
    assert {task.id for task in claimed} == {"t0", "t1"}
    assert await store.count(Lane.SUBMIT) == 0
    assert [vars(record)["task_id"] for record in caplog.records] == ["broken"], "said once"
    assert rows(database_url, "SELECT id FROM tasks WHERE lane IS NULL") == [("broken",)]


# --- claims in turns ---


async def test_waiting_tasks_have_turns_by_caller_and_creation(store: Store) -> None:
    tasks = [
        new(f"{caller}{age}", caller=caller, create_time=NOW - age)
        for caller in "cd"
        for age in (1, 3, 2)
    ]
    not_yet = new("later", due_time=NOW + 1, create_time=NOW - 9)
    await stored(store, *tasks, not_yet, LANES[Lane.POLL])
    seen: list[Waiting] = []

    def pick(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        seen.extend(waiting)
        return ["d2", "c3"]

    claimed = await claim_in_turns(store, 2, pick)
    assert [task.id for task in claimed] == ["d2", "c3"]
    assert set(seen) == {
        Waiting("c3", "c", 1, 0, "imagen4"),
        Waiting("c2", "c", 2, 0, "imagen4"),
        Waiting("d3", "d", 1, 0, "imagen4"),
        Waiting("d2", "d", 2, 0, "imagen4"),
    }
    assert await read(store, "d2") == claimed[0]
    assert await store.count(Lane.SUBMIT) == 5


async def test_no_task_is_claimed_twice_by_racing_claims_in_turns(store: Store) -> None:
    await stored(store, *(new(f"t{i}", caller=f"c{i % 3}") for i in range(60)))

    def first(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        return [each.task_id for each in waiting][:5]

    racing = (claim_in_turns(store, 5, first) for _ in range(20))
    claimed = [task.id for tasks in await asyncio.gather(*racing) for task in tasks]
    assert len(claimed) == len(set(claimed)) == 60


# --- quotas ---

QUOTA = Quota("creates", 3, 10.0)


async def taken(store: Store, now: float, limit: int, quota: Quota = QUOTA) -> tuple[int, float]:
    """Claim due tasks within a quota; return how many, and when there may be more."""
    claimed = await store.claim(
        Lane.POLL, now, limit, lambda task: task.scheduled(now + 60, 0), quota
    )
    return len(claimed.tasks), claimed.next_time


async def test_claims_take_no_more_slots_than_the_quota_has_in_any_window(store: Store) -> None:
    await store.add_slots(QUOTA)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(20)))
    assert await taken(store, NOW, 2) == (2, 0.0)
    assert await taken(store, NOW + 4, 2) == (1, NOW + 10)
    assert await taken(store, NOW + 9.9, 2) == (0, NOW + 10)
    assert await taken(store, NOW + 10, 9) == (2, NOW + 14)
    assert await taken(store, NOW + 14, 1) == (1, 0.0)


async def test_a_claim_takes_no_slot_that_it_has_no_task_for(store: Store) -> None:
    await store.add_slots(QUOTA)
    await stored(store, new("t", stage=Stage.QUEUED))
    assert await taken(store, NOW, 9) == (1, 0.0)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(9)))
    assert (await taken(store, NOW, 9))[0] == 2


async def test_slots_are_remembered_when_the_quota_is_made_again_larger_or_smaller(
    store: Store,
) -> None:
    await store.add_slots(QUOTA)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(20)))
    assert (await taken(store, NOW, 9))[0] == 3
    larger = replace(QUOTA, limit=5)
    await store.add_slots(larger)
    assert (await taken(store, NOW + 1, 9, larger))[0] == 2
    assert (await taken(store, NOW + 12, 9, replace(QUOTA, limit=1)))[0] == 1


async def test_a_slot_is_taken_or_the_time_of_the_next_one_returned(store: Store) -> None:
    quota = replace(QUOTA, limit=1)
    await store.add_slots(quota)
    assert await store.take_slot(quota, NOW) == 0
    assert await store.take_slot(quota, NOW + 1) == NOW + 10
    assert await store.take_slot(quota, NOW + 10) == 0


async def test_racing_claims_take_each_slot_once(store: Store) -> None:
    quota = replace(QUOTA, limit=7)
    await store.add_slots(quota)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(100)))
    racing = [taken(store, NOW, 2, quota) for _ in range(20)]
    assert sum(count for count, _ in await asyncio.gather(*racing)) == 7


async def test_no_more_tasks_are_claimed_than_may_run(store: Store) -> None:
    running = [new(f"r{i}", stage=Stage.QUEUED, due_time=NOW + 60) for i in range(2)]
    await stored(store, *running, *(new(f"t{i}") for i in range(9)))

    async def send_some() -> Claim:
        sending = Sending(
            room=100,
            depth=100,
            pick=lambda waiting, room: [each.task_id for each in waiting][:room],
            move=send,
            quota=NO_QUOTA,
            running_max=RunningMax(5),
        )
        return await store.claim_in_turns(NOW, sending)

    assert len((await send_some()).tasks) == 3
    assert await send_some() == Claim([], inf)


# --- leases ---


async def test_a_lease_is_renewed_unless_another_process_changed_the_task(store: Store) -> None:
    await stored(store, new("mine"), new("moved"))
    claimed = await claim(store, Lane.SUBMIT, NOW, 10, send)
    by_id = {task.id: task for task in claimed}
    moved = await saved(store, by_id["moved"], by_id["moved"].queued("k", NOW, NOW))
    renewed = await store.renew(claimed, NOW + 500)
    assert renewed == [by_id["mine"]._replace(due_time=NOW + 500)]
    assert await read(store, "mine") == renewed[0]
    assert await read(store, "moved") == moved
    assert await store.save(renewed[0], renewed[0].queued("k", NOW, NOW))


# --- tasks that ended long ago ---


async def test_a_result_that_became_known_late_is_kept_as_long_as_any_other(store: Store) -> None:
    ended = new("t", status=Status.SUCCESS, stage=None, due_time=None, complete_time=NOW - 9_000)
    await stored(store, ended)
    assert await store.purge(NOW - 60, 10) == 0
    assert await store.purge(NOW + 60, 10) == 1


async def test_a_purge_deletes_the_oldest_ended_tasks_and_forgets_their_request_ids(
    store: Store,
) -> None:
    ended = [
        new(f"t{i}", request_id=f"r{i}", status=Status.SUCCESS, stage=None, due_time=None)
        for i in range(5)
    ]
    ended = [
        task._replace(complete_time=NOW + i, update_time=NOW + i) for i, task in enumerate(ended)
    ]
    kept = [
        new("waits"),
        new("comes late", status=Status.FAILED, stage=None, complete_time=NOW - 99),
        ended[4],
    ]
    await stored(store, *ended, *kept[:2])
    assert [await store.purge(NOW + 4, 3) for _ in range(3)] == [3, 1, 0]
    assert [await read(store, task.id) for task in kept] == kept
    assert await store.find_request("c", "r0") is None
    assert await store.create(new("again", request_id="r0"), NO_LIMIT) == Created(
        new("again", request_id="r0")
    )


# --- at the start, and after an outage ---


async def test_abandoned_tasks_can_be_made_due(store: Store) -> None:
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
    await store.make_abandoned_due(NOW)
    for task in waiting:
        assert await read(store, task.id) == task._replace(due_time=NOW, version=task.version + 1)
    for task in others:
        assert await read(store, task.id) == task


async def test_a_worker_cannot_save_a_task_that_was_made_due(store: Store) -> None:
    await stored(store, new("t"))
    [claimed] = await claim(store, Lane.SUBMIT, NOW, 1, send)
    await store.make_abandoned_due(NOW)
    assert await store.save(claimed, claimed.queued("k", NOW, NOW)) is None


async def test_tasks_that_an_outage_postponed_are_due_when_it_is_over(
    store: Store,
) -> None:
    later = NOW + 900
    hurried = new("t", stage=Stage.QUEUED, setbacks=1, due_time=later)
    others = [
        new("without setbacks", stage=Stage.QUEUED, due_time=later),
        new("failed while others were answered", stage=Stage.QUEUED, setbacks=2, due_time=later),
        new("not sent", setbacks=1, due_time=later),
        new("being sent", stage=Stage.SUBMITTING, setbacks=1, due_time=later),
        new("was due", stage=Stage.QUEUED, setbacks=1, due_time=NOW - 5),
        new(
            "waits for its callback",
            stage=Stage.SUBMITTING,
            setbacks=1,
            unknown_time=1.0,
            due_time=later,
        ),
    ]
    await stored(store, hurried, *others)
    await store.make_polls_due(NOW)
    assert await read(store, "t") == hurried._replace(due_time=NOW, version=2)
    for task in others:
        assert await read(store, task.id) == task


async def test_tasks_whose_last_poll_failed_come_last_unless_long_overdue(
    store: Store,
) -> None:
    await stored(
        store,
        new("failing", stage=Stage.QUEUED, setbacks=3, due_time=NOW - 20),
        new("healthy", stage=Stage.QUEUED, due_time=NOW - 10),
        new("overdue", stage=Stage.QUEUED, setbacks=3, due_time=NOW - 61),
    )

    def postpone(task: Task) -> Task:
        return task.scheduled(NOW + 10, task.setbacks)

    order = []
    for _ in range(3):
        claim = await store.claim(Lane.POLL, NOW, 1, postpone, NO_QUOTA)
        order += [task.id for task in claim.tasks]
    assert order == ["overdue", "healthy", "failing"]


async def test_tasks_without_setbacks_are_claimed_however_many_with_setbacks_are_due_before_them(
    store: Store,
) -> None:
    failing = [
        new(f"failing-{i}", stage=Stage.QUEUED, setbacks=1, due_time=NOW - 9) for i in range(9)
    ]
    healthy = [new(f"healthy-{i}", stage=Stage.QUEUED, due_time=NOW - i) for i in range(2)]
    await stored(store, *failing, *healthy)
    claimed = await claim(store, Lane.POLL, NOW, 4, off(60))
    assert [task.setbacks for task in claimed] == [0, 0, 1, 1]


async def test_tasks_of_closed_models_wait_and_others_are_sent(store: Store) -> None:
    await stored(
        store,
        *(new(f"closed-{i}", model="veo3", create_time=NOW - 9) for i in range(3)),
        new("open-1", create_time=NOW - 1),
        new("open-0", caller="d"),
        new("not due", due_time=NOW + 1),
    )
    seen: list[Waiting] = []

    def pick(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        seen.extend(waiting)
        return [each.task_id for each in waiting]

    sending = Sending(
        room=9, depth=9, pick=pick, move=send, quota=NO_QUOTA, closed_models=["veo3", "sora2"]
    )
    claimed = await store.claim_in_turns(NOW, sending)
    assert {task.id for task in claimed.tasks} == {"open-0", "open-1"}
    assert set(seen) == {
        Waiting("open-1", "c", 1, 0, "imagen4"),
        Waiting("open-0", "d", 1, 0, "imagen4"),
    }


@pytest.mark.parametrize("depth", [1, 3, 100])
async def test_turns_are_those_of_the_caller_whatever_its_models(store: Store, depth: int) -> None:
    models = ["imagen4", "veo3", "sora2"]
    tasks = [
        new(f"{caller}{i}", caller=caller, model=models[i % 3], create_time=NOW + i)
        for caller in "cd"
        for i in range(9)
    ]
    await stored(store, *tasks)
    seen: list[Waiting] = []

    def pick(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        seen.extend(waiting)
        return []

    await store.claim_in_turns(
        NOW, Sending(room=5, depth=depth, pick=pick, move=send, quota=NO_QUOTA)
    )
    assert set(seen) == {
        Waiting(task.id, task.caller, int(task.id[1:]) + 1, 0, task.model)
        for task in tasks
        if int(task.id[1:]) < depth
    }


# --- reads of many tasks ---


@pytest.mark.parametrize("lane", Lane)
async def test_a_lane_knows_how_many_wait_and_when_the_first_is_due(
    store: Store, lane: Lane
) -> None:
    assert (await store.count(lane), await store.next_due_times()) == (0, dict.fromkeys(Lane, inf))
    others = [task for other, task in LANES.items() if other is not lane]
    await stored(store, *(task._replace(due_time=NOW - 100) for task in others))
    assert (await store.count(lane), (await store.next_due_times())[lane]) == (0, inf)
    await stored(store, *(LANES[lane]._replace(id=f"t{i}", due_time=NOW + i) for i in (3, 1, 2)))
    assert (await store.count(lane), (await store.next_due_times())[lane]) == (3, NOW + 1)


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
    store: Store, database_url: str, limit: int
) -> None:
    tasks = [new(f"t{i}", create_time=NOW + i) for i in range(9)]
    await stored(store, *tasks)
    change(database_url, "UPDATE tasks SET status = 'WHAT' WHERE id IN ('t0', 't3', 't6', 't7')")
    readable = [task for task in reversed(tasks) if task.id not in {"t0", "t3", "t6", "t7"}]
    assert await store.page(ListFilter("c"), None, limit) == readable[:limit]


async def test_a_task_created_between_pages_does_not_shift_them(store: Store) -> None:
    await stored(store, *(new(f"t{i}", create_time=NOW + i) for i in range(4)))
    first = await store.page(ListFilter("c"), None, 2)
    await stored(store, new("newer", create_time=NOW + 10))
    before = (first[-1].create_time, first[-1].id)
    second = await store.page(ListFilter("c"), before, 2)
    assert [task.id for task in first + second] == ["t3", "t2", "t1", "t0"]


# --- batches of writes ---


async def test_a_job_that_raises_fails_alone_and_leaves_nothing(store: Store) -> None:
    def insert_and_raise(_: Any) -> list[None]:
        store._creations.store_each([Creation(new("half"), NO_LIMIT)])
        raise ZeroDivisionError

    gate = Gate(store)
    await gate.reached()
    jobs = await enqueued(
        store.create(new("first"), NO_LIMIT),
        store._write("test", insert_and_raise),
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
    assert await read(store, "half") is None
    listed = await store.page(ListFilter("c"), None, 10)
    assert {task.id for task in listed} == {"first", "second", "third"}


async def test_a_commit_that_fails_tells_each_write_what_it_would_have_returned(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored(store, new("t"), new("u"))

    def fail(*_: object) -> None:
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(store._engine.db, "commit", fail)
    answers = await asyncio.gather(
        *(store.save(new(name), send(new(name))) for name in "tu"), return_exceptions=True
    )
    monkeypatch.undo()
    for name, answer in zip("tu", answers, strict=True):
        assert isinstance(answer, CommitUnknownError)
        assert str(answer) == "OperationalError: the connection is lost"
        assert answer.result == send(new(name))._replace(version=2)
        assert await store.get(name) == new(name), "it was rolled back"


async def test_a_write_that_fails_before_its_commit_is_known_not_to_be_committed(
    store: Store,
) -> None:
    await stored(store, new("t"))

    def fail(task: Task) -> Task:
        raise OperationalError("the connection is lost")

    with pytest.raises(StorageUnavailableError) as caught:
        await claim(store, Lane.SUBMIT, NOW, 1, fail)
    assert not isinstance(caught.value, CommitUnknownError)


async def test_a_write_is_done_even_if_its_caller_has_disconnected(store: Store) -> None:
    gate = Gate(store)
    await gate.reached()
    [gone, stays] = await enqueued(
        store.create(new("gone"), NO_LIMIT), store.create(new("stays"), NO_LIMIT)
    )
    gone.cancel()
    await gate.open()
    assert await stays == Created(new("stays"))
    assert gone.cancelled()
    assert await read(store, "gone") == new("gone")


async def test_a_thousand_writes_at_once_are_all_done(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(1_000)))
    assert await store.count(Lane.SUBMIT) == 1_000
