"""A process whose SQLite file or lock is removed by somebody."""

import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.processes import Launch, started
from tests.support.prompts import STUCK_PROMPT
from tests.support.refusals import refused
from tests.support.waiting import eventually

UNAVAILABLE = (503, "the database is unavailable\n")
NOT_STORED = (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")


@pytest.mark.parametrize("suffixes", [("", "-wal", "-shm", ".lock"), (".lock",)])
async def test_a_process_whose_files_are_deleted_acknowledges_nothing_more_and_is_not_ready(
    launch: Launch, tmp_path: Path, suffixes: Sequence[str]
) -> None:
    async with launch() as process:
        created = await process.create(STUCK_PROMPT)
        for suffix in suffixes:
            (tmp_path / f"generation.db{suffix}").unlink()
        await process.until("/readyz", UNAVAILABLE)
        assert await process.get("/healthz") == (200, "ok\n"), "a restart would lose the tasks"
        error = await refused(process.create())
        assert (error.code, error.reason) == NOT_STORED
        assert await eventually(lambda: "was deleted, moved or replaced" in process.process.text)
        request = pb.QueryTaskRequest(task_id=created.id)
        assert (await process.stub.QueryTask(request, timeout=20)).task.id == created.id
        await process.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the file itself is locked on Linux only")
async def test_a_second_process_is_refused_even_if_the_lock_file_is_gone(
    launch: Launch, tmp_path: Path
) -> None:
    async with launch():
        (tmp_path / "generation.db.lock").unlink()
        async with started(tmp_path) as second:
            assert await second.exit_code() == 2
        assert second.log[-1]["error"] == (
            "generation.db is in use by another process of this service"
        )
