"""Large results are copied and read with flat memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.harness import create_request
from tests.support.kept_places import PLACES, KeptPlace
from tests.support.media_host import MIB, MediaHost, endless_media
from tests.support.memory import resident_mib
from tests.support.processes import Launch, to

COPY_MIB = 24
DOWNLOADS = 32
DOWNLOAD_MIB = 1.5  # 1 MiB of buffers, and the call
ALLOCATOR_MIB = 8  # what the process keeps of what it has freed
THREADS_MIB = 48  # what the threads that read files may keep of what they have freed


@pytest.fixture(params=["folder", "versitygw"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeptPlace]:
    async with PLACES[request.param](tmp_path) as place:
        yield place


async def settled(pid: int) -> float:
    """Return the memory of a process once it grows no longer."""
    sizes = [resident_mib(pid)]
    while len(sizes) < 3 or sizes[-1] > sizes[-3] + 0.5:
        await asyncio.sleep(0.3)
        sizes.append(resident_mib(pid))
    return sizes[-1]


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


async def test_a_download_whose_reader_stops_takes_at_most_a_mebibyte_and_a_half(
    host: MediaHost, place: KeptPlace, launch: Launch
) -> None:
    variables = to(host.base) | place.variables | {"RESULTS_URL": place.url}
    host.answers["large.mp4"] = endless_media(64)
    async with launch(**variables, UPLOADS_MAX=str(DOWNLOADS + 1)) as served:
        request = create_request({"imagen4": {"prompt": json.dumps(["large.mp4"])}})
        task = await served.end((await served.stub.CreateTask(request, timeout=20)).task.id)

        async def first_chunk() -> Any:
            """Start a download, and read only its beginning."""
            request = pb.DownloadArtifactRequest(task_id=task.id)
            call: Any = served.stub.DownloadArtifact(request, timeout=100)
            assert (await call.read()).HasField("info")
            assert (await call.read()).chunk
            return call

        (await first_chunk()).cancel()  # what the first download loads stays
        before = await settled(served.pid)
        calls = [await first_chunk() for _ in range(DOWNLOADS)]
        after = await settled(served.pid)
        assert after - before < DOWNLOADS * DOWNLOAD_MIB + THREADS_MIB
        for call in calls:
            call.cancel()
