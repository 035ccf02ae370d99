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
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from hashlib import blake2b
from typing import Any

from storage.postgresql.connection import ConnectionSocket
from storage.postgresql.listener import Listener
from storage.threads import LoopThread

GATHER_SECONDS = 0.005
RECONNECT_SECONDS = 1.0
CHECK_SECONDS = 10.0
UNSENT_MAX = 10_000
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

    def wait(self, *listeners: Listener, timeout: float) -> bool:
        """Wait until a listener has data, or until woken; return whether it was the latter.

        `poll` takes descriptors of any number, unlike `select`, and needs none itself, unlike
        `epoll`: there may be thousands of connections of callers, or none left.
        """
        with selectors.PollSelector() as selector:
            selector.register(self._wake_out, selectors.EVENT_READ)
            for listener in listeners:
                selector.register(listener, selectors.EVENT_READ)
            return any(key.fd == self._wake_out for key, _ in selector.select(timeout))

    def drain_wakes(self) -> None:
        while self.wait(timeout=0):
            os.read(self._wake_out, 65_536)

    def close(self) -> None:
        os.close(self._wake_in)
        os.close(self._wake_out)


class Hints:
    """Sends the revisions that this process commits, and receives those of other processes.

    Attributes:
        name: What logs and metrics call the thread.
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
        self._listener: Listener | None = None
        self._outage_logged = False
        self._thread = LoopThread(self.name, self._serve)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the hints of other processes arrive at this moment."""
        listener = self._listener  # the thread may replace it meanwhile
        return listener is not None and listener.is_listening

    @property
    def busy_since(self) -> float:
        """Since when a statement runs, by the monotonic clock; infinity while none does."""
        listener = self._listener
        return listener.busy_since if listener else math.inf

    @property
    def socket(self) -> ConnectionSocket | None:
        """Of the connection, if there is one."""
        listener = self._listener
        return listener.socket if listener else None

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
        await self._thread.ended()
        self._unsent.close()

    # --- in the thread ---

    def _serve(self) -> None:
        while not self._closing.is_set() and not self._thread.is_abandoned:
            try:
                self._connect_and_listen()
            except Exception as error:  # noqa: BLE001 - nothing may end the thread
                self._log_outage(error)
            finally:
                self._listener = None
            self._closing.wait(RECONNECT_SECONDS)

    def _connect_and_listen(self) -> None:
        with (
            closing(self._connect()) as connection,
            closing(Listener(connection, self._channel)) as listener,
        ):
            self._listener = listener
            listener.listen()
            if self._outage_logged:
                logger.info("hints between replicas are available again")
                self._outage_logged = False
            self._received.put({})  # hints that were sent before are lost
            self._exchange(listener)

    def _exchange(self, listener: Listener) -> None:
        """Send and receive, until closing."""
        self._send_unsent(listener)
        check_time = time.monotonic() + self._check_seconds
        while not self._closing.is_set():
            if self._unsent.wait(listener, timeout=max(0, check_time - time.monotonic())):
                time.sleep(GATHER_SECONDS)
                self._unsent.drain_wakes()
                self._send_unsent(listener)
            if arrived := listener.receive():
                self._received.put(arrived)
            if time.monotonic() >= check_time:
                listener.check()
                check_time = time.monotonic() + self._check_seconds

    def _send_unsent(self, listener: Listener) -> None:
        if unsent := self._unsent.take():
            listener.send(unsent)

    def _log_outage(self, error: Exception) -> None:
        """Log only the first failure of an outage, as an attempt follows every second."""
        if not self._outage_logged:
            logger.warning("no hints between replicas: %s", " ".join(str(error).split()))
        self._outage_logged = True
