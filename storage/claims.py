"""Claims: which due tasks are taken, within the limits and the quotas that all processes share.

All of this runs in the writer's thread, inside its transaction.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from storage.clock import SKEW_SECONDS
from storage.engine import Engine, Row
from storage.rows import COLUMNS, readable
from storage.task import Lane, Task

LOCK_RETRY_SECONDS = 0.02
SENDING_RETRY_SECONDS = 0.1  # by then a create of another process may have been answered
FEW_TASKS = 64  # if no more tasks wait, all are read and locked before the choice among them
OVERDUE_SECONDS = 60.0  # overdue this long, a task is polled even if its last poll failed
UNREADABLE_SECONDS = 3_600.0  # after this, a row that cannot be read is looked at again
# A newer version's task that is overdue this long does not count: that version no longer runs.
LEFT_SECONDS = 300.0

Move = Callable[[Task], Task]
SaveEach = Callable[[Sequence[tuple[Task, Task]]], Sequence[Task | None]]

_NAMES = [column.name for column in COLUMNS]
SETBACKS, DUE_TIME = _NAMES.index("setbacks"), _NAMES.index("due_time")
# The columns of a row that `_numbered` needs, in its order.
_waiting_columns = itemgetter(
    *map(_NAMES.index, ("id", "caller", "create_time", "setbacks", "model"))
)


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
    """At most `limit` requests in any `seconds`, over all processes; 0 means no limit."""

    name: str
    limit: int
    seconds: float


def _no_limit(caller: str) -> float:
    del caller
    return math.inf


@dataclass(frozen=True, slots=True)
class RunningMax:
    """How many tasks may run at the provider: in all, and of a caller; infinity means no limit."""

    in_all: float = math.inf
    of: Callable[[str], float] = _no_limit


def _admit_all(waiting: Sequence[Waiting]) -> Sequence[Waiting]:
    return waiting


@dataclass(frozen=True, slots=True)
class Sending:
    """What a claim may take to be sent.

    Attributes:
        room: How many tasks at most.
        depth: How many waiting tasks of each caller are considered, the oldest first.
        pick: Returns the ids of the tasks to take, given the candidates and how many it may choose.
        move: Returns the snapshot to store for a task that is taken.
        quota: Each task takes a slot of it.
        running_max: How many tasks may run, whichever process sent them.
        sending_max: How many may be sent at the same time by all processes.
        admit: Returns the waiting tasks that may be candidates.
        closed_models: Models of which no task may be taken.
    """

    room: int
    depth: int
    pick: Callable[[Sequence[Waiting], int], Sequence[str]]
    move: Move
    quota: Quota
    running_max: RunningMax = RunningMax()
    sending_max: float = math.inf
    admit: Callable[[Sequence[Waiting]], Sequence[Waiting]] = _admit_all
    closed_models: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What was claimed, and when more may be.

    Attributes:
        next_time: When more may be claimed, in unix seconds; infinity: once a task has ended.
        passed_over: Callers at their limit of running tasks, whose other tasks wait.
        due_time: If there are such callers, when the first task of others is due.
    """

    tasks: Sequence[Task]
    next_time: float = 0.0
    passed_over: frozenset[str] = frozenset()
    due_time: float = math.inf


class Slots:
    """The slots of quotas: rows that all processes share."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, quotas: Sequence[Quota]) -> Sequence[None]:
        """Make those slots of quotas that do not exist yet."""
        for quota in quotas:
            for number in range(quota.limit):
                self._engine.execute(self._engine.sql.slots.add, quota.name, number)
        return [None] * len(quotas)

    def take(self, quota: Quota, wanted: int, now: float, spare: int = 0) -> tuple[int, float]:
        """Take slots, but leave `spare` free ones to others.

        A slot that is taken for longer than its window was taken before the clock was set back: it
        is free. Return how many were taken and, if they were too few, when there are more.
        """
        if not quota.limit or not wanted:
            return wanted, 0.0
        execute, sql = self._engine.execute, self._engine.sql
        latest = now + quota.seconds + SKEW_SECONDS
        free = execute(
            sql.slots.free, quota.name, quota.limit, now, latest, wanted + spare
        ).fetchall()
        taken = free[: max(0, len(free) - spare)]
        for (number,) in taken:
            execute(sql.slots.take, now + quota.seconds, quota.name, number)
        if len(taken) == wanted:
            return wanted, 0.0
        ((next_time,),) = execute(sql.slots.next_free, quota.name, quota.limit).fetchall()
        return len(taken), min(max(next_time, now + LOCK_RETRY_SECONDS), latest)


class Claims:
    """Takes due tasks, and stores what a move makes of each."""

    def __init__(self, engine: Engine, slots: Slots, save_each: SaveEach) -> None:
        self._engine = engine
        self._sql = engine.sql
        self._slots = slots
        self._save_each = save_each

    def due_each(self, requests: Sequence[tuple[Lane, float, int, Move, Quota]]) -> list[Claim]:
        """Make claims as `Store.claim` describes them: (lane, now, limit, move, quota)."""
        claims = []
        for lane, now, limit, move, quota in requests:
            overdue = now - OVERDUE_SECONDS
            rows = self._engine.execute(self._sql.claims.due, lane, now, limit).fetchall()
            first = [row for row in rows if not row[SETBACKS] or row[DUE_TIME] <= overdue]
            last = [row for row in rows if row[SETBACKS] and row[DUE_TIME] > overdue]
            if last and len(rows) == limit:  # more tasks without setbacks may be due
                sql = self._sql.claims.due_first
                first = self._engine.execute(sql, lane, now, overdue, limit).fetchall()
                last = last[: limit - len(first)]
            taken, next_time = self._slots.take(quota, len(first), now)
            claimed = first[:taken]
            if taken == len(first) and last:
                taken, next_time = self._slots.take(quota, len(last), now, quota.limit // 2)
                claimed += last[:taken]
            claims.append(Claim(self._moved(claimed, move, now), next_time))
        return claims

    def in_turns_each(self, requests: Sequence[tuple[float, Sending]]) -> list[Claim]:
        """Make claims as `Store.claim_in_turns` describes them: (now, sending)."""
        return [self._in_turns(now, sending) for now, sending in requests]

    def _in_turns(self, now: float, sending: Sending) -> Claim:
        limits = (sending.running_max.in_all, sending.sending_max, sending.quota.limit or math.inf)
        # One process at a time: two would take slots for the same tasks, and waste half of them.
        if min(limits) < math.inf and not self._engine.try_lock():
            return Claim([], now + LOCK_RETRY_SECONDS)
        room, retry_time = self._room(now, sending)
        if retry_time:
            return Claim([], retry_time)
        waiting, rows = self._waiting(now, room, sending)
        may_run = self._may_run(waiting, room, sending.running_max, now)
        if may_run is None:
            return Claim([], now + LOCK_RETRY_SECONDS)
        candidates = sending.admit(may_run)
        taken, next_time = self._slots.take(sending.quota, min(room, len(candidates)), now)
        picked = sending.pick(candidates, taken) if taken else []
        if rows is None:
            claimed = self._engine.lock(picked, Lane.SUBMIT, now)
        else:
            claimed = [rows[task_id] for task_id in picked]
        tasks = self._moved(claimed, sending.move, now)
        if len(may_run) == len(waiting):
            return Claim(tasks, next_time)
        passed_over = frozenset(w.caller for w in {*waiting}.difference(may_run))
        more = len(tasks) < len(may_run) or len(tasks) == room
        return Claim(tasks, next_time, passed_over, now if more else self._due_after(now))

    def _room(self, now: float, sending: Sending) -> tuple[int, float]:
        """Return how many tasks may be taken; if a limit leaves no room, also when to try again."""
        room: float = sending.room
        if sending.running_max.in_all < math.inf:
            running = self._number(self._sql.counts.running, now - LEFT_SECONDS)
            room = min(room, sending.running_max.in_all - running)
            if room <= 0:
                return 0, math.inf
        if sending.sending_max < math.inf and self._engine.shared:  # others may be sending, too
            sent = self._number(self._sql.counts.sending, now - LEFT_SECONDS)
            room = min(room, sending.sending_max - sent)
            if room <= 0:
                return 0, now + SENDING_RETRY_SECONDS
        return int(room), 0.0

    def _number(self, sql: str, *params: object) -> int:
        return int(self._engine.execute(sql, *params).fetchone()[0])

    def _waiting(
        self, now: float, room: int, sending: Sending
    ) -> tuple[Sequence[Waiting], dict[str, Row] | None]:
        """Return the waiting tasks to consider; if all are few, also their rows."""
        if not sending.closed_models:
            few = min(room, FEW_TASKS)
            rows = self._engine.execute(self._sql.claims.due, Lane.SUBMIT, now, few + 1).fetchall()
            if len(rows) <= few:
                waiting = _numbered(map(_waiting_columns, rows), sending.depth)
                return waiting, {row[0]: row for row in rows}
        queues = self._engine.execute(self._sql.claims.waiting_queues).fetchall()
        queues = [queue for queue in queues if queue[1] not in sending.closed_models]
        keys = self._engine.first_waiting(queues, now, sending.depth)
        return _numbered(keys, sending.depth), None

    def _may_run(
        self, waiting: Sequence[Waiting], room: int, running_max: RunningMax, now: float
    ) -> Sequence[Waiting] | None:
        """Return the tasks whose callers may run more; None if another process is deciding.

        So few remain of each caller that no choice of `room` tasks exceeds its limit.
        """
        limits = {w.caller: running_max.of(w.caller) for w in waiting}
        if all(limit >= running_max.in_all for limit in limits.values()):
            return waiting
        if not self._engine.try_lock():
            return None
        sql = self._sql.counts.running_of_callers
        running = dict(self._engine.execute(sql, now - LEFT_SECONDS).fetchall())
        free = {caller: limit - running.get(caller, 0) for caller, limit in limits.items()}
        return [w for w in waiting if free[w.caller] >= min(w.turn, room)]

    def _due_after(self, now: float) -> float:
        """Return when the next task that is not due yet has to be sent; infinity is never."""
        sql = self._sql.lanes.due_after
        due_time: float | None = self._engine.execute(sql, Lane.SUBMIT, now).fetchone()[0]
        return math.inf if due_time is None else due_time

    def _moved(self, rows: Iterable[Row], move: Move, now: float) -> list[Task]:
        tasks = filter(None, (self._readable(row, now) for row in rows))
        changes = [(task, move(task)) for task in tasks]
        return [task for task in self._save_each(changes) if task] if changes else []

    def _readable(self, row: Row, now: float) -> Task | None:
        task = readable(row, self._sql.known)
        if task is None:  # it would block the lane, but a newer version may be able to read it
            self._engine.execute(self._sql.tasks.postpone, now + UNREADABLE_SECONDS, row[0])
        return task


def _numbered(keys: Iterable[Row], depth: int) -> list[Waiting]:
    """Number the first tasks of each caller by creation.

    Args:
        keys: (id, caller, create_time, setbacks, model) of each task.
        depth: How many tasks of each caller to return.
    """
    turns: Counter[str] = Counter()
    waiting = []
    for task_id, caller, _, setbacks, model in sorted(keys, key=lambda key: (key[2], key[0])):
        turns[caller] += 1
        if turns[caller] <= depth:
            waiting.append(Waiting(task_id, caller, turns[caller], setbacks, model))
    return waiting
