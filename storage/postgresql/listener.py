"""A connection on which hints are sent and received."""

import math
import time
from collections.abc import Iterator
from typing import Any

from storage.postgresql.connection import ConnectionSocket

PAYLOAD_MAX_BYTES = 7_900  # PostgreSQL takes 7,999
REVISION_MAX_DIGITS = 19


class NotListeningError(Exception):
    """The connection does not receive hints, although nothing has failed."""


class Listener:
    """Listens and notifies on one channel; in the thread that opened the connection.

    Attributes:
        is_listening: Whether it has begun to listen.
        busy_since: Since when a statement runs, by the monotonic clock; infinity while none does.
        socket: Of the connection.
    """

    def __init__(self, connection: Any, channel: str) -> None:
        """Prepare to listen.

        Args:
            connection: Of psycopg2; its owner closes it.
            channel: An identifier.
        """
        connection.autocommit = True
        self._connection = connection
        self._cursor = connection.cursor()
        self._channel = channel
        self.is_listening = False
        self.busy_since = math.inf
        self.socket = ConnectionSocket(connection)

    def fileno(self) -> int:
        """Return the descriptor that has data when a hint arrives."""
        number: int = self._connection.fileno()
        return number

    def close(self) -> None:
        """Close the handle of the socket; call it before the connection is closed."""
        self.socket.close()

    def listen(self) -> None:
        """Begin to listen."""
        self._execute(f'LISTEN "{self._channel}"')
        self.is_listening = True

    def check(self) -> None:
        """Ask the server whether it would send hints; the question also finds a dead connection.

        A LISTEN takes effect at the end of its transaction, so the response is about the time
        before it.

        Raises:
            NotListeningError: It would not.
        """
        sql = f'LISTEN "{self._channel}"; SELECT %s IN (SELECT pg_listening_channels())'
        self._execute(sql, self._channel)
        if not self._cursor.fetchone()[0]:
            raise NotListeningError(
                "the session no longer listens, as behind a pooler in transaction mode:"
                " set DATABASE_HINTS=false, or connect without the pooler"
            )

    def send(self, revisions: dict[str, int]) -> None:
        """Send hints: {task id: revision}."""
        self._execute(
            "SELECT pg_notify(%s, payload) FROM unnest(%s) AS payload",
            self._channel,
            list(_packed(revisions)),
        )

    def receive(self) -> dict[str, int]:
        """Return the hints of other processes that have arrived: {task id: revision}."""
        self._connection.poll()
        own = self._connection.info.backend_pid
        arrived: dict[str, int] = {}
        for notice in self._connection.notifies:
            if notice.pid != own:
                arrived.update(_unpacked(notice.payload))
        self._connection.notifies.clear()
        return arrived

    def _execute(self, sql: str, *params: object) -> None:
        self.busy_since = time.monotonic()
        try:
            self._cursor.execute(sql, params or None)
        finally:
            self.busy_since = math.inf


def _packed(revisions: dict[str, int]) -> Iterator[str]:
    """Return `id:revision,id:revision` in as few payloads as they fit into."""
    payload = ""
    for task_id, revision in revisions.items():
        word = f"{task_id}:{revision}"
        if payload and len(payload) + 1 + len(word) > PAYLOAD_MAX_BYTES:
            yield payload
            payload = ""
        payload += f",{word}" if payload else word
    if payload:
        yield payload


def _unpacked(payload: str) -> Iterator[tuple[str, int]]:
    for word in payload.split(","):
        task_id, _, revision = word.rpartition(":")
        if revision.isascii() and revision.isdecimal() and len(revision) <= REVISION_MAX_DIGITS:
            yield task_id, int(revision)
