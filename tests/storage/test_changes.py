"""The order of all changes: what a reader sees after a position."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from storage.changes import NOTHING_PURGED, START, ChangePage, Position
from storage.opening import open_store
from storage.postgresql.migrate import begin_history
from storage.store import Store
from storage.task import Status
from tests.support.databases import analyse, change, connect, fill
from tests.support.storing import NOW, new, saved, stored
from tests.support.waiting import eventually_answered

ALL = 1_000


async def page(store: Store, caller: str | None = "c", after: Position = START) -> ChangePage:
    """Return a page once no transaction of another test hides changes."""

    async def unblocked() -> ChangePage | None:
        found = await store.changes(caller, after, ALL)
        return None if found.is_blocked else found

    return await eventually_answered(unblocked)


async def ids(store: Store, caller: str | None = "c", after: Position = START) -> list[str]:
    return [c.task_id for c in (await page(store, caller, after)).changes]


async def one_by_one(store: Store, *names: str, **changes: Any) -> None:
    for name in names:
        await stored(store, new(name, **changes))


async def test_a_changed_task_comes_after_those_that_changed_before_it(store: Store) -> None:
    await one_by_one(store, "a", "b", "d")
    assert await ids(store) == ["a", "b", "d"]
    await saved(store, new("a"), new("a", revision=2))
    assert await ids(store) == ["b", "d", "a"]


async def test_only_what_changed_after_a_position_is_read(store: Store) -> None:
    await one_by_one(store, "a", "b")
    end = (await page(store)).end
    assert await ids(store, after=end) == []
    await one_by_one(store, "d")
    assert await ids(store, after=end) == ["d"]
    first = (await page(store)).changes[0]
    assert await ids(store, after=first.position) == ["b", "d"]


async def test_a_change_that_callers_cannot_see_has_no_position(store: Store) -> None:
    task = new("a")
    await stored(store, task)
    end = (await page(store)).end
    await saved(store, task, task._replace(due_time=NOW + 60, setbacks=1))
    assert await ids(store, after=end) == []


async def test_a_caller_reads_only_its_own_changes(store: Store) -> None:
    await one_by_one(store, "a")
    await one_by_one(store, "b", caller="other")
    assert await ids(store, "c") == ["a"]
    assert await ids(store, "other") == ["b"]
    assert await ids(store, None) == ["a", "b"]


async def test_a_page_ends_where_the_next_one_begins(store: Store) -> None:
    await stored(store, *(new(f"{number:03}") for number in range(25)))
    found: list[str] = []
    position, is_last = START, False
    while not is_last:
        part = await store.changes("c", position, 10)
        found += [c.task_id for c in part.changes]
        position, is_last = part.end, part.is_last
    assert sorted(found) == [f"{number:03}" for number in range(25)]


async def test_a_change_says_which_streams_want_it(store: Store) -> None:
    task = new("a", prompt_id="lighthouse")
    await stored(store, task)
    ended = task._replace(status=Status.SUCCESS, stage=None, revision=2)
    await saved(store, task, ended)
    (found,) = (await page(store)).changes
    assert (found.caller, found.prompt_id, found.status) == ("c", "lighthouse", Status.SUCCESS)


async def test_the_newest_deleted_change_of_a_caller_is_known(database_url: str) -> None:
    store = open_store(database_url)
    await one_by_one(store, "a", "b")
    before = await page(store)
    assert before.purged == NOTHING_PURGED
    for name in ("b", "a"):
        change(database_url, "DELETE FROM tasks WHERE id = ?", name)
    after = await page(store)
    assert after.purged == before.changes[-1].position.number
    assert after.horizon >= before.horizon
    assert (await page(store, "other")).purged == NOTHING_PURGED
    await store.close()


async def test_numbers_continue_after_a_restart_even_if_the_newest_task_was_deleted(
    database_url: str,
) -> None:
    store = open_store(database_url)
    await one_by_one(store, "a")
    end = (await page(store)).end
    await store.close()
    change(database_url, "DELETE FROM tasks")
    store = open_store(database_url)
    await one_by_one(store, "b")
    assert await ids(store, after=end) == ["b"]
    await store.close()


async def test_the_commit_of_every_visible_change_is_reported(store: Store) -> None:
    reports: list[None] = []
    store.on_change = lambda: reports.append(None)
    task = new("a")
    await stored(store, task)
    assert len(reports) == 1
    moved = await saved(store, task, task._replace(revision=2))
    assert len(reports) == 2
    await saved(store, moved, moved._replace(setbacks=1))
    assert len(reports) == 2


# --- histories ---


async def test_a_database_keeps_its_epoch_over_restarts(database_url: str) -> None:
    epochs = set()
    for _ in range(2):
        store = open_store(database_url)
        epochs.add((await page(store)).epoch)
        await store.close()
    assert len(epochs) == 1


async def test_a_copied_sqlite_file_is_another_history(tmp_path: Path) -> None:
    epochs = set()
    for name in ("a.db", "b.db"):
        store = open_store(f"sqlite:///{tmp_path / name}")
        epochs.add((await page(store)).epoch)
        await store.close()
        shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
    assert len(epochs) == 2


async def test_a_new_history_is_seen_by_a_store_that_is_open(postgresql_url: str) -> None:
    store = open_store(postgresql_url)
    await one_by_one(store, "a")
    before = await page(store)
    begin_history(postgresql_url)
    after = await page(store)
    assert after.epoch != before.epoch
    assert [c.task_id for c in after.changes] == ["a"]
    await store.close()


async def test_changes_of_a_restored_database_are_old_ones(postgresql_url: str) -> None:
    store = open_store(postgresql_url)
    await one_by_one(store, "a")
    await store.close()
    # A cluster that has used fewer numbers: what was restored is in its future.
    with closing(psycopg2.connect(postgresql_url)) as connection, connection:
        connection.cursor().execute("UPDATE tasks SET change_xid = '999999999'")
        connection.cursor().execute("UPDATE secrets SET value = 'x' WHERE name LIKE 'origin%'")
    store = open_store(postgresql_url)
    await one_by_one(store, "b")
    found = (await page(store)).changes
    assert [c.task_id for c in found] == ["a", "b"]
    assert found[0].position.number == 0
    await store.close()


# --- PostgreSQL: transactions that are open ---


async def test_nothing_is_read_beyond_an_open_transaction(postgresql_url: str) -> None:
    store = open_store(postgresql_url)
    with closing(connect(postgresql_url)) as slow:
        slow.cursor().execute("CREATE TABLE held (x INT)")  # an open transaction that writes
        await one_by_one(store, "a")
        held = await store.changes("c", START, ALL)
        assert [c.task_id for c in held.changes] == []
        assert held.is_blocked
        slow.rollback()
    assert await ids(store, after=held.end) == ["a"]
    await store.close()


async def test_an_open_transaction_that_only_reads_delays_nothing(postgresql_url: str) -> None:
    store = open_store(postgresql_url)
    with closing(psycopg2.connect(postgresql_url)) as reader:
        reader.set_session(isolation_level="REPEATABLE READ")
        reader.cursor().execute("SELECT count(*) FROM tasks")
        await one_by_one(store, "a")
        read = await page(store)
        assert [c.task_id for c in read.changes] == ["a"]
        assert not read.is_blocked
    await store.close()


async def test_a_write_of_an_older_replica_gets_a_position(postgresql_url: str) -> None:
    store = open_store(postgresql_url)
    await one_by_one(store, "a", "b")
    end = (await page(store)).end
    change(postgresql_url, "UPDATE tasks SET revision = revision + 1 WHERE id = 'a'")
    assert await ids(store, after=end) == ["a"]
    await store.close()


# --- plans ---


async def test_a_page_of_changes_is_read_by_an_index(database_url: str) -> None:
    store = open_store(database_url)
    fill(database_url, 20_000, NOW)
    change(database_url, "UPDATE tasks SET caller = 'other' WHERE id NOT LIKE '%7'")
    analyse(database_url)
    for caller, index in ((None, "tasks_changes"), ("c", "tasks_caller_changes")):
        plan = plan_of(database_url, store, caller)
        assert index in plan
        assert "Seq Scan on tasks" not in plan
    await store.close()


def plan_of(database_url: str, store: Store, caller: str | None) -> str:
    changes = store._changes
    sql = changes._all if caller is None else changes._of_caller
    params = (5, "x", 100) if caller is None else (caller, caller, 5, "x", 100)
    explain = "EXPLAIN" if store.shared else "EXPLAIN QUERY PLAN"
    with closing(connect(database_url)) as connection:
        cursor = connection.cursor()
        cursor.execute(f"{explain} {sql}", params)
        return "\n".join(str(row[-1]) for row in cursor.fetchall())
