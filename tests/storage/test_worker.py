"""The thread that does the operations: which it drops, and what cannot end it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import peewee
import pytest

from storage.creation import Created
from storage.engine import TIMEOUTS
from storage.errors import StorageUnavailableError
from storage.opening import open_store
from storage.worker import Worker
from tests.support.databases import rows
from tests.support.slowness import slow_down
from tests.support.storing import NO_LIMIT, new
from tests.support.waiting import eventually

LONG = 60.0


class Thread:
    """A worker that a test keeps busy, and what it has done."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.worker = Worker(
            "writer", peewee.SqliteDatabase(str(path / "x.db")), nullcontext, **options
        )
        self.done: list[str] = []
        self._released = threading.Event()
        self._blocking: asyncio.Future[Any] | None = None

    def do(self, names: Sequence[str]) -> list[str]:
        self.done += names
        return list(names)

    def run(self, name: str, *, disposable: bool = True) -> "asyncio.Future[str]":
        """Have a job wait, and return it."""
        return asyncio.ensure_future(self.worker.run(self.do, name, disposable=disposable))

    async def block(self) -> None:
        """Occupy the thread until `release`."""

        def wait(arguments: Sequence[None]) -> Sequence[None]:
            self._released.wait()
            return arguments

        self._blocking = asyncio.ensure_future(self.worker.run(wait, None))
        await eventually(lambda: self.worker.busy_since < time.monotonic())

    async def release(self) -> None:
        self._released.set()
        if self._blocking:
            await self._blocking


@asynccontextmanager
async def thread(path: Path, **options: Any) -> AsyncIterator[Thread]:
    started = Thread(path, **options)
    try:
        yield started
    finally:
        await started.release()
        await started.worker.close()


async def test_a_disposable_job_whose_caller_has_left_is_never_started(tmp_path: Path) -> None:
    async with thread(tmp_path, waiting_seconds=LONG) as busy:
        await busy.block()
        left, stays = busy.run("left"), busy.run("stays")
        await asyncio.sleep(0)
        left.cancel()
        await busy.release()
        assert await stays == "stays"
        assert busy.done == ["stays"]


async def test_any_other_job_is_done_even_if_its_caller_has_left(tmp_path: Path) -> None:
    async with thread(tmp_path) as busy:
        await busy.block()
        left = busy.run("left", disposable=False)
        await asyncio.sleep(0)
        left.cancel()
        await busy.release()
        await eventually(lambda: busy.done == ["left"])


async def test_a_disposable_job_fails_once_it_has_waited_for_too_long(tmp_path: Path) -> None:
    async with thread(tmp_path, waiting_seconds=0.1) as busy:
        await busy.block()
        late, needed = busy.run("late"), busy.run("needed", disposable=False)
        with pytest.raises(StorageUnavailableError, match="the database is too slow"):
            await late
        assert not needed.done()
        await busy.release()
        assert await needed == "needed"
        assert busy.done == ["needed"]


async def test_a_disposable_job_that_has_started_is_waited_for(tmp_path: Path) -> None:
    async with thread(tmp_path, waiting_seconds=0.05) as busy:

        def slow(arguments: Sequence[str]) -> Sequence[str]:
            time.sleep(0.2)
            return arguments

        assert await busy.worker.run(slow, "slow", disposable=True) == "slow"


async def test_no_job_waits_behind_a_batch_that_takes_too_long(tmp_path: Path) -> None:
    async with thread(tmp_path, waiting_seconds=0.1) as busy:
        await busy.block()
        await eventually(lambda: time.monotonic() - busy.worker.busy_since > 0.1)
        with pytest.raises(StorageUnavailableError, match="the database is too slow"):
            await asyncio.wait_for(busy.run("refused"), 0.05)
        needed = busy.run("needed", disposable=False)
        await busy.release()
        assert await needed == "needed"


# --- batches that take too long ---


async def test_a_batch_over_the_statement_timeout_is_repeated_in_smaller_ones(
    postgresql_url: str,
) -> None:
    store = open_store(postgresql_url, timeouts=replace(TIMEOUTS, statement_milliseconds=400))
    slow_down(postgresql_url, 0.05)
    # They are one batch, and would take 0.8 s.
    created = await asyncio.gather(*(store.create(new(f"t{n}"), NO_LIMIT) for n in range(16)))
    assert all(isinstance(result, Created) for result in created)
    assert rows(postgresql_url, "SELECT count(*) FROM tasks") == [(16,)]
    await store.close()


async def test_one_row_over_the_statement_timeout_fails(postgresql_url: str) -> None:
    store = open_store(postgresql_url, timeouts=replace(TIMEOUTS, statement_milliseconds=200))
    slow_down(postgresql_url, 2)
    with pytest.raises(StorageUnavailableError, match="statement timeout"):
        await store.create(new("t"), NO_LIMIT)
    await store.close()


# --- what cannot end the thread ---


def broken() -> None:
    raise ValueError("a bug")


async def test_an_exception_while_it_recovers_does_not_end_the_thread(tmp_path: Path) -> None:
    async with thread(tmp_path, recover=broken) as working:

        def fail(arguments: Sequence[str]) -> Sequence[str]:
            raise peewee.OperationalError("gone")

        with pytest.raises(ValueError, match="a bug"):
            await working.worker.run(fail, "x")
        assert await working.run("y") == "y"


@pytest.mark.parametrize("way", ["on_result", "on_failure"])
async def test_an_exception_in_one_callback_does_not_keep_results_from_others(
    tmp_path: Path, way: str
) -> None:
    async with thread(tmp_path) as working:

        def work(arguments: Sequence[str]) -> Sequence[str]:
            if way == "on_failure":
                raise peewee.OperationalError("gone")
            return arguments

        await working.block()
        callback: dict[str, Any] = {way: lambda *_: broken()}
        jobs = [
            asyncio.ensure_future(working.worker.run(work, name, **options))
            for name, options in [("first", callback), ("second", {})]
        ]
        await asyncio.sleep(0)
        await working.release()
        results = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 5)
        if way == "on_result":
            assert results == ["first", "second"]
        else:
            assert [type(result) for result in results] == [peewee.OperationalError] * 2


async def test_no_file_descriptor_for_a_connection_is_an_outage_and_no_bug(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(postgresql_url, hints=False)

    def fail(descriptor: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("storage.postgresql.connection.os.dup", fail)
        with pytest.raises(StorageUnavailableError, match="Too many open files"):
            await store.get("t")
        with pytest.raises(StorageUnavailableError, match="Too many open files"):
            await store.ping()
    assert await store.get("t") is None
    await store.ping()
    await store.close()
