"""SQLite's files: who may use them, and what happens when somebody removes them."""

import asyncio
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from storage.errors import StorageUnavailableError
from storage.opening import open_store
from storage.pages import ListFilter
from storage.sqlite import SqliteEngine
from storage.store import Store
from storage.task import Failure
from tests.support.paths import ROOT
from tests.support.storing import NO_LIMIT, NOW, new, stored

NAMES = ("generation.db", "generation.db.lock", "generation.db-wal", "generation.db-shm")
LOST = "was deleted, moved or replaced"
NOTICED_SECONDS = 10.0
FAILURE = Failure("CANCELLED", "")


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/generation.db"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with one task."""
    store = open_store(url(tmp_path))
    await stored(store, new("t"))
    yield store
    await store.close()


async def until_lost(store: Store) -> str:
    """Ping until the store notices that a file is lost; return the error."""
    async with asyncio.timeout(NOTICED_SECONDS):
        while True:
            try:
                await store.ping()
            except StorageUnavailableError as error:
                return str(error)
            await asyncio.sleep(0.02)


def delete(file: Path) -> None:
    file.unlink()


def move(file: Path) -> None:
    file.rename(file.with_name("moved"))


def replace_by_a_copy(file: Path) -> None:
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    copy.rename(file)


@pytest.mark.parametrize(
    ("name", "lose"),
    [
        *((name, delete) for name in NAMES),
        *((name, lose) for name in NAMES[:2] for lose in (move, replace_by_a_copy)),
    ],
)
async def test_nothing_is_acknowledged_once_a_file_is_lost(
    store: Store, tmp_path: Path, name: str, lose: Callable[[Path], None]
) -> None:
    lose(tmp_path / name)
    error = await until_lost(store)
    assert f"{name} {LOST}" in error
    assert "restart the service" in error
    task = new("u")
    writes = (
        store.create(task, NO_LIMIT),
        store.save(new("t"), new("t").failed(FAILURE, NOW)),
        store.make_abandoned_due(NOW),
        store.purge(NOW, 10),
    )
    for write in writes:
        with pytest.raises(StorageUnavailableError, match=LOST):
            await write
    assert await store.get("t") == new("t"), "a result that is known can still be read"


async def test_a_folder_that_is_moved_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = open_store(url(folder))
    await stored(store, new("t"))
    folder.rename(tmp_path / "elsewhere")
    assert LOST in await until_lost(store)
    await store.close()


async def test_a_link_that_names_another_file_is_noticed(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "generation.db")
    store = open_store(f"sqlite:///{link}")
    link.unlink()
    link.symlink_to(tmp_path / "other.db")
    assert f"link.db {LOST}" in await until_lost(store)
    await store.close()


async def test_a_replaced_file_is_not_listed_in_place_of_the_first(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = open_store(url(tmp_path / "other"))
    await stored(other, new("strange"))
    await other.close()
    (tmp_path / "other" / "generation.db").rename(tmp_path / "generation.db")
    await until_lost(store)
    with pytest.raises(StorageUnavailableError, match=LOST):
        await store.page(ListFilter("c"), None, 10)


async def test_a_file_that_is_put_back_is_used_again_and_each_change_is_logged_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "generation.db"
    with caplog.at_level(logging.INFO, logger="storage.sqlite_files"):
        file.rename(tmp_path / "moved")
        for _ in range(3):
            await until_lost(store)
        (tmp_path / "moved").rename(file)
        await stored(store, new("u"))
    lost, back = caplog.messages
    assert f"{file} {LOST}" in lost
    assert back == f"{file} is back"


# --- locks ---

OPEN = """
import asyncio, sys
from storage.errors import StorageConfigError
from storage.opening import open_store

async def main():
    try:
        await open_store(f"sqlite:///{sys.argv[1]}/generation.db").close()
    except StorageConfigError as error:
        print(error, end="")

asyncio.run(main())
"""


async def opened_by_another_process(folder: Path) -> str:
    """Open the database in another process; return why it is refused, or ""."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OPEN, str(folder)), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="the file itself is locked on Linux only")
async def test_another_process_is_refused_even_if_the_lock_file_is_gone(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "generation.db.lock").unlink()
    refused = f"{tmp_path}/generation.db is in use by another process of this service"
    assert await opened_by_another_process(tmp_path) == refused
    assert await store.get("t") == new("t")


async def test_watching_the_files_leaves_sqlites_own_locks_alone(
    store: Store, tmp_path: Path
) -> None:
    """SQLite would let another program leave the WAL if its locks on the file were dropped."""
    assert isinstance(store._engine, SqliteEngine)
    for _ in range(3):
        store._engine._files._checked = 0.0
        await store.ping()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LEAVE_THE_WAL, str(tmp_path / "generation.db")),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert output.decode() == "database is locked"


LEAVE_THE_WAL = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("PRAGMA journal_mode = delete")
except sqlite3.OperationalError as error:
    print(error, end="")
"""
