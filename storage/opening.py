"""Opens the database that a URL names."""

from collections.abc import Iterable
from pathlib import Path

from storage import sqlite
from storage.engine import TIMEOUTS, DatabaseTimeouts, Engine
from storage.errors import StorageConfigError
from storage.known import Known
from storage.observed import Observe, unobserved
from storage.postgresql import migrate as postgres_migrations
from storage.postgresql.connection import is_postgres
from storage.postgresql.engine import PostgresEngine
from storage.store import Store


def open_store(
    database_url: str,
    *,
    hints: bool = True,
    observe: Observe = unobserved,
    timeouts: DatabaseTimeouts = TIMEOUTS,
    needs: Iterable[str] | None = None,
) -> Store:
    """Open a database inside the event loop that uses it, and bring its tables up to date.

    Args:
        database_url: `sqlite:///file` or `postgresql://...`.
        hints: Whether replicas on PostgreSQL send each other hints of changes by NOTIFY.
        observe: Called with the name of each operation and its seconds, including its wait.
        timeouts: How long to wait for the database.
        needs: What tasks may need for this process to work on them: the models that it knows; None
            works on all.

    Raises:
        StorageConfigError: The URL is of no supported kind, or another process uses the file.
        StorageUnavailableError: The database cannot be reached.
    """
    engine: Engine
    known = Known(None if needs is None else frozenset(needs))
    if is_postgres(database_url):
        engine = PostgresEngine(database_url, hints=hints, timeouts=timeouts, known=known)
    else:
        engine = sqlite.SqliteEngine(_path(database_url), timeouts, known)
    return Store(engine, observe, timeouts.ping_seconds)


def migrate(database_url: str) -> list[str]:
    """Bring a database's tables up to date; return the names of the migrations that were applied.

    Raises:
        StorageConfigError: The URL is of no supported kind, or another process uses the file.
        StorageUnavailableError: The database cannot be reached, or is too busy.
    """
    if is_postgres(database_url):
        return postgres_migrations.migrate(database_url)
    return sqlite.migrate(_path(database_url))


def begin_history(database_url: str) -> None:
    """Begin a new history of changes: streams of all changes have to start over.

    Raises:
        StorageConfigError: The URL is of no supported kind, or another process uses the file.
        StorageUnavailableError: The database cannot be reached.
    """
    if is_postgres(database_url):
        postgres_migrations.begin_history(database_url)
    else:
        sqlite.begin_history(_path(database_url))


def _path(database_url: str) -> Path:
    path = sqlite.sqlite_path(database_url)
    if path is None:
        raise StorageConfigError(
            f"DATABASE_URL must look like {sqlite.SQLITE_PREFIX}generation.db"
            " or postgresql://host/name"
        )
    return path
