"""Copies by several replicas: a task is copied by one, and by another one if that is paused."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from kie_generation import Imagen4Params
from kie_generation.generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.kept_places import FolderPlace
from tests.support.killing import Victim, patient_client
from tests.support.media_host import MIB, MediaHost, media, media_host
from tests.support.waiting import eventually

CONTENT = media(7 * MIB)


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        host.add("0.mp4", CONTENT)
        yield host


async def test_a_replica_whose_lease_is_lost_while_copying_changes_nothing(
    host: MediaHost,
    kie: Simulator,
    tmp_path: Path,
    postgresql_url: str,
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    place, resumed = FolderPlace(tmp_path / "results"), asyncio.Event()

    async def send(request: web.Request) -> web.StreamResponse:
        if host.asked["0.mp4"] > 1:
            return await host.send_file(request, "0.mp4")
        response = web.StreamResponse(headers={"Content-Type": "video/mp4"})
        response.content_length = len(CONTENT)
        await response.prepare(request)
        await response.write(CONTENT[: 2 * MIB])
        await resumed.wait()
        await response.write(CONTENT[2 * MIB :])
        return response

    host.answers["0.mp4"] = send
    settings = {
        "DATABASE_URL": postgresql_url,
        "KIE_API_URL": host.base,
        "KIE_UPLOAD_URL": host.base,
        "PUBLIC_URL": "",
        "RESULTS_URL": place.url,
    }
    ports = unused_tcp_port_factory
    slow, quick = (Victim(tmp_path, kie, (ports(), ports()), **settings) for _ in range(2))
    try:
        await slow.start()
        async with patient_client(slow) as client:
            task = await client.create(Imagen4Params(prompt=json.dumps(["0.mp4"])), prompt_id="p")
            await eventually(lambda: place.folder.exists() and place.temporary())
        slow.pause()
        await quick.start()
        async with patient_client(quick) as client:
            end = await client.wait(task.id, timeout=60)
            assert end.status == pb.TASK_STATUS_SUCCESS
            file = place.folder / end.artifacts[0].storage_uri.removeprefix(f"{place.url}/")
            stored = file.stat()
            slow.resume()
            resumed.set()
            await eventually(lambda: not place.temporary())
            assert file.read_bytes() == CONTENT
            assert (file.stat().st_ino, file.stat().st_mtime_ns) == (
                stored.st_ino,
                stored.st_mtime_ns,
            )
            assert await client.get(task.id) == end
        await asyncio.gather(slow.stop(), quick.stop())
    finally:
        await asyncio.gather(slow.kill(), quick.kill())
