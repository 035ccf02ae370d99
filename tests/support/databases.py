"""What tests do to a database behind the service's back, whichever it is."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2

from storage.postgresql.connection import is_postgres
from storage.sqlite import sqlite_path


def connect(database_url: str) -> Any:
    """Return a connection of the database's own driver."""
    if is_postgres(database_url):
        connection = psycopg2.connect(database_url)
        connection.cursor().execute("SET lock_timeout = '5s'")  # a test must not hang
        connection.commit()
        return connection
    path = sqlite_path(database_url)
    assert path is not None
    return sqlite3.connect(path)


def change(database_url: str, sql: str, *params: object) -> None:
    """Run a statement, with a `?` for each parameter."""
    with closing(connect(database_url)) as connection, connection:
        connection.cursor().execute(_native(database_url, sql), params)


def rows(database_url: str, sql: str, *params: object) -> list[Any]:
    """Return what a statement finds."""
    with closing(connect(database_url)) as connection, connection:
        cursor = connection.cursor()
        cursor.execute(_native(database_url, sql), params)
        found: list[Any] = cursor.fetchall()
        return found


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Keep everybody else from writing."""
    sql = "LOCK TABLE tasks, slots" if is_postgres(database_url) else "BEGIN EXCLUSIVE"
    with closing(connect(database_url)) as holder:
        holder.cursor().execute(sql)
        yield


def _native(database_url: str, sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s") if is_postgres(database_url) else sql


ENDED = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ? - 1)
INSERT INTO tasks (id, caller, request_id, prompt_id, model, params, create_time, update_time,
    status, revision, artifacts, result_json, provider_task_id, complete_time, hinted_id, setbacks,
    version)
SELECT 'ended-' || i, 'c', 'request-' || i, 'prompt-' || (i % 1000), 'imagen4', ?, ? - i, ? - i,
    'SUCCESS', 5, '[["https://x.example/1.png", "image/png"]]', '{}', 'k' || i, ? - i, '', 0, 5
FROM n
"""


def fill(database_url: str, count: int, now: float) -> None:
    """Store tasks of the caller `c` that ended, one each second before `now`."""
    change(database_url, ENDED, count, b"\x0a\x00", now, now, now)
    analyse(database_url)


def analyse(database_url: str) -> None:
    """Bring the planner's statistics up to date."""
    with closing(connect(database_url)) as connection:
        connection.cursor().execute("ANALYZE tasks")  # all would lock other tests' tables
        connection.commit()
