"""What changed after a position: how a stream of all changes is read, and resumed.

The newest change of each task has a position, (number, task id). On PostgreSQL the number is that
of its transaction. A transaction gets its number before it commits, so a reader stops at the
lowest number that is still in progress: everything below it is committed, and nothing can appear
there any more. On SQLite the writer counts, and all that is committed can be read.

There is no log of events: the table itself holds the newest change of each task.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storage.engine import Engine, Row
from storage.history import CHANGES, POSTGRESQL_ORIGIN, SQLITE_HORIZON, epoch


class Position(NamedTuple):
    """A place in the order of all changes: right after this change of a task.

    An empty task id is the place before all changes with this number.
    """

    number: int
    task_id: str = ""


START = Position(0)
NOTHING_PURGED = -1


class Change(NamedTuple):
    """The newest change of a task, without the task itself."""

    position: Position
    caller: str
    prompt_id: str
    status: str

    @property
    def task_id(self) -> str:
        """The task that changed."""
        return self.position.task_id


@dataclass(frozen=True, slots=True)
class ChangePage:
    """Changes after a position, in their order.

    Attributes:
        changes: The newest change of each task that changed.
        end: Where to continue. Everything before it was read.
        is_last: Whether nothing more can be read now.
        is_blocked: Whether there are changes that cannot be read yet, because an older transaction
            is still open.
        horizon: The number of the first change that cannot be read yet; it never decreases.
        purged: The newest number among the deleted changes of the caller, or NOTHING_PURGED.
        epoch: Identifies this history of changes: after a restore there is another one.
    """

    changes: Sequence[Change]
    end: Position
    horizon: int
    is_last: bool
    is_blocked: bool
    purged: int
    epoch: bytes


# The first column is the end of what may be read. The statement returns a row even if nothing
# changed, and all of it is read from one snapshot.
_PAGE = """
    SELECT horizon.number, horizon.purged, horizon.blocked, horizon.origin, horizon.id,
        change.number, change.id, change.caller, change.prompt_id, change.status
    FROM (
        SELECT {horizon} AS number, {purged} AS purged, {blocked} AS blocked, {origin} AS origin,
            (SELECT value FROM secrets WHERE name = '{history}') AS id
    ) AS horizon
    LEFT JOIN (
        SELECT {number} AS number, id, caller, prompt_id, status FROM tasks
        WHERE {of_caller}(change_xid, id) > ({after}, {arg}) AND change_xid < {limit}
        ORDER BY change_xid, id LIMIT {arg}
    ) AS change ON true
    ORDER BY change.number, change.id
"""
_PURGED = "(SELECT {number} FROM purges WHERE caller = {arg})"
_XMIN = "pg_snapshot_xmin(pg_current_snapshot())"
_POSTGRESQL = {
    "arg": "%s",
    "after": "%s::text::xid8",
    "number": "change_xid::text::bigint",
    "limit": _XMIN,
    "horizon": f"{_XMIN}::text::bigint",
    "blocked": f"EXISTS (SELECT FROM tasks WHERE change_xid >= {_XMIN})",
    "origin": POSTGRESQL_ORIGIN,
}
_SQLITE = {
    "arg": "?",
    "after": "?",
    "number": "change_xid",
    "limit": SQLITE_HORIZON,
    "horizon": SQLITE_HORIZON,
    "blocked": "0",
    "origin": "''",
}


class Changes:
    """Reads the changes of one database."""

    def __init__(
        self,
        engine: Engine,
        rows: Callable[..., Awaitable[list[Row]]],
    ) -> None:
        """Prepare the statements.

        Args:
            engine: The database.
            rows: Runs a statement with its parameters, and returns its rows.
        """
        self._rows = rows
        self._origin = engine.origin
        words = (_POSTGRESQL if engine.shared else _SQLITE) | {"history": CHANGES}
        self._all = _PAGE.format(**words, purged="NULL", of_caller="")
        purged = _PURGED.format(**words)
        of_caller = "caller = {arg} AND ".format(**words)
        self._of_caller = _PAGE.format(**words, purged=purged, of_caller=of_caller)

    async def page(self, caller: str | None, after: Position, limit: int) -> ChangePage:
        """Return the changes after a position, as `Reads.changes` describes them."""
        if caller is None:
            rows = await self._rows(self._all, *after, limit)
        else:
            rows = await self._rows(self._of_caller, caller, caller, *after, limit)
        horizon, purged, blocked, origin, history_id = rows[0][:5]
        changes = [
            Change(Position(number, task_id), *rest)
            for number, task_id, *rest in (row[5:] for row in rows)
            if number is not None
        ]
        is_last = len(changes) < limit
        return ChangePage(
            changes=changes,
            end=Position(horizon) if is_last else changes[-1].position,
            horizon=horizon,
            is_last=is_last,
            is_blocked=bool(blocked),
            purged=NOTHING_PURGED if purged is None else purged,
            epoch=epoch(self._origin + origin, history_id),
        )
