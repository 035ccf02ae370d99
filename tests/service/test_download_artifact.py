"""DownloadArtifact: every byte from the offset on, from a copy or from the provider."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from generated.generation.v1 import generation_pb2 as pb
from service.bounds import BOUNDS
from service.fresh_links import PAUSE_SECONDS
from service.uploads import UploadPace
from tests.support.downloading import download, download_all, ended
from tests.support.harness import Serve, Service
from tests.support.kept_places import PLACES, FolderPlace, environment
from tests.support.media_host import MIB, PNG_START, Cut, MediaHost, media, media_host
from tests.support.ranges import SERVERS, serves_small_parts
from tests.support.refusals import Refusal, refusal, refused
from tests.support.waiting import eventually, eventually_answered

Start = Callable[..., AbstractAsyncContextManager[Service]]
SIZE = 700_001


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        yield host


@pytest.fixture
def folder(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "results")


@pytest.fixture
def start(serve: Serve, host: MediaHost) -> Start:
    """Start the service with this provider."""

    def start(**settings: Any) -> AbstractAsyncContextManager[Service]:
        return serve(**{"kie_api_url": host.base, "kie_upload_url": host.base} | settings)

    return start


OFFSETS = [0, 1, 65_536, SIZE // 2, SIZE - 1, SIZE]


# --- offsets ---


@pytest.mark.parametrize("kind", PLACES)
async def test_a_copy_is_read_from_every_offset(
    start: Start, host: MediaHost, tmp_path: Path, kind: str
) -> None:
    contents = {"0.mp4": media(SIZE), "1.png": media(3 * MIB + 5, start=PNG_START)}
    for name, content in contents.items():
        host.add(name, content)
    async with PLACES[kind](tmp_path) as place:
        with environment(place):
            async with start(results_url=place.url) as service:
                task = await ended(service, *contents)
                host.files.clear()  # the provider has nothing any longer
                for index, (name, content) in enumerate(contents.items()):
                    for offset in {0, 1, len(content) // 2, len(content) - 1, len(content)}:
                        found = await download(service.stub, task.id, index, offset)
                        found.check(content, offset, has_copy=True)
                        extension = Path(name).suffix
                        assert found.info.file_name == f"{task.id}_{index + 1}{extension}"
                        assert found.info.mime_type == task.artifacts[index].mime_type


@pytest.mark.parametrize("kind", SERVERS)
async def test_the_providers_url_is_read_from_every_offset_whatever_its_server_supports(
    start: Start, host: MediaHost, kind: str
) -> None:
    content = media(SIZE)
    host.add("0.mp4", content)
    host.answers["0.mp4"] = SERVERS[kind](host, "0.mp4")
    async with start() as service:
        task = await ended(service, "0.mp4")
        for offset in OFFSETS:
            found = await download_all(service.stub, task.id, offset=offset)
            found.check(content, offset, has_copy=False)
            assert found.info.mime_type == "video/mp4"
        for beyond in (SIZE + 1, 2 * SIZE, 2**62):
            answer = await refused(download(service.stub, task.id, offset=beyond))
            assert (answer.reason, answer.fields) == ("INVALID_PARAMS", ["offset"])
            assert str(SIZE) in answer.message


async def test_a_part_that_is_too_short_is_no_end(start: Start, host: MediaHost) -> None:
    host.add("0.mp4", media(SIZE))
    host.answers["0.mp4"] = serves_small_parts(host, "0.mp4")
    async with start() as service:
        task = await ended(service, "0.mp4")
        answer = await refused(download(service.stub, task.id, offset=5))
        assert answer.reason == "PROVIDER_UNAVAILABLE"
        assert answer.retry_seconds is not None


async def test_an_offset_beyond_a_copy_is_refused(
    start: Start, host: MediaHost, folder: FolderPlace
) -> None:
    host.add("0.mp4", media(SIZE))
    async with start(results_url=folder.url) as service:
        task = await ended(service, "0.mp4")
        for beyond in (SIZE + 1, 2**62):
            answer = await refused(download(service.stub, task.id, offset=beyond))
            assert (answer.reason, answer.fields) == ("INVALID_PARAMS", ["offset"])


async def test_a_download_that_is_cut_at_the_provider_is_resumed(
    start: Start, host: MediaHost
) -> None:
    content = media(5 * MIB)
    host.add("0.mp4", content)
    host.cuts["0.mp4"] = [Cut(MIB), Cut(4 * MIB), Cut(2 * MIB)]
    async with start() as service:
        task = await ended(service, "0.mp4")
        found = await download_all(service.stub, task.id)
        found.check(content, has_copy=False)
        assert set(found.reasons) == {"PROVIDER_UNAVAILABLE"}


# --- where a result is ---


async def test_a_task_whose_results_are_being_copied_can_be_downloaded(
    start: Start, host: MediaHost, folder: FolderPlace
) -> None:
    content = media(SIZE)
    host.add("0.mp4", content)
    host.cuts["0.mp4"] = [Cut(99, times=1)]
    async with start(results_url=folder.url) as service:
        task = await service.create({"imagen4": {"prompt": '["0.mp4"]'}})
        await service.until(task.id, lambda each: bool(each.artifacts))
        downloaded = await download_all(service.stub, task.id)
        is_copy = bool(downloaded.info.sha256)  # if copying was quicker
        downloaded.check(content, has_copy=is_copy)


async def test_a_copy_that_is_missing_is_replaced_by_the_provider(
    start: Start, host: MediaHost, folder: FolderPlace
) -> None:
    content = media(SIZE)
    host.add("0.mp4", content)
    async with start(results_url=folder.url) as service:
        task = await ended(service, "0.mp4")
        for name in folder.names():
            (folder.folder / name).unlink()
        (await download(service.stub, task.id, offset=3)).check(content, 3, has_copy=False)
        host.files.clear()
        assert (await refused(download(service.stub, task.id))).reason == "ARTIFACT_NOT_FOUND"


async def test_a_copy_in_a_place_that_is_not_used_any_longer_is_replaced_by_the_provider(
    start: Start, host: MediaHost, folder: FolderPlace, tmp_path: Path
) -> None:
    content = media(SIZE)
    host.add("0.mp4", content)
    async with start(results_url=folder.url) as service:
        task = await ended(service, "0.mp4")
    for results_url in (None, (tmp_path / "other").as_uri()):
        async with start(results_url=results_url) as service:
            (await download(service.stub, task.id)).check(content, has_copy=False)


async def test_a_copy_that_is_too_short_is_no_result(
    start: Start, host: MediaHost, folder: FolderPlace
) -> None:
    host.add("0.mp4", media(SIZE))
    async with start(results_url=folder.url) as service:
        task = await ended(service, "0.mp4")
        for name in folder.names():
            (folder.folder / name).write_bytes(media(SIZE)[:-1])
        answer = await refused(download(service.stub, task.id))
        assert answer.reason == "PROVIDER_UNAVAILABLE"


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_dead_link_is_replaced_by_a_fresh_one_which_is_not_stored(
    start: Start, host: MediaHost, status: int
) -> None:
    content = media(SIZE)
    host.add("0.mp4", content)

    async def gone(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with start() as service:
        task = await ended(service, "0.mp4")
        host.answers["0.mp4"] = gone
        assert (await refused(download(service.stub, task.id))).reason == "ARTIFACT_NOT_FOUND"
        host.fresh[host.url("0.mp4")] = host.add("fresh.mp4", content)
        (await download(service.stub, task.id, offset=7)).check(content, 7, has_copy=False)
        assert await service.query(task.id) == task


async def test_downloads_of_dead_links_do_not_use_up_the_requests_of_the_account(
    start: Start, host: MediaHost
) -> None:
    host.add("0.mp4", media(SIZE))
    async with start() as service:
        task = await ended(service, "0.mp4")
        url = host.url("0.mp4")
        host.files.clear()
        began = time.monotonic()
        downloads = (refused(download(service.stub, task.id)) for _ in range(5))
        reasons = {answer.reason for answer in await asyncio.gather(*downloads)}
        assert reasons == {"ARTIFACT_NOT_FOUND"}
        assert host.asked[f"fresh {url}"] <= 1 + (time.monotonic() - began) / PAUSE_SECONDS


def answers_with(status: int, body: Any) -> Any:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    return answer


async def refusal_of_dead_link(start: Start, host: MediaHost, answer: Any) -> Refusal:
    """Download a result that is gone, while the provider is asked for another link of it."""
    host.add("0.mp4", media(9))
    async with start() as service:
        task = await ended(service, "0.mp4")
        host.files.clear()
        host.answers["download-url"] = answer
        return await refused(download(service.stub, task.id))


async def breaks(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    "answer",
    [
        *(answers_with(200, {"code": code, "msg": "x", "data": None}) for code in (401, 429, 455)),
        *(answers_with(200, {"code": code, "msg": "x", "data": None}) for code in (500, 505, 524)),
        *(answers_with(503, "a page"), answers_with(200, "a page"), breaks),
    ],
)
async def test_a_dead_link_is_a_reason_to_retry_while_the_provider_gives_no_other_one(
    start: Start, host: MediaHost, answer: Any
) -> None:
    found = await refusal_of_dead_link(start, host, answer)
    assert found.reason == "PROVIDER_UNAVAILABLE"
    assert found.retry_seconds is not None


@pytest.mark.parametrize(
    "answer",
    [
        *(answers_with(200, {"code": code, "msg": "x", "data": None}) for code in (404, 422, 200)),
        *(answers_with(404, "no such path"), answers_with(200, {"code": 200, "data": ""})),
    ],
)
async def test_a_dead_link_of_which_the_provider_has_no_other_one_is_the_end_of_a_result(
    start: Start, host: MediaHost, answer: Any
) -> None:
    found = await refusal_of_dead_link(start, host, answer)
    assert found.reason == "ARTIFACT_NOT_FOUND"


@pytest.mark.parametrize(
    ("status", "reason"), [(500, "PROVIDER_UNAVAILABLE"), (429, "PROVIDER_UNAVAILABLE")]
)
async def test_a_provider_that_fails_is_asked_again(
    start: Start, host: MediaHost, status: int, reason: str
) -> None:
    host.add("0.mp4", media(9))

    async def failing(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with start() as service:
        task = await ended(service, "0.mp4")
        host.answers["0.mp4"] = failing
        assert (await refused(download(service.stub, task.id))).reason == reason


async def test_a_page_instead_of_a_result_is_not_passed_on(start: Start, host: MediaHost) -> None:
    host.add("0.mp4", media(9))
    async with start() as service:
        task = await ended(service, "0.mp4")
        host.files["0.mp4"] = b"<html>expired</html>" + bytes(100_000)
        answer = await refused(download(service.stub, task.id))
        assert answer.reason == "PROVIDER_UNAVAILABLE"
        assert "text/html" in answer.message


@pytest.mark.parametrize("announces_its_size", [True, False])
async def test_a_page_says_nothing_of_the_size_of_a_result(
    start: Start, host: MediaHost, announces_its_size: bool
) -> None:
    host.add("0.mp4", media(SIZE))
    async with start() as service:
        task = await ended(service, "0.mp4")
        host.chunked = not announces_its_size
        host.files["0.mp4"] = page = b"<html>busy</html>"
        for offset in (len(page), len(page) + 1, SIZE):
            answer = await refused(download(service.stub, task.id, offset=offset))
            assert answer.reason == "PROVIDER_UNAVAILABLE"


async def test_a_url_inside_our_network_is_never_fetched(start: Start, host: MediaHost) -> None:
    async with media_host() as inside, start() as service:
        task = await ended(service, inside.add("0.mp4", media(9)))
        assert (await refused(download(service.stub, task.id))).reason == "ARTIFACT_NOT_FOUND"
        assert not inside.asked


@pytest.mark.parametrize("kind", PLACES)
async def test_a_storage_that_is_gone_is_a_reason_to_retry(
    start: Start, host: MediaHost, tmp_path: Path, kind: str
) -> None:
    content = media(SIZE)
    host.add("0.mp4", content)
    async with PLACES[kind](tmp_path) as place:
        with environment(place):
            async with start(results_url=place.url) as service:
                task = await ended(service, "0.mp4")
                host.files.clear()
                await asyncio.to_thread(place.disappear)
                answer = await refused(download(service.stub, task.id))
                assert answer.reason == "PROVIDER_UNAVAILABLE"
                assert answer.retry_seconds is not None
                assert not re.search("127.0.0.1|NoSuchBucket", answer.message)
                await asyncio.to_thread(place.reappear)


# --- requests ---


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ({}, ["task_id"]),
        ({"task_id": "x" * 256}, ["task_id"]),
        ({"task_id": "x", "index": -1, "offset": -1}, ["index", "offset"]),
        ({"task_id": "x", "offset": -(2**63)}, ["offset"]),
    ],
)
async def test_every_broken_rule_of_a_request_is_named(
    service: Service, request_: dict[str, Any], fields: list[str]
) -> None:
    request = pb.DownloadArtifactRequest(**request_)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in service.stub.DownloadArtifact(request):
            pass
    answer = refusal(caught.value)
    assert (answer.reason, answer.fields) == ("INVALID_PARAMS", fields)


async def test_only_artifacts_that_a_task_has_can_be_downloaded(
    start: Start, host: MediaHost
) -> None:
    host.add("0.mp4", media(9))
    async with start() as service:
        task = await ended(service, "0.mp4")
        for index in (1, 2**31 - 1):
            answer = await refused(download(service.stub, task.id, index))
            assert answer.reason == "ARTIFACT_NOT_FOUND"
            assert answer.metadata["task_id"] == task.id
        assert (await refused(download(service.stub, "other"))).reason == "TASK_NOT_FOUND"


async def test_the_results_of_other_callers_do_not_exist(serve_both: Any, host: MediaHost) -> None:
    host.add("0.mp4", media(9))
    urls = {"kie_api_url": host.base, "kie_upload_url": host.base}
    async with serve_both(**urls) as (alice, bob):
        task = await alice.create({"imagen4": {"prompt": '["0.mp4"]'}})
        async for _ in alice.watch(task.id):
            pass
        stub = alice.service.stub
        (await download(stub, task.id, metadata=alice.metadata)).check(media(9), has_copy=False)
        answer = await refused(download(stub, task.id, metadata=bob.metadata))
        assert answer.reason == "TASK_NOT_FOUND"
        sign = pb.SignArtifactRequest(task_id=task.id)
        answer = await refused(stub.SignArtifact(sign, metadata=bob.metadata))
        assert answer.reason == "TASK_NOT_FOUND"


# --- slow readers ---

SLOW = replace(BOUNDS, uploads=UploadPace(bytes_per_second=100, window_seconds=0.3))
LARGE = 24 * MIB  # more than all buffers between the service and a reader hold


async def begin(service: Service, task_id: str) -> Any:
    """Begin a download, and do not read on."""
    call: Any = service.stub.DownloadArtifact(pb.DownloadArtifactRequest(task_id=task_id))
    assert (await call.read()).info.file_name
    return call


async def read_out(call: Any) -> tuple[int, Refusal]:
    """Read what arrives until the call is refused; return the number of bytes, and how."""
    received = 0
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            received += len(response.chunk)
    except grpc.aio.AioRpcError as error:
        return received, refusal(error)
    raise AssertionError("the download was complete")


@pytest.mark.parametrize("has_copy", [False, True])
async def test_a_reader_that_stops_is_asked_to_call_again(
    start: Start, host: MediaHost, folder: FolderPlace, has_copy: bool
) -> None:
    host.add("0.mp4", media(LARGE))
    results_url = folder.url if has_copy else None
    async with start(bounds=SLOW, uploads_max=1, results_url=results_url) as service:
        task = await ended(service, "0.mp4")
        call = await begin(service, task.id)
        await eventually_answered(lambda: is_free(service, task.id))
        received, answer = await read_out(call)
        assert answer.reason == "STREAM_EXPIRED"
        assert received < LARGE
        rest = await download_all(service.stub, task.id, offset=received)
        rest.check(media(LARGE), received, has_copy=has_copy)


async def test_downloads_count_as_uploads_until_they_end(start: Start, host: MediaHost) -> None:
    host.add("0.mp4", media(LARGE))
    async with start(uploads_max=2) as service:
        task = await ended(service, "0.mp4")
        calls = [await begin(service, task.id) for _ in range(2)]
        answer = await refused(download(service.stub, task.id))
        assert answer.reason == "RATE_LIMITED"
        assert answer.metadata["limit"] == "uploads"
        for call in calls:
            call.cancel()
        await eventually_answered(lambda: is_free(service, task.id))


async def is_free(service: Service, task_id: str) -> bool:
    """Return whether there is room for another download."""
    try:
        (await begin(service, task_id)).cancel()
    except grpc.aio.AioRpcError as error:
        if refusal(error).reason == "RATE_LIMITED":
            return False
        raise
    return True


async def test_a_reader_that_stops_does_not_make_the_service_read_on(
    start: Start, host: MediaHost
) -> None:
    sent = 0
    content = media(64 * MIB)
    host.add("0.mp4", media(9))

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.content_length = len(content)
        await response.prepare(request)
        for offset in range(0, len(content), MIB):
            await response.write(content[offset : offset + MIB])
            sent = offset + MIB
        return response

    async with start() as service:
        task = await ended(service, "0.mp4")
        host.answers["0.mp4"] = counted
        call = await begin(service, task.id)
        await eventually(lambda: sent)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < len(content) // 2
        call.cancel()


async def test_a_download_ends_when_the_service_shuts_down(start: Start, host: MediaHost) -> None:
    content = media(LARGE)
    host.add("0.mp4", content)
    async with start(shutdown_seconds=2) as service:
        task = await ended(service, "0.mp4")
        await begin(service, task.id)
    async with start() as service:
        (await download(service.stub, task.id)).check(content, has_copy=False)
