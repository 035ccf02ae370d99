"""SQLite: one process, one file, one thread that writes.

A single row is read on the event loop, where that costs a tenth of a thread switch. Reads of many
rows have their own thread.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from peewee import SqliteDatabase
from playhouse.migrations import Runner

from storage.clock import Clock
from storage.engine import TIMEOUTS, Change, DatabaseTimeouts, Row
from storage.errors import StorageConfigError, storage_errors
from storage.history import SQLITE_HORIZON, settle_history
from storage.known import Known
from storage.mounts import network_file_system
from storage.rows import working_values
from storage.schema import MIGRATIONS
from storage.sqlite_files import SqliteFiles
from storage.statements import Statements
from storage.task import Task
from storage.threads import ThreadState, state_of
from storage.worker import LISTS_MAX_JOBS, Worker

SQLITE_PREFIX = "sqlite:///"
TOUCH = "PRAGMA user_version = 1"  # the smallest write that needs disk space
RETIRED_VERSION = 2  # the tasks of the file were imported into another database
IMPORTED_VERSION = 3  # and all of them have been imported there

logger = logging.getLogger(__name__)


def sqlite_path(database_url: str) -> Path | None:
    """Return the file that a URL names, or None."""
    path = database_url.removeprefix(SQLITE_PREFIX)
    return None if path in {database_url, "", ":memory:"} else Path(path)


def migrate(path: Path, migrations: Path = MIGRATIONS) -> list[str]:
    """Bring the tables up to date; return the names of the migrations that were applied.

    Raises:
        StorageConfigError: A service uses the file.
        StorageUnavailableError: The file cannot be opened or written.
    """
    with storage_errors(), exclusive_database(path) as db:
        applied: list[str] = Runner(db, str(migrations)).up()
        return applied


def begin_history(path: Path) -> None:
    """Begin a new history of changes; the errors are those of `migrate`."""
    with storage_errors(), exclusive_database(path) as db:
        Runner(db, str(MIGRATIONS)).up()
        settle_history(db, _origin(path), new=True)


@contextmanager
def exclusive_database(path: Path) -> Iterator[SqliteDatabase]:
    """Open a database that no service uses, and keep services off it."""
    with closing(SqliteFiles(path)):
        db = _database(path, TIMEOUTS)
        with db.connection_context():
            yield db


class SqliteEngine:
    """The database of the only process on a file; an `Engine`."""

    shared = False
    uses_hints = False
    is_listening = False
    touch = TOUCH

    def __init__(self, path: Path, timeouts: DatabaseTimeouts, known: Known) -> None:
        self._files = SqliteFiles(path)
        self.origin = _origin(path)
        self.clock = Clock()
        self.db = _database(path, timeouts)
        self._reads = _database(path, timeouts, query_only=1)
        try:
            self._prepare()
        except BaseException:
            self._close_files()
            raise
        self.sql = Statements(self.db, known)
        self.writer = Worker(
            "writer",
            self.db,
            self._transaction,
            one_commit=True,
            waiting_seconds=timeouts.waiting_seconds,
        )
        self._lister = Worker(
            "lister",
            self._reads,
            self._checked,
            batch_max_jobs=LISTS_MAX_JOBS,
            waiting_seconds=timeouts.waiting_seconds,
        )

    def _prepare(self) -> None:
        if kind := network_file_system(Path(self.db.database)):
            logger.warning(
                "%s is on a network file system (%s), where SQLite may lose or corrupt tasks: use a"
                " local disk, or PostgreSQL",
                self.db.database,
                kind,
            )
        with storage_errors():
            if self.db.pragma("user_version") in {RETIRED_VERSION, IMPORTED_VERSION}:
                raise StorageConfigError(
                    f"{self.db.database} was imported into PostgreSQL, where its tasks continue"
                )
            Runner(self.db, str(MIGRATIONS)).up()
            settle_history(self.db, self.origin)
            self._numbers = count(self.db.execute_sql(f"SELECT {SQLITE_HORIZON}").fetchone()[0])
            self.db.close()
            self._reads.connect()
            self._files.watch()

    def threads(self) -> list[ThreadState]:
        return [state_of(self.writer), state_of(self._lister)]

    async def close(self) -> None:
        await self.writer.close()
        await self._lister.close()
        self._close_files()

    def _close_files(self) -> None:
        """Close this thread's connections, then let other processes use the file."""
        self.db.close()
        self._reads.close()
        self._files.close()

    # --- reads ---

    async def get(self, task_id: str) -> Row | None:
        return await self.one(self.sql.tasks.get, task_id)

    async def one(self, sql: str, *params: object) -> Row | None:
        row: Row | None = self._reads.execute_sql(sql, params).fetchone()
        return row

    async def all(self, sql: str, *params: object) -> list[Row]:
        return await self._lister.run(self._fetch_each, (sql, params), disposable=True)

    def _fetch_each(self, reads: Sequence[tuple[str, Sequence[object]]]) -> list[list[Row]]:
        return [self._reads.execute_sql(sql, params).fetchall() for sql, params in reads]

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Read nothing if the files are lost: a new connection would open another file."""
        self._files.check()
        yield

    async def newer(self, ids: Sequence[str], revisions: Sequence[int]) -> list[Row]:
        del ids, revisions
        return []  # there are no other processes

    async def wait_for_hints(self, timeout: float) -> dict[str, int]:
        await asyncio.sleep(timeout)
        return {}

    def hint(self, tasks: Sequence[Task]) -> None:
        """Do nothing: there are no other processes."""

    # --- in the writer's thread, inside its transaction ---

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin, unless the files are lost; commit at the end."""
        self._files.check()
        with self.db.atomic("IMMEDIATE"):
            yield

    def execute(self, sql: str, *params: object) -> Any:
        return self.db.execute_sql(sql, params)

    def insert(self, rows: Sequence[Row]) -> list[bool]:
        sql = self.sql.tasks.insert
        numbers = self._numbers
        return [bool(self.db.execute_sql(sql, (*row, next(numbers))).rowcount) for row in rows]

    def find_requests(self, requests: Sequence[tuple[str, str]]) -> list[Row]:
        sql = self.sql.tasks.find_request
        found = (self.execute(sql, *request).fetchone() for request in requests)
        return [row for row in found if row is not None]

    def save(self, changes: Sequence[Change]) -> list[bool]:
        return [self._save(*change) for change in changes]

    def _save(
        self, columns: Row, task_id: str, version: int, is_visible: bool, has_result: bool
    ) -> bool:
        sql = self.sql.tasks.save[has_result, is_visible]
        values = columns if has_result else working_values(columns)
        number = (next(self._numbers),) if is_visible else ()
        return bool(self.db.execute_sql(sql, (*values, *number, task_id, version)).rowcount)

    def lock(self, task_ids: Sequence[str], lane: str, now: float) -> list[Row]:
        sql = self.sql.claims.lock
        found = (self.execute(sql, task_id, lane, now).fetchone() for task_id in task_ids)
        return [row for row in found if row is not None]

    def first_waiting(self, queues: Sequence[tuple[str, str]], now: float, depth: int) -> list[Row]:
        sql = self.sql.claims.first_waiting
        found = (self.execute(sql, caller, model, now, depth) for caller, model in queues)
        return [row for rows in found for row in rows]

    def try_lock(self) -> bool:
        return True  # nobody else writes


class _Sqlite(SqliteDatabase):
    def rollback(self) -> None:
        """Roll back, unless SQLite has done so itself, as it does when the disk is full.

        The error of a second rollback would hide the first one.
        """
        if self.connection().in_transaction:  # type: ignore[no-untyped-call] # peewee's stub
            super().rollback()


def _origin(path: Path) -> str:
    return str(path.stat().st_ino)  # a file that was copied is another one


def _database(path: Path, timeouts: DatabaseTimeouts, **pragmas: int) -> SqliteDatabase:
    return _Sqlite(
        str(path),
        timeout=timeouts.sqlite_busy_seconds,
        pragmas={
            "journal_mode": "wal",
            "synchronous": "full",  # an acknowledged write survives a power cut
            **pragmas,
        },
    )
