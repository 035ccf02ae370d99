"""What is read of the tasks, on other connections than that of the thread that writes."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from storage.changes import ChangePage, Changes, Position
from storage.clock import SKEW_SECONDS
from storage.engine import Engine, Row
from storage.known import Known
from storage.models import StoredModel, Success, model_of
from storage.observed import Observe, Observed
from storage.pages import ListFilter, read_page
from storage.recent import MAX_BYTES, RecentTasks
from storage.rows import readable, task_of
from storage.statements import ACCOUNT
from storage.task import Lane, Task

UNKNOWN_LANE = "unknown"


class Reads:
    """Reads the tasks of one database."""

    def __init__(self, engine: Engine, observe: Observe) -> None:
        self._engine = engine
        self._observe = observe
        self._recent = RecentTasks(0 if engine.shared else MAX_BYTES)
        self._sql = engine.sql
        self._changes = Changes(engine, partial(self._all, "changes"))

    async def get(self, task_id: str) -> Task | None:
        """Return the newest committed snapshot of a task."""
        return await self._newest(task_id, task_of)

    async def get_readable(self, task_id: str) -> Task | None:
        """Return the newest committed snapshot of a task; None also if its row is damaged."""
        return await self._newest(task_id, readable)

    async def _newest(self, task_id: str, read: Callable[[Row, Known], Task | None]) -> Task | None:
        if (cached := self._recent.get(task_id)) is not None:
            return cached
        with self._observed("get"):
            row = await self._engine.get(task_id)
        task = None if row is None else read(row, self._sql.known)
        if task is not None:
            self._recent.keep([task])
        return task

    async def find_request(self, caller: str, request_id: str) -> Task | None:
        """Return the task that was created with the caller's request_id."""
        row = await self._one("find_request", self._sql.tasks.find_request, caller, request_id)
        return None if row is None else task_of(row, self._sql.known)

    async def newer(self, revisions: Mapping[str, int]) -> list[Task]:
        """Return those tasks that other processes took past a revision: {task id: revision}."""
        with self._observed("newer"):
            rows = await self._engine.newer([*revisions.keys()], [*revisions.values()])
        return self._readable(rows)

    async def wait_for_hints(self, timeout: float) -> dict[str, int]:
        """Wait for hints of what other processes committed: {task id: revision}.

        Empty after `timeout` seconds, and when hints may have been lost.
        """
        return await self._engine.wait_for_hints(timeout)

    async def page(
        self,
        which: ListFilter,
        before: tuple[float, str] | None,
        limit: int,
        max_bytes: float = math.inf,
    ) -> list[Task]:
        """Return tasks newest first, only those older than the (create_time, id) of `before`.

        A page with fewer tasks than the limit is the last: damaged rows are replaced by others.

        Args:
            which: The tasks to list.
            before: The last task of the page before.
            limit: How many to return at most.
            max_bytes: Of parameters and results. The task that exceeds them is the last one, but
                never the first: so a page that ends early is not taken for the last page.
        """
        tasks = await read_page(
            self._select,
            self._engine.db,
            which,
            before,
            limit,
            readable=self._readable,
            max_bytes=max_bytes,
        )
        self._recent.update(tasks)
        return tasks

    async def changes(self, caller: str | None, after: Position, limit: int) -> ChangePage:
        """Return the newest change of each task that changed after a position, in their order.

        Args:
            caller: Whose tasks; None for those of all callers.
            after: Where to continue; START reads all tasks.
            limit: How many changes to return at most.
        """
        return await self._changes.page(caller, after, limit)

    async def newest_ended(self, before: float, limit: int) -> list[Task]:
        """Return the tasks that ended last, newest first, of those that ended before a time."""
        rows = await self._all("newest_ended", self._sql.tasks.newest_ended, before, limit)
        return self._readable(rows)

    async def ended_after(self, end_time: float, task_id: str, limit: int) -> list[Task]:
        """Return tasks in the order of their ends, those after (end_time, task_id)."""
        rows = await self._all(
            "ended_after", self._sql.tasks.ended_after, end_time, end_time, task_id, limit
        )
        return self._readable(rows)

    async def next_due_times(self) -> dict[Lane, float]:
        """Return when the first task of each lane is due, in unix seconds; infinity is never."""
        row = await self._one("next_due_times", self._sql.lanes.next_due)
        assert row is not None
        return {lane: math.inf if t is None else t for lane, t in zip(Lane, row, strict=True)}

    async def waiting_since(self, created_before: float, now: float, limit: int) -> list[Task]:
        """Return tasks that wait to be sent and were created before a time.

        Those from the future are among them: they were created before the clock was set back.
        """
        sql, future = self._sql.claims.waiting_since, now + SKEW_SECONDS
        rows = await self._all("waiting_since", sql, created_before, future, limit)
        return self._readable(rows)

    async def account_held_since(self, refused_after: float) -> float | None:
        """Return since when the account is held; None unless it was refused after a time."""
        row = await self._one("account_held_since", self._sql.holds.since, ACCOUNT, refused_after)
        return None if row is None else float(row[0])

    async def count(self, lane: Lane) -> int:
        """Return how many tasks wait in a lane."""
        row = await self._one("count", self._sql.counts.lane, lane)
        assert row is not None
        return int(row[0])

    async def queues(self) -> dict[str, tuple[int, float]]:
        """Return how many tasks wait in each lane, and when the first is due; infinity is never.

        Tasks in lanes of a newer version, if there are any, count as `unknown`.
        """
        queues: dict[str, tuple[int, float]] = dict.fromkeys(Lane, (0, math.inf))
        for lane, count, first in await self._all("queues", self._sql.lanes.queues):
            name = lane if lane in queues else UNKNOWN_LANE
            before, earlier = queues.get(name, (0, math.inf))
            queues[name] = (before + count, min(earlier, math.inf if first is None else first))
        return queues

    async def storing_since(self) -> float:
        """Return since when the oldest task in STORING has been there; infinity if none is."""
        row = await self._one("storing_since", self._sql.lanes.storing_since)
        return math.inf if row is None or row[0] is None else float(row[0])

    async def purgeable(self, ended_before: float, limit: int) -> list[Task]:
        """Return the oldest tasks that `Store.purge` would delete."""
        rows = await self._all(
            "purgeable", self._sql.purges.oldest_ended, ended_before, ended_before, limit
        )
        return self._readable(rows)

    async def cancelled(self) -> list[tuple[str, int, float]]:
        """Return each caller that cancelled tasks, how many are kept, and when the oldest ended."""
        rows = await self._all("cancelled", self._sql.purges.count_cancelled)
        return [(row[0], row[1], row[2]) for row in rows]

    async def models(self, changed_since: float = 0.0) -> list[StoredModel]:
        """Return the provider's models that were written at a time or later."""
        rows = await self._all("models", self._sql.models.changed_since, changed_since)
        return list(map(model_of, rows))

    async def successes(
        self, model: str, limit: int, *, with_params: bool = False
    ) -> list[Success]:
        """Return the tasks of a model that succeeded last, newest first."""
        sql = self._sql.models
        statement = sql.successes_with_params if with_params else sql.successes
        return [Success(*row) for row in await self._all("successes", statement, model, limit)]

    # --- the way to the engine ---

    def _readable(self, rows: Iterable[Row]) -> list[Task]:
        known = self._sql.known
        return [task for row in rows if (task := readable(row, known))]

    def _observed(self, operation: str) -> Observed:
        return Observed(self._observe, operation)

    async def _one(self, operation: str, sql: str, *params: object) -> Row | None:
        with self._observed(operation):
            return await self._engine.one(sql, *params)

    async def _all(self, operation: str, sql: str, *params: object) -> list[Row]:
        with self._observed(operation):
            return await self._engine.all(sql, *params)

    async def _select(self, query: Any) -> list[Row]:
        sql, params = query.bind(self._engine.db).sql()
        return await self._all("page", sql, *params)
