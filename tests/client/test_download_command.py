"""`download`, and `--save` after the provider's links are dead, with the real service."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from generated.generation.v1 import generation_pb2 as pb
from kie_generation import sync
from providers.kie.simulator import Simulator
from tests.support.command import command
from tests.support.harness import Service, serving
from tests.support.media_host import MIB, MediaHost, media, media_host

FIRST, SECOND = media(MIB, 1), media(700_000, 2)


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        host.add("0.mp4", FIRST)
        host.add("1.mp4", SECOND)
        yield host


@pytest.fixture
async def service(tmp_path: Path, kie: Simulator, host: MediaHost) -> AsyncIterator[Service]:
    """The service, which keeps results in a folder."""
    urls: dict[str, Any] = {"kie_api_url": host.base, "kie_upload_url": host.base}
    async with serving(tmp_path, kie, **urls, results_url=(tmp_path / "kept").as_uri()) as service:
        yield service


async def ended(service: Service, host: MediaHost) -> pb.GenerationTask:
    """Create a task, and let its links die."""
    task = await service.create({"imagen4": {"prompt": json.dumps(["0.mp4", "1.mp4"])}})
    task = await service.end(task.id)
    host.files.clear()
    return task


async def test_download_saves_all_results_or_one(
    service: Service, host: MediaHost, tmp_path: Path
) -> None:
    task = await ended(service, host)
    folder = tmp_path / "all"
    ran = await command(service.address, "download", task.id, "--save", str(folder), "--json")
    assert ran.code == 0, ran.err
    paths = [folder / f"{task.id}_{number}.mp4" for number in (1, 2)]
    assert ran.objects() == [{"task_id": task.id, "saved": [str(path)]} for path in paths]
    assert [path.read_bytes() for path in paths] == [FIRST, SECOND]
    one = tmp_path / "one"
    ran = await command(service.address, "download", task.id, "--save", str(one), "--number", "2")
    assert ran.code == 0, ran.err
    assert [path.read_bytes() for path in one.iterdir()] == [SECOND]
    assert next(map(str, one.iterdir())) in ran.out


async def test_download_continues_what_was_interrupted(
    service: Service, host: MediaHost, tmp_path: Path
) -> None:
    task = await ended(service, host)
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / f".{task.id}_1.part").write_bytes(FIRST[:300_000])
    ran = await command(service.address, "download", task.id, "--save", str(folder))
    assert ran.code == 0, ran.err
    assert {path.read_bytes() for path in folder.iterdir()} == {FIRST, SECOND}


async def test_download_of_what_does_not_exist_says_so(
    service: Service, host: MediaHost, tmp_path: Path
) -> None:
    task = await ended(service, host)
    arguments = ("--save", str(tmp_path / "none"), "--json")
    ran = await command(service.address, "download", task.id, "--number", "3", *arguments)
    assert ran.code == 3
    assert ran.error()["reason"] == "ARTIFACT_NOT_FOUND"
    ran = await command(service.address, "download", "other", *arguments)
    assert ran.code == 3
    assert ran.error()["reason"] == "TASK_NOT_FOUND"


async def test_saving_uses_the_copies_when_the_links_are_dead(
    service: Service, host: MediaHost, tmp_path: Path
) -> None:
    task = await ended(service, host)
    folder = tmp_path / "saved"
    ran = await command(service.address, "get", task.id, "--save", str(folder))
    assert ran.code == 0, ran.err
    paths = [folder / f"{task.id}_{number}.mp4" for number in (1, 2)]
    assert [path.read_bytes() for path in paths] == [FIRST, SECOND]


async def test_the_blocking_client_downloads_as_well(
    service: Service, host: MediaHost, tmp_path: Path
) -> None:
    task = await ended(service, host)

    def work() -> tuple[bytes, Path, list[Path]]:
        with sync.GenerationClient(service.address) as client:
            content = b"".join(client.download_artifact(task.id, 1, offset=5))
            path = client.save_artifact(task.id, 0, tmp_path / "one")
            paths = client.save_artifacts(client.get(task.id), tmp_path / "all")
        return content, path, paths

    content, path, paths = await asyncio.to_thread(work)
    assert content == SECOND[5:]
    assert path.read_bytes() == FIRST
    assert [each.read_bytes() for each in paths] == [FIRST, SECOND]
