"""Hints between replicas: the thread that sends and receives them survives whatever happens."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from service.descriptors import raise_limit
from storage.postgresql.hints import RECONNECT_SECONDS, Hints, channel_of
from tests.support.waiting import eventually

SELECT_MAX = 1_024  # the number of the first descriptor that select() cannot take


class Replicas:
    """Two processes' hints on a channel of their own, and all connections of the second."""

    def __init__(self, url: str, schema: str = "", **options: Any) -> None:
        self.url = url
        self.channel = channel_of(f"{schema}{uuid4().hex}")
        self.before_connect: Callable[[], None] = lambda: None
        self.connections: list[Any] = []
        self.first = Hints(partial(psycopg2.connect, url), self.channel)
        self.second = Hints(self._connect, self.channel, **options)

    def _connect(self) -> Any:
        self.before_connect()
        self.connections.append(psycopg2.connect(self.url))
        return self.connections[-1]

    async def listening(self) -> None:
        await eventually(lambda: self.first.connected and self.second.connected)
        await self.second.receive(0)

    async def pass_on(self, task_id: str) -> None:
        """Expect that a hint arrives."""
        self.first.send([(task_id, 7)])
        async with asyncio.timeout(20):
            while (await self.second.receive(1)).get(task_id) != 7:
                pass

    def execute(self, sql: str, *params: object) -> None:
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            connection.cursor().execute(sql, params)

    async def cut(self) -> None:
        """Terminate the second's connection, and wait until it has another one."""
        before = len(self.connections)
        pid = self.connections[-1].info.backend_pid
        self.execute("SELECT pg_terminate_backend(%s)", pid)
        await eventually(lambda: len(self.connections) > before and self.second.connected)


@asynccontextmanager
async def replicas(url: str, **options: Any) -> AsyncIterator[Replicas]:
    pair = Replicas(url, **options)
    try:
        await pair.listening()
        yield pair
    finally:
        await pair.first.close()
        await pair.second.close()


@pytest.fixture
def crowded() -> Iterator[Callable[[], None]]:
    """Occupy all low descriptors, as the connections of callers do."""
    raise_limit()
    held: list[int] = []

    def crowd() -> None:
        held.append(os.open(os.devnull, os.O_RDONLY))
        while held[-1] < SELECT_MAX:
            held.append(os.dup(held[0]))

    yield crowd
    for descriptor in held:
        os.close(descriptor)


async def test_hints_arrive_over_a_connection_above_what_select_can_take(
    postgresql_url: str, crowded: Callable[[], None]
) -> None:
    async with replicas(postgresql_url) as pair:
        pair.before_connect = crowded
        await pair.cut()
        assert pair.connections[-1].fileno() >= SELECT_MAX
        await pair.pass_on("t")


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.OperationalError("no route"),
        OSError(24, "Too many open files"),
        ValueError("filedescriptor out of range in select()"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_no_exception_ends_the_thread(
    postgresql_url: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with replicas(postgresql_url) as pair:
        attempts = []

        def fail_twice() -> None:
            attempts.append(1)
            if len(attempts) <= 2:
                raise error

        pair.before_connect = fail_twice
        await pair.cut()
        assert len(attempts) == 3
        assert pair.second.is_alive()
        await pair.pass_on("t")
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("no hints between replicas: ")


async def test_it_does_not_claim_to_receive_while_it_cannot_connect(postgresql_url: str) -> None:
    async with replicas(postgresql_url) as pair:
        may_connect = asyncio.Event()

        def fail() -> None:
            if not may_connect.is_set():
                raise OSError(24, "Too many open files")

        pair.before_connect = fail
        pair.execute("SELECT pg_terminate_backend(%s)", pair.connections[-1].info.backend_pid)
        await eventually(lambda: not pair.second.connected)
        may_connect.set()
        await eventually(lambda: pair.second.connected)
        await pair.pass_on("t")


@pytest.mark.parametrize(
    "payload", ["", "x", "x:", ":1", "x:-1", "x:1.5", "\xe9:\u0661", f"x:{'9' * 7_000}"]
)
async def test_a_notification_that_is_no_hint_is_ignored(postgresql_url: str, payload: str) -> None:
    async with replicas(postgresql_url) as pair:
        pair.execute("SELECT pg_notify(%s, %s)", pair.channel, payload)
        await pair.pass_on("t")
        assert len(pair.connections) == 1


async def test_a_session_that_no_longer_listens_is_noticed_and_replaced(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with replicas(postgresql_url, check_seconds=0.1) as pair:
        listener = pair.second._listener
        assert listener
        execute = listener._execute

        def lose(sql: str, *params: object) -> None:
            monkeypatch.setattr(listener, "_execute", execute)
            execute("UNLISTEN *")
            execute(sql, *params)

        monkeypatch.setattr(listener, "_execute", lose)
        await eventually(lambda: len(pair.connections) == 2 and pair.second.connected)
        await pair.pass_on("t")
    assert any("set DATABASE_HINTS=false" in record.message for record in caplog.records)


@pytest.mark.parametrize("schema", ['a"b', "a%b", "a%sb", "ä b", "x" * 60])
async def test_hints_work_with_any_name_of_a_schema(postgresql_url: str, schema: str) -> None:
    async with replicas(postgresql_url, schema=schema, check_seconds=0.1) as pair:
        await pair.pass_on("t")
        await asyncio.sleep(0.3)  # in which it checks
        await pair.pass_on("u")
        assert len(pair.connections) == 1


async def test_hints_that_are_sent_during_an_outage_do_not_hasten_the_attempts(
    postgresql_url: str,
) -> None:
    async with replicas(postgresql_url) as pair:
        attempts: list[float] = []

        def fail() -> None:
            attempts.append(time.monotonic())
            if len(attempts) <= 2:
                raise OSError(111, "Connection refused")

        pair.before_connect = fail
        pair.execute("SELECT pg_terminate_backend(%s)", pair.connections[-1].info.backend_pid)
        while not pair.second.connected or len(attempts) < 3:
            pair.second.send([("t", 1)])
            await asyncio.sleep(0.01)
            pair.second._unsent.take()
        assert attempts[2] - attempts[0] >= 2 * RECONNECT_SECONDS
