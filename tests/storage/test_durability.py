"""Databases that may lose what was acknowledged: the log says so at the start."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extras import PhysicalReplicationConnection, ReplicationCursor

from storage.mounts import network_file_system
from storage.opening import open_store
from tests.support.postgres import Cluster


def execute(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        for statement in statements:
            connection.cursor().execute(statement)


async def warnings(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log warns of when a database is opened."""
    caplog.clear()
    store = open_store(url)
    await store.close()
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def durable() -> Iterator[Cluster]:
    """A PostgreSQL that keeps what it has committed."""
    with Cluster(fsync=True) as server:
        yield server


async def test_a_durable_database_causes_no_warning(
    durable: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    assert await warnings(durable.url, caplog) == []


@pytest.mark.parametrize("value", ["on", "local", "remote_write", "remote_apply"])
async def test_any_commit_that_is_flushed_causes_no_warning(
    durable: Cluster, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    execute(durable.url, f"ALTER ROLE postgres SET synchronous_commit = {value}")
    assert await warnings(durable.url, caplog) == []


@pytest.mark.parametrize("whose", ["ROLE postgres", "DATABASE postgres"])
async def test_commits_that_are_not_flushed_are_warned_about(
    durable: Cluster, caplog: pytest.LogCaptureFixture, whose: str
) -> None:
    execute(durable.url, f"ALTER {whose} SET synchronous_commit = off")
    [warning] = await warnings(durable.url, caplog)
    assert "synchronous_commit is off" in warning


async def test_a_server_that_never_flushes_is_warned_about(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    [warning] = await warnings(cluster.url, caplog)
    assert "fsync is off" in warning


@contextmanager
def standby(url: str) -> Iterator[None]:
    """Receive and acknowledge the write-ahead log, as a standby does."""
    connection = psycopg2.connect(url, connection_factory=PhysicalReplicationConnection)
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        cursor.start_replication(start_lsn=cursor.fetchone()[2])
        stopped = threading.Event()
        receiving = threading.Thread(target=_acknowledge, args=(cursor, stopped))
        receiving.start()
        try:
            yield
        finally:
            stopped.set()
            receiving.join()


def _acknowledge(cursor: ReplicationCursor, stopped: threading.Event) -> None:
    while not stopped.is_set():
        if message := cursor.read_message():
            cursor.send_feedback(flush_lsn=message.data_start + len(message.payload), force=True)
        else:
            time.sleep(0.005)


@pytest.mark.parametrize(
    ("names", "commit", "expected"),
    [
        ("''", "on", "synchronous_standby_names is empty"),
        ("'*'", "local", "synchronous_commit is local"),
        ("'*'", "on", None),
    ],
)
async def test_standbys_that_commits_do_not_wait_for_are_warned_about(
    durable: Cluster,
    caplog: pytest.LogCaptureFixture,
    names: str,
    commit: str,
    expected: str | None,
) -> None:
    with standby(durable.url):
        execute(
            durable.url,
            f"ALTER ROLE postgres SET synchronous_commit = {commit}",
            f"ALTER SYSTEM SET synchronous_standby_names = {names}",
            "SELECT pg_reload_conf()",
        )
        found = await warnings(durable.url, caplog)
    assert len(found) == (expected is not None)
    assert all(expected in warning for warning in found if expected)


# --- SQLite ---


def mounts(folder: Path, file_system: str, device: int) -> Path:
    """Write a list of mounts in which a device has a file system."""
    number = f"{os.major(device)}:{os.minor(device)}"
    path = folder / "mounts"
    path.write_text(
        "22 1 0:5 / /dev rw - devtmpfs devtmpfs rw\n"
        f"23 1 {number} / / rw,relatime shared:1 master:2 - {file_system} somewhere:/x rw\n"
        "24 23 0:99 / /net rw - nfs4 other:/x rw\n"
        "not a mount\n"
    )
    return path


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "fuse.sshfs", "fuse.rclone"]
)
def test_a_network_file_system_is_recognised(tmp_path: Path, kind: str) -> None:
    listed = mounts(tmp_path, kind, tmp_path.stat().st_dev)
    assert network_file_system(listed, listed) == kind


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "fuse.fuse-overlayfs"]
)
def test_a_local_file_system_is_not_taken_for_one(tmp_path: Path, kind: str) -> None:
    listed = mounts(tmp_path, kind, tmp_path.stat().st_dev)
    assert network_file_system(listed, listed) == ""


def test_where_no_mounts_are_listed_nothing_is_known(tmp_path: Path) -> None:
    assert network_file_system(tmp_path, tmp_path / "missing") == ""


async def test_sqlite_on_a_network_file_system_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nfs(path: Path) -> str:
        assert path.exists()
        return "nfs4"

    url = f"sqlite:///{tmp_path}/generation.db"
    assert await warnings(url, caplog) == []
    monkeypatch.setattr("storage.sqlite.network_file_system", nfs)
    [warning] = await warnings(url, caplog)
    assert "generation.db is on a network file system (nfs4)" in warning
