"""From a SQLite file to PostgreSQL: every task as it is, the account's slots, and the secrets.

    refuse what cannot end well -> retire the file -> slots, secrets -> tasks, batch by batch
    -> compare

The file is retired before the first task is carried over: from then on no service starts on it, as
that one would buy again what replicas on PostgreSQL buy. Each batch is a transaction of its own.
After an interruption all of it may be done again: what has arrived is passed over. Once everything
is there, no more.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peewee import Database, IntegrityError
from playhouse.migrations import Runner

from storage import postgres, sqlite
from storage.errors import StorageConfigError, StorageError, storage_errors
from storage.rows import COLUMNS
from storage.schema import MIGRATIONS
from storage.statements import CALLBACKS, IMPORTED_CALLBACKS
from storage.task import Lane

BATCH_ROWS = 500
NAMED_MAX = 10
NAMES = tuple(column.name for column in COLUMNS)
INTEGER_BITS = {"INT": 32, "BIGINT": 64}
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # the latter stand for bytes that are no UTF-8
PRESENT = ' ON CONFLICT ("id") DO NOTHING'
OTHERS = """
    SELECT ours.caller, ours.request
    FROM unnest(%s::text[], %s::text[], %s::text[]) AS ours(id, caller, request)
    JOIN tasks ON tasks.caller = ours.caller AND tasks.request_id = ours.request
    WHERE tasks.id <> ours.id
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

Row = Sequence[Any]


class TransferError(StorageError):
    """No more is carried over; the message says why."""


@dataclass(frozen=True, slots=True)
class Left:
    """A task that was not carried over, and why."""

    task_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Carried:
    """How many tasks were carried over, how many were there already, and those left behind."""

    tasks: int
    present: int
    left: Sequence[Left]


def carry_over(path: Path, database_url: str) -> Carried:
    """Carry all tasks of a file that no service has into PostgreSQL, and retire the file.

    Raises:
        StorageConfigError: There is no such file, a service has it, or the URL is of another kind.
        TransferError: PostgreSQL holds other tasks under the same request_ids, or has lost some.
        StorageUnavailableError: One of the two is away. Carry over again.
    """
    if not path.exists():
        raise StorageConfigError(f"there is no file {path}")
    if not postgres.is_postgres(database_url):
        raise StorageConfigError("DATABASE_URL must look like postgresql://host/name")
    with storage_errors(), sqlite.alone(path) as source:
        if source.pragma("user_version") == sqlite.CARRIED_VERSION:
            # What was purged meanwhile would come back, and be bought again.
            raise StorageConfigError(f"{path} was carried over completely")
        _bring_up_to_date(source, path)
        postgres.migrate(database_url)
        target = postgres.PostgresDatabase(postgres.connection_params(database_url))
        with target.connection_context():
            _refuse_known_requests(source, target)
            source.pragma("user_version", sqlite.RETIRED_VERSION)
            _carry_slots(source, target)
            _carry_callback_secret(source, target)
            carried = _carry_tasks(source, target)
            _compare(source, target)
            if not carried.left:
                source.pragma("user_version", sqlite.CARRIED_VERSION)
            return carried


def _bring_up_to_date(source: Database, path: Path) -> None:
    runner = Runner(source, str(MIGRATIONS))
    if unknown := [migration.name for migration in runner.status() if migration.path is None]:
        raise StorageConfigError(f"{path} is of a newer version of this service: {unknown[-1]}")
    runner.up()


def _batches(source: Database) -> Iterator[list[Row]]:
    """Read all tasks, in the order in which they came."""
    # Damaged text, too, is read: it is named later.
    source.connection().text_factory = lambda text: text.decode(errors="surrogateescape")
    names = ", ".join(f'"{name}"' for name in NAMES)
    sql = f"SELECT rowid, {names} FROM tasks WHERE rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608
    last = -1
    while rows := source.execute_sql(sql, (last, BATCH_ROWS)).fetchall():
        last = rows[-1][0]
        yield [row[1:] for row in rows]


def _refuse_known_requests(source: Database, target: Database) -> None:
    """Each of the two would be the answer to that request_id: people have to choose."""
    known: list[Row] = []
    for rows in _batches(source):
        tasks = map(_named, _whole(rows))
        ours = [(t["id"], t["caller"], t["request_id"]) for t in tasks if t["request_id"]]
        if ours:
            known += target.execute_sql(OTHERS, [*map(list, zip(*ours, strict=True))]).fetchall()
    if known:
        some = ", ".join(f"{request_id} of {caller}" for caller, request_id in known[:NAMED_MAX])
        raise TransferError(
            f"nothing is carried over: PostgreSQL holds other tasks under {len(known)} of the same"
            f" request_ids: {some}"
        )


def _carry_slots(source: Database, target: Database) -> None:
    """What was sent lately counts for the account's limits, wherever it was sent from."""
    slots = source.execute_sql("SELECT quota, number, free_time FROM slots").fetchall()
    with target.atomic():
        for slot in slots:
            target.execute_sql(SLOTS, slot)


def _carry_callback_secret(source: Database, target: Database) -> None:
    """Let callbacks of tasks under way be recognised, also where replicas have their own secret."""
    sql = "SELECT value FROM secrets WHERE name = ?"
    for (value,) in source.execute_sql(sql, (CALLBACKS,)).fetchall():
        with target.atomic():
            target.execute_sql(ADD_CALLBACKS, (CALLBACKS, value))
            target.execute_sql(ADD_IMPORTED_CALLBACKS, (IMPORTED_CALLBACKS, value, value))


def _carry_tasks(source: Database, target: Database) -> Carried:
    ((now,),) = target.execute_sql(postgres.CLOCK).fetchall()
    tasks = present = 0
    left: list[Left] = []
    for rows in _batches(source):
        left += [Left(str(row[0]), why) for row in rows if (why := _misfit(row))]
        if whole := _whole(rows):
            new, behind = _carry(target, [_due(row, now) for row in whole])
            tasks += new
            present += len(whole) - new - len(behind)
            left += [Left(task_id, "it has gone on in the file since") for task_id in behind]
    return Carried(tasks, present, left)


def _carry(target: Database, rows: Sequence[Row]) -> tuple[int, list[str]]:
    """Store a batch; return how many were new, and which are there in an older state."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    versions = {task["id"]: task["version"] for task in map(_named, rows)}
    try:
        with target.atomic():
            new = target.execute_sql(postgres.bulk_insert(PRESENT), columns).fetchall()
            there = target.execute_sql(VERSIONS, (list(versions),)).fetchall()
    except IntegrityError:
        raise TransferError(
            "a service on PostgreSQL has just used one of the same request_ids: carry over again,"
            " to learn which"
        ) from None
    return len(new), [task_id for task_id, version in there if version < versions[task_id]]


def _compare(source: Database, target: Database) -> None:
    """See that what was carried over is there."""
    missing = 0
    for rows in _batches(source):
        ids = [row[0] for row in _whole(rows)]
        missing += len(ids) - len(target.execute_sql(VERSIONS, (ids,)).fetchall())
    if missing:
        raise TransferError(f"{missing} of the tasks that were carried over are not in PostgreSQL")


def _due(row: Row, now: float) -> Row:
    """Make a task due that waits for the service that was stopped, as its next start would."""
    task = _named(row)
    if task["lane"] not in {Lane.SUBMIT, Lane.POLL} or task["unknown_time"] is not None:
        return row
    return [*(task | {"due_time": min(task["due_time"], now)}).values()]


def _whole(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not _misfit(row)]


def _misfit(row: Row) -> str:
    """Say why PostgreSQL cannot hold a row, or ""."""
    misfits = (c.name for c, value in zip(COLUMNS, row, strict=True) if not _fits(c, value))
    return f"PostgreSQL cannot hold its {name}" if (name := next(misfits, "")) else ""


def _fits(column: Any, value: Any) -> bool:
    match column.field_type, value:
        case _, None:
            return bool(column.null)
        case "TEXT", str():
            return not NO_TEXT.search(value)
        case ("BLOB", bytes()) | ("DOUBLE", float()):
            return True
        case ("INT" | "BIGINT") as kind, int():
            return -(1 << INTEGER_BITS[kind] - 1) <= value < 1 << INTEGER_BITS[kind] - 1
        case _:
            return False


def _named(row: Row) -> dict[str, Any]:
    return dict(zip(NAMES, row, strict=True))
