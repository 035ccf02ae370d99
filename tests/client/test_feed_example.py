"""The program of docs/feed.md applies each change exactly once, however often it is killed."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from providers.kie.simulator import Simulator
from tests.support.examples import example_in
from tests.support.harness import Service, serving
from tests.support.paths import ROOT
from tests.support.waiting import eventually

# A change that is applied twice counts twice.
COUNTED = """
    CREATE TABLE applied (id TEXT, revision INTEGER);
    CREATE TRIGGER inserted AFTER INSERT ON tasks
        BEGIN INSERT INTO applied VALUES (NEW.id, NEW.revision); END;
    CREATE TRIGGER updated AFTER UPDATE OF revision ON tasks
        BEGIN INSERT INTO applied VALUES (NEW.id, NEW.revision); END;
"""


@asynccontextmanager
async def running(address: str, database: Path) -> AsyncIterator[None]:
    """Run the program, and kill it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", example_in("docs/feed.md"), address, str(database)),
        env={"PYTHONPATH": str(ROOT / "client")},
    )
    try:
        yield
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()


def rows(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database, timeout=20)) as db:
        return db.execute(query).fetchall()


def count(database: Path) -> None:
    with closing(sqlite3.connect(database, timeout=20)) as db:
        db.executescript(COUNTED)


async def end_some(service: Service) -> set[tuple[str, int]]:
    ended = [await service.end((await service.create()).id) for _ in range(5)]
    return {(task.id, task.revision) for task in ended}


async def test_each_change_is_applied_exactly_once(tmp_path: Path, kie: Simulator) -> None:
    database = tmp_path / "backend.db"
    url = f"sqlite:///{tmp_path}/generation.db"
    async with serving(tmp_path, kie, database_url=url) as service:
        async with running(service.address, database):
            await eventually(
                lambda: rows(database, "SELECT 1 FROM sqlite_schema WHERE name = 'tasks'")
            )
            await asyncio.to_thread(count, database)
            expected = await end_some(service)
            await eventually(lambda: rows(database, "SELECT * FROM applied"))
        expected |= await end_some(service)
        async with running(service.address, database):
            expected |= await end_some(service)
            await eventually(lambda: len(rows(database, "SELECT * FROM tasks")) == len(expected))
    applied = rows(database, "SELECT id, revision FROM applied")
    assert sorted(applied) == sorted(expected)
