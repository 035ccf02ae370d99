"""Migrations on PostgreSQL, while replicas of an older version work on the same tables.

CONTRIBUTING.md has the rules that migrations keep for that.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peewee import Database, OperationalError
from playhouse.migrations import Migration, Runner
from psycopg2.errors import LockNotAvailable

from storage.errors import StorageConfigError, StorageUnavailableError, storage_errors
from storage.history import POSTGRESQL_ORIGIN, settle_history
from storage.postgresql.connection import PostgresDatabase, connection_params, lock_key
from storage.postgresql.pooler import refused_options, require_search_path
from storage.schema import MIGRATIONS

logger = logging.getLogger(__name__)

LOCK_POLL_SECONDS = 0.2
OPTIONS_ADVICE = (
    "a pooler refuses the options of DATABASE_URL: set them for the role instead"
    " (ALTER ROLE ... SET), or connect without the pooler"
)


@dataclass(frozen=True, slots=True)
class MigrationWaits:
    """How long migrations wait.

    Attributes:
        max_seconds: The longest that one migration may take, or that another process is waited for.
        lock_milliseconds: The longest wait for a table. A waiting migration blocks every statement
            queued behind it.
        attempts: How often a migration tries to lock its tables.
        pause_seconds: Between two attempts.
    """

    max_seconds: float = 600.0
    lock_milliseconds: int = 500
    attempts: int = 30
    pause_seconds: float = 1.0


def migrate(
    database_url: str, migrations: Path = MIGRATIONS, waits: MigrationWaits = MigrationWaits()
) -> list[str]:
    """Bring the tables up to date; return the names of the migrations that were applied.

    However many processes migrate at once, one works and the others wait.

    Raises:
        StorageConfigError: The database's encoding is not UTF-8, or it ignores the URL's schema.
        StorageUnavailableError: The database is unavailable, or its tables stay locked.
    """
    params = connection_params(database_url)
    db = PostgresDatabase(params)
    with storage_errors(), refused_options(OPTIONS_ADVICE), db.connection_context():
        _require_utf8(db)
        require_search_path(db, params.get("options", ""))
        runner = Runner(db, str(migrations))
        applied = []
        if _pending(runner):
            with migration_lock(PostgresDatabase(params), waits):
                applied = [_apply(db, runner, migration, waits) for migration in _pending(runner)]
        _settle_history(db)
        return applied


def begin_history(database_url: str) -> None:
    """Begin a new history of changes: streams start over.

    Raises:
        StorageUnavailableError: The database is unavailable.
    """
    migrate(database_url)
    db = PostgresDatabase(connection_params(database_url))
    with storage_errors(), db.connection_context():
        _settle_history(db, new=True)


def _settle_history(db: Database, *, new: bool = False) -> None:
    ((origin,),) = db.execute_sql(f"SELECT {POSTGRESQL_ORIGIN}").fetchall()
    if settle_history(db, origin, new=new):
        logger.warning(
            "the database holds another history of changes: streams of changes start over"
        )


def _require_utf8(db: Database) -> None:
    """Refuse an encoding that cannot hold every script: prompts are written in all of them."""
    ((encoding,),) = db.execute_sql("SHOW server_encoding").fetchall()
    if encoding != "UTF8":
        raise StorageConfigError(f"the database must have the encoding UTF8, not {encoding}")


def _pending(runner: Any) -> list[Any]:
    return [migration for migration in runner.status() if not migration.applied]


@contextmanager
def migration_lock(holder: Database, waits: MigrationWaits = MigrationWaits()) -> Iterator[None]:
    """Keep other processes from migrating, by a lock that `holder`'s connection has.

    The lock belongs to a transaction, as a pooler in transaction mode has no sessions. Others poll
    for it: CREATE INDEX CONCURRENTLY waits for every statement that was running when it started,
    so it would wait for a process that is blocked on our lock.
    """
    deadline = time.monotonic() + waits.max_seconds
    with holder.connection_context():
        key = lock_key(holder, "migrations")
        while True:
            with holder.atomic():
                holder.execute_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
                if holder.execute_sql("SELECT pg_try_advisory_xact_lock(%s)", (key,)).fetchone()[0]:
                    yield
                    return
            if time.monotonic() > deadline:
                raise StorageUnavailableError(
                    "timed out waiting for another process to finish migrating"
                )
            time.sleep(LOCK_POLL_SECONDS)


def _apply(db: Database, runner: Any, migration: Migration, waits: MigrationWaits) -> str:
    """Apply a migration in its own transaction; return its name.

    It waits for a table only briefly, so that nobody queues behind it for long, and then tries
    again. A migration that says `atomic = False` takes care of both itself.
    """
    if not getattr(migration.load(), "atomic", True):
        runner.up(migration.name)
        return str(migration.name)
    for _ in range(waits.attempts):
        try:
            with db.atomic():
                db.execute_sql(f"SET LOCAL lock_timeout = {waits.lock_milliseconds}")
                db.execute_sql(f"SET LOCAL statement_timeout = {int(waits.max_seconds * 1_000)}")
                runner.up(migration.name)
                return str(migration.name)
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):  # type: ignore[attr-defined]
                raise
        time.sleep(waits.pause_seconds)
    raise StorageUnavailableError(
        f"migration {migration.name}: other sessions keep its tables locked"
    )
