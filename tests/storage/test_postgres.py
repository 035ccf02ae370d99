"""PostgreSQL as operators set it up: encodings, privileges, clocks, names."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.bounds import BOUNDS, UpkeepBounds
from service.follow import FollowTimes
from service.forever import forever
from service.outage_log import OutageLog
from service.purge import Purger
from storage.errors import StorageConfigError, StorageUnavailableError
from storage.opening import open_store
from storage.postgresql.connection import PostgresDatabase, connection_params, lock_key
from storage.task import Stage, Status
from tests.support.databases import change, rows
from tests.support.harness import serving
from tests.support.killing import Victim
from tests.support.postgres import Cluster
from tests.support.prompts import STUCK
from tests.support.storing import NO_LIMIT, NOW, new, stored
from tests.support.waiting import eventually


def run(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        for statement in statements:
            connection.cursor().execute(statement)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_without_utf_8_is_refused(cluster: Cluster, encoding: str) -> None:
    run(cluster.url, f"CREATE DATABASE narrow ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StorageConfigError, match=f"must have the encoding UTF8, not {encoding}"):
        open_store(f"{cluster.url.rpartition('/')[0]}/narrow")


async def test_the_encoding_of_the_environment_does_not_matter(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    store = open_store(postgresql_url)
    await stored(store, new("t", prompt_id="猫"))
    assert await store.get("t") == new("t", prompt_id="猫")
    await store.close()


async def test_a_read_only_role_is_reported_as_an_unavailable_database(
    postgresql_url: str,
) -> None:
    store = open_store(postgresql_url)
    await stored(store, new("t"))
    role = f"reader_{uuid4().hex}"
    change(postgresql_url, f"CREATE ROLE {role}")
    change(postgresql_url, f"GRANT SELECT ON tasks, slots TO {role}")
    [[schema]] = rows(postgresql_url, "SELECT current_schema()")
    change(postgresql_url, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: store.create(new("u"), NO_LIMIT),
        lambda: store.purge(NOW, 1),
        store.ping,
    ]
    for write in writes:  # after each the connection is opened again
        await store._execute("test", f"SET ROLE {role}")
        with pytest.raises(StorageUnavailableError, match="permission denied"):
            await write()
    assert await store.get("t") == new("t")
    await store.close()
    change(postgresql_url, f"DROP OWNED BY {role}")
    change(postgresql_url, f"DROP ROLE {role}")


async def test_a_missing_schema_is_named(postgresql_url: str) -> None:
    with pytest.raises(StorageUnavailableError, match="no schema has been selected"):
        open_store(f"{postgresql_url.rpartition('%3D')[0]}%3Dnowhere")


async def test_hints_work_with_a_long_schema_name(
    postgresql_url: str,
) -> None:
    schema = f"s_{'x' * 58}"
    change(postgresql_url, f"CREATE SCHEMA {schema}")
    url = f"{postgresql_url.rpartition('%3D')[0]}%3D{schema}"
    first, second = open_store(url), open_store(url)
    await stored(first, new("t", stage=Stage.QUEUED))
    async with asyncio.timeout(10):
        while not (first.is_listening and second.is_listening):
            await first.wait_for_hints(0.01)
    task = new("t", stage=Stage.QUEUED)
    assert await first.save(task, task.progressed(True, 5, NOW))
    hints: dict[str, int] = {}
    async with asyncio.timeout(10):
        while not hints:
            hints = await second.wait_for_hints(1)
    assert hints == {"t": 2}
    await first.close()
    await second.close()
    change(postgresql_url, f"DROP SCHEMA {schema} CASCADE")


async def test_setting_the_machines_clock_moves_no_lease(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(postgresql_url)
    before = store.now()
    monkeypatch.setattr(time, "time", lambda: NOW + 10_000_000)
    assert 0 <= store.now() - before < 5
    await store.close()


async def test_a_purge_continues_after_a_bug(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(postgresql_url)
    await stored(store, new("t", status=Status.SUCCESS, stage=None, due_time=None, complete_time=1))
    change(postgresql_url, "UPDATE tasks SET update_time = 1")
    purge, calls = store.purge, []

    async def broken_once(ended_before: float, limit: int) -> int:
        calls.append(limit)
        if len(calls) == 1:
            raise ZeroDivisionError
        return await purge(ended_before, limit)

    monkeypatch.setattr(store, "purge", broken_once)
    purger = Purger(store, 3_600)
    purging = asyncio.create_task(forever(purger.run_once, "purge", 0.01, OutageLog()))
    async with asyncio.timeout(10):
        while await store.get("t"):
            pass
    purging.cancel()
    await store.close()


async def test_a_heartbeat_shows_commits_of_other_replicas_even_if_their_hint_is_lost(
    tmp_path: Path, kie: Simulator, postgresql_url: str
) -> None:
    bounds = replace(BOUNDS, upkeep=UpkeepBounds(follow=FollowTimes(sweep_seconds=3_600)))
    settings: dict[str, Any] = {"database_url": postgresql_url, "watch_heartbeat_seconds": 0.05}
    async with serving(tmp_path, kie, bounds=bounds, **settings) as service:
        created = await service.create(STUCK)
        seen = None
        async for task in service.watch(created.id):
            if seen is None:
                change(
                    postgresql_url,
                    "UPDATE tasks SET progress_percent = 7, revision = revision + 10,"
                    " version = version + 10",
                )
            seen = task
            if task.progress_percent == 7:
                service.kie.finish(created.provider_task_id)
        assert seen
        assert seen.status == pb.TASK_STATUS_SUCCESS


async def test_a_process_that_waits_for_a_migration_can_be_stopped(
    tmp_path: Path, kie: Simulator, cluster: Cluster, unused_tcp_port_factory: Any
) -> None:
    ports = [unused_tcp_port_factory(), unused_tcp_port_factory()]
    victim = Victim(tmp_path, kie, ports, DATABASE_URL=cluster.url)
    key = "SELECT pg_advisory_lock(%s)"
    database: Any = PostgresDatabase(connection_params(cluster.url))
    with database.connection_context():
        database.execute_sql(key, (lock_key(database, "migrations"),))
        starting = asyncio.ensure_future(victim.start())
        others = (
            "SELECT 1 FROM pg_stat_activity"
            " WHERE application_name = 'generation' AND pid <> pg_backend_pid()"
        )
        await eventually(lambda: database.execute_sql(others).fetchone())
        assert victim._process
        victim._process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(victim._process.wait(), 5) == -signal.SIGTERM
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
