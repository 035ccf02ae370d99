from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from client import DownloadError, save_artifacts
from client.download import file_name
from generated.generation.v1.generation_pb2 import Artifact
from tests.test_client_server import success


@asynccontextmanager
async def results() -> AsyncIterator[str]:
    """Yields the base URL of a server with a picture, a large file, and one that breaks off."""

    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    async def picture(_: web.Request) -> web.Response:
        return web.Response(body=b"picture")

    app = web.Application()
    app.router.add_get("/picture.png", picture)
    app.router.add_get("/broken", break_off)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def saved_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_every_artifact_is_saved_under_the_tasks_id_and_its_number(tmp_path: Path) -> None:
    async with results() as base:
        artifacts = [Artifact(url=f"{base}/picture.png?signed=1")] * 2
        saved = await save_artifacts(success(1, artifacts=artifacts), tmp_path / "new")
    assert [path.read_bytes() for path in saved] == [b"picture"] * 2
    assert saved_in(tmp_path / "new") == ["t-1_1.png", "t-1_2.png"]


@pytest.mark.parametrize(
    ("path", "why"), [("/missing", "HTTP 404"), ("/broken", "payload"), ("/picture.png", "larger")]
)
async def test_a_download_that_fails_leaves_no_file(tmp_path: Path, path: str, why: str) -> None:
    async with results() as base:
        task = success(1, artifacts=[Artifact(url=base + path)])
        with pytest.raises(DownloadError, match=why):
            await save_artifacts(task, tmp_path, max_bytes=5)
    assert saved_in(tmp_path) == []


async def test_a_url_that_is_no_url_is_a_download_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        await save_artifacts(success(1, artifacts=[Artifact(url="file:///etc/hosts")]), tmp_path)


@pytest.mark.parametrize(
    ("task_id", "url", "mime_type", "expected"),
    [
        ("t-1", "https://x.example/a.PNG?b=c.d", "", "t-1_1.png"),
        ("t-1", "https://x.example/a", "video/mp4", "t-1_1.mp4"),
        ("t-1", "https://x.example/a.b/c", "", "t-1_1.bin"),
        ("../../etc/x", "https://x.example/a.tar%2f..", "image/png", "______etc_x_1.png"),
        ("", "https://x.example/", "", "task_1.bin"),
    ],
)
def test_a_file_name_is_safe_and_has_an_extension(
    task_id: str, url: str, mime_type: str, expected: str
) -> None:
    assert file_name(task_id, 1, Artifact(url=url, mime_type=mime_type)) == expected
