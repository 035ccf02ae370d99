"""SignArtifact: links to copies in object stores, which work without a token."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.downloading import ended
from tests.support.harness import Serve, Service
from tests.support.kept_places import PLACES, SECRET, FolderPlace, environment
from tests.support.media_host import MIB, MediaHost, media, media_host
from tests.support.refusals import refused

Start = Callable[..., AbstractAsyncContextManager[Service]]
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>'
HOUR_SECONDS, WEEK_SECONDS = 3_600, 604_800


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        yield host


@pytest.fixture
def start(serve: Serve, host: MediaHost) -> Start:
    """Start the service with this provider."""

    def start(**settings: Any) -> AbstractAsyncContextManager[Service]:
        return serve(**{"kie_api_url": host.base, "kie_upload_url": host.base} | settings)

    return start


async def sign(service: Service, task_id: str, **fields: Any) -> pb.SignArtifactResponse:
    request = pb.SignArtifactRequest(task_id=task_id, **fields)
    return await service.stub.SignArtifact(request, timeout=20)


@pytest.mark.parametrize("kind", ["moto", "versitygw"])
async def test_a_link_leads_to_the_copy(
    start: Start, host: MediaHost, tmp_path: Path, kind: str
) -> None:
    contents = {"0.mp4": media(2 * MIB + 1), "1.svg": SVG}
    for name, content in contents.items():
        host.add(name, content)
    async with PLACES[kind](tmp_path) as place:
        with environment(place):
            async with start(results_url=place.url) as service, aiohttp.ClientSession() as http:
                task = await ended(service, *contents)
                for index, content in enumerate(contents.values()):
                    before = time.time()
                    signed = await sign(service, task.id, index=index)
                    expire_time = signed.expire_time.ToNanoseconds() / 1e9
                    assert before - 1 <= expire_time - HOUR_SECONDS <= time.time()
                    assert SECRET not in signed.url
                    async with http.get(signed.url) as response:
                        assert await response.read() == content
                        assert response.content_type == task.artifacts[index].mime_type
                        is_attachment = response.headers.get("Content-Disposition") == "attachment"
                        assert is_attachment == (content == SVG)
                assert await service.query(task.id) == task, "links are not stored"


async def test_a_signed_link_stops_working_when_it_expires(
    start: Start, host: MediaHost, tmp_path: Path
) -> None:
    host.add("0.mp4", media(9))
    async with PLACES["versitygw"](tmp_path) as place:
        with environment(place):
            async with start(results_url=place.url) as service, aiohttp.ClientSession() as http:
                task = await ended(service, "0.mp4")
                signed = await sign(service, task.id, lifetime_seconds=1)
                status = 200
                while status == 200:
                    async with http.get(signed.url) as response:
                        status = response.status
                assert status == 403
                assert time.time() >= signed.expire_time.ToNanoseconds() / 1e9


@pytest.mark.parametrize("lifetime_seconds", [1, WEEK_SECONDS])
async def test_a_link_expires_when_the_response_says(
    start: Start, host: MediaHost, tmp_path: Path, lifetime_seconds: int
) -> None:
    host.add("0.mp4", media(9))
    async with PLACES["moto"](tmp_path) as place:
        with environment(place):
            async with start(results_url=place.url) as service:
                task = await ended(service, "0.mp4")
                before = time.time()
                signed = await sign(service, task.id, lifetime_seconds=lifetime_seconds)
                expire_time = signed.expire_time.ToNanoseconds() / 1e9
                assert before - 1 <= expire_time - lifetime_seconds <= time.time()
                assert f"X-Amz-Expires={lifetime_seconds}&" in f"{signed.url}&"


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ({}, ["task_id"]),
        ({"task_id": "x", "index": -1}, ["index"]),
        ({"task_id": "x", "lifetime_seconds": -1}, ["lifetime_seconds"]),
        ({"task_id": "x", "lifetime_seconds": WEEK_SECONDS + 1}, ["lifetime_seconds"]),
        (
            {"task_id": "x", "index": -9, "lifetime_seconds": 2**31 - 1},
            ["index", "lifetime_seconds"],
        ),
    ],
)
async def test_every_broken_rule_of_a_request_is_named(
    service: Service, request_: dict[str, Any], fields: list[str]
) -> None:
    answer = await refused(service.stub.SignArtifact(pb.SignArtifactRequest(**request_)))
    assert (answer.reason, answer.fields) == ("INVALID_PARAMS", fields)


@pytest.mark.parametrize("has_copy", [False, True])
async def test_there_is_no_link_to_what_is_not_in_an_object_store(
    start: Start, host: MediaHost, tmp_path: Path, has_copy: bool
) -> None:
    host.add("0.mp4", media(9))
    place = FolderPlace(tmp_path / "results")
    async with start(results_url=place.url if has_copy else None) as service:
        task = await ended(service, "0.mp4")
        answer = await refused(sign(service, task.id))
        assert answer.reason == "ARTIFACT_NOT_STORED"
        assert answer.metadata == {"task_id": task.id, "index": "0"}
        assert (await refused(sign(service, task.id, index=1))).reason == "ARTIFACT_NOT_FOUND"
        assert (await refused(sign(service, "other"))).reason == "TASK_NOT_FOUND"


async def test_there_is_no_link_to_a_copy_in_a_bucket_that_is_not_used_any_longer(
    start: Start, host: MediaHost, tmp_path: Path
) -> None:
    host.add("0.mp4", media(9))
    async with PLACES["moto"](tmp_path) as place:
        with environment(place):
            async with start(results_url=place.url) as service:
                task = await ended(service, "0.mp4")
            async with start(results_url=f"{place.url}/elsewhere") as service:
                assert (await refused(sign(service, task.id))).reason == "ARTIFACT_NOT_STORED"
