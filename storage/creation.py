"""Which new tasks are stored: a known request_id is looked up first, then the limits apply.

The limits apply to all processes together. A process decides each batch by what is committed at
that moment, so several processes may exceed a limit by one batch each.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from storage.clock import SKEW_SECONDS
from storage.engine import Engine
from storage.rows import row_of, task_of
from storage.task import Lane, Task

COUNTS_SECONDS = 0.1  # how long a count is used: other processes store and send tasks, too
MINUTE_SECONDS = 60.0
CALLER, REQUEST_ID = 1, 2  # their positions in a row


@dataclass(frozen=True, slots=True)
class CreateLimits:
    """The limits that apply to a new task.

    Attributes:
        queue_max_tasks: How many tasks may wait to be sent.
        caller_queue_max_tasks: How many of them may be the caller's.
        creates_per_minute: How many tasks the caller may create in any minute; None means no limit.
    """

    queue_max_tasks: int
    caller_queue_max_tasks: float = math.inf
    creates_per_minute: int | None = None

    @property
    def queue_room(self) -> float:
        """How many tasks may wait before a new one may be too many."""
        return min(self.queue_max_tasks, self.caller_queue_max_tasks)


@dataclass(frozen=True, slots=True)
class Creation:
    """A task to be stored if the limits allow it."""

    task: Task
    limits: CreateLimits

    @property
    def request(self) -> tuple[str, str]:
        """The caller and the request_id, which may be empty."""
        return self.task.caller, self.task.request_id


@dataclass(frozen=True, slots=True)
class Created:
    """The task was stored."""

    task: Task


@dataclass(frozen=True, slots=True)
class Existing:
    """The caller's request_id was known already, with this task."""

    task: Task


@dataclass(frozen=True, slots=True)
class LimitReached:
    """A limit is reached; nothing was stored.

    Attributes:
        limit: `queue` or `creates_per_minute`.
        max: How many tasks the limit allows.
        scope: Whose limit it is: `caller` or `service`.
        retry_seconds: After how long the next task fits, if known.
    """

    limit: str
    max: int
    scope: str
    retry_seconds: float | None = None


CreateResult = Created | Existing | LimitReached


class Creations:
    """Stores new tasks, in the writer's thread, inside its transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting = _Waiting(engine)
        self._last_minute = _LastMinute(engine)

    def store_each(self, creations: Sequence[Creation]) -> list[CreateResult]:
        """Store the tasks that the limits allow, in their order; return a result for each."""
        refusals = self._refusals(creations)
        admitted = [c for c, refusal in zip(creations, refusals, strict=True) if refusal is None]
        stored = self._engine.insert([row_of(c.task) for c in admitted]) if admitted else []
        new = {c.task.id for c, is_new in zip(admitted, stored, strict=True) if is_new}
        self._waiting.add(c.task.caller for c in admitted if c.task.id in new)
        earlier = self._earlier([c for c in admitted if c.task.id not in new])

        def result(creation: Creation) -> CreateResult:
            if creation.task.id in new:
                return Created(creation.task)
            if creation.request in earlier:
                return Existing(earlier[creation.request])
            return self.store_each([creation])[0]  # another process purged the earlier task

        return [refusal or result(c) for c, refusal in zip(creations, refusals, strict=True)]

    def check_each(self, creations: Sequence[Creation]) -> list[Existing | LimitReached | None]:
        """Return for each task what would prevent storing it, regardless of the others."""
        return [self._check(creation) for creation in creations]

    def _check(self, creation: Creation) -> Existing | LimitReached | None:
        if earlier := self._earlier([creation]):
            return Existing(earlier[creation.request])
        return self._refusals([creation])[0]

    def moved(self, before: Task, after: Task) -> None:
        """Count a task that left the queue or returned to it."""
        if before.stage is not after.stage:
            self._waiting.moved(before, after)

    def _refusals(self, creations: Sequence[Creation]) -> list[LimitReached | None]:
        """Return for each creation the limit that it would exceed, or None."""
        total = self._waiting.count()
        room = min(c.limits.queue_room for c in creations) - len(creations)
        created = self._last_minute.counts(creations)
        if total <= room and not created:
            return [None] * len(creations)
        waiting = self._waiting.count_callers() if total > room else {}
        refusals = _refusals(creations, _Taken(total, waiting, created))
        if any(refusals) and (known := self._earlier(creations)):
            # A known request_id needs no room: neither it nor others are refused because of it.
            refusals = _refusals(creations, _Taken(total, waiting, created), known)
        return refusals

    def _earlier(self, creations: Iterable[Creation]) -> dict[tuple[str, str], Task]:
        """Return the existing tasks that have the request_ids of these creations."""
        requests = {c.request for c in creations if c.task.request_id}
        rows = self._engine.find_requests(sorted(requests)) if requests else []
        known = self._engine.sql.known
        return {(row[CALLER], row[REQUEST_ID]): task_of(row, known) for row in rows}


class _Waiting:
    """How many tasks wait to be sent.

    Those of each caller are counted only while a limit is near, and at most ten times a second. In
    between, this process adds what it stores and sends itself.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._callers: Counter[str] = Counter()
        self._counted = -math.inf

    def count(self) -> int:
        """Return how many wait in all."""
        return int(self._engine.execute(self._engine.sql.counts.lane, Lane.SUBMIT).fetchone()[0])

    def count_callers(self) -> Mapping[str, int]:
        """Return how many of each caller wait."""
        if time.monotonic() - self._counted >= COUNTS_SECONDS:
            rows = self._engine.execute(self._engine.sql.counts.waiting_of_callers).fetchall()
            self._callers = Counter(dict(rows))
            self._counted = time.monotonic()
        return self._callers

    def add(self, callers: Iterable[str]) -> None:
        self._callers.update(callers)

    def moved(self, before: Task, after: Task) -> None:
        self._callers[before.caller] += (after.lane is Lane.SUBMIT) - (before.lane is Lane.SUBMIT)


@dataclass(frozen=True, slots=True)
class _Minute:
    """How many tasks a caller created within the last minute, and when the next one is allowed."""

    tasks: int
    free_time: float


class _LastMinute:
    """How many tasks callers with such a limit created within the last minute.

    While a caller is known to be at its limit, its tasks are not counted again.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._full: dict[str, _Minute] = {}

    def counts(self, creations: Iterable[Creation]) -> Mapping[str, _Minute]:
        return {
            c.task.caller: self._count(c.task.caller, c.limits.creates_per_minute, c.task)
            for c in {c.task.caller: c for c in creations}.values()
            if c.limits.creates_per_minute is not None
        }

    def _count(self, caller: str, limit: int, task: Task) -> _Minute:
        now = task.create_time
        full = self._full.get(caller)
        # After the clock was set back, tasks seem to come from the future: they do not count.
        latest = now + SKEW_SECONDS
        if full and full.tasks >= limit and now < full.free_time <= latest + MINUTE_SECONDS:
            return full
        execute, sql = self._engine.execute, self._engine.sql
        since = now - MINUTE_SECONDS
        ((tasks,),) = execute(sql.counts.created_since, caller, latest, since).fetchall()
        if not tasks:
            return _Minute(0, now + MINUTE_SECONDS)
        # The oldest of the last `limit` tasks: once it is a minute old, one more is allowed.
        ((oldest,),) = execute(
            sql.counts.nth_newest, caller, latest, min(tasks, limit) - 1
        ).fetchall()
        minute = _Minute(tasks, oldest + MINUTE_SECONDS)
        if tasks >= limit:
            self._full[caller] = minute
        return minute


class _Taken:
    """How much of the limits is used, while a batch is decided."""

    def __init__(
        self, total: int, waiting: Mapping[str, int], created: Mapping[str, _Minute]
    ) -> None:
        self._total = total
        self._waiting = waiting
        self._created = created
        self._admitted: Counter[str] = Counter()

    def admit(self, creation: Creation) -> LimitReached | None:
        """Reserve room for a task, or return the limit that it would exceed."""
        caller, limits = creation.task.caller, creation.limits
        admitted = self._admitted[caller]
        if self._waiting.get(caller, 0) + admitted >= limits.caller_queue_max_tasks:
            return LimitReached("queue", int(limits.caller_queue_max_tasks), "caller")
        if self._total + self._admitted.total() >= limits.queue_max_tasks:
            return LimitReached("queue", limits.queue_max_tasks, "service")
        if (per_minute := limits.creates_per_minute) is not None:
            minute = self._created[caller]
            if minute.tasks + admitted >= per_minute:
                wait = minute.free_time - creation.task.create_time
                return LimitReached("creates_per_minute", per_minute, "caller", wait)
        self._admitted[caller] += 1
        return None


def _refusals(
    creations: Iterable[Creation], taken: _Taken, known: Iterable[tuple[str, str]] = ()
) -> list[LimitReached | None]:
    found = set(known)

    def refusal(creation: Creation) -> LimitReached | None:
        if creation.request in found:
            return None
        reached = taken.admit(creation)
        if reached is None and creation.task.request_id:
            found.add(creation.request)  # a repetition in this batch needs no room either
        return reached

    return [refusal(creation) for creation in creations]
