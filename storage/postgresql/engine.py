"""PostgreSQL: as many processes as you like, and the database is what coordinates them.

Claims pass over the rows that another process has locked (SKIP LOCKED), writes of a kind that wait
together are one statement, and so are reads of single rows. Each process has at most four
connections: one each for writes, single rows, lists, and hints.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from peewee import Database, OperationalError, PostgresqlDatabase
from playhouse.migrations import Migration, Runner
from psycopg2.errors import LockNotAvailable
from psycopg2.extensions import parse_dsn

from storage.errors import (
    StorageConfigError,
    StorageUnavailableError,
    is_unavailable,
    storage_errors,
)
from storage.hints import Hints
from storage.line import Line
from storage.rows import COLUMNS, FIXED_COLUMNS
from storage.schema import MIGRATIONS
from storage.statements import KNOWN_REQUEST, Statements
from storage.task import Task
from storage.worker import BATCH_MAX_JOBS, LISTS_MAX_JOBS, Worker

POSTGRES_PREFIXES = ("postgresql://", "postgres://")
# Found dead within about ten seconds, however the network or the server went away.
CONNECTION = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "generation",
    "target_session_attrs": "read-write",  # not a standby, which may be behind
}
ENCODING = {"client_encoding": "utf8"}  # whatever the environment says
STATEMENT_MILLISECONDS = 5_000
LOCK_MILLISECONDS = 2_000
SILENCE_SECONDS = 8.0  # a little more than the server may take
SILENCE_CHECK_SECONDS = 0.5
MIGRATION_SECONDS = 600  # of one migration, and of waiting for another process that migrates
MIGRATION_ASK_SECONDS = 0.2
MIGRATION_LOCK_MILLISECONDS = 500  # whoever comes after a migration that waits has to wait as well
MIGRATION_ATTEMPTS = 30
MIGRATION_PAUSE_SECONDS = 1.0
# In the options of a connection; a space in a value is escaped.
SEARCH_PATH = re.compile(r"(?:^|\s)(?:-c\s*|--)search[_-]path=((?:\\.|[^\s\\])*)", re.IGNORECASE)
TOUCH = "UPDATE slots SET free_time = free_time WHERE false"
CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
CLOCK_SECONDS = 60.0
CHANNEL_SCHEMA_MAX_BYTES = 50

ARRAYS = {"TEXT": "text[]", "DOUBLE": "float8[]", "INT": "int[]", "BIGINT": "bigint[]"} | {
    "BLOB": "bytea[]"
}

logger = logging.getLogger(__name__)

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Row = Sequence[Any]


def is_postgres(database_url: str) -> bool:
    """Whether a URL is of this kind."""
    return database_url.startswith(POSTGRES_PREFIXES)


def connection_params(database_url: str, **session: int) -> dict[str, Any]:
    """Return what psycopg2 takes to connect.

    Args:
        database_url: As libpq takes it.
        session: Settings of each session, such as `statement_timeout`, in milliseconds.

    Raises:
        StorageConfigError: It is no URL of PostgreSQL.
    """
    try:
        given: dict[str, Any] = parse_dsn(database_url)
    except psycopg2.ProgrammingError:
        raise StorageConfigError("DATABASE_URL is no URL of PostgreSQL") from None
    if "@" in given.get("host", "") + given.get("dbname", "") or not _is_port(given):
        # Part of the password may stand there, and would be told by every error.
        raise StorageConfigError("DATABASE_URL: write @, / and : in the password as %40, %2F, %3A")
    options = [given.pop("options", ""), *(f"-c {name}={value}" for name, value in session.items())]
    joined = " ".join(filter(None, options))
    return CONNECTION | {"dbname": ""} | given | ENCODING | ({"options": joined} if joined else {})


def _is_port(given: dict[str, Any]) -> bool:
    return all(port.isdecimal() for port in given.get("port", "0").split(","))


class PostgresDatabase(PostgresqlDatabase):
    """What Peewee connects by, once it is told to, in one thread; others may cut the connection."""

    def __init__(self, params: dict[str, Any]) -> None:
        others = {name: value for name, value in params.items() if name != "dbname"}
        super().__init__(params["dbname"], autoconnect=False, **others)
        self.line: Line | None = None

    def _connect(self) -> Any:
        connection = super()._connect()  # type: ignore[misc] # peewee's stub
        self.line = Line(connection)
        return connection

    def _close(self, conn: Any) -> None:
        if self.line:
            self.line.close()
            self.line = None
        super()._close(conn)  # type: ignore[misc] # peewee's stub


def migrate(database_url: str, migrations: Path = MIGRATIONS) -> list[str]:
    """Bring the tables up to date; return the names of the migrations that were applied.

    However many processes do so at once, one works and the others wait. Replicas of an older
    version go on meanwhile: CONTRIBUTING.md has the rules that migrations keep for that.

    Raises:
        StorageUnavailableError: The database is away, or others keep it busy for too long.
    """
    params = connection_params(database_url)
    db = PostgresDatabase(params)
    with storage_errors(), db.connection_context():
        _require_utf8(db)
        _require_search_path(db, params.get("options", ""))
        runner = Runner(db, str(migrations))
        if not _pending(runner):
            return []
        with _alone(PostgresDatabase(params)):
            return [_apply(db, runner, migration) for migration in _pending(runner)]


def _require_utf8(db: Database) -> None:
    """Callers and the provider write in every script."""
    ((encoding,),) = db.execute_sql("SHOW server_encoding").fetchall()
    if encoding != "UTF8":
        raise StorageConfigError(f"the database must have the encoding UTF8, and has {encoding}")


def _require_search_path(db: Database, options: str) -> None:
    """Refuse a database that ignores the schema of the URL: two accounts would share one table."""
    asked = SEARCH_PATH.findall(options)
    if not asked:
        return
    expected = re.sub(r"\\(.)", r"\1", asked[-1])
    ((found, schema),) = db.execute_sql(
        "SELECT current_setting('search_path'), current_schema()"
    ).fetchall()
    if "".join(found.split()) != "".join(expected.split()):
        raise StorageConfigError(
            f"DATABASE_URL asks for the search_path {expected}, and the server uses {found}"
            f" (schema {schema}): a pooler in between drops options; set the search_path of the"
            " role instead (ALTER ROLE ... SET search_path), or connect without the pooler"
        )


def _pending(runner: Any) -> list[Any]:
    return [migration for migration in runner.status() if not migration.applied]


@contextmanager
def _alone(holder: Database) -> Iterator[None]:
    """Keep other processes from migrating, by a connection of its own, as long as this lasts.

    The lock is a transaction's, as a pooler in transaction mode has no sessions. Who has to wait
    asks again and again: CREATE INDEX CONCURRENTLY would wait for any statement that waits for us.
    """
    deadline = time.monotonic() + MIGRATION_SECONDS
    with holder.connection_context():
        key = _lock_key(holder, "migrations")
        while True:
            with holder.atomic():
                holder.execute_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
                if holder.execute_sql("SELECT pg_try_advisory_xact_lock(%s)", (key,)).fetchone()[0]:
                    yield
                    return
            if time.monotonic() > deadline:
                raise StorageUnavailableError("another process migrates, and does not end")
            time.sleep(MIGRATION_ASK_SECONDS)


def _apply(db: Database, runner: Any, migration: Migration) -> str:
    """Apply a migration; return its name.

    It has a transaction to itself, in which it waits for a table only so long that nobody behind
    it is held up, and then tries again; unless it says `atomic = False`, and sees to that itself.
    """
    if not getattr(migration.load(), "atomic", True):
        runner.up(migration.name)
        return str(migration.name)
    for _ in range(MIGRATION_ATTEMPTS):
        try:
            with db.atomic():
                db.execute_sql(f"SET LOCAL lock_timeout = {MIGRATION_LOCK_MILLISECONDS}")
                db.execute_sql(f"SET LOCAL statement_timeout = '{MIGRATION_SECONDS}s'")
                runner.up(migration.name)
                return str(migration.name)
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):  # type: ignore[attr-defined]
                raise
        time.sleep(MIGRATION_PAUSE_SECONDS)
    raise StorageUnavailableError(f"migration {migration.name}: others keep its tables locked")


class PostgresEngine:
    """The database that several processes share. See storage/engine.py."""

    shared = True
    touch = TOUCH

    def __init__(self, database_url: str, *, hints: bool) -> None:
        # A pooler in transaction mode, for which hints are off, has no sessions to set this for.
        session = {
            "statement_timeout": STATEMENT_MILLISECONDS,
            "idle_in_transaction_session_timeout": STATEMENT_MILLISECONDS,
            "lock_timeout": LOCK_MILLISECONDS,
        }
        params = connection_params(database_url, **(session if hints else {}))
        # One for each thread: Peewee lets only one thread at a time connect to a database.
        self._writes, self._reads, self._lists = (PostgresDatabase(params) for _ in range(3))
        self.db: Database = self._writes
        self._clock_offset = 0.0
        self._clock_read = -CLOCK_SECONDS
        migrate(database_url)
        with storage_errors(), self.db.connection_context():
            self._lock_key = _lock_key(self.db, "claims")
            schema = _schema(self.db)
            self._read_clock()
        self.sql = Statements(self.db)
        self._bulk = _BulkStatements(self.sql)
        self._writer = _worker("store-writer", self._writes, self._transaction)
        self._reader = _worker("store-reader", self._reads, nullcontext)
        self._lister = _worker("store-lister", self._lists, nullcontext, LISTS_MAX_JOBS)
        self._fetch_each = partial(_fetch_each, self._reads)
        self._list_each = partial(_fetch_each, self._lists)
        connect = partial(psycopg2.connect, **params)
        self._hints = Hints(connect, _channel(schema)) if hints else None
        self._cutting = asyncio.create_task(self._cut_silent())

    async def close(self) -> None:
        """Finish the writes that wait, and close every connection."""
        await self._writer.close()
        if self._hints:
            await self._hints.close()
        await self._reader.close()
        await self._lister.close()
        self._cutting.cancel()
        await asyncio.gather(self._cutting, return_exceptions=True)

    # --- reads ---

    def now(self) -> float:
        """Return the time by the database's clock, in unix seconds, as all processes share it."""
        return _steady_seconds() + self._clock_offset

    async def get(self, task_id: str) -> Row | None:
        """Return the row of a task."""
        return await self._reader.run(self._get_each, task_id)

    async def one(self, sql: str, *params: object) -> Row | None:
        """Return the first row of a statement that reads few."""
        rows = await self._reader.run(self._fetch_each, (sql, params))
        return rows[0] if rows else None

    async def all(self, sql: str, *params: object) -> list[Row]:
        """Return the rows of a statement that may read many."""
        return await self._lister.run(self._list_each, (sql, params))

    async def newer(self, ids: Sequence[str], revisions: Sequence[int]) -> list[Row]:
        """Return the rows of those tasks whose revision is above the one beside their id."""
        return await self.all(self._bulk.newer, list(ids), list(revisions))

    @property
    def hinted(self) -> bool:
        """Whether the hints of other processes are heard at this moment."""
        return self._hints is not None and self._hints.connected

    async def heard(self, timeout: float) -> dict[str, int]:
        """Wait for hints of other processes, at most `timeout` seconds: {task id: revision}."""
        if self._hints is None:
            await asyncio.sleep(timeout)
            return {}
        return await self._hints.heard(timeout)

    def _get_each(self, task_ids: Sequence[str]) -> list[Row | None]:
        rows = _fetch(self._reads, self._bulk.get, list(task_ids))
        found = {row[0]: row for row in rows}
        return [found.get(task_id) for task_id in task_ids]

    # --- writes ---

    async def write(
        self,
        kind: Callable[[Sequence[Argument]], Sequence[Result]],
        argument: Argument,
        note: Callable[[Result | Exception], None],
    ) -> Result:
        """Have `kind` called in the writer's thread, inside a transaction."""
        return await self._writer.run(kind, argument, note)

    def execute(self, sql: str, *params: object) -> Any:
        """Run a statement of the transaction; return its cursor."""
        return self.db.execute_sql(sql, params)

    def insert(self, rows: Sequence[Row]) -> list[bool]:
        """Store new rows; say of each whether its request_id was new.

        In the order of callers and request_ids, so that two processes never wait for each other.
        """
        ordered = sorted(rows, key=lambda row: (row[1], row[2] or ""))
        columns = [list(column) for column in zip(*ordered, strict=True)]
        new = {row[0] for row in self.execute(self._bulk.insert, *columns)}
        return [row[0] in new for row in rows]

    def find_requests(self, requests: Sequence[tuple[str, str]]) -> list[Row]:
        """Return the rows of those (caller, request_id) that are there."""
        callers, request_ids = zip(*requests, strict=True)
        cursor = self.execute(self._bulk.find_requests, list(callers), list(request_ids))
        rows: list[Row] = cursor.fetchall()
        return rows

    def save(self, changes: Sequence[Row]) -> list[bool]:
        """Store changed columns, each with id and version to find it by; say which were found.

        In the order of the ids, so that two processes never wait for each other.
        """
        ordered = sorted(enumerate(changes), key=lambda change: change[1][-2])
        columns = zip(*((number, *change) for number, change in ordered), strict=True)
        found = self.execute(self._bulk.save, *map(list, columns))
        numbers = {number for (number,) in found}
        return [number in numbers for number in range(len(changes))]

    def lock(self, task_ids: Sequence[str], lane: str, now: float) -> list[Row]:
        """Return the rows of those tasks, in their order, that are due in the lane and nobody's."""
        if not task_ids:
            return []
        rows = {row[0]: row for row in self.execute(self._bulk.lock, list(task_ids), lane, now)}
        return [rows[task_id] for task_id in task_ids if task_id in rows]

    def try_lock(self) -> bool:
        """Whether the transaction may decide by a count, as nobody else does until its end."""
        cursor = self.execute("SELECT pg_try_advisory_xact_lock(%s)", self._lock_key)
        return bool(cursor.fetchone()[0])

    def hint(self, tasks: Sequence[Task]) -> None:
        """Tell other processes of snapshots that were committed."""
        if self._hints:
            self._hints.say((task.id, task.revision) for task in tasks)

    # --- connections ---

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin, if need be on a new connection; commit at the end."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.db.atomic())
            except Exception as error:
                if not is_unavailable(error):
                    raise
                _close(self.db)
                self.db.connect()
                stack.enter_context(self.db.atomic())
            self._read_clock()
            yield

    async def _cut_silent(self) -> None:
        """Cut the connections from which an answer does not come, so that nobody waits for ever."""
        users: list[tuple[Worker | Hints, PostgresDatabase | Hints]] = [
            (self._writer, self._writes),
            (self._reader, self._reads),
            (self._lister, self._lists),
        ]
        if self._hints:
            users.append((self._hints, self._hints))
        while True:
            await asyncio.sleep(SILENCE_CHECK_SECONDS)
            long_ago = time.monotonic() - SILENCE_SECONDS
            for user, holder in users:
                line = holder.line
                if line and max(user.busy_since, line.opened) < long_ago:
                    logger.warning("the database says nothing; a connection is cut")
                    line.cut()

    def _read_clock(self) -> None:
        """Compare the clocks, now and then."""
        started = time.monotonic()
        if started - self._clock_read < CLOCK_SECONDS:
            return
        (there,) = self.db.execute_sql(CLOCK).fetchone()
        half = (time.monotonic() - started) / 2
        self._clock_offset = there + half - _steady_seconds()
        self._clock_read = started


def _steady_seconds() -> float:
    """Return the time of a clock that nobody sets; where there is one, of one that never rests."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _worker(
    name: str,
    db: Database,
    transaction: Callable[[], AbstractContextManager[object]],
    batch_max_jobs: int = BATCH_MAX_JOBS,
) -> Worker:
    return Worker(name, db, transaction, batch_max_jobs=batch_max_jobs, recover=partial(_close, db))


def _close(db: Database) -> None:
    """Close what may be dead: the next use opens another, at the server that is there then."""
    with storage_errors():
        db.close()


def _fetch_each(db: Database, reads: Sequence[tuple[str, Sequence[object]]]) -> list[list[Row]]:
    return [_fetch(db, sql, *params) for sql, params in reads]


def _fetch(db: Database, sql: str, *params: object) -> list[Row]:
    """Read, and once more on a new connection if the old one has died meanwhile."""
    try:
        rows: list[Row] = db.execute_sql(sql, params).fetchall()
    except Exception as error:
        if not is_unavailable(error) or db.is_connection_usable():
            raise
        _close(db)
        db.connect()
        rows = db.execute_sql(sql, params).fetchall()
    return rows


class _BulkStatements:
    """The statements for many rows at once: an array of values for each column."""

    def __init__(self, sql: Statements) -> None:
        changing = COLUMNS[FIXED_COLUMNS:]
        names = ", ".join(f'"{column.name}"' for column in COLUMNS)
        sets = ", ".join(f'"{column.name}" = new."{column.name}"' for column in changing)
        new = ", ".join(["number", *(f'"{column.name}"' for column in changing), "task", "present"])
        arrays = ", ".join(["%s::int[]", *map(_array, changing), "%s::text[]", "%s::bigint[]"])
        self.get = sql.get.replace('"id" = %s', '"id" = ANY(%s)')
        self.lock = sql.lock.replace('"id" = %s', '"id" = ANY(%s)')
        of_tasks = ", ".join(f"tasks.{name}" for name in names.split(", "))
        self.find_requests = (
            f"SELECT {of_tasks} FROM unnest(%s::text[], %s::text[]) AS asked(caller, request)"  # noqa: S608
            " JOIN tasks ON tasks.caller = asked.caller AND tasks.request_id = asked.request"
        )
        self.newer = (
            f"SELECT {of_tasks}"  # noqa: S608
            " FROM unnest(%s::text[], %s::bigint[]) AS seen(task, present)"
            " JOIN tasks ON tasks.id = seen.task AND tasks.revision > seen.present"
        )
        self.insert = bulk_insert(KNOWN_REQUEST)
        self.save = (
            f"UPDATE tasks SET {sets} FROM unnest({arrays}) AS new({new})"  # noqa: S608
            " WHERE tasks.id = new.task AND tasks.version = new.present RETURNING new.number"
        )


def bulk_insert(on_conflict: str) -> str:
    """Return the statement that stores rows, an array for each column, and returns the new ids."""
    names = ", ".join(f'"{column.name}"' for column in COLUMNS)
    return (
        f"INSERT INTO tasks ({names})"  # noqa: S608 - of our own names
        f" SELECT * FROM unnest({', '.join(map(_array, COLUMNS))}){on_conflict} RETURNING id"
    )


def _array(column: Any) -> str:
    return f"%s::{ARRAYS[column.field_type]}"


def _schema(db: Database) -> str:
    name: str = db.execute_sql("SELECT current_schema()").fetchone()[0]
    return name


def _channel(schema: str) -> str:
    """Return the name that replicas on one schema hint under: PostgreSQL takes 63 bytes."""
    if len(schema.encode()) > CHANNEL_SCHEMA_MAX_BYTES:
        schema = blake2b(schema.encode(), digest_size=16).hexdigest()
    return f"generation_{schema}"


def _lock_key(db: Database, what: str) -> int:
    """Return the number of an advisory lock: each schema of a database has its own."""
    digest = blake2b(f"generation.v1 {_schema(db)} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
