"""Migrations: several at once, and old replicas that keep serving while a new one migrates."""

import asyncio
import itertools
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from playhouse.migrations import Runner

from storage import sqlite
from storage.engine import DatabaseTimeouts
from storage.errors import StorageUnavailableError
from storage.opening import open_store
from storage.pages import ListFilter
from storage.postgresql.connection import PostgresDatabase, connection_params, lock_key
from storage.postgresql.migrate import MigrationWaits, migrate, migration_lock
from storage.schema import MIGRATIONS
from storage.store import Store
from storage.task import Lane
from tests.support.databases import change, connect, fill, rows
from tests.support.paths import ROOT
from tests.support.storing import NOW, claim, new, saved, send, stored
from tests.support.waiting import eventually

OURS = sorted(path.stem for path in MIGRATIONS.glob("0*.py"))
WORK_AT_LEAST = 20  # during and after a migration
BEFORE_THE_RULE = 2  # the first migrations: an index of tasks is built concurrently since then
OF_TASKS = re.compile(
    r'CREATE (?:UNIQUE )?INDEX (?P<concurrently>CONCURRENTLY )?(?:IF NOT EXISTS )?"?(?P<name>\w+)"?'
    r' ON "?tasks"?'
)
CREATORS = """
    SELECT pid FROM pg_stat_activity
    WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'
    AND pid IN (SELECT pid FROM pg_locks WHERE relation = CAST('tasks' AS regclass))
"""
APPLIED = "SELECT name FROM schema_migration ORDER BY id"

# What a newer version may change, by the rules of CONTRIBUTING.md.
ADDITIVE = """
def up(migrator, db):
    db.execute_sql("ALTER TABLE tasks ADD COLUMN note TEXT")
    db.execute_sql("ALTER TABLE tasks ADD COLUMN weight INTEGER NOT NULL DEFAULT 1")
    db.execute_sql("CREATE TABLE more (id TEXT PRIMARY KEY)")
"""
INDEX = """
atomic = False

def up(migrator, db):
    db.execute_sql("DROP INDEX CONCURRENTLY IF EXISTS tasks_note")
    db.execute_sql("CREATE INDEX CONCURRENTLY tasks_note ON tasks (model, create_time)")
"""
MIGRATE = """
import pathlib, sys
from storage.postgresql.migrate import migrate
print(*migrate(sys.argv[1], pathlib.Path(sys.argv[2])))
"""
BROKEN = """
def up(migrator, db):
    db.execute_sql("ALTER TABLE tasks ADD COLUMN half TEXT")
    db.execute_sql("ALTER TABLE nothing ADD COLUMN half TEXT")
"""


def version(folder: Path, **migrations: str) -> Path:
    """Return the folder of a newer version's migrations: ours, and more."""
    newer = folder / "migrations"
    newer.mkdir()
    for path in MIGRATIONS.glob("0*.py"):
        (newer / path.name).write_text(path.read_text())
    for name, text in migrations.items():
        (newer / f"{name.removeprefix('_')}.py").write_text(text)
    return newer


@contextmanager
def reading(postgresql_url: str) -> Iterator[None]:
    """Keep a long read of the tasks open, such as a backup; an ALTER TABLE waits for it."""
    with closing(connect(postgresql_url)) as reader:
        reader.cursor().execute("LOCK TABLE tasks IN ACCESS SHARE MODE")
        yield


async def work(store: Store, number: int) -> None:
    """Change a task as a replica does."""
    task = new(f"t{number}", request_id=f"r{number}")
    await stored(store, task)
    [claimed] = await claim(store, Lane.SUBMIT, NOW, 1, send)
    after = await saved(store, claimed, claimed.queued("k", NOW, NOW + 1_000))
    assert await store.get(task.id) == after
    assert after in await store.page(ListFilter("c"), None, 1_000)
    assert await store.newer({task.id: 1}) == [after]
    await store.ping()


# --- several at once ---


def test_many_processes_that_migrate_at_once_apply_each_migration_once(
    postgresql_url: str,
) -> None:
    applied: list[Sequence[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(migrate(postgresql_url))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied, key=len) == [[]] * 7 + [OURS]
    assert rows(postgresql_url, APPLIED) == [(name,) for name in OURS]


def test_many_processes_that_start_at_once_wait_for_a_concurrent_index(
    postgresql_url: str, tmp_path: Path
) -> None:
    migrate(postgresql_url)
    fill(postgresql_url, 20_000, NOW)
    newer = version(tmp_path, _0900_index=INDEX)
    applied: list[Sequence[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(migrate(postgresql_url, newer)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied, key=len) == [[]] * 5 + [["0900_index"]]


async def test_waiting_for_another_process_to_migrate_times_out(
    postgresql_url: str,
) -> None:
    with migration_lock(PostgresDatabase(connection_params(postgresql_url))):
        waits = MigrationWaits(max_seconds=0.3)
        migrating = asyncio.to_thread(migrate, postgresql_url, waits=waits)
        with pytest.raises(StorageUnavailableError, match="waiting for another process"):
            await asyncio.wait_for(migrating, 10)
    assert migrate(postgresql_url) == OURS


# --- a rolling upgrade ---


async def slowest_work_during_migration(
    postgresql_url: str, tmp_path: Path, tasks: int
) -> tuple[float, float]:
    """Work while a newer version migrates; return the seconds of the slowest work, and of all."""
    store = open_store(postgresql_url)
    await asyncio.to_thread(fill, postgresql_url, tasks, NOW)
    newer = version(tmp_path, _0900_more=ADDITIVE, _0901_index=INDEX)
    migrating = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MIGRATE, postgresql_url, newer),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    started = time.monotonic()
    ended = asyncio.ensure_future(migrating.communicate())
    slowest = 0.0
    for number in itertools.count():
        if ended.done() and number >= WORK_AT_LEAST:
            break
        before = time.monotonic()
        await work(store, number)
        slowest = max(slowest, time.monotonic() - before)
    assert (await ended)[0].decode().strip() == "0900_more 0901_index"
    assert rows(postgresql_url, "SELECT DISTINCT note, weight FROM tasks") == [(None, 1)]
    assert is_valid(postgresql_url, "tasks_note")
    await store.close()
    return slowest, time.monotonic() - started


async def test_an_old_replica_works_while_a_newer_one_migrates_and_afterwards(
    postgresql_url: str, tmp_path: Path
) -> None:
    await slowest_work_during_migration(postgresql_url, tmp_path, 5_000)


@pytest.mark.torture
async def test_a_million_tasks_are_migrated_and_indexed_while_an_old_replica_works(
    postgresql_url: str, tmp_path: Path
) -> None:
    slowest, seconds = await slowest_work_during_migration(postgresql_url, tmp_path, 1_000_000)
    print(f"slowest work {slowest:.2f} s, migrated within {seconds:.1f} s")  # noqa: T201
    assert slowest < DatabaseTimeouts().statement_milliseconds / 1_000


async def test_an_old_replica_starts_on_a_database_that_a_newer_one_has_migrated(
    postgresql_url: str, tmp_path: Path
) -> None:
    migrate(postgresql_url, version(tmp_path, _0900_more=ADDITIVE))
    assert migrate(postgresql_url) == []
    store = open_store(postgresql_url)
    await work(store, 0)
    await store.close()


async def test_an_old_version_starts_on_a_file_that_a_newer_one_has_migrated(
    tmp_path: Path,
) -> None:
    newer = version(tmp_path, _0900_more=ADDITIVE)
    assert sqlite.migrate(tmp_path / "generation.db", newer) == [*OURS, "0900_more"]
    store = open_store(f"sqlite:///{tmp_path}/generation.db")
    await stored(store, new("t"))
    assert await store.get("t") == new("t")
    await store.close()


# --- locks ---


async def test_a_migration_that_waits_for_a_table_does_not_block_other_statements(
    postgresql_url: str, tmp_path: Path
) -> None:
    store = open_store(postgresql_url)
    newer = version(tmp_path, _0900_more=ADDITIVE)
    with reading(postgresql_url):
        migrating = asyncio.create_task(asyncio.to_thread(migrate, postgresql_url, newer))
        await eventually(lambda: waiting_for_tasks(postgresql_url))
        for number in range(20):
            async with asyncio.timeout(DatabaseTimeouts().lock_milliseconds / 1_000):
                await work(store, number)
        assert not migrating.done()
    assert await migrating == ["0900_more"]
    await store.close()


def waiting_for_tasks(postgresql_url: str) -> bool:
    """Return whether a statement waits for a lock on the table."""
    sql = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'tasks'::regclass"
    return bool(rows(postgresql_url, sql))


async def test_a_migration_that_never_gets_its_table_says_so_and_leaves_nothing(
    postgresql_url: str, tmp_path: Path
) -> None:
    waits = MigrationWaits(lock_milliseconds=50, attempts=2, pause_seconds=0.01)
    migrate(postgresql_url)
    newer = version(tmp_path, _0900_more=ADDITIVE)
    with (
        reading(postgresql_url),
        pytest.raises(
            StorageUnavailableError, match="0900_more: other sessions keep its tables locked"
        ),
    ):
        await asyncio.to_thread(migrate, postgresql_url, newer, waits)
    assert migrate(postgresql_url, newer) == ["0900_more"]


async def test_without_hints_connections_use_only_what_a_pooler_supports(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    connect_by_driver = psycopg2.connect

    def noted(*args: Any, **params: Any) -> Any:
        asked.append(params["options"])
        return connect_by_driver(*args, **params)

    monkeypatch.setattr(psycopg2, "connect", noted)
    store = open_store(postgresql_url, hints=False)
    await work(store, 0)
    await store.close()
    of_the_url = connection_params(postgresql_url)["options"]
    assert len(asked) >= 4, "those of the migrations as well"
    assert set(asked) == {of_the_url}


def test_an_index_is_created_while_a_transaction_is_open(
    postgresql_url: str, tmp_path: Path
) -> None:
    """A migration in a transaction would wait for it, and block every later statement."""
    migrate(postgresql_url)
    newer = version(tmp_path, _0900_index=INDEX)
    with reading(postgresql_url):
        assert migrate(postgresql_url, newer) == ["0900_index"]
    assert is_valid(postgresql_url, "tasks_note")


# --- our indices of tasks ---


def is_valid(postgresql_url: str, index: str) -> bool:
    """Return whether an index was built to its end."""
    sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = CAST(? AS regclass)"
    [(valid,)] = rows(postgresql_url, sql, index)
    return bool(valid)


def apply_first(postgresql_url: str, folder: Path, count: int) -> None:
    """Apply our first migrations, as an older version has done."""
    folder.mkdir()
    for name in OURS[:count]:
        (folder / f"{name}.py").write_text((MIGRATIONS / f"{name}.py").read_text())
    database = PostgresDatabase(connection_params(postgresql_url))
    with database.connection_context():
        Runner(database, str(folder)).up()


def statements_of_migrations(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Apply what is pending, and return the statements."""
    statements: list[str] = []
    execute = PostgresDatabase.execute_sql

    def recording(self: PostgresDatabase, sql: str, params: Any = None) -> Any:
        statements.append(" ".join(sql.split()))
        return execute(self, sql, params)  # type: ignore[no-untyped-call] # peewee's stub

    monkeypatch.setattr(PostgresDatabase, "execute_sql", recording)
    migrate(postgresql_url)
    return statements


def test_every_index_of_stored_tasks_is_built_concurrently_and_a_leftover_is_dropped_first(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_first(postgresql_url, tmp_path / "first", BEFORE_THE_RULE)
    fill(postgresql_url, 10, NOW)
    statements = statements_of_migrations(postgresql_url, monkeypatch)
    built = [statement for statement in statements if OF_TASKS.match(statement)]
    assert built, "these tests see the statements"
    for statement in built:
        match = OF_TASKS.match(statement)
        assert match is not None
        assert match["concurrently"], statement
        drop = f"DROP INDEX CONCURRENTLY IF EXISTS {match['name']}"
        assert drop in statements[: statements.index(statement)], statement


INVALID = """
    SELECT 1 FROM pg_index WHERE indrelid = CAST('tasks' AS regclass) AND NOT indisvalid
"""
MIGRATIONS_OF_INDICES = [
    name for name in OURS if "CREATE INDEX CONCURRENTLY" in (MIGRATIONS / f"{name}.py").read_text()
]


@pytest.mark.parametrize("name", MIGRATIONS_OF_INDICES)
async def test_an_index_whose_creation_was_interrupted_is_created_again(
    postgresql_url: str, tmp_path: Path, name: str
) -> None:
    apply_first(postgresql_url, tmp_path / "first", OURS.index(name))
    fill(postgresql_url, 10, NOW)
    with closing(connect(postgresql_url)) as writer:
        writer.cursor().execute("UPDATE tasks SET setbacks = 1")  # the index has to wait for it
        migrating = asyncio.create_task(asyncio.to_thread(migrate, postgresql_url))
        [(creator,)] = await eventually(lambda: rows(postgresql_url, CREATORS))
        change(postgresql_url, "SELECT pg_terminate_backend(?)", creator)
        with pytest.raises(StorageUnavailableError):
            await migrating
        assert rows(postgresql_url, INVALID)
    assert name in migrate(postgresql_url)
    assert not rows(postgresql_url, INVALID)


def test_a_migration_that_breaks_leaves_nothing_and_those_before_it(
    postgresql_url: str, tmp_path: Path
) -> None:
    newer = version(tmp_path, _0900_more=ADDITIVE, _0901_broken=BROKEN)
    with pytest.raises(Exception, match="nothing"):
        migrate(postgresql_url, newer)
    assert rows(postgresql_url, APPLIED) == [(name,) for name in [*OURS, "0900_more"]]
    half = "SELECT 1 FROM information_schema.columns WHERE column_name = 'half'"
    assert rows(postgresql_url, f"{half} AND table_schema = current_schema()") == []


def test_a_process_that_dies_while_it_migrates_leaves_the_lock_to_others(cluster: Any) -> None:
    holder = psycopg2.connect(cluster.url)
    database = PostgresDatabase(connection_params(cluster.url))
    with database.connection_context():
        key = lock_key(database, "migrations")
    holder.cursor().execute("SELECT pg_advisory_xact_lock(%s)", (key,))
    thread = threading.Thread(target=migrate, args=[cluster.url])
    thread.start()
    change(cluster.url, "SELECT pg_terminate_backend(?)", holder.info.backend_pid)
    thread.join(10)
    assert rows(cluster.url, APPLIED) == [(name,) for name in OURS]
    holder.close()
