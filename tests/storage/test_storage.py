"""The store on both databases: what it stores, what it refuses, and what it survives."""

import asyncio
from typing import Any

import pytest
from peewee import IntegrityError, OperationalError, PostgresqlDatabase, SqliteDatabase
from playhouse.migrations import Runner
from playhouse.schema_diff import diff_models

from storage.creation import Created, Creation, Existing
from storage.errors import CommitUnknownError, StorageUnavailableError
from storage.opening import open_store
from storage.pages import ListFilter
from storage.postgresql.connection import is_postgres
from storage.schema import MIGRATIONS, TABLES, TaskRow
from storage.sqlite import sqlite_path
from storage.store import Store
from storage.task import Artifact, Failure, Lane, Stage, Status, Task
from tests.support.databases import rows
from tests.support.storing import (
    NO_LIMIT,
    NOW,
    Gate,
    any_task,
    claim,
    enqueued,
    new,
    read,
    saved,
    send,
    stored,
)

FIXED_FIELDS = {
    *("id", "caller", "request_id", "prompt_id", "model", "needs", "params", "filled_params"),
    *("create_time", "traceparent", "version", "of_newer_version"),
}
OTHER_VALUES: dict[str, Any] = {
    "status": Status.SUCCESS,
    "stage": Stage.QUEUED,
    "revision": 2,
    "progress_percent": 5,
    "artifacts": (Artifact("https://a.example/b.png", "image/png"),),
    "result_json": "{}",
    "failure": Failure("CANCELLED", "no", "7"),
    "credits_consumed": 1.5,
    "setbacks": 1,
    **dict.fromkeys(("provider_task_id", "candidate_id"), "k"),
    **dict.fromkeys(("update_time", "due_time", "complete_time", "generated_time"), NOW + 1),
    **dict.fromkeys(("submit_time", "accept_time", "unknown_time"), NOW + 1),
}

# --- the schema ---


SCHEMA = {
    "sqlite": "SELECT type, name, tbl_name, sql FROM sqlite_master"
    " WHERE tbl_name LIKE '%s' AND type <> 'trigger'",
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
    tables = (table._meta.table_name for table in TABLES)
    found = {row for name in tables for row in rows(database_url, sql.replace("%s", name))}
    return {(*names, columns_of(definition)) for *names, definition in found}


def columns_of(definition: str | None) -> Any:
    """Return the definition of a SQLite table without the order of its columns."""
    if definition and definition.startswith("CREATE TABLE"):
        return frozenset(definition.rstrip(")").partition("(")[2].split(", "))
    return definition


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
    computed = {"of_newer_version"}
    by_the_database = {"change_xid"}
    derived = by_the_database | {"lane", "failure_reason", "failure_message", "failure_code"}
    assert columns - derived == set(Task._fields) - kept_in_parts - computed


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
    generated_time=8.75,
    candidate_id="h",
    setbacks=3,
    version=9,
    needs="a newer veo3",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    filled_params=b"\x02",
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
    for field in {*Task._fields} - {"of_newer_version"}:
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

    kept = (
        *("id", "caller", "request_id", "prompt_id", "model", "needs", "params", "create_time"),
        *("filled_params", "traceparent"),
    )
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


@pytest.mark.parametrize("field", sorted({*Task._fields} - FIXED_FIELDS))
async def test_a_save_stores_a_field_that_alone_has_changed(store: Store, field: str) -> None:
    first = new("t")
    await stored(store, first)
    after = first._replace(**{field: OTHER_VALUES[field]})
    second = await saved(store, first, after)
    assert second == after._replace(version=first.version + 1)
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


async def test_a_failed_commit_raises_with_what_each_write_would_have_returned(
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
    task = new("t", stage=Stage.QUEUED)
    await stored(store, task)
    after = task.progressed(True, 5, NOW)
    gate = Gate(store)
    await gate.reached()
    [gone, stays] = await enqueued(store.save(task, after), store.create(new("stays"), NO_LIMIT))
    gone.cancel()
    await gate.open()
    assert await stays == Created(new("stays"))
    assert gone.cancelled()
    found = await read(store, "t")
    assert found is not None
    assert found.revision == after.revision


async def test_a_create_is_not_started_if_its_caller_has_disconnected(store: Store) -> None:
    gate = Gate(store)
    await gate.reached()
    [gone, stays] = await enqueued(
        store.create(new("gone"), NO_LIMIT), store.create(new("stays"), NO_LIMIT)
    )
    gone.cancel()
    await gate.open()
    assert await stays == Created(new("stays"))
    assert await read(store, "gone") is None


async def test_a_thousand_writes_at_once_are_all_done(store: Store) -> None:
    await asyncio.gather(*(store.create(new(f"t{i}"), NO_LIMIT) for i in range(1_000)))
    assert await store.count(Lane.SUBMIT) == 1_000
