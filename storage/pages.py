"""The pages of a list, read within a budget of bytes.

The keys come first, with the size of each task: neither database reads long columns to find out
their size. Then only the tasks that fit are read, so many lists of long prompts need little memory.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from peewee import Database, Expression, Tuple, fn

from storage.engine import Row
from storage.rows import COLUMNS
from storage.schema import TaskRow
from storage.statements import octet_length
from storage.task import Status, Task

# Tasks that are read however large they are: the second shows that the first is not the last.
PAGE_MIN_TASKS = 2


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Which tasks of a caller to list; an unset filter takes any.

    Attributes:
        created_after: The unix time of the earliest creation.
        created_before: The unix time before which a task was created.
    """

    caller: str
    prompt_id: str = ""
    status: Status | None = None
    model: str = ""
    created_after: float | None = None
    created_before: float | None = None


class Key(NamedTuple):
    """The position of a task in a list, and the bytes of its parameters and result."""

    create_time: float
    task_id: str
    size: int


async def read_page(
    select: Callable[[Any], Awaitable[list[Row]]],
    db: Database,
    which: ListFilter,
    before: tuple[float, str] | None,
    limit: int,
    *,
    readable: Callable[[Iterable[Row]], list[Task]],
    max_bytes: float,
) -> list[Task]:
    """Return a page as `Store.page` describes it.

    Args:
        select: Runs a query and returns its rows.
        db: The database that the queries are for.
        which: The tasks to list.
        before: The (create_time, id) of the last task of the previous page.
        limit: How many tasks to return at most.
        readable: Returns the tasks of rows, without damaged ones.
        max_bytes: Of parameters and results.
    """
    tasks: list[Task] = []
    size = 0
    while (room := limit - len(tasks)) > 0 and (len(tasks) < PAGE_MIN_TASKS or size <= max_bytes):
        found = [Key(*row) for row in await select(_keys_query(db, which, before, room))]
        keys = _reaching(found, max_bytes - size, PAGE_MIN_TASKS - len(tasks))
        if not keys:
            break
        rows = await select(_tasks_query(which, keys))
        sizes = {key.task_id: key.size for key in keys}
        read = [task for task in readable(rows) if task.id in sizes]
        tasks += read
        size += sum(sizes[task.id] for task in read)
        if len(keys) == len(found) < room:
            break
        before = keys[-1][:2]
    return tasks


def _keys_query(
    db: Database, which: ListFilter, before: tuple[float, str] | None, limit: int
) -> Any:
    """Select the keys of the newest tasks, only those older than `before`."""
    filled = fn.COALESCE(fn.LENGTH(TaskRow.filled_params), 0)
    size = fn.LENGTH(TaskRow.params) + filled + octet_length(db, TaskRow.result_json)
    keys = TaskRow.select(TaskRow.create_time, TaskRow.id, size)
    older = [_key() < before] if before else []
    return _newest_first(keys, which, older).limit(limit)


def _tasks_query(which: ListFilter, keys: Sequence[Key]) -> Any:
    """Select the tasks of successive keys."""
    between = [_key() <= keys[0][:2], _key() >= keys[-1][:2]]
    # With a limit PostgreSQL walks along the index; without one it may sort what it finds.
    return _newest_first(TaskRow.select(*COLUMNS), which, between).limit(len(keys))


def _reaching(keys: Sequence[Key], size: float, at_least: int) -> Sequence[Key]:
    """Return the first keys, up to the one that exceeds a size, and at least `at_least`."""
    totals = accumulate(key.size for key in keys)
    within = sum(total <= size for total in totals)
    return keys[: max(within + 1, at_least)]


def _key() -> Any:
    return Tuple(TaskRow.create_time, TaskRow.id)


def _newest_first(query: Any, which: ListFilter, conditions: Sequence[Expression]) -> Any:
    where = [TaskRow.caller == which.caller, *conditions]
    if which.prompt_id:
        where.append(TaskRow.prompt_id == which.prompt_id)
    if which.status:
        where.append(TaskRow.status == which.status.value)
    if which.model:
        where.append(TaskRow.model == which.model)
    if which.created_after is not None:
        where.append(TaskRow.create_time >= which.created_after)
    if which.created_before is not None:
        where.append(TaskRow.create_time < which.created_before)
    return query.where(*where).order_by(TaskRow.create_time.desc(), TaskRow.id.desc())
