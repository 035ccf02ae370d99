"""The statements for many rows at once: an array of values for each column."""

from collections.abc import Sequence
from typing import Any

from storage.rows import CHANGING, COLUMNS, WORKING
from storage.statements import KNOWN_REQUEST, Statements

ARRAYS = {
    "TEXT": "text[]",
    "DOUBLE": "float8[]",
    "INT": "int[]",
    "BIGINT": "bigint[]",
    "BLOB": "bytea[]",
}


class BulkStatements:
    """The statements, as text. All names in them are those of our own columns."""

    def __init__(self, sql: Statements) -> None:
        of_tasks = ", ".join(f"tasks.{_name(column)}" for column in COLUMNS)
        self.get = sql.tasks.get.replace('"id" = %s', '"id" = ANY(%s)')
        self.lock = sql.claims.lock.replace('"id" = %s', '"id" = ANY(%s)')
        of_queue = sql.claims.first_waiting.replace('"caller" = %s', '"caller" = queue.caller')
        of_queue = of_queue.replace('"model" = %s', '"model" = queue.model')
        self.first_waiting = (
            "SELECT waiting.* FROM unnest(%s::text[], %s::text[]) AS queue (caller, model)"  # noqa: S608
            f" CROSS JOIN LATERAL ({of_queue}) AS waiting"
        )
        self.find_requests = (
            f"SELECT {of_tasks} FROM unnest(%s::text[], %s::text[]) AS asked(caller, request)"  # noqa: S608
            " JOIN tasks ON tasks.caller = asked.caller AND tasks.request_id = asked.request"
        )
        self.newer = (
            f"SELECT {of_tasks}"  # noqa: S608
            " FROM unnest(%s::text[], %s::bigint[]) AS seen(task, revision)"
            " JOIN tasks ON tasks.id = seen.task AND tasks.revision > seen.revision"
        )
        self.insert = bulk_insert(KNOWN_REQUEST)
        # The keys: whether any change has a result.
        self.save = {True: _bulk_save(CHANGING), False: _bulk_save(WORKING)}


def bulk_insert(on_conflict: str) -> str:
    """Return the statement that stores rows and returns the ids of the new ones."""
    names = ", ".join(map(_name, COLUMNS))
    return (
        f"INSERT INTO tasks ({names})"  # noqa: S608
        f" SELECT * FROM unnest({', '.join(map(_array, COLUMNS))}){on_conflict} RETURNING id"
    )


def _bulk_save(columns: Sequence[Any]) -> str:
    """Return the statement that changes rows and returns the numbers of those that it found."""
    sets = ", ".join(f"{_name(column)} = new.{_name(column)}" for column in columns)
    new = ", ".join(["number", *map(_name, columns), "task", "before"])
    arrays = ", ".join(["%s::int[]", *map(_array, columns), "%s::text[]", "%s::bigint[]"])
    return (
        f"UPDATE tasks SET {sets} FROM unnest({arrays}) AS new({new})"  # noqa: S608
        " WHERE tasks.id = new.task AND tasks.version = new.before RETURNING new.number"
    )


def _name(column: Any) -> str:
    return f'"{column.column_name}"'


def _array(column: Any) -> str:
    return f"%s::{ARRAYS[column.field_type]}"
