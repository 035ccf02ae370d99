"""Connections to PostgreSQL: what they are opened with, and how another thread cuts one."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Protocol

import psycopg2
from peewee import Database, PostgresqlDatabase
from psycopg2.extensions import parse_dsn

from storage.engine import Row
from storage.errors import StorageConfigError, is_unavailable, storage_errors
from storage.threads import StorageThread, ThreadState, state_of

POSTGRES_PREFIXES = ("postgresql://", "postgres://")
# A dead connection is detected within about ten seconds, whether the network or the server failed.
CONNECTION = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "generation",
    "target_session_attrs": "read-write",  # not a standby, which may lag
}
ENCODING = {"client_encoding": "utf8"}  # overrides PGCLIENTENCODING
SILENCE_CHECK_SECONDS = 0.5

logger = logging.getLogger(__name__)


def is_postgres(database_url: str) -> bool:
    """Return whether a URL names a PostgreSQL database."""
    return database_url.startswith(POSTGRES_PREFIXES)


def connection_params(database_url: str, **session: int | str) -> dict[str, Any]:
    """Return the arguments of `psycopg2.connect`.

    Args:
        database_url: As libpq takes it.
        session: Settings of each session, such as `statement_timeout`; times in milliseconds.

    Raises:
        StorageConfigError: It is not a PostgreSQL URL.
    """
    try:
        given: dict[str, Any] = parse_dsn(database_url)
    except psycopg2.ProgrammingError:
        raise StorageConfigError("DATABASE_URL is not a PostgreSQL URL") from None
    if "@" in given.get("host", "") + given.get("dbname", "") or not _is_port(given):
        # These parts may contain a piece of the password, which errors would reveal.
        raise StorageConfigError("DATABASE_URL: write @, / and : in the password as %40, %2F, %3A")
    options = [
        given.pop("options", os.environ.get("PGOPTIONS", "")),
        *(f"-c {name}={value}" for name, value in session.items()),
    ]
    joined = " ".join(filter(None, options))
    return CONNECTION | {"dbname": ""} | given | ENCODING | ({"options": joined} if joined else {})


def _is_port(given: dict[str, Any]) -> bool:
    return all(port.isdecimal() for port in given.get("port", "0").split(","))


class ConnectionSocket:
    """A second handle on the socket of a connection, by which another thread can cut it.

    Statement timeouts and TCP keepalives catch most failures. What is left is a live peer that
    never answers: the thread that waits for it would wait indefinitely.

    Attributes:
        opened: When, by the monotonic clock.
        is_cut: Whether it was cut.
    """

    def __init__(self, connection: Any) -> None:
        self.opened = time.monotonic()
        self.is_cut = False
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    def cut(self) -> None:
        """Shut the connection down, so that the thread that waits for the server gets an error."""
        self.is_cut = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the handle.

        Call it before the connection is closed, or the server would not see that one closed.
        """
        self._socket.close()


class PostgresDatabase(PostgresqlDatabase):
    """A connection that one thread opens explicitly, and that other threads may cut."""

    def __init__(self, params: dict[str, Any]) -> None:
        others = {name: value for name, value in params.items() if name != "dbname"}
        super().__init__(params["dbname"], autoconnect=False, **others)
        self.socket: ConnectionSocket | None = None

    def _connect(self) -> Any:
        connection = super()._connect()  # type: ignore[misc] # peewee's stub
        try:
            self.socket = ConnectionSocket(connection)
        except OSError as error:  # no file descriptor is left
            connection.close()
            raise psycopg2.OperationalError(error.strerror) from error
        return connection

    def _close(self, conn: Any) -> None:
        if self.socket:
            self.socket.close()
            self.socket = None
        super()._close(conn)  # type: ignore[misc] # peewee's stub


def drop_connection(db: Database) -> None:
    """Close a connection that may be dead: the next use opens a new one."""
    with storage_errors():
        db.close()


def fetch(db: Database, sql: str, *params: object) -> list[Row]:
    """Run a read; if the connection has died meanwhile, run it again on a new one."""
    try:
        rows: list[Row] = db.execute_sql(sql, params).fetchall()
    except Exception as error:
        if not is_unavailable(error) or db.is_connection_usable():
            raise
        drop_connection(db)
        db.connect()
        rows = db.execute_sql(sql, params).fetchall()
    return rows


class Connected(Protocol):
    """Has a connection, or none."""

    @property
    def socket(self) -> ConnectionSocket | None:
        """Of the connection, if there is one."""


class Connections:
    """The connections of a process, each with the thread that uses it.

    One with an overdue response is cut, so that no thread waits indefinitely.
    """

    def __init__(
        self, users: Sequence[tuple[StorageThread, Connected]], silence_seconds: float
    ) -> None:
        """Begin to check the connections, inside the event loop.

        Args:
            users: The threads and their connections.
            silence_seconds: How long a response may take.
        """
        self._users = users
        self._silence_seconds = silence_seconds
        self._cutting = asyncio.create_task(self._cut_silent())

    def threads(self) -> list[ThreadState]:
        """Return the states of the threads."""
        return [
            state_of(thread, handle.opened if (handle := connection.socket) else None)
            for thread, connection in self._users
        ]

    async def close(self) -> None:
        """End the checks."""
        self._cutting.cancel()
        await asyncio.gather(self._cutting, return_exceptions=True)

    async def _cut_silent(self) -> None:
        while True:
            await asyncio.sleep(SILENCE_CHECK_SECONDS)
            try:
                self._cut_silent_once(time.monotonic() - self._silence_seconds)
            except Exception:
                logger.exception("the check for silent connections failed")

    def _cut_silent_once(self, long_ago: float) -> None:
        for thread, connection in self._users:
            handle = connection.socket
            if not handle or handle.is_cut:
                continue
            if max(thread.busy_since, handle.opened) < long_ago:
                logger.warning("the database does not answer; cutting the connection")
                handle.cut()


def current_schema(db: Database) -> str:
    """Return the schema in which a connection creates its tables."""
    name: str = db.execute_sql("SELECT current_schema()").fetchone()[0]
    return name


def lock_key(db: Database, what: str) -> int:
    """Return the number of an advisory lock; each schema of a database has its own."""
    name = f"generation.v1 {current_schema(db)} {what}"
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
