"""Imports a SQLite file into PostgreSQL: all tasks unchanged, the account's slots, the secrets.

    check -> retire the file -> slots, secrets -> tasks, batch by batch -> compare

The file is retired before the first task is imported: from then on no service starts on it, as it
would buy again what replicas on PostgreSQL buy. Each batch has its own transaction. After an
interruption the import may be repeated: tasks that were imported before are skipped. Once all tasks
have been imported, the file is refused.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peewee import Database, IntegrityError
from playhouse.migrations import Runner

from storage import sqlite
from storage.engine import Row
from storage.errors import StorageConfigError, StorageError, storage_errors
from storage.postgresql.bulk import bulk_insert
from storage.postgresql.clock import READ_CLOCK
from storage.postgresql.connection import PostgresDatabase, connection_params, is_postgres
from storage.postgresql.migrate import begin_history, migrate
from storage.postgresql.pooler import require_formats
from storage.rows import COLUMNS
from storage.schema import MIGRATIONS
from storage.statements import CALLBACKS, IMPORTED_CALLBACKS
from storage.task import Lane

BATCH_ROWS = 500
NAMED_MAX = 10
NAMES = tuple(column.column_name for column in COLUMNS)
INTEGER_BITS = {"INT": 32, "BIGINT": 64}
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # surrogates represent bytes that are not UTF-8
KNOWN_TASK = ' ON CONFLICT ("id") DO NOTHING'
REQUESTS_OF_OTHER_TASKS = """
    SELECT imported.caller, imported.request
    FROM unnest(%s::text[], %s::text[], %s::text[]) AS imported(id, caller, request)
    JOIN tasks ON tasks.caller = imported.caller AND tasks.request_id = imported.request
    WHERE tasks.id <> imported.id
"""
VERSIONS = "SELECT id, version FROM tasks WHERE id = ANY(%s::text[])"
SLOTS = """
    INSERT INTO slots (quota, number, free_time) VALUES (%s, %s, %s)
    ON CONFLICT (quota, number)
    DO UPDATE SET free_time = GREATEST(slots.free_time, EXCLUDED.free_time)
"""
ADD_CALLBACKS = "INSERT INTO secrets (name, value) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING"
ADD_IMPORTED_CALLBACKS = """
    INSERT INTO secrets (name, value)
    SELECT %s, %s WHERE NOT EXISTS (SELECT FROM secrets WHERE value = %s)
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value
"""


class TransferError(StorageError):
    """The import was refused or stopped; the message says why."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A task that was not imported, and why."""

    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """How many tasks were imported, how many had been imported before, and which were skipped."""

    imported: int
    known: int
    skipped: Sequence[Skipped]


def import_sqlite(path: Path, database_url: str, batch_rows: int = BATCH_ROWS) -> ImportResult:
    """Import all tasks of a file that no service uses into PostgreSQL, and retire the file.

    Raises:
        StorageConfigError: There is no such file, a service uses it, or the URL is of another kind.
        TransferError: PostgreSQL has other tasks with the same request_ids, or has lost some.
        StorageUnavailableError: One of the two is unavailable. Repeat the import.
    """
    if not path.exists():
        raise StorageConfigError(f"there is no file {path}")
    if not is_postgres(database_url):
        raise StorageConfigError("DATABASE_URL must look like postgresql://host/name")
    with storage_errors(), sqlite.exclusive_database(path) as source:
        if source.pragma("user_version") == sqlite.IMPORTED_VERSION:
            # Tasks that were purged meanwhile would be imported, and bought, again.
            raise StorageConfigError(f"{path} was imported completely")
        _bring_up_to_date(source, path)
        migrate(database_url)
        target = PostgresDatabase(connection_params(database_url))
        with target.connection_context():
            require_formats(target)
            _refuse_known_requests(source, target, batch_rows)
            source.pragma("user_version", sqlite.RETIRED_VERSION)
            _import_slots(source, target)
            _import_callback_secret(source, target)
            result = _import_tasks(source, target, batch_rows)
            _compare(source, target, batch_rows)
            begin_history(database_url)
            if not result.skipped:
                source.pragma("user_version", sqlite.IMPORTED_VERSION)
            return result


def _bring_up_to_date(source: Database, path: Path) -> None:
    runner = Runner(source, str(MIGRATIONS))
    if unknown := [migration.name for migration in runner.status() if migration.path is None]:
        raise StorageConfigError(f"{path} is from a newer version of this service: {unknown[-1]}")
    runner.up()


def _batches(source: Database, batch_rows: int) -> Iterator[list[Row]]:
    """Read all tasks, in the order of their creation."""
    # Damaged text is read as well, and reported later.
    source.connection().text_factory = lambda text: text.decode(errors="surrogateescape")
    names = ", ".join(f'"{name}"' for name in NAMES)
    sql = f"SELECT rowid, {names} FROM tasks WHERE rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608
    last = -1
    while rows := source.execute_sql(sql, (last, batch_rows)).fetchall():
        last = rows[-1][0]
        yield [row[1:] for row in rows]


def _refuse_known_requests(source: Database, target: Database, batch_rows: int) -> None:
    """Refuse a file with request_ids that have other tasks in PostgreSQL: people have to choose."""
    known: list[Row] = []
    for rows in _batches(source, batch_rows):
        tasks = map(_named, _valid(rows))
        requests = [(t["id"], t["caller"], t["request_id"]) for t in tasks if t["request_id"]]
        if requests:
            columns = [list(column) for column in zip(*requests, strict=True)]
            known += target.execute_sql(REQUESTS_OF_OTHER_TASKS, columns).fetchall()
    if known:
        some = ", ".join(f"{request_id} of {caller}" for caller, request_id in known[:NAMED_MAX])
        raise TransferError(
            f"nothing was imported: PostgreSQL has other tasks for {len(known)} of the same"
            f" request_ids: {some}"
        )


def _import_slots(source: Database, target: Database) -> None:
    """Import slots: requests that were sent recently count towards the account's limits."""
    slots = source.execute_sql("SELECT quota, number, free_time FROM slots").fetchall()
    with target.atomic():
        for slot in slots:
            target.execute_sql(SLOTS, slot)


def _import_callback_secret(source: Database, target: Database) -> None:
    """Let callbacks of imported tasks verify, even if the replicas have their own secret."""
    sql = "SELECT value FROM secrets WHERE name = ?"
    for (value,) in source.execute_sql(sql, (CALLBACKS,)).fetchall():
        with target.atomic():
            target.execute_sql(ADD_CALLBACKS, (CALLBACKS, value))
            target.execute_sql(ADD_IMPORTED_CALLBACKS, (IMPORTED_CALLBACKS, value, value))


def _import_tasks(source: Database, target: Database, batch_rows: int) -> ImportResult:
    ((now,),) = target.execute_sql(READ_CLOCK).fetchall()
    imported = known = 0
    skipped: list[Skipped] = []
    for rows in _batches(source, batch_rows):
        skipped += [Skipped(str(row[0]), reason) for row in rows if (reason := _invalid(row))]
        if valid := _valid(rows):
            new, outdated = _import_batch(target, [_due(row, now) for row in valid])
            imported += new
            known += len(valid) - new - len(outdated)
            skipped += [
                Skipped(task_id, "it has changed in the file since") for task_id in outdated
            ]
    return ImportResult(imported, known, skipped)


def _import_batch(target: Database, rows: Sequence[Row]) -> tuple[int, list[str]]:
    """Store a batch; return how many were new, and which exist there in an older state."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    versions = {task["id"]: task["version"] for task in map(_named, rows)}
    try:
        with target.atomic():
            new = target.execute_sql(bulk_insert(KNOWN_TASK), columns).fetchall()
            found = target.execute_sql(VERSIONS, (list(versions),)).fetchall()
    except IntegrityError:
        raise TransferError(
            "a service on PostgreSQL has just used one of the same request_ids: repeat the import"
            " to learn which"
        ) from None
    return len(new), [task_id for task_id, version in found if version < versions[task_id]]


def _compare(source: Database, target: Database, batch_rows: int) -> None:
    """Check that all imported tasks are in PostgreSQL."""
    missing = 0
    for rows in _batches(source, batch_rows):
        ids = [row[0] for row in _valid(rows)]
        missing += len(ids) - len(target.execute_sql(VERSIONS, (ids,)).fetchall())
    if missing:
        raise TransferError(f"{missing} of the imported tasks are missing in PostgreSQL")


def _due(row: Row, now: float) -> Row:
    """Make a task due that the stopped service was working on, as its next start would."""
    task = _named(row)
    if task["lane"] not in {Lane.SUBMIT, Lane.POLL, Lane.STORE} or task["unknown_time"] is not None:
        return row
    return [*(task | {"due_time": min(task["due_time"], now)}).values()]


def _valid(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not _invalid(row)]


def _invalid(row: Row) -> str:
    """Return why PostgreSQL cannot store a row, or ""."""
    for column, value in zip(COLUMNS, row, strict=True):
        if not _fits(column, value):
            return f"PostgreSQL cannot store its {column.column_name}"
    return ""


def _fits(column: Any, value: Any) -> bool:
    match column.field_type, value:
        case _, None:
            return bool(column.null)
        case "TEXT", str():
            return not NOT_TEXT.search(value)
        case ("BLOB", bytes()) | ("DOUBLE", float()):
            return True
        case ("INT" | "BIGINT") as kind, int():
            return -(1 << INTEGER_BITS[kind] - 1) <= value < 1 << INTEGER_BITS[kind] - 1
        case _:
            return False


def _named(row: Row) -> dict[str, Any]:
    return dict(zip(NAMES, row, strict=True))
