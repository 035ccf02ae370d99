"""SQLite and PostgreSQL: empty databases, and the tasks that are inserted with SQL."""

import importlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extras import execute_values

from benchmarks.measure import family_cpu_seconds
from benchmarks.tasks import params, provider_id, task_id
from storage.rows import COLUMNS

CALLER = "bench"
NAMES = SQLITE, POSTGRES = ("SQLite", "PostgreSQL")
SQLITE_PREFIX = "sqlite:///"
ROWS_PER_STATEMENT = 1_000
SECONDS_APART = 10.0  # between two inserted tasks: 100,000 of them are eleven days of work
IMAGE_SECONDS = 12.0
CONNECT_SECONDS = 10
NAMES_OF_COLUMNS = [column.column_name for column in COLUMNS]

Row = dict[str, Any]


class UnreachableError(Exception):
    """The server of TEST_DATABASE_URL cannot be reached; the message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of database.

    Attributes:
        new_url: Creates an empty database and returns its URL.
        server: The version, and the filesystem of its files if it is known.
        cpu_seconds: Returns the CPU time of its processes; 0 if it has none, or if they are not
            known.
    """

    name: str
    new_url: Callable[[], str]
    server: str
    cpu_seconds: Callable[[], float] = float


def kinds(names: Sequence[str], folder: Path, stack: ExitStack) -> list[Kind]:
    """Return the kinds of database that are available here; print which one is not.

    Raises:
        UnreachableError: The server of TEST_DATABASE_URL cannot be reached.
    """
    found = []
    if "sqlite" in names:
        numbers = iter(range(1_000_000))
        library = f"{SQLITE} {sqlite3.sqlite_version} on {_filesystem(folder)}"
        found.append(Kind(SQLITE, lambda: f"{SQLITE_PREFIX}{folder}/{next(numbers)}.db", library))
    if "postgres" in names and (postgres := _postgres(stack)):
        found.append(postgres)
    return found


def _postgres(stack: ExitStack) -> Kind | None:
    """Return the server of TEST_DATABASE_URL, or start one as the tests do."""
    try:
        # A checkout without the tests measures only SQLite.
        tests: Any = importlib.import_module("tests.support.postgres")
    except ImportError as error:
        print(f"PostgreSQL is not measured: {error}")
        return None
    cpu_seconds: Callable[[], float] = float
    if url := os.environ.get("TEST_DATABASE_URL"):
        server = f"{_version(url)} of TEST_DATABASE_URL"
    else:
        try:
            cluster = stack.enter_context(tests.Cluster(fsync=True))
        except tests.PostgresUnavailableError as error:
            print(f"PostgreSQL is not measured: {error}")
            return None
        url = cluster.url
        cpu_seconds = partial(family_cpu_seconds, cluster.pid)
        server = f"{_version(url)} on {_filesystem(cluster.folder)}"
    return Kind(POSTGRES, lambda: stack.enter_context(tests.new_schema(url)), server, cpu_seconds)


def _version(url: str) -> str:
    try:
        with closing(psycopg2.connect(url, connect_timeout=CONNECT_SECONDS)) as connection:
            version: str = connection.info.parameter_status("server_version")
            return f"{POSTGRES} {version.partition(' ')[0]}"  # without the name of the package
    except psycopg2.Error as error:
        reason = " ".join(str(error).split())
        raise UnreachableError(f"TEST_DATABASE_URL cannot be reached: {reason}") from error


def _filesystem(folder: Path) -> str:
    """Return the type of a folder's filesystem, because fsync costs nothing on tmpfs."""
    mounts = Path("/proc/mounts")
    lines = mounts.read_text().splitlines() if mounts.exists() else []
    types = {place: kind for _, place, kind, *_ in map(str.split, lines)}
    place = folder.resolve()
    found = (types[str(at)] for at in (place, *place.parents) if str(at) in types)
    return next(found, "an unknown filesystem")


def ended(numbers: Iterable[int], now: float) -> Iterator[Row]:
    """Yield tasks that have ended with one image; higher numbers are older."""
    for number in numbers:
        row = _row(number, now - IMAGE_SECONDS - number * SECONDS_APART)
        url = f"https://tempfile.aiquickdraw.com/imagen/{provider_id(number)}_0.png"
        done = row["create_time"] + IMAGE_SECONDS
        yield row | {
            "update_time": done,
            "complete_time": done,
            "status": "SUCCESS",
            "revision": 5,
            "artifacts": json.dumps([[url, "image/png"]]),
            "result_json": json.dumps({"resultUrls": [url]}),
            "version": 7,
        }


def pending(numbers: Sequence[int], now: float, oldest_seconds: float = 0) -> Iterator[Row]:
    """Yield tasks that are at the provider, with ages from 0 to `oldest_seconds`."""
    for index, number in enumerate(numbers):
        row = _row(number, now - oldest_seconds * index / len(numbers))
        yield row | {"lane": "poll", "due_time": now, "stage": "GENERATING"}


def _row(number: int, create_time: float) -> Row:
    return dict[str, Any].fromkeys(NAMES_OF_COLUMNS) | {
        "id": task_id(number),
        "caller": CALLER,
        "request_id": f"request {number}",
        "prompt_id": f"prompt {number % 1_000}",
        "model": "imagen4",
        "params": params().SerializeToString(deterministic=True),
        "create_time": create_time,
        "update_time": create_time,
        "status": "PENDING",
        "revision": 4,
        "artifacts": "[]",
        "result_json": "",
        "provider_task_id": provider_id(number),
        "submit_time": create_time,
        "accept_time": create_time,
        "hinted_id": "",
        "setbacks": 0,
        "version": 4,
        "change_xid": "0",
    }


def insert(url: str, rows: Iterable[Row]) -> None:
    """Insert tasks into a database with the service's tables, while the service is stopped."""
    names = ", ".join(NAMES_OF_COLUMNS)
    values = ([row[name] for name in NAMES_OF_COLUMNS] for row in rows)
    if path := _sqlite_path(url):
        marks = ", ".join("?" * len(COLUMNS))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executemany(f"INSERT INTO tasks ({names}) VALUES ({marks})", values)  # noqa: S608
        return
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        statement = f"INSERT INTO tasks ({names}) VALUES %s"  # noqa: S608 - constant names
        execute_values(cursor, statement, values, page_size=ROWS_PER_STATEMENT)
        cursor.execute("ANALYZE tasks")


def due_times(url: str) -> list[tuple[str, float]]:
    """Return the provider's id and the current due time of each task in the lane `poll`."""
    query = "SELECT provider_task_id, due_time FROM tasks WHERE lane = 'poll'"
    if path := _sqlite_path(url):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        found: list[tuple[str, float]] = cursor.fetchall()
        return found


def database_of_baseline(url: str) -> str:
    """Return the baseline's database: a file next to the service's, or the same server."""
    path = _sqlite_path(url)
    return f"{path}.baseline" if path else url


def _sqlite_path(url: str) -> str | None:
    return url.removeprefix(SQLITE_PREFIX) if url.startswith(SQLITE_PREFIX) else None
