"""The pages of a list, read within a budget of bytes.

The keys come first, with the size of each task: neither database reads long columns to tell their
size. Then only the tasks that fit are read. So many lists of long prompts at a time stay small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from peewee import Database, Expression, Tuple, fn

from storage.rows import COLUMNS
from storage.schema import TaskRow
from storage.statements import octet_length
from storage.task import Status

PAGE_LEAST = (
    2  # tasks that are read, however large: the second shows that the first is not the last
)


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Which tasks of a caller to list; an unset filter takes any."""

    caller: str
    prompt_id: str = ""
    status: Status | None = None


class Key(NamedTuple):
    """The place of a task in a list, and the bytes of its parameters and result."""

    create_time: float
    task_id: str
    size: int


def keys_query(
    db: Database, which: ListFilter, before: tuple[float, str] | None, limit: int
) -> Any:
    """Select the keys of the newest tasks, only those older than `before`."""
    size = fn.LENGTH(TaskRow.params) + octet_length(db, TaskRow.result_json)
    keys = TaskRow.select(TaskRow.create_time, TaskRow.id, size)
    older = [_key() < before] if before else []
    return _newest_first(keys, which, older).limit(limit)


def tasks_query(which: ListFilter, keys: Sequence[Key]) -> Any:
    """Select the tasks of successive keys."""
    between = [_key() <= keys[0][:2], _key() >= keys[-1][:2]]
    # With a limit PostgreSQL walks along the index; without one it may sort what it finds.
    return _newest_first(TaskRow.select(*COLUMNS), which, between).limit(len(keys))


def reaching(keys: Sequence[Key], size: float, least: int) -> Sequence[Key]:
    """Return the first keys, up to the one that exceeds a size, but not fewer than the least."""
    totals = accumulate(key.size for key in keys)
    within = sum(total <= size for total in totals)
    return keys[: max(within + 1, least)]


def _key() -> Any:
    return Tuple(TaskRow.create_time, TaskRow.id)


def _newest_first(query: Any, which: ListFilter, conditions: Sequence[Expression]) -> Any:
    where = [TaskRow.caller == which.caller, *conditions]
    if which.prompt_id:
        where.append(TaskRow.prompt_id == which.prompt_id)
    if which.status:
        where.append(TaskRow.status == which.status.value)
    return query.where(*where).order_by(TaskRow.create_time.desc(), TaskRow.id.desc())
