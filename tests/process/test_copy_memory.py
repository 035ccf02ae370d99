"""A large result is copied with flat memory."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.harness import create_request
from tests.support.kept_places import PLACES, KeptPlace
from tests.support.media_host import MIB, MediaHost, endless_media
from tests.support.memory import resident_mib
from tests.support.processes import Launch, to

COPY_MIB = 24
ALLOCATOR_MIB = 8  # what the process keeps of what it has freed


@pytest.fixture(params=["folder", "versitygw"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeptPlace]:
    async with PLACES[request.param](tmp_path) as place:
        yield place


async def copy(size_mib: int, host: MediaHost, place: KeptPlace, launch: Launch) -> None:
    """Copy a small result, then one of this size; check the memory in between."""
    variables = to(host.base) | place.variables | {"RESULTS_URL": place.url}
    sizes = {"small.mp4": 16, "large.mp4": size_mib}
    for name, size in sizes.items():
        host.answers[name] = endless_media(size)
    async with launch(**variables, RESULTS_MAX_BYTES=str(4 << 30)) as served:
        for name, size in sizes.items():
            before = resident_mib(served.pid)
            request = create_request({"imagen4": {"prompt": json.dumps([name])}})
            task = (await served.stub.CreateTask(request, timeout=20)).task
            watch = served.stub.WatchTask(pb.WatchTaskRequest(task_id=task.id), timeout=600)
            end = [answer.task async for answer in watch][-1]
            assert end.status == pb.TASK_STATUS_SUCCESS
            assert end.artifacts[0].storage_error == ""
            assert end.artifacts[0].size_bytes == size * MIB
        peak = resident_mib(served.pid, "VmHWM")
        assert peak - before < COPY_MIB + ALLOCATOR_MIB


async def test_a_large_result_is_copied_with_flat_memory(
    host: MediaHost, place: KeptPlace, launch: Launch
) -> None:
    await copy(150, host, place, launch)


@pytest.mark.torture
async def test_a_result_of_3_gib_is_copied_with_flat_memory(
    host: MediaHost, place: KeptPlace, launch: Launch
) -> None:
    await copy(3 * 1_024, host, place, launch)
