"""SQLite: one process for each file, and what can happen to the file."""

import asyncio
import os
import re
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storage.claims import UNREADABLE_SECONDS
from storage.creation import Created
from storage.engine import DatabaseTimeouts
from storage.errors import StorageConfigError, StorageUnavailableError
from storage.opening import open_store
from storage.pages import ListFilter
from storage.sqlite import SqliteEngine
from storage.store import Store
from storage.task import Lane, Task
from tests.support.databases import change, rows
from tests.support.paths import ROOT
from tests.support.storing import (
    NO_LIMIT,
    NOW,
    Gate,
    claim,
    claim_in_turns,
    enqueued,
    new,
    read,
    send,
    some_tasks,
    stored,
)


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/generation.db"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    store = open_store(url(tmp_path))
    yield store
    await store.close()


# --- writes ---


async def test_a_write_is_persisted_before_it_is_acknowledged(store: Store) -> None:
    def pragma(name: str) -> Any:
        return store._engine.execute(f"PRAGMA {name}").fetchone()[0]

    settings = await store._write(
        "test", lambda _: [(pragma("journal_mode"), pragma("synchronous"))]
    )
    assert settings == ("wal", 2), "2 is FULL: every commit is flushed"


async def test_a_row_whose_params_are_text_is_damaged_and_the_others_are_claimed(
    store: Store, tmp_path: Path
) -> None:
    await stored(store, new("broken", due_time=NOW - 9), new("t"))
    change(url(tmp_path), "UPDATE tasks SET params = 'text' WHERE id = 'broken'")
    assert [task.id for task in await claim(store, Lane.SUBMIT, NOW, 10, send)] == ["t"]
    sql = "SELECT lane, due_time FROM tasks WHERE id = 'broken'"
    assert rows(url(tmp_path), sql) == [("submit", NOW + UNREADABLE_SECONDS)]


# --- batches ---


def committed(path: Path) -> int:
    """Count the tasks that another connection sees."""
    [(count,)] = rows(url(path), "SELECT count(*) FROM tasks")
    assert isinstance(count, int)
    return count


async def test_writes_that_wait_together_are_committed_together(
    store: Store, tmp_path: Path
) -> None:
    gate = Gate(store)
    await gate.reached()
    jobs = await enqueued(*(store.create(new(f"t{i}"), NO_LIMIT) for i in range(20)))
    seen = await enqueued(store._write("test", lambda _: [committed(tmp_path)]))
    await gate.open()
    await asyncio.gather(*jobs)
    assert await asyncio.gather(*seen) == [0], "the one behind them saw none committed"
    assert await store.count(Lane.SUBMIT) == 20


# --- an unavailable database ---


async def test_a_locked_database_is_unavailable_and_works_again_after(tmp_path: Path) -> None:
    store = open_store(url(tmp_path), timeouts=DatabaseTimeouts(sqlite_busy_seconds=0.02))
    await stored(store, new("t"))
    with closing(sqlite3.connect(tmp_path / "generation.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        writes = (
            store.create(new("u"), NO_LIMIT),
            store.save(new("t"), send(new("t"))),
            claim(store, Lane.SUBMIT, NOW, 10, send),
            claim_in_turns(store, 10, lambda *_: []),
            store.make_abandoned_due(NOW),
            store.make_polls_due(NOW),
            store.ping(),
        )
        for write in writes:
            with pytest.raises(StorageUnavailableError, match="locked"):
                await write
        assert await read(store, "t") == new("t"), "reads still work"
        assert await store.page(ListFilter("c"), None, 10) == [new("t")]
    assert await read(store, "u") is None
    await store.ping()
    await stored(store, new("u"))
    assert len(await claim(store, Lane.SUBMIT, NOW, 10, send)) == 2
    await store.close()


async def test_a_ping_does_not_wait_long_for_a_busy_database(tmp_path: Path) -> None:
    store = open_store(url(tmp_path), timeouts=DatabaseTimeouts(ping_seconds=0.2))
    gate = Gate(store)
    await gate.reached()
    with pytest.raises(StorageUnavailableError, match="busy"):
        await store.ping()
    await gate.open()
    await store.ping()
    await store.close()


async def test_a_full_disk_is_unavailable_and_leaves_nothing_half_written(
    store: Store, tmp_path: Path
) -> None:
    def pages(most: int | None) -> Any:
        if most is None:
            return store._engine.execute("PRAGMA page_count").fetchone()[0]
        return store._engine.execute(f"PRAGMA max_page_count = {most}").fetchone()

    await store._write("test", lambda _: [pages(pages(None) + 40)])
    large = [new(f"t{i}", params=bytes(20_000)) for i in range(50)]
    created: list[Task] = []

    async def create_all() -> None:
        for task in large:
            await store.create(task, NO_LIMIT)
            created.append(task)

    with pytest.raises(StorageUnavailableError, match="disk is full"):
        await create_all()
    assert 0 < len(created) < 50
    listed = await store.page(ListFilter("c"), None, 100)
    assert sorted(listed, key=lambda task: task.id) == sorted(created, key=lambda task: task.id)

    together = await asyncio.gather(
        *(store.create(task, NO_LIMIT) for task in large[len(created) :]), return_exceptions=True
    )
    assert all(isinstance(answer, StorageUnavailableError) for answer in together)
    assert len(await store.page(ListFilter("c"), None, 100)) == len(created)
    assert rows(url(tmp_path), "PRAGMA integrity_check") == [("ok",)]

    await store._write("test", lambda _: [pages(100_000)])
    await stored(store, *large[len(created) :])
    assert await store.count(Lane.SUBMIT) == 50


PAGES_OF_TASKS = "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'tasks' AND rootpage > 0"
FILE_LIMIT = """
import asyncio, resource, sys
from storage.errors import StorageUnavailableError
from storage.creation import Created, CreateLimits
from storage.pages import ListFilter
from storage.opening import open_store
from tests.support.storing import new

def largest_file(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    store = open_store(f"sqlite:///{sys.argv[1]}/generation.db")
    largest_file(300_000)
    created = 0
    while True:
        try:
            await store.create(new(f"t{created}", params=bytes(20_000)), CreateLimits(1_000))
        except StorageUnavailableError as error:
            print(error)
            break
        created += 1
    assert 0 < created < 20, created
    listed = await store.page(ListFilter("c"), None, 100)
    assert {task.id for task in listed} == {f"t{i}" for i in range(created)}
    largest_file(resource.RLIM_INFINITY)
    task = new("after", params=bytes(20_000))
    assert await store.create(task, CreateLimits(1_000)) == Created(task)
    await store.close()
    store = open_store(f"sqlite:///{sys.argv[1]}/generation.db")
    assert len(await store.page(ListFilter("c"), None, 100)) == created + 1
    await store.close()
    print("recovered")

asyncio.run(main())
"""


async def test_a_file_that_cannot_grow_is_unavailable_until_it_can(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FILE_LIMIT, str(tmp_path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().splitlines()[-1] == "recovered"
    assert rows(url(tmp_path), "PRAGMA integrity_check") == [("ok",)]


async def test_a_damaged_database_file_is_unavailable(tmp_path: Path) -> None:
    store = open_store(url(tmp_path))
    await stored(store, *some_tasks())
    await store.close()
    path = tmp_path / "generation.db"
    [(page_size,)] = rows(url(tmp_path), "PRAGMA page_size")
    roots = rows(url(tmp_path), PAGES_OF_TASKS)
    with path.open("r+b") as file:
        for (root,) in roots:
            file.seek((root - 1) * page_size)
            file.write(b"\xff" * page_size)

    with pytest.raises(StorageUnavailableError, match="malformed"):
        open_store(url(tmp_path))


# --- opening and closing ---


async def test_a_second_store_on_the_same_file_is_refused_until_the_first_is_closed(
    tmp_path: Path,
) -> None:
    first = open_store(url(tmp_path))
    with pytest.raises(StorageConfigError, match=r"generation\.db is in use by another process"):
        open_store(url(tmp_path))
    await stored(first, new("t"))
    await first.close()
    second = open_store(url(tmp_path))
    assert await second.get("t") == new("t")
    await second.close()


async def test_stores_on_different_files_work_at_the_same_time(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = open_store(url(tmp_path)), open_store(url(tmp_path / "other"))
    await stored(first, new("t"))
    assert await second.get("t") is None
    await first.close()
    await second.close()


async def test_closing_finishes_the_writes_that_wait(tmp_path: Path) -> None:
    store = open_store(url(tmp_path))
    gate = Gate(store)
    await gate.reached()
    tasks = [new(f"t{i}") for i in range(600)]
    jobs = await enqueued(*(store.create(task, NO_LIMIT) for task in tasks))
    [closed] = await enqueued(store.close())
    await gate.open()
    assert await asyncio.gather(*jobs) == [Created(task) for task in tasks]
    await closed
    assert rows(url(tmp_path), "SELECT count(*) FROM tasks") == [(600,)]


async def test_closing_leaves_no_thread_and_no_temporary_file(tmp_path: Path) -> None:
    store = open_store(url(tmp_path))
    await stored(store, new("t"))
    await store.page(ListFilter("c"), None, 1)
    assert isinstance(store._engine, SqliteEngine)
    threads = [store._engine.writer._thread, store._engine._lister._thread]
    await store.close()
    assert not any(thread.is_alive() for thread in threads)
    assert set(os.listdir(tmp_path)) == {"generation.db", "generation.db.lock"}  # noqa: PTH208


async def test_a_file_in_a_missing_folder_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError) as caught:
        open_store(url(tmp_path / "nowhere"))
    assert (
        str(caught.value)
        == f"cannot open {tmp_path}/nowhere/generation.db: No such file or directory"
    )


async def test_a_folder_in_place_of_the_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "generation.db").mkdir()
    for _ in range(2):  # the first try keeps no lock
        with pytest.raises(StorageUnavailableError, match="cannot open"):
            open_store(url(tmp_path))


async def test_a_file_that_is_not_a_database_is_named_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "generation.db"
    content = b"my other notes\n" * 1_000
    path.write_bytes(content)
    for _ in range(2):  # the first try keeps no lock
        with pytest.raises(StorageConfigError, match=re.escape(f"{path} is not a SQLite database")):
            open_store(url(tmp_path))
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["generation.db"]  # noqa: PTH208 - and no lock next to it


@pytest.mark.parametrize(
    "database_url",
    ["", "generation.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://x/y"],
)
async def test_a_url_without_a_database_is_a_configuration_error(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageConfigError, match="DATABASE_URL"):
        open_store(database_url)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
