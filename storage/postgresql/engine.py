"""PostgreSQL: any number of processes, coordinated by the database.

Claims pass over the rows that another process has locked (SKIP LOCKED). Writes of a kind that wait
together are one statement, and so are reads of single rows. Each process has at most four
connections: one each for writes, single rows, lists, and hints.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import psycopg2

from storage.engine import Change, DatabaseTimeouts, Row
from storage.errors import is_unavailable, storage_errors
from storage.known import Known
from storage.postgresql.bulk import BulkStatements
from storage.postgresql.clock import DatabaseClock
from storage.postgresql.connection import (
    Connected,
    Connections,
    PostgresDatabase,
    connection_params,
    current_schema,
    drop_connection,
    fetch,
    lock_key,
)
from storage.postgresql.durability import durability_warnings
from storage.postgresql.hints import Hints, channel_of
from storage.postgresql.migrate import migrate
from storage.postgresql.pooler import (
    FORMATS,
    HINTS_ADVICE,
    refused_options,
    require_formats,
    require_session,
)
from storage.rows import working_values
from storage.statements import Statements
from storage.task import Task
from storage.threads import StorageThread, ThreadState
from storage.worker import BATCH_MAX_JOBS, LISTS_MAX_JOBS, Worker

logger = logging.getLogger(__name__)


def _session(timeouts: DatabaseTimeouts) -> dict[str, int | str]:
    """Return the settings of each session; times are in milliseconds."""
    return {
        **FORMATS,
        "statement_timeout": timeouts.statement_milliseconds,
        "idle_in_transaction_session_timeout": timeouts.statement_milliseconds,
        "lock_timeout": timeouts.lock_milliseconds,
    }


class _Reader:
    """A connection for reads, and the thread that uses it."""

    def __init__(
        self, name: str, params: dict[str, Any], batch_max_jobs: int, waiting_seconds: float
    ) -> None:
        self.db = PostgresDatabase(params)
        self.worker = Worker(
            name,
            self.db,
            nullcontext,
            batch_max_jobs=batch_max_jobs,
            waiting_seconds=waiting_seconds,
            recover=partial(drop_connection, self.db),
        )

    async def rows(self, sql: str, params: Sequence[object]) -> list[Row]:
        return await self.worker.run(self._fetch_each, (sql, params), disposable=True)

    def _fetch_each(self, reads: Sequence[tuple[str, Sequence[object]]]) -> list[list[Row]]:
        return [fetch(self.db, sql, *params) for sql, params in reads]


class PostgresEngine:
    """The database that several processes share; an `Engine`."""

    shared = True
    origin = ""
    touch = "UPDATE slots SET free_time = free_time WHERE false"

    def __init__(
        self, database_url: str, *, hints: bool, timeouts: DatabaseTimeouts, known: Known
    ) -> None:
        # A pooler in transaction mode, for which hints are off, has no sessions to set this for.
        session = _session(timeouts) if hints else {}
        params = connection_params(database_url, **session)
        self.db = PostgresDatabase(params)
        migrate(database_url)
        advice = f"a pooler refuses the options of a session: {HINTS_ADVICE}"
        with storage_errors(), refused_options(advice), self.db.connection_context():
            require_session(self.db, session)
            require_formats(self.db)
            for warning in durability_warnings(self.db):
                logger.warning(warning)
            self._lock_key = lock_key(self.db, "claims")
            schema = current_schema(self.db)
            self.clock = DatabaseClock(self.db)
        self.sql = Statements(self.db, known)
        self._bulk = BulkStatements(self.sql)
        self.writer = Worker(
            "writer",
            self.db,
            self._transaction,
            waiting_seconds=timeouts.waiting_seconds,
            recover=partial(drop_connection, self.db),
        )
        # Peewee lets only one thread at a time connect to a database, so each thread has its own.
        self._reader = _Reader("reader", params, BATCH_MAX_JOBS, timeouts.waiting_seconds)
        self._lister = _Reader("lister", params, LISTS_MAX_JOBS, timeouts.waiting_seconds)
        connect = partial(psycopg2.connect, **params)
        self._hints = Hints(connect, channel_of(schema)) if hints else None
        users: list[tuple[StorageThread, Connected]] = [
            (self.writer, self.db),
            *((reader.worker, reader.db) for reader in (self._reader, self._lister)),
            *([(self._hints, self._hints)] if self._hints else []),
        ]
        self._connections = Connections(users, timeouts.silence_seconds)

    def threads(self) -> list[ThreadState]:
        return self._connections.threads()

    async def close(self) -> None:
        await self.writer.close()
        if self._hints:
            await self._hints.close()
        await self._reader.worker.close()
        await self._lister.worker.close()
        await self._connections.close()

    # --- reads ---

    async def get(self, task_id: str) -> Row | None:
        return await self._reader.worker.run(self._get_each, task_id, disposable=True)

    def _get_each(self, task_ids: Sequence[str]) -> list[Row | None]:
        found = {row[0]: row for row in fetch(self._reader.db, self._bulk.get, list(task_ids))}
        return [found.get(task_id) for task_id in task_ids]

    async def one(self, sql: str, *params: object) -> Row | None:
        rows = await self._reader.rows(sql, params)
        return rows[0] if rows else None

    async def all(self, sql: str, *params: object) -> list[Row]:
        return await self._lister.rows(sql, params)

    async def newer(self, ids: Sequence[str], revisions: Sequence[int]) -> list[Row]:
        return await self.all(self._bulk.newer, list(ids), list(revisions))

    @property
    def uses_hints(self) -> bool:
        return self._hints is not None

    @property
    def is_listening(self) -> bool:
        return self._hints is not None and self._hints.connected

    async def wait_for_hints(self, timeout: float) -> dict[str, int]:
        if self._hints is None:
            await asyncio.sleep(timeout)
            return {}
        return await self._hints.receive(timeout)

    def hint(self, tasks: Sequence[Task]) -> None:
        if self._hints:
            self._hints.send((task.id, task.revision) for task in tasks)

    # --- in the writer's thread, inside its transaction ---

    def execute(self, sql: str, *params: object) -> Any:
        return self.db.execute_sql(sql, params)  # type: ignore[no-untyped-call] # peewee's stub

    def insert(self, rows: Sequence[Row]) -> list[bool]:
        # In the order of callers and request_ids, so that two processes never wait for each other.
        ordered = sorted(rows, key=lambda row: (row[1], row[2] or ""))
        columns = [list(column) for column in zip(*ordered, strict=True)]
        new = {row[0] for row in self.execute(self._bulk.insert, *columns)}
        return [row[0] in new for row in rows]

    def find_requests(self, requests: Sequence[tuple[str, str]]) -> list[Row]:
        callers, request_ids = zip(*requests, strict=True)
        cursor = self.execute(self._bulk.find_requests, list(callers), list(request_ids))
        rows: list[Row] = cursor.fetchall()
        return rows

    def save(self, changes: Sequence[Change]) -> list[bool]:
        # A trigger numbers visible changes, also those of older versions of the service. All are
        # saved by one statement, in the order of the ids, so that two processes never wait for each
        # other.
        ordered = sorted(enumerate(changes), key=lambda change: change[1].task_id)
        has_result = any(change.has_result for change in changes)
        rows = (
            (n, *(c.columns if has_result else working_values(c.columns)), c.task_id, c.version)
            for n, c in ordered
        )
        found = self.execute(self._bulk.save[has_result], *map(list, zip(*rows, strict=True)))
        numbers = {number for (number,) in found}
        return [number in numbers for number in range(len(changes))]

    def lock(self, task_ids: Sequence[str], lane: str, now: float) -> list[Row]:
        if not task_ids:
            return []
        rows = {row[0]: row for row in self.execute(self._bulk.lock, list(task_ids), lane, now)}
        return [rows[task_id] for task_id in task_ids if task_id in rows]

    def first_waiting(self, queues: Sequence[tuple[str, str]], now: float, depth: int) -> list[Row]:
        callers, models = [caller for caller, _ in queues], [model for _, model in queues]
        cursor = self.execute(self._bulk.first_waiting, callers, models, now, depth)
        rows: list[Row] = cursor.fetchall()
        return rows

    def try_lock(self) -> bool:
        cursor = self.execute("SELECT pg_try_advisory_xact_lock(%s)", self._lock_key)
        return bool(cursor.fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin, on a new connection if the old one has died; commit at the end."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.db.atomic())
            except Exception as error:
                if not is_unavailable(error):
                    raise
                drop_connection(self.db)
                self.db.connect()
                stack.enter_context(self.db.atomic())
            self.clock.compare()
            yield
