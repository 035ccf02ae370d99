"""Processes that die, or run out of disk, while they copy: every result arrives in the end."""

import asyncio
import json
import os
import random
import resource
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.harness import create_request
from tests.support.kept_places import PLACES, FolderPlace, KeptPlace
from tests.support.media_host import MIB, MediaHost, media
from tests.support.processes import Launch, Served, to
from tests.support.waiting import eventually

HOUR = 3_600.0


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeptPlace]:
    async with PLACES[request.param](tmp_path) as place:
        yield place


async def create(served: Served, *names: str) -> pb.GenerationTask:
    request = create_request({"imagen4": {"prompt": json.dumps(names)}})
    return (await served.stub.CreateTask(request, timeout=20)).task


async def survive(kills: int, host: MediaHost, place: KeptPlace, launch: Launch) -> None:
    """Kill a process while it copies, again and again; check every result at the end."""
    variables = to(host.base) | place.variables | {"RESULTS_URL": place.url}
    rng = random.Random(kills)
    host.pace_seconds = 0.01
    contents: dict[str, list[bytes]] = {}
    for number in range(kills):
        async with launch(**variables) as served:
            names = [f"{number}-0.mp4", f"{number}-1.mp4"]
            files = [media(rng.randrange(MIB, 12 * MIB), 2 * number + i) for i in range(2)]
            for name, content in zip(names, files, strict=True):
                host.add(name, content)
            task = await create(served, *names)
            contents[task.id] = files
            await eventually(partial(host.asked.get, names[0]))
            await asyncio.sleep(rng.uniform(0, 0.2))
            served.process.process.kill()
    async with launch(**variables) as served:
        for task_id, files in contents.items():
            end = await served.end(task_id)
            assert end.status == pb.TASK_STATUS_SUCCESS
            for artifact, content in zip(end.artifacts, files, strict=True):
                assert artifact.storage_error == ""
                assert await asyncio.to_thread(place.content, artifact.storage_uri) == content
            host.files = {
                name: content for name, content in host.files.items() if content not in files
            }
        objects = await asyncio.to_thread(place.names)
        assert len(objects - {".probe"}) == 2 * len(contents)


async def test_results_arrive_although_the_process_is_killed_while_copying(
    host: MediaHost, place: KeptPlace, launch: Launch
) -> None:
    await survive(3, host, place, launch)


@pytest.mark.torture
async def test_results_arrive_although_the_process_is_killed_200_times_while_copying(
    host: MediaHost, place: KeptPlace, launch: Launch
) -> None:
    await survive(200, host, place, launch)


async def test_what_a_killed_process_left_in_the_folder_is_swept_after_an_hour(
    host: MediaHost, tmp_path: Path, launch: Launch
) -> None:
    place = FolderPlace(tmp_path / "results")
    variables = to(host.base) | {"RESULTS_URL": place.url}
    host.pace_seconds = 0.1
    host.add("0.mp4", media(9 * MIB))
    async with launch(**variables) as served:
        task = await create(served, "0.mp4")
        [left] = await eventually(place.temporary)
        await eventually(lambda: (place.folder / ".incoming" / left).stat().st_size)
        served.process.process.kill()
    host.pace_seconds = 0.0
    async with launch(**variables) as served:
        await served.end(task.id)
        assert place.temporary() == [left]
    path = place.folder / ".incoming" / left
    os.utime(path, (path.stat().st_mtime - HOUR - 1,) * 2)
    async with launch(**variables):
        assert place.temporary() == []


async def test_a_disk_that_is_full_for_a_while_loses_nothing(
    host: MediaHost, tmp_path: Path, launch: Launch
) -> None:
    place = FolderPlace(tmp_path / "results")
    content = media(9 * MIB)
    host.add("0.mp4", content)
    variables = to(host.base) | {"RESULTS_URL": place.url}
    async with launch(**variables) as served:
        no_limit = resource.prlimit(served.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (4 * MIB, no_limit[1]))
        task = await create(served, "0.mp4")
        line = await eventually(lambda: served.process.logged("the storage did not take a copy"))
        assert line["reason"] == "File too large"
        assert place.names() == set()
        assert place.temporary() == []
        resource.prlimit(served.pid, resource.RLIMIT_FSIZE, no_limit)
        [artifact] = (await served.end(task.id)).artifacts
        assert place.content(artifact.storage_uri) == content
