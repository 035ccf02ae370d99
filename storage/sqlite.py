"""SQLite: one process, one file, one thread that writes.

A read of one row is done on the event loop, where it costs a tenth of a thread hop; reads of many
rows have a thread of their own.
"""

import asyncio
import fcntl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from peewee import SqliteDatabase
from playhouse.migrations import Runner

from storage.errors import StorageConfigError, StorageUnavailableError, storage_errors
from storage.schema import MIGRATIONS
from storage.statements import Statements
from storage.task import Task
from storage.worker import LISTS_MAX_JOBS, Worker

SQLITE_PREFIX = "sqlite:///"
SQLITE_MAGIC = b"SQLite format 3\0"
BUSY_TIMEOUT_SECONDS = 5
TOUCH = "PRAGMA user_version = 1"  # the least that needs room on the disk
RETIRED_VERSION = 2  # the tasks of the file go on in another database
CARRIED_VERSION = 3  # and all of them are there

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Row = Sequence[Any]


def sqlite_path(database_url: str) -> Path | None:
    """Return the file that a URL names; None if it names none."""
    path = database_url.removeprefix(SQLITE_PREFIX)
    return None if path in {database_url, "", ":memory:"} else Path(path)


def migrate(path: Path, migrations: Path = MIGRATIONS) -> list[str]:
    """Bring the tables up to date; return the names of the migrations that were applied.

    Raises:
        StorageConfigError: A service has the file.
        StorageUnavailableError: The file cannot be opened or written.
    """
    with storage_errors(), alone(path) as db:
        applied: list[str] = Runner(db, str(migrations)).up()
        return applied


@contextmanager
def alone(path: Path) -> Iterator[SqliteDatabase]:
    """Have a database to oneself, without a service on it."""
    with _lock_file(path):
        db = _database(path)
        with db.connection_context():
            yield db


class SqliteEngine:
    """The database of the only process that has the file. See storage/engine.py."""

    shared = False
    hinted = False
    touch = TOUCH

    def __init__(self, path: Path) -> None:
        self._lock = _lock_file(path)
        self.db = _database(path)
        self._reads = _database(path, query_only=1)
        try:
            self._prepare()
        except BaseException:
            self._close_files()
            raise
        self.sql = Statements(self.db)
        transaction = partial(self.db.atomic, "IMMEDIATE")
        self._writer = Worker("store-writer", self.db, transaction, one_commit=True)
        self._lister = Worker(
            "store-lister", self._reads, nullcontext, batch_max_jobs=LISTS_MAX_JOBS
        )

    def _prepare(self) -> None:
        with storage_errors():
            if self.db.pragma("user_version") in {RETIRED_VERSION, CARRIED_VERSION}:
                raise StorageConfigError(
                    f"{self.db.database} was carried over to PostgreSQL, and its tasks go on there"
                )
            Runner(self.db, str(MIGRATIONS)).up()
            self.db.close()
            self._reads.connect()

    async def close(self) -> None:
        """Finish the writes that wait, and close every connection."""
        await self._writer.close()
        await self._lister.close()
        self._close_files()

    def _close_files(self) -> None:
        """Close this thread's connections, then let other processes in."""
        self.db.close()
        self._reads.close()
        self._lock.close()

    # --- reads ---

    def now(self) -> float:
        """Return the time by the clock that due times are kept by, in unix seconds."""
        return time.time()

    async def get(self, task_id: str) -> Row | None:
        """Return the row of a task."""
        return await self.one(self.sql.get, task_id)

    async def one(self, sql: str, *params: object) -> Row | None:
        """Return the first row of a statement that reads few."""
        row: Row | None = self._reads.execute_sql(sql, params).fetchone()
        return row

    async def all(self, sql: str, *params: object) -> list[Row]:
        """Return the rows of a statement that may read many."""
        return await self._lister.run(self._fetch_each, (sql, params))

    async def newer(self, ids: Sequence[str], revisions: Sequence[int]) -> list[Row]:
        """Return what other processes changed: there are none."""
        del ids, revisions
        return []

    async def heard(self, timeout: float) -> dict[str, int]:
        """Wait for hints of other processes: there are none."""
        await asyncio.sleep(timeout)
        return {}

    def _fetch_each(self, reads: Sequence[tuple[str, Sequence[object]]]) -> list[list[Row]]:
        return [self._reads.execute_sql(sql, params).fetchall() for sql, params in reads]

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
        """Store new rows; say of each whether its request_id was new."""
        return [bool(self.execute(self.sql.insert, *row).rowcount) for row in rows]

    def find_requests(self, requests: Sequence[tuple[str, str]]) -> list[Row]:
        """Return the rows of those (caller, request_id) that are there."""
        found = (self.execute(self.sql.find_request, *request).fetchone() for request in requests)
        return [row for row in found if row is not None]

    def save(self, changes: Sequence[Row]) -> list[bool]:
        """Store changed columns, each with id and version to find it by; say which were found."""
        return [bool(self.execute(self.sql.save, *change).rowcount) for change in changes]

    def lock(self, task_ids: Sequence[str], lane: str, now: float) -> list[Row]:
        """Return the rows of those tasks, in their order, that are due in the lane."""
        found = (self.execute(self.sql.lock, task_id, lane, now).fetchone() for task_id in task_ids)
        return [row for row in found if row is not None]

    def try_lock(self) -> bool:
        """Whether the transaction may decide by a count: here always, as nobody else writes."""
        return True

    def hint(self, tasks: Sequence[Task]) -> None:
        """Tell other processes of new snapshots: there are none."""


class _Sqlite(SqliteDatabase):
    def rollback(self) -> None:
        """Roll back, unless SQLite did so by itself, as it does when the disk is full.

        The complaint about the second time would hide the error.
        """
        if self.connection().in_transaction:  # type: ignore[no-untyped-call] # peewee's stub
            super().rollback()


def _database(path: Path, **pragmas: int) -> SqliteDatabase:
    return _Sqlite(
        str(path),
        timeout=BUSY_TIMEOUT_SECONDS,
        pragmas={
            "journal_mode": "wal",
            "synchronous": "full",  # an acknowledged write survives a power cut
            **pragmas,
        },
    )


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC)) in {b"", SQLITE_MAGIC}


def _lock_file(path: Path) -> ExitStack:
    """Keep other processes off the database, and other users: it holds prompts.

    Two pollers on one file would each assume to be alone. A lock file next to the database covers
    symbolic links. Hard links need a lock on the database itself, which only Linux keeps separate
    from SQLite's own locks.

    Returns:
        What releases the locks. Close it after SQLite's connections: closing any descriptor of a
        file drops SQLite's locks on it.
    """
    with ExitStack() as locks:
        try:
            if path.exists() and not _is_sqlite(path):
                raise StorageConfigError(f"{path} is not a SQLite database")
            real = path.resolve()
            _lock(path, locks.enter_context(real.with_name(real.name + ".lock").open("w")))
            real.touch(mode=0o600)
            if sys.platform == "linux":
                _lock(path, locks.enter_context(real.open("rb")))
        except (OSError, RuntimeError) as error:  # the latter for links in a circle
            words = getattr(error, "strerror", None) or str(error)
            raise StorageUnavailableError(f"cannot open {path}: {words}") from None
        return locks.pop_all()


def _lock(path: Path, file: IO[Any]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageConfigError(f"{path} is in use by another process of this service") from None
