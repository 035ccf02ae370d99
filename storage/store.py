"""Where tasks are kept: the same for SQLite and PostgreSQL.

What the databases do differently stands in storage/sqlite.py and storage/postgres.py. Writes go
through one thread of the process, which does together what waits together; an acknowledged write
is on the disk.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from storage import postgres, sqlite
from storage.creation import Created, CreateLimits, Creation, Creations, Existing, LimitReached
from storage.engine import Engine, Row
from storage.errors import (
    ClaimUnknownError,
    StorageConfigError,
    StorageUnavailableError,
    translated,
)
from storage.pages import PAGE_LEAST, Key, ListFilter, keys_query, reaching, tasks_query
from storage.postgres import PostgresEngine, is_postgres
from storage.recent import MAX_BYTES, RecentTasks
from storage.rows import COLUMNS, FIXED_COLUMNS, readable, row_of, task_of
from storage.sqlite import SQLITE_PREFIX, SqliteEngine, sqlite_path
from storage.statements import CALLBACKS, IMPORTED_CALLBACKS
from storage.task import Lane, Task

PING_SECONDS = 1.0
LOCK_RETRY_SECONDS = 0.02
SENDING_RETRY_SECONDS = 0.1  # until a create of another process may have been answered
OVERDUE_SECONDS = 60.0  # overdue this long, a task is polled even if its last poll failed
_NAMES = [column.name for column in COLUMNS]
CALLER, CREATE_TIME, SETBACKS, MODEL = map(
    _NAMES.index, ("caller", "create_time", "setbacks", "model")
)
T = TypeVar("T")
Argument = TypeVar("Argument")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that waits to be sent: the `turn`-th of its caller, from 1, by creation."""

    task_id: str
    caller: str
    turn: int
    setbacks: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `limit` requests in any `seconds`, whichever process sends them; 0 is no limit."""

    name: str
    limit: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Claim:
    """What was claimed, and when more may be.

    Attributes:
        next_time: When more may be claimed, in unix seconds; infinity: once a task has ended.
        passed_over: Callers that have more to send than they may run, so that tasks of theirs wait.
        due_time: If there are such callers, when the first task of others is due.
    """

    tasks: Sequence[Task]
    next_time: float = 0.0
    passed_over: frozenset[str] = frozenset()
    due_time: float = math.inf


def _no_limit(caller: str) -> float:
    del caller
    return math.inf


@dataclass(frozen=True, slots=True)
class RunningMax:
    """How many tasks may run at the provider: in all, and of a caller; infinity is no limit."""

    in_all: float = math.inf
    of: Callable[[str], float] = _no_limit


Observe = Callable[[str, float], None]


def _unobserved(operation: str, seconds: float) -> None:
    del operation, seconds


def open_store(database_url: str, *, hints: bool = True, observe: Observe = _unobserved) -> "Store":
    """Open a database inside the event loop that uses it, and bring its tables up to date.

    Args:
        database_url: `sqlite:///file` or `postgresql://...`.
        hints: Whether replicas on PostgreSQL tell each other of changes by NOTIFY.
        observe: Told of each operation, and how many seconds it took with its wait.

    Raises:
        StorageConfigError: The URL is of no kind that is served, or another process has the file.
        StorageUnavailableError: The database cannot be reached.
    """
    if is_postgres(database_url):
        return Store(PostgresEngine(database_url, hints=hints), observe)
    return Store(SqliteEngine(_path(database_url)), observe)


def migrate(database_url: str) -> list[str]:
    """Bring a database's tables up to date; return the names of the migrations that were applied.

    Raises:
        StorageConfigError: The URL is of no kind that is served, or another process has the file.
        StorageUnavailableError: The database cannot be reached, or is too busy.
    """
    if is_postgres(database_url):
        return postgres.migrate(database_url)
    return sqlite.migrate(_path(database_url))


def _path(database_url: str) -> Path:
    path = sqlite_path(database_url)
    if path is None:
        raise StorageConfigError(
            f"DATABASE_URL must look like {SQLITE_PREFIX}generation.db or postgresql://host/name"
        )
    return path


class Store:
    """The tasks of one database."""

    def __init__(self, engine: Engine, observe: Observe = _unobserved) -> None:
        self._engine = engine
        self._observe = observe
        self._recent = RecentTasks(0 if engine.shared else MAX_BYTES)
        self._sql = engine.sql
        self._creations = Creations(engine)

    @property
    def shared(self) -> bool:
        """Whether other processes may work on the same tasks."""
        return self._engine.shared

    @property
    def hinted(self) -> bool:
        """Whether the hints of other processes are heard at this moment."""
        return self._engine.hinted

    def now(self) -> float:
        """Return the time by the clock that all processes on the database share."""
        return self._engine.now()

    async def close(self) -> None:
        """Finish the writes that wait, and close every connection."""
        await self._engine.close()

    # --- reads ---

    async def get(self, task_id: str) -> Task | None:
        """Return the newest committed snapshot of a task."""
        if (known := self._recent.get(task_id)) is not None:
            return known
        with self._observed("get"):
            row = await self._engine.get(task_id)
        if row is None:
            return None
        task = task_of(row)
        self._recent.keep([task])
        return task

    async def find_request(self, caller: str, request_id: str) -> Task | None:
        """Return the task that the caller's request_id made."""
        row = await self._one("find_request", self._sql.find_request, caller, request_id)
        return None if row is None else task_of(row)

    async def newer(self, revisions: Mapping[str, int]) -> list[Task]:
        """Return those tasks that other processes took past a revision: {task id: revision}."""
        with self._observed("newer"):
            rows = await self._engine.newer([*revisions.keys()], [*revisions.values()])
        return list(filter(None, map(readable, rows)))

    async def heard(self, timeout: float) -> dict[str, int]:
        """Wait for hints of what other processes committed: {task id: revision}.

        Empty after `timeout` seconds, and when hints may have been lost.
        """
        return await self._engine.heard(timeout)

    async def page(
        self,
        which: ListFilter,
        before: tuple[float, str] | None,
        limit: int,
        max_bytes: float = math.inf,
    ) -> list[Task]:
        """Return tasks newest first, only those older than the (create_time, id) of `before`.

        Fewer than the limit are the last: others stand in for damaged rows.

        Args:
            which: The tasks to list.
            before: The last task of the page before.
            limit: How many to return at the most.
            max_bytes: Of parameters and results. The task that exceeds them is the last one, but
                never the first, so that a page that ends early can be told from the last page.
        """
        tasks: list[Task] = []
        size = 0
        while (room := limit - len(tasks)) > 0 and (len(tasks) < PAGE_LEAST or size <= max_bytes):
            query = keys_query(self._engine.db, which, before, room)
            found = [Key(*row) for row in await self._select("page", query)]
            keys = reaching(found, max_bytes - size, PAGE_LEAST - len(tasks))
            if not keys:
                break
            rows = await self._select("page", tasks_query(which, keys))
            sizes = {key.task_id: key.size for key in keys}
            read = [task for task in map(readable, rows) if task and task.id in sizes]
            tasks += read
            size += sum(sizes[task.id] for task in read)
            if len(keys) == len(found) < room:
                break
            before = keys[-1][:2]
        self._recent.update(tasks)
        return tasks

    async def newest_ended(self, before: float, limit: int) -> list[Task]:
        """Return the tasks that ended last, newest first, of those that ended before a time."""
        rows = await self._all("newest_ended", self._sql.newest_ended, before, limit)
        return list(filter(None, map(readable, rows)))

    async def next_due_times(self) -> dict[Lane, float]:
        """Return when the first task of each lane is due, in unix seconds; infinity is never."""
        row = await self._one("next_due_times", self._sql.next_due)
        assert row is not None
        return {lane: math.inf if t is None else t for lane, t in zip(Lane, row, strict=True)}

    async def count(self, lane: Lane) -> int:
        """Return how many tasks wait in a lane."""
        row = await self._one("count", self._sql.count, lane)
        assert row is not None
        return int(row[0])

    async def queues(self) -> dict[Lane, tuple[int, float]]:
        """Return how many tasks wait in each lane, and when the first is due; infinity is never."""
        rows = await self._all("queues", self._sql.queues)
        found = {Lane(lane): (count, first) for lane, count, first in rows}
        return {lane: found.get(lane, (0, math.inf)) for lane in Lane}

    async def ping(self) -> None:
        """Raise StorageUnavailableError unless the database can be written to now."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self._write_alone(
                    "ping", lambda: self._engine.execute(self._engine.touch), _changes_no_task
                )
        except TimeoutError:
            raise StorageUnavailableError("the database is busy") from None

    # --- writes of callers and of the poller ---

    async def create(self, task: Task, limits: CreateLimits) -> Created | Existing | LimitReached:
        """Store a new task, unless the caller's request_id has one already or a limit is reached.

        The request_id comes first: a limit never refuses one that is known.
        """
        return await self._write(
            "create", self._creations.store_each, Creation(task, limits), self._note_created
        )

    async def save(self, before: Task, after: Task) -> Task | None:
        """Store the snapshot that a move made of `before`, and return it with its new version.

        None if `before` is not the present one any more.
        """
        saved = await self._write(
            "save",
            self._save_each,
            (before, after),
            lambda answer: self._note_saved(before, answer),
        )
        self._hint([saved] if saved and saved.revision > before.revision else [])
        return saved

    async def claim(
        self, lane: Lane, now: float, limit: int, move: Callable[[Task], Task], quota: Quota
    ) -> Claim:
        """Take due tasks of a lane, longest due first, and store what `move` makes of each.

        Those whose last poll failed come after the others, unless they are overdue for long: they
        leave half of the quota to tasks that can be read.

        The move must change the due time or the lane, so that nobody takes the task again
        meanwhile. Each takes a slot of the quota; those for which none is free stay.

        Raises:
            ClaimUnknownError: Perhaps it was committed.
        """
        return await self._claim("claim", lambda: self._claim_due(lane, now, limit, move, quota))

    async def claim_in_turns(
        self,
        now: float,
        *,
        room: int,
        depth: int,
        pick: Callable[[Sequence[Waiting], int], Sequence[str]],
        move: Callable[[Task], Task],
        quota: Quota,
        running_max: RunningMax = RunningMax(),
        sending_max: float = math.inf,
        admit: Callable[[Sequence[Waiting]], Sequence[Waiting]] = lambda waiting: waiting,
        closed_models: Sequence[str] = (),
    ) -> Claim:
        """Take at most `room` due tasks of the submit lane: those whose ids `pick` chooses.

        It chooses among the first `depth` of each caller that `admit` leaves, and is told how many.
        None is of a model in `closed_models`. No more are taken than may run, in all and of each
        caller, or may be sent, together with those that run already in whatever process.

        Raises:
            ClaimUnknownError: Perhaps it was committed.
        """
        claim = await self._claim(
            "claim_in_turns",
            lambda: self._claim_waiting(
                now,
                room=room,
                depth=depth,
                pick=pick,
                move=move,
                quota=quota,
                running_max=running_max,
                sending_max=sending_max,
                admit=admit,
                closed_models=closed_models,
            ),
        )
        self._hint(claim.tasks)
        return claim

    async def renew(self, tasks: Iterable[Task], due_time: float) -> list[Task]:
        """Put off the tasks that are still as they were claimed; return those."""
        return await self._write_alone(
            "renew", lambda: self._renew(tasks, due_time), self._recent.keep
        )

    async def take_slot(self, quota: Quota, now: float) -> float:
        """Take a slot of a quota; return 0, or when the next one is free."""
        taken, next_time = await self._write_alone(
            "take_slot", lambda: self._take_slots(quota, 1, now), _changes_no_task
        )
        return 0.0 if taken else next_time

    async def add_slots(self, quota: Quota) -> None:
        """Make the slots of a quota that are not there yet."""
        await self._write_alone("add_slots", lambda: self._add_slots(quota), _changes_no_task)

    async def callback_secrets(self, proposed: bytes) -> list[bytes]:
        """Return the secrets of callback URLs: the first makes them, all of them verify.

        Args:
            proposed: Kept as the first one if there is none yet. Of several processes that propose
                one at the same time, one wins.
        """
        return await self._write_alone(
            "callback_secrets", lambda: self._callback_secrets(proposed), _changes_no_task
        )

    async def release(self, now: float) -> None:
        """Make due what waits for workers that are gone: for the start of the only process."""
        await self._write_alone(
            "release", lambda: self._engine.execute(self._sql.release, now, now)
        )

    async def hasten(self, now: float) -> None:
        """Make due what an outage postponed, now that the provider answers again.

        Tasks with more than one setback wait: their polls failed while others were answered.
        """
        await self._write_alone("hasten", lambda: self._engine.execute(self._sql.hasten, now, now))

    async def purge(self, ended_before: float, limit: int) -> int:
        """Delete the oldest tasks that ended, and changed last, before a time; return how many.

        Their request_ids are forgotten. What may still be delivered late is kept.
        """
        cursor = await self._write_alone(
            "purge",
            lambda: self._engine.execute(self._sql.purge, ended_before, ended_before, limit),
        )
        return int(cursor.rowcount)

    async def cancelled(self) -> list[tuple[str, int, float]]:
        """Return each caller that cancelled tasks, how many are kept, and when the oldest ended."""
        return [
            (row[0], row[1], row[2]) for row in await self._all("cancelled", self._sql.cancelled)
        ]

    async def purge_cancelled(self, caller: str, ended_before: float, limit: int) -> int:
        """Delete the oldest cancelled tasks of a caller that ended before a time; return how many.

        Their request_ids are forgotten.
        """
        sql = self._sql.purge_cancelled
        cursor = await self._write_alone(
            "purge", lambda: self._engine.execute(sql, caller, ended_before, limit)
        )
        return int(cursor.rowcount)

    # --- in the writer's thread, inside its transaction ---

    def _save_each(self, changes: Sequence[tuple[Task, Task]]) -> list[Task | None]:
        saved = [after._replace(version=before.version + 1) for before, after in changes]
        rows = [
            (*row_of(after)[FIXED_COLUMNS:], before.id, before.version)
            for (before, _), after in zip(changes, saved, strict=True)
        ]
        found = self._engine.save(rows)
        for (before, after), there in zip(changes, found, strict=True):
            if there:
                self._creations.moved(before, after)
        return [task if there else None for task, there in zip(saved, found, strict=True)]

    def _claim_due(
        self, lane: Lane, now: float, limit: int, move: Callable[[Task], Task], quota: Quota
    ) -> Claim:
        overdue = now - OVERDUE_SECONDS
        first = self._engine.execute(self._sql.due_first, lane, now, overdue, limit).fetchall()
        taken, next_time = self._take_slots(quota, len(first), now)
        rows = first[:taken]
        if len(rows) == len(first) < limit:
            left = limit - len(first)
            last = self._engine.execute(self._sql.due_last, lane, now, overdue, left).fetchall()
            taken, next_time = self._take_slots(quota, len(last), now, spare=quota.limit // 2)
            rows += last[:taken]
        return Claim(self._moved(rows, move), next_time)

    def _claim_waiting(
        self,
        now: float,
        *,
        room: int,
        depth: int,
        pick: Callable[[Sequence[Waiting], int], Sequence[str]],
        move: Callable[[Task], Task],
        quota: Quota,
        running_max: RunningMax,
        sending_max: float,
        admit: Callable[[Sequence[Waiting]], Sequence[Waiting]],
        closed_models: Sequence[str],
    ) -> Claim:
        # One at a time: others would take slots for the very same tasks, and waste them.
        bounded = quota.limit or min(running_max.in_all, sending_max) < math.inf
        if bounded and not self._engine.try_lock():
            return Claim([], now + LOCK_RETRY_SECONDS)
        if running_max.in_all < math.inf:
            room = int(min(room, running_max.in_all - self._count(Lane.POLL)))
            if room <= 0:
                return Claim([], math.inf)
        if sending_max < math.inf and self.shared:  # another process may be sending, too
            room = int(min(room, sending_max - self._count_sending()))
            if room <= 0:
                return Claim([], now + SENDING_RETRY_SECONDS)
        due = self._sql.due_without(len(closed_models))
        rows = self._engine.execute(due, Lane.SUBMIT, now, *closed_models, room + 1).fetchall()
        few = len(rows) <= room  # then all may go, and the rows are at hand
        waiting = _in_turns(rows, depth) if few else self._waiting(now, depth, closed_models)
        may_run = self._may_run(waiting, room, running_max)
        if may_run is None:
            return Claim([], now + LOCK_RETRY_SECONDS)
        admitted = admit(may_run)
        taken, next_time = self._take_slots(quota, min(room, len(admitted)), now)
        picked = pick(admitted, taken) if taken else []
        if few:
            found = {row[0]: row for row in rows}
            claimed = [found[task_id] for task_id in picked]
        else:
            claimed = self._engine.lock(picked, Lane.SUBMIT, now)
        tasks = self._moved(claimed, move)
        if len(may_run) == len(waiting):
            return Claim(tasks, next_time)
        passed_over = frozenset(w.caller for w in {*waiting}.difference(may_run))
        more = len(tasks) < len(may_run) or len(tasks) == room
        return Claim(tasks, next_time, passed_over, now if more else self._due_after(now))

    def _may_run(
        self, waiting: Sequence[Waiting], room: int, running_max: RunningMax
    ) -> Sequence[Waiting] | None:
        """Return the tasks whose callers may run more; None if another process decides just now.

        Of each caller only so many are left that no choice of `room` tasks takes too many.
        """
        limits = {w.caller: running_max.of(w.caller) for w in waiting}
        if all(limit >= running_max.in_all for limit in limits.values()):
            return waiting
        if not self._engine.try_lock():
            return None
        running = dict(self._engine.execute(self._sql.count_callers, Lane.POLL).fetchall())
        free = {caller: limit - running.get(caller, 0) for caller, limit in limits.items()}
        return [w for w in waiting if free[w.caller] >= min(w.turn, room)]

    def _due_after(self, now: float) -> float:
        """Return when the next task that is not due yet has to be sent; infinity is never."""
        ((due_time,),) = self._engine.execute(self._sql.due_after, Lane.SUBMIT, now).fetchall()
        return math.inf if due_time is None else due_time

    def _waiting(self, now: float, depth: int, closed_models: Sequence[str]) -> Sequence[Waiting]:
        sql = self._sql.waiting_without(len(closed_models))
        rows = self._engine.execute(sql, Lane.SUBMIT, now, *closed_models, depth)
        return [Waiting(*row) for row in rows]

    def _moved(self, rows: Iterable[Row], move: Callable[[Task], Task]) -> list[Task]:
        tasks = filter(None, map(self._readable, rows))
        changes = [(task, move(task)) for task in tasks]
        return [task for task in self._save_each(changes) if task] if changes else []

    def _readable(self, row: Row) -> Task | None:
        task = readable(row)
        if task is None:  # it leaves its lane, or it would hold up the others for ever
            self._engine.execute(self._sql.set_aside, row[0])
        return task

    def _take_slots(
        self, quota: Quota, wanted: int, now: float, spare: int = 0
    ) -> tuple[int, float]:
        """Take slots; return how many, and when there are more if there were too few.

        At least `spare` free ones are left for others.
        """
        if not quota.limit or not wanted:
            return wanted, 0.0
        execute = self._engine.execute
        most = wanted + spare
        free = execute(self._sql.free_slots, quota.name, quota.limit, now, most).fetchall()
        taken = free[: max(0, len(free) - spare)]
        for (number,) in taken:
            execute(self._sql.take_slot, now + quota.seconds, quota.name, number)
        if len(taken) == wanted:
            return wanted, 0.0
        ((next_time,),) = execute(self._sql.next_slot, quota.name, quota.limit).fetchall()
        return len(taken), max(next_time, now + LOCK_RETRY_SECONDS)

    def _add_slots(self, quota: Quota) -> None:
        for number in range(quota.limit):
            self._engine.execute(self._sql.add_slot, quota.name, number)

    def _callback_secrets(self, proposed: bytes) -> list[bytes]:
        execute = self._engine.execute
        execute(self._sql.add_secret, CALLBACKS, proposed)
        found = (
            execute(self._sql.secret, name).fetchone() for name in (CALLBACKS, IMPORTED_CALLBACKS)
        )
        return [bytes(row[0]) for row in found if row]

    def _renew(self, tasks: Iterable[Task], due_time: float) -> list[Task]:
        renewed = (
            task._replace(due_time=due_time)
            for task in tasks
            if self._engine.execute(self._sql.renew, due_time, task.id, task.version).rowcount
        )
        return list(renewed)

    def _count(self, lane: Lane) -> int:
        return int(self._engine.execute(self._sql.count, lane).fetchone()[0])

    def _count_sending(self) -> int:
        return int(self._engine.execute(self._sql.count_sending).fetchone()[0])

    # --- the way to the engine ---

    def _observed(self, operation: str) -> "_Observed":
        return _Observed(self._observe, operation)

    async def _one(self, operation: str, sql: str, *params: object) -> Row | None:
        with self._observed(operation):
            return await self._engine.one(sql, *params)

    async def _all(self, operation: str, sql: str, *params: object) -> list[Row]:
        with self._observed(operation):
            return await self._engine.all(sql, *params)

    async def _select(self, operation: str, query: Any) -> list[Row]:
        sql, params = query.bind(self._engine.db).sql()
        return await self._all(operation, sql, *params)

    async def _write(
        self,
        operation: str,
        kind: Callable[[Sequence[Argument]], Sequence[T]],
        argument: Argument,
        note: Callable[[T], None],
    ) -> T:
        """Have a write done; `note` is told of its result before anybody else is."""

        def noted(answer: T | Exception) -> None:
            if isinstance(answer, Exception):
                self._recent.forget_all()
            else:
                note(answer)

        with self._observed(operation):
            return await self._engine.write(kind, argument, noted)

    async def _write_alone(
        self, operation: str, work: Callable[[], T], note: Callable[[T], None] | None = None
    ) -> T:
        """Have a write done that is of no kind; without a note it may change any task."""
        return await self._write(
            operation, lambda _: [work()], None, note or (lambda _: self._recent.forget_all())
        )

    async def _claim(self, operation: str, work: Callable[[], Claim]) -> Claim:
        """Run a claim; if its commit has no answer, say what it would have claimed."""
        attempted: list[Task] = []

        def noted() -> Claim:
            claim = work()
            attempted[:] = claim.tasks
            return claim

        try:
            return await self._write_alone(
                operation, noted, lambda claim: self._recent.keep(claim.tasks)
            )
        except StorageUnavailableError as error:
            if attempted:
                raise ClaimUnknownError(str(error), attempted) from error
            raise

    # --- what is known without reading ---

    def _note_created(self, answer: Created | Existing | LimitReached) -> None:
        if not isinstance(answer, LimitReached):
            self._recent.keep([answer.task])

    def _note_saved(self, before: Task, saved: Task | None) -> None:
        if saved is None:  # what we took for the present one is not
            self._recent.forget(before.id)
        else:
            self._recent.keep([saved])

    def _hint(self, tasks: Sequence[Task]) -> None:
        if tasks:
            self._engine.hint(tasks)


def _in_turns(rows: Iterable[Row], depth: int) -> list[Waiting]:
    """Number the first tasks of each caller by creation, as `Statements.waiting` does."""
    turns: Counter[str] = Counter()
    waiting = []
    for row in sorted(rows, key=lambda row: (row[CREATE_TIME], row[0])):
        turns[row[CALLER]] += 1
        if turns[row[CALLER]] <= depth:
            turn = turns[row[CALLER]]
            waiting.append(Waiting(row[0], row[CALLER], turn, row[SETBACKS], row[MODEL]))
    return waiting


class _Observed:
    """An operation: its errors are translated, and its time is told."""

    __slots__ = ("_observe", "_operation", "_started")

    def __init__(self, observe: Observe, operation: str) -> None:
        self._observe = observe
        self._operation = operation
        self._started = time.perf_counter()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._observe(self._operation, time.perf_counter() - self._started)
        if error is not None and (unavailable := translated(error)):
            raise unavailable from error


def _changes_no_task(answer: object) -> None:
    del answer
