"""Where tasks are kept: SQLite through Peewee.

Writes go through one thread that commits them in groups; an acknowledged write is on the disk. A
read of one row is done on the event loop, where it costs a tenth of a thread hop; reads of many
rows have a thread of their own.

The hot statements are printed by Peewee once, and then run as text: building one costs more than
running it.

    StorageError                 (base)
      StorageUnavailableError    the database is away; nothing was written, try again later
      StorageConfigError         the database cannot be opened as it is configured
"""

import asyncio
import fcntl
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

from peewee import (
    SQL,
    DatabaseError,
    DataError,
    Expression,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
    Select,
    SqliteDatabase,
    Tuple,
    fn,
)
from playhouse.migrations import Runner

from storage.schema import TaskRow
from storage.task import Artifact, Failure, Lane, Stage, Status, Task
from storage.writer import GroupWriter

SQLITE_PREFIX = "sqlite:///"
SQLITE_MAGIC = b"SQLite format 3\0"
BUSY_TIMEOUT_SECONDS = 5
PING_SECONDS = 1.0
TOUCH = "PRAGMA user_version = 1"  # the least that needs room on the disk
MIGRATIONS = Path(__file__).parent / "migrations"

T = TypeVar("T")

logger = logging.getLogger(__name__)


class StorageError(Exception):
    """Base of what goes wrong with the store."""


class StorageUnavailableError(StorageError):
    """The database is away, full or locked. Nothing was written."""


class StorageConfigError(StorageError):
    """The database cannot be opened as it is configured."""


@dataclass(frozen=True, slots=True)
class Created:
    """The task was stored."""

    task: Task


@dataclass(frozen=True, slots=True)
class Existing:
    """The caller's request_id was there already, with this task."""

    task: Task


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that waits to be sent: the `turn`-th of its caller, from 1, by creation."""

    task_id: str
    caller: str
    turn: int
    setbacks: int


@dataclass(frozen=True, slots=True)
class QueueFull:
    """Too many tasks wait to be sent; nothing was stored."""


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Which tasks of a caller to list; an unset filter takes any."""

    caller: str
    prompt_id: str = ""
    status: Status | None = None


def sqlite_path(database_url: str) -> Path | None:
    """Return the file that a URL names; None if it names none."""
    path = database_url.removeprefix(SQLITE_PREFIX)
    return None if path in {database_url, "", ":memory:"} else Path(path)


class Store:
    """The tasks of one database. Open it inside the event loop that uses it."""

    def __init__(self, path: Path) -> None:
        self._lock = _lock_file(path)
        self._reads = _sqlite(path, query_only=1)
        self._writes = _sqlite(path)
        try:
            self._prepare()
        except BaseException:
            self._close_files()
            raise
        self._sql = _Statements(self._writes)
        self._writer = GroupWriter(self._writes)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")

    @classmethod
    def open(cls, database_url: str) -> "Store":
        """Open a database, bring its tables up to date, and keep other processes out.

        Raises:
            StorageConfigError: The URL is of no kind that is served, or another process has the
                database.
            StorageUnavailableError: The file cannot be opened.
        """
        path = sqlite_path(database_url)
        if path is None:
            raise StorageConfigError(f"DATABASE_URL must look like {SQLITE_PREFIX}generation.db")
        return cls(path)

    async def close(self) -> None:
        """Finish the writes that wait, and close every connection."""
        await self._writer.close()
        await asyncio.get_running_loop().run_in_executor(self._reader, self._reads.close)
        self._reader.shutdown()
        self._close_files()

    def _prepare(self) -> None:
        with _storage_errors():
            Runner(self._writes, str(MIGRATIONS)).up()
            self._writes.close()
            self._reads.connect()

    def _close_files(self) -> None:
        """Close this thread's connections, then let other processes in."""
        self._writes.close()
        self._reads.close()
        self._lock.close()

    # --- reads ---

    def get(self, task_id: str) -> Task | None:
        """Return the newest committed snapshot of a task."""
        return self._one(self._sql.get, task_id)

    def find_request(self, caller: str, request_id: str) -> Task | None:
        """Return the task that the caller's request_id made."""
        return self._one(self._sql.find_request, caller, request_id)

    async def ping(self) -> None:
        """Raise StorageUnavailableError unless the database can be written to now."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self._write(lambda: self._writes.execute_sql(TOUCH))
        except TimeoutError:
            raise StorageUnavailableError("the database is busy") from None

    async def page(
        self, which: ListFilter, before: tuple[float, str] | None, limit: int
    ) -> list[Task]:
        """Return tasks newest first, only those older than the (create_time, id) of `before`.

        Fewer than the limit are the last: others stand in for damaged rows.
        """
        tasks: list[Task] = []
        while (room := limit - len(tasks)) > 0:
            rows = await self._read_many(_page_query(which, before, room))
            tasks += filter(None, map(_readable, rows))
            if len(rows) < room:
                break
            task_id, *_, create_time = rows[-1][:_FIXED_COLUMNS]
            before = create_time, task_id
        return tasks

    def next_due_time(self, lane: Lane) -> float | None:
        """Return when the first task of a lane is due, in unix seconds."""
        due_time: float | None = self._scalar(self._sql.next_due, lane)
        return due_time

    def count(self, lane: Lane) -> int:
        """Return how many tasks wait in a lane."""
        return int(self._scalar(self._sql.count, lane))

    async def recent_submit_times(self, since: float) -> list[float]:
        """Return when tasks were sent to the provider after `since`, oldest first."""
        query = (
            TaskRow.select(TaskRow.submit_time)
            .where(TaskRow.submit_time > since)
            .order_by(TaskRow.submit_time)
        )
        return [row[0] for row in await self._read_many(query)]

    # --- writes ---

    async def create(self, task: Task, queue_max_tasks: int) -> Created | Existing | QueueFull:
        """Store a new task, unless the caller's request_id has one already or too many wait."""
        return await self._write(lambda: self._create(task, queue_max_tasks))

    async def save(self, before: Task, after: Task) -> Task | None:
        """Store the snapshot that a move made of `before`, and return it with its new version.

        None if `before` is not the present one any more.
        """
        return await self._write(lambda: self._save(before, after))

    async def claim(
        self, lane: Lane, now: float, limit: int, move: Callable[[Task], Task]
    ) -> list[Task]:
        """Take due tasks of a lane, longest due first, and store what `move` makes of each.

        The move must change the due time or the lane, so that nobody takes the task again
        meanwhile.
        """
        return await self._write(lambda: self._claim(self._due(lane, now, limit), move))

    async def claim_in_turns(
        self,
        now: float,
        depth: int,
        pick: Callable[[Sequence[Waiting]], Sequence[str]],
        move: Callable[[Task], Task],
    ) -> list[Task]:
        """Take due tasks of the submit lane: those whose ids `pick` chooses.

        It chooses among the first `depth` of each caller.
        """
        return await self._write(
            lambda: self._claim(self._picked(pick(self._waiting(now, depth))), move)
        )

    async def release(self, now: float) -> None:
        """Make due what waits for workers that are gone: for the start of the only process."""
        await self._write(lambda: self._writes.execute_sql(self._sql.release, (now, now)))

    async def hasten(self, now: float) -> None:
        """Make due what is polled and had setbacks: the provider answers again."""
        await self._write(lambda: self._writes.execute_sql(self._sql.hasten, (now, now)))

    # --- in the writer's thread, inside its transaction ---

    def _create(self, task: Task, queue_max_tasks: int) -> Created | Existing | QueueFull:
        execute: Any = self._writes.execute_sql
        if task.request_id:
            row = execute(self._sql.find_request, (task.caller, task.request_id)).fetchone()
            if row is not None:
                return Existing(_task(row))
        if execute(self._sql.count, (Lane.SUBMIT,)).fetchone()[0] >= queue_max_tasks:
            return QueueFull()
        execute(self._sql.insert, _row(task))
        return Created(task)

    def _save(self, before: Task, after: Task) -> Task | None:
        saved = replace(after, version=before.version + 1)
        values = (*_row(saved)[_FIXED_COLUMNS:], before.id, before.version)
        return saved if self._writes.execute_sql(self._sql.save, values).rowcount else None

    def _claim(self, rows: Iterable[Any], move: Callable[[Task], Task]) -> list[Task]:
        claimed = (self._moved(row, move) for row in rows)
        return list(filter(None, claimed))

    def _moved(self, row: Any, move: Callable[[Task], Task]) -> Task | None:
        task = _readable(row)
        if task is None:  # it leaves its lane, or it would hold up the others for ever
            self._writes.execute_sql(self._sql.set_aside, (row[0],))
            return None
        return self._save(task, move(task))

    def _due(self, lane: Lane, now: float, limit: int) -> list[Any]:
        rows: list[Any] = self._writes.execute_sql(self._sql.due, (lane, now, limit)).fetchall()
        return rows

    def _waiting(self, now: float, depth: int) -> list[Waiting]:
        rows = self._writes.execute_sql(self._sql.waiting, (Lane.SUBMIT, now, depth))
        return [Waiting(*row) for row in rows]

    def _picked(self, task_ids: Sequence[str]) -> list[Any]:
        execute: Any = self._writes.execute_sql
        return [execute(self._sql.get, (task_id,)).fetchone() for task_id in task_ids]

    # --- threads ---

    async def _write(self, work: Callable[[], T]) -> T:
        with _storage_errors():
            return await self._writer.run(work)

    async def _in_reader(self, work: Callable[[], T]) -> T:
        def connected() -> T:
            self._reads.connect(reuse_if_open=True)
            return work()

        with _storage_errors():
            return await asyncio.get_running_loop().run_in_executor(self._reader, connected)

    async def _read_many(self, query: Any) -> list[Any]:
        sql, params = query.bind(self._reads).sql()
        return await self._in_reader(lambda: self._reads.execute_sql(sql, params).fetchall())

    def _one(self, sql: str, *params: object) -> Task | None:
        with _storage_errors():
            row = self._reads.execute_sql(sql, params).fetchone()
        return None if row is None else _task(row)

    def _scalar(self, sql: str, *params: object) -> Any:
        with _storage_errors():
            return self._reads.execute_sql(sql, params).fetchone()[0]


_COLUMNS = tuple(TaskRow._meta.sorted_fields)  # noqa: SLF001 - Peewee's documented way
_FIXED_COLUMNS = 7  # the first ones, up to create_time, never change


class _Statements:
    """The hot statements as text, printed by Peewee for one kind of database."""

    def __init__(self, db: SqliteDatabase) -> None:
        def text(query: Any) -> str:
            return str(query.bind(db).sql()[0])

        arg = SQL(db.param)
        row = TaskRow
        present = (row.id == arg) & (row.version == arg)
        due = (row.lane == arg) & (row.due_time <= arg)
        waits = row.lane.in_([SQL(f"'{Lane.SUBMIT}'"), SQL(f"'{Lane.POLL}'")])
        select = row.select(*_COLUMNS)
        self.get = text(select.where(row.id == arg))
        self.find_request = text(select.where(row.caller == arg, row.request_id == arg))
        self.due = text(select.where(due).order_by(row.due_time).limit(arg))
        turn = fn.ROW_NUMBER().over(partition_by=[row.caller], order_by=[row.create_time, row.id])
        ranked = row.select(row.id, row.caller, turn.alias("turn"), row.setbacks).where(due)
        waiting = ranked.alias("waiting")
        each = (waiting.c.id, waiting.c.caller, waiting.c.turn, waiting.c.setbacks)
        self.waiting = text(Select([waiting], each).where(waiting.c.turn <= arg))
        self.next_due = text(row.select(fn.MIN(row.due_time)).where(row.lane == arg))
        self.count = text(row.select(fn.COUNT(SQL("*"))).where(row.lane == arg))
        self.insert = text(row.insert_many([[arg] * len(_COLUMNS)], fields=_COLUMNS))
        self.save = text(row.update(dict.fromkeys(_COLUMNS[_FIXED_COLUMNS:], arg)).where(present))
        self.set_aside = text(row.update({row.lane: SQL("NULL")}).where(row.id == arg))
        hurry = {row.due_time: arg, row.version: row.version + SQL("1")}
        later = (row.due_time > arg) & row.unknown_time.is_null()
        self.release = text(row.update(hurry).where(waits, later))
        polled = (row.lane == SQL(f"'{Lane.POLL}'")) & (row.setbacks > SQL("0"))
        self.hasten = text(row.update(hurry).where(polled, later))


def _page_query(which: ListFilter, before: tuple[float, str] | None, limit: int) -> Any:
    newest_first = (TaskRow.create_time.desc(), TaskRow.id.desc())
    where = _list_conditions(which, before)
    return TaskRow.select(*_COLUMNS).where(*where).order_by(*newest_first).limit(limit)


def _list_conditions(which: ListFilter, before: tuple[float, str] | None) -> Iterator[Expression]:
    yield TaskRow.caller == which.caller
    if which.prompt_id:
        yield TaskRow.prompt_id == which.prompt_id
    if which.status:
        yield TaskRow.status == which.status.value
    if before:
        yield Tuple(TaskRow.create_time, TaskRow.id) < before


def _row(task: Task) -> tuple[object, ...]:
    """Return a task's columns, in the order of the table."""
    failure = task.failure
    return (
        task.id,
        task.caller,
        task.request_id or None,
        task.prompt_id,
        task.model,
        task.params,
        task.create_time,
        task.update_time,
        task.lane,
        task.due_time,
        task.status,
        task.stage,
        task.revision,
        task.progress_percent,
        json.dumps([(a.url, a.mime_type) for a in task.artifacts]) if task.artifacts else "[]",
        task.result_json,
        failure and failure.reason,
        failure and failure.message,
        failure and failure.provider_code,
        task.provider_task_id,
        task.credits_consumed,
        task.complete_time,
        task.submit_time,
        task.accept_time,
        task.unknown_time,
        task.hinted_id,
        task.setbacks,
        task.version,
    )


def _task(row: Sequence[Any]) -> Task:
    """Build a task from its columns, in the order of the table."""
    (task_id, caller, request_id, prompt_id, model, params, create_time, update_time, _lane,
     due_time, status, stage, revision, progress_percent, artifacts, result_json, failure_reason,
     failure_message, failure_code, provider_task_id, credits_consumed, complete_time,
     submit_time, accept_time, unknown_time, hinted_id, setbacks, version) = row  # fmt: skip
    return Task(
        id=task_id,
        caller=caller,
        request_id=request_id or "",
        prompt_id=prompt_id,
        model=model,
        params=bytes(params),
        create_time=create_time,
        update_time=update_time,
        due_time=due_time,
        status=Status(status),
        stage=stage and Stage(stage),
        revision=revision,
        progress_percent=progress_percent,
        artifacts=_artifacts(artifacts),
        result_json=result_json,
        failure=failure_reason and Failure(failure_reason, failure_message, failure_code),
        provider_task_id=provider_task_id,
        credits_consumed=credits_consumed,
        complete_time=complete_time,
        submit_time=submit_time,
        accept_time=accept_time,
        unknown_time=unknown_time,
        hinted_id=hinted_id,
        setbacks=setbacks,
        version=version,
    )


def _readable(row: Sequence[Any]) -> Task | None:
    """Return the task of a row, or None if the row is damaged."""
    try:
        return _task(row)
    except (TypeError, ValueError):
        logger.exception("a row is damaged", extra={"task_id": row[0]})
        return None


def _artifacts(text: str) -> tuple[Artifact, ...]:
    return () if text == "[]" else tuple(Artifact(*item) for item in json.loads(text))


class _Sqlite(SqliteDatabase):
    def rollback(self) -> None:
        """Roll back, unless SQLite did so by itself, as it does when the disk is full.

        The complaint about the second time would hide the error.
        """
        if self.connection().in_transaction:  # type: ignore[no-untyped-call] # peewee's stub
            super().rollback()


def _sqlite(path: Path, **pragmas: int) -> SqliteDatabase:
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


def _lock_file(path: Path) -> TextIO:
    """Keep other processes off the database, and other users: it holds prompts.

    Two pollers on one file would each believe to be alone.
    """
    try:
        if path.exists() and not _is_sqlite(path):
            raise StorageConfigError(f"{path} is no SQLite database")
        path.touch(mode=0o600)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise StorageUnavailableError(f"cannot open {path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StorageConfigError(f"{path} is in use by another process of this service") from None
    return lock


# What the driver raises for our own mistakes, and not because the database is away.
_BUGS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Translate the driver's errors; here, and nowhere else."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        if isinstance(error, _BUGS):
            raise
        raise StorageUnavailableError(f"{type(error).__name__}: {error}") from error
