"""Hints between processes: which tasks have new snapshots, by LISTEN and NOTIFY.

They have their own thread and connection. Hints are gathered for some milliseconds and sent
after the commit, never in the transaction of a write: PostgreSQL lets only one transaction with a
NOTIFY commit at a time. A hint may be lost; nothing may depend on it.
"""

import asyncio
import logging
import math
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from hashlib import blake2b
from typing import Any

from storage.postgresql.connection import ConnectionSocket

GATHER_SECONDS = 0.005
PAYLOAD_MAX_BYTES = 7_900  # PostgreSQL takes 7,999
RECONNECT_SECONDS = 1.0
CHECK_SECONDS = 10.0
UNSENT_MAX = 10_000
REVISION_MAX_DIGITS = 19
CHANNEL_SCHEMA_MAX_BYTES = 50

logger = logging.getLogger(__name__)


def channel_of(schema: str) -> str:
    """Return the channel of the replicas on one schema.

    An identifier has at most 63 bytes, and ours is part of SQL without any escapes.
    """
    if len(schema.encode()) > CHANNEL_SCHEMA_MAX_BYTES or set(schema) & set('"%'):
        schema = blake2b(schema.encode(), digest_size=16).hexdigest()
    return f"generation_{schema}"


class _Received:
    """The newest revisions in hints that arrived and were not read yet."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._revisions: dict[str, int] = {}
        self._arrived = asyncio.Event()

    def put(self, revisions: dict[str, int]) -> None:
        """Pass on hints, from any thread."""
        self._loop.call_soon_threadsafe(self._put, revisions)

    def _put(self, revisions: dict[str, int]) -> None:
        self._revisions.update(revisions)
        self._arrived.set()

    async def take(self, timeout: float) -> dict[str, int]:
        try:
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        except TimeoutError:
            return {}
        self._arrived.clear()
        revisions, self._revisions = self._revisions, {}
        return revisions


class _Unsent:
    """The revisions that are to be sent, and a pipe that wakes the thread which sends them."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = {}
        self._lock = threading.Lock()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)

    def put(self, revisions: Iterable[tuple[str, int]]) -> None:
        with self._lock:
            is_first = not self._revisions
            if len(self._revisions) < UNSENT_MAX:
                self._revisions.update(revisions)
        if is_first:
            self.wake()

    def take(self) -> dict[str, int]:
        with self._lock:
            revisions, self._revisions = self._revisions, {}
        return revisions

    def wake(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so the thread is being woken
            os.write(self._wake_in, b".")

    def wait(self, *connections: Any, timeout: float) -> bool:
        """Wait until a connection has data, or until woken; return whether it was the latter.

        `poll` takes descriptors of any number, unlike `select`, and needs none itself, unlike
        `epoll`: there may be thousands of connections of callers, or none left.
        """
        with selectors.PollSelector() as selector:
            for source in (*connections, self._wake_out):
                selector.register(source, selectors.EVENT_READ)
            return any(key.fd == self._wake_out for key, _ in selector.select(timeout))

    def drain_wakes(self) -> None:
        while self.wait(timeout=0):
            os.read(self._wake_out, 65_536)

    def close(self) -> None:
        os.close(self._wake_in)
        os.close(self._wake_out)


class NotListeningError(Exception):
    """The connection does not receive hints, although nothing has failed."""


class Hints:
    """Sends the revisions that this process commits, and receives those of other processes.

    Attributes:
        name: What logs and metrics call the thread.
        connected: Whether the hints of other processes arrive at this moment.
        busy_since: Since when a statement runs, by the monotonic clock; infinity while none does.
        socket: Of the connection, if there is one.
    """

    name = "hints"

    def __init__(
        self, connect: Callable[[], Any], channel: str, check_seconds: float = CHECK_SECONDS
    ) -> None:
        """Start the thread, inside the event loop that receives.

        Args:
            connect: Opens a connection of psycopg2.
            channel: An identifier; what one process sends there, the others receive.
            check_seconds: Between two checks that the connection still listens.
        """
        self._connect = connect
        self._channel = channel
        self._check_seconds = check_seconds
        self._received = _Received()
        self._unsent = _Unsent()
        self._closing = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._outage_logged = False
        self.connected = False
        self.busy_since = math.inf
        self.socket: ConnectionSocket | None = None
        self._thread = threading.Thread(target=self._serve, name="store-hints", daemon=True)
        self._thread.start()

    def send(self, revisions: Iterable[tuple[str, int]]) -> None:
        """Send the ids of tasks and their committed revisions; from any thread."""
        self._unsent.put(revisions)

    async def receive(self, timeout: float) -> dict[str, int]:
        """Wait for hints, at most `timeout` seconds; return the revision of each task, or {}.

        It returns early, with nothing, if hints may have been lost.
        """
        return await self._received.take(timeout)

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    async def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._unsent.wake()
        await self._ended.wait()
        self._unsent.close()

    # --- in the thread ---

    def _serve(self) -> None:
        while not self._closing.is_set() and not self._loop.is_closed():
            try:
                self._connect_and_listen()
            except Exception as error:  # noqa: BLE001 - nothing may end the thread
                self._log_outage(error)
            finally:
                self.connected = False
            self._closing.wait(RECONNECT_SECONDS)
        with suppress(RuntimeError):  # the event loop was closed without waiting
            self._loop.call_soon_threadsafe(self._ended.set)

    def _connect_and_listen(self) -> None:
        with (
            closing(self._connect()) as connection,
            closing(ConnectionSocket(connection)) as self.socket,
        ):
            connection.autocommit = True
            with connection.cursor() as cursor:
                self._execute(cursor, f'LISTEN "{self._channel}"')
                self.connected = True
                if self._outage_logged:
                    logger.info("hints between replicas are available again")
                    self._outage_logged = False
                self._received.put({})  # hints that were sent before are lost
                self._exchange(connection, cursor)

    def _exchange(self, connection: Any, cursor: Any) -> None:
        """Send and receive, until closing."""
        self._send_unsent(cursor)
        check_time = time.monotonic() + self._check_seconds
        while not self._closing.is_set():
            if self._unsent.wait(connection, timeout=max(0, check_time - time.monotonic())):
                time.sleep(GATHER_SECONDS)
                self._unsent.drain_wakes()
                self._send_unsent(cursor)
            self._receive_arrived(connection)
            if time.monotonic() >= check_time:
                self._check_listening(cursor)
                check_time = time.monotonic() + self._check_seconds

    def _check_listening(self, cursor: Any) -> None:
        """Ask the server whether it would send hints; the question also finds a dead connection.

        A LISTEN takes effect at the end of its transaction, so the response is about the time
        before it.

        Raises:
            NotListeningError: It would not.
        """
        sql = f'LISTEN "{self._channel}"; SELECT %s IN (SELECT pg_listening_channels())'
        self._execute(cursor, sql, self._channel)
        if not cursor.fetchone()[0]:
            raise NotListeningError(
                "the session no longer listens, as behind a pooler in transaction mode:"
                " set DATABASE_HINTS=false, or connect without the pooler"
            )

    def _log_outage(self, error: Exception) -> None:
        """Log only the first failure of an outage, as an attempt follows every second."""
        if not self._outage_logged:
            logger.warning("no hints between replicas: %s", " ".join(str(error).split()))
        self._outage_logged = True

    def _send_unsent(self, cursor: Any) -> None:
        if unsent := self._unsent.take():
            self._execute(
                cursor,
                "SELECT pg_notify(%s, payload) FROM unnest(%s) AS payload",
                self._channel,
                list(_packed(unsent)),
            )

    def _execute(self, cursor: Any, sql: str, *params: object) -> None:
        self.busy_since = time.monotonic()
        try:
            cursor.execute(sql, params or None)
        finally:
            self.busy_since = math.inf

    def _receive_arrived(self, connection: Any) -> None:
        connection.poll()
        own = connection.info.backend_pid
        arrived: dict[str, int] = {}
        for notice in connection.notifies:
            if notice.pid != own:
                arrived.update(_unpacked(notice.payload))
        connection.notifies.clear()
        if arrived:
            self._received.put(arrived)


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
