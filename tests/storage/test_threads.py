"""The state of the storage's threads, as health checks see it."""

import asyncio
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from peewee import SqliteDatabase

from storage.opening import open_store
from storage.threads import LoopThread, state_of
from storage.worker import Worker
from tests.support.waiting import eventually


async def test_a_thread_is_busy_while_it_works_and_dead_once_it_has_ended(tmp_path: Path) -> None:
    worker = Worker("writer", SqliteDatabase(str(tmp_path / "x.db")), nullcontext)
    assert state_of(worker).alive
    assert state_of(worker).busy_seconds == 0
    released = threading.Event()

    def block(arguments: Any) -> list[None]:
        released.wait()
        return [None for _ in arguments]

    working = worker.run(block, None)
    waiting = asyncio.ensure_future(working)
    await eventually(lambda: state_of(worker).busy_seconds > 0)
    assert state_of(worker).stalled_seconds > 0
    assert state_of(worker, connected_since=None).stalled_seconds == 0
    released.set()
    await waiting
    await worker.close()
    await eventually(lambda: not state_of(worker).alive)


def test_a_thread_whose_event_loop_was_closed_ends_without_an_error() -> None:
    released = threading.Event()

    def wait() -> None:
        released.wait()

    async def start() -> LoopThread:
        thread = LoopThread("x", wait)
        thread.start()
        return thread

    thread = asyncio.run(start())
    assert thread.is_abandoned
    released.set()
    thread.join()


@pytest.mark.parametrize("hints", [True, False])
async def test_every_thread_of_postgresql_is_named(postgresql_url: str, hints: bool) -> None:
    store = open_store(postgresql_url, hints=hints)
    names = [thread.name for thread in store.threads()]
    assert names == ["writer", "reader", "lister", *(["hints"] if hints else [])]
    assert all(thread.alive for thread in store.threads())
    await store.close()
