"""The PostgreSQL of the tests: tests are isolated, and a crash loses nothing."""

import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support.paths import ROOT
from tests.support.postgres import Cluster, PostgresUnavailableError, bundled, new_schema
from tests.support.waiting import eventually


def execute(url: str, statement: str) -> Sequence[Sequence[Any]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description is not None else []


def refuses(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return True
    return False


def test_a_test_has_a_database_of_each_kind(
    database_url: str, request: pytest.FixtureRequest
) -> None:
    kind = request.node.callspec.id
    assert kind in {"sqlite", "postgresql"}
    assert database_url.startswith(f"{kind}://")


def test_an_unqualified_table_is_in_the_schema_of_the_test(postgresql_url: str) -> None:
    execute(postgresql_url, "CREATE TABLE task (id int)")
    [[schema]] = execute(
        postgresql_url,
        "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'task'::regclass",
    )
    assert postgresql_url.endswith(f"options=-csearch_path%3D{schema}")


def test_two_schemas_are_separate_and_dropped_afterwards(cluster: Cluster) -> None:
    with new_schema(cluster.url) as first, new_schema(cluster.url) as second:
        execute(first, "CREATE TABLE task AS SELECT 1 AS id")
        execute(second, "CREATE TABLE task AS SELECT 2 AS id")
        assert execute(first, "SELECT id FROM task") == [(1,)]
        assert execute(second, "SELECT id FROM task") == [(2,)]
    assert execute(cluster.url, "SELECT 1 FROM pg_namespace WHERE nspname LIKE 'test%'") == []


def test_the_server_is_a_supported_version(cluster: Cluster) -> None:
    for setting, value in {
        "fsync": "off",
        "synchronous_commit": "on",
        "max_connections": "300",
        "server_encoding": "UTF8",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }.items():
        assert execute(cluster.url, f"SHOW {setting}") == [(value,)]


def test_a_killed_server_restarts_with_what_was_committed(cluster: Cluster) -> None:
    execute(cluster.url, "CREATE TABLE task AS SELECT 1 AS id")
    with closing(psycopg2.connect(cluster.url)) as open_connection:
        open_connection.cursor().execute("INSERT INTO task VALUES (2)")
        cluster.kill()
        assert refuses(cluster.url)
        cluster.start()
        with pytest.raises(psycopg2.OperationalError):
            open_connection.cursor().execute("SELECT 1")
    assert execute(cluster.url, "SELECT id FROM task") == [(1,)]


def test_a_restarted_server_has_the_same_url_and_data(cluster: Cluster) -> None:
    url = cluster.url
    execute(url, "CREATE TABLE task AS SELECT 1 AS id")
    cluster.restart()
    cluster.stop()
    cluster.stop()
    cluster.start()
    assert cluster.url == url
    assert execute(url, "SELECT id FROM task") == [(1,)]


@pytest.mark.usefixtures("cluster")  # which skips where none can run
def test_the_server_of_the_wheel_runs_with_fsync() -> None:
    """As the user that runs the tests, root too."""
    with Cluster(binaries=bundled(), fsync=True) as cluster:
        assert execute(cluster.url, "SHOW fsync") == [("on",)]


@pytest.mark.usefixtures("cluster")  # which skips where none can run
async def test_a_server_ends_with_the_process_that_started_it() -> None:
    program = (
        "from tests.support.postgres import Cluster\n"
        "with Cluster() as cluster: print(cluster.url, cluster.folder, flush=True); input()"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    url, folder = (await process.stdout.readline()).decode().split()
    assert execute(url, "SELECT 1") == [(1,)]
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    await eventually(lambda: not Path(folder).exists() and refuses(url))


def test_a_server_that_cannot_be_created_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: folder)
    with pytest.raises(PostgresUnavailableError, match="no PostgreSQL can be made"):
        Cluster(binaries=tmp_path / "nothing")
    assert not folder.exists()
