"""Hints between processes: which tasks have new snapshots, by LISTEN and NOTIFY.

A thread and a connection of their own. What is to be said is gathered for some milliseconds and
sent after the commit, never in the transaction of a write: PostgreSQL lets only one transaction
with a NOTIFY commit at a time. A hint may be lost; nothing may depend on it.
"""

import asyncio
import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg2

from storage.line import Line

GATHER_SECONDS = 0.005
PAYLOAD_MAX_BYTES = 7_900  # PostgreSQL takes 7,999
RECONNECT_SECONDS = 1.0
UNSENT_MAX = 10_000

logger = logging.getLogger(__name__)


class Hints:
    """The newest revisions that other processes committed, as far as they were heard of."""

    def __init__(self, connect: Callable[[], Any], channel: str) -> None:
        """Start the thread, inside the event loop that hears.

        Args:
            connect: Opens a connection of psycopg2.
            channel: An identifier; what is said there is heard there.
        """
        self._connect = connect
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._heard: dict[str, int] = {}
        self._news = asyncio.Event()
        self._unsent: dict[str, int] = {}
        self._unsent_lock = threading.Lock()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._closing = False
        self.connected = False
        self._outage_logged = False
        self.busy_since = math.inf  # by the monotonic clock; infinity while nothing is said
        self.line: Line | None = None
        self._thread = threading.Thread(target=self._serve, name="store-hints", daemon=True)
        self._thread.start()

    # --- in any thread ---

    def say(self, revisions: Iterable[tuple[str, int]]) -> None:
        """Tell others of committed snapshots, by the ids of their tasks and their revisions."""
        with self._unsent_lock:
            is_first = not self._unsent
            if len(self._unsent) < UNSENT_MAX:
                self._unsent.update(revisions)
        if is_first:
            self._wake()

    # --- in the event loop ---

    async def heard(self, timeout: float) -> dict[str, int]:
        """Wait for hints, at most `timeout` seconds; return the revision of each task, or {}.

        It returns early, with nothing, once hints may have been lost.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return {}
        self._news.clear()
        heard, self._heard = self._heard, {}
        return heard

    async def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._wake()
        await asyncio.to_thread(self._thread.join)
        os.close(self._wake_in)
        os.close(self._wake_out)

    def _hear(self, revisions: dict[str, int]) -> None:
        self._heard.update(revisions)
        self._news.set()

    # --- in the thread ---

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # it is awake already
            os.write(self._wake_in, b".")

    def _serve(self) -> None:
        while not self._closing:
            try:
                with (
                    closing(self._connect()) as connection,
                    closing(Line(connection)) as self.line,
                ):
                    self._listen(connection)
            except psycopg2.Error as error:
                self._log_outage(error)
            self.connected = False
            if not self._closing:
                select.select([self._wake_out], [], [], RECONNECT_SECONDS)
                self._drain_wakes()

    def _listen(self, connection: Any) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            self._say(cursor, f'LISTEN "{self._channel}"')
            self.connected = True
            if self._outage_logged:
                logger.info("hints between replicas are back")
                self._outage_logged = False
            self._loop.call_soon_threadsafe(self._hear, {})  # what was said before is lost
            self._send(cursor)  # what was to be said meanwhile
            while not self._closing:
                ready, _, _ = select.select([connection, self._wake_out], [], [])
                if self._wake_out in ready:
                    time.sleep(GATHER_SECONDS)
                    self._drain_wakes()
                    self._send(cursor)
                self._receive(connection)

    def _log_outage(self, error: psycopg2.Error) -> None:
        """Log only the first failure of an outage: attempts go on every second."""
        if not self._outage_logged:
            logger.warning("no hints between replicas: %s", " ".join(str(error).split()))
        self._outage_logged = True

    def _drain_wakes(self) -> None:
        while select.select([self._wake_out], [], [], 0)[0]:
            os.read(self._wake_out, 65_536)

    def _send(self, cursor: Any) -> None:
        with self._unsent_lock:
            unsent, self._unsent = self._unsent, {}
        if unsent:
            payloads = list(_packed(unsent))
            self._say(
                cursor,
                "SELECT pg_notify(%s, payload) FROM unnest(%s) AS payload",
                self._channel,
                payloads,
            )

    def _say(self, cursor: Any, sql: str, *params: object) -> None:
        self.busy_since = time.monotonic()
        try:
            cursor.execute(sql, params or None)
        finally:
            self.busy_since = math.inf

    def _receive(self, connection: Any) -> None:
        connection.poll()
        own = connection.info.backend_pid
        heard: dict[str, int] = {}
        for notice in connection.notifies:
            if notice.pid != own:
                heard.update(_unpacked(notice.payload))
        connection.notifies.clear()
        if heard:
            self._loop.call_soon_threadsafe(self._hear, heard)


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
        if revision.isascii() and revision.isdecimal():
            yield task_id, int(revision)
