"""A copy is what the provider has, byte by byte, or there is none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from service.results.source import SourceTimes
from storage.task import Artifact
from tests.support.copying import DAY, TASK, copying
from tests.support.kept_places import PLACES, KeptPlace, S3Place, environment
from tests.support.media_host import MIB, PNG_START, Cut, MediaHost, media, media_host


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        yield host


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeptPlace]:
    async with PLACES[request.param](tmp_path) as place:
        with environment(place):
            yield place


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[KeptPlace]:
    async with PLACES["folder"](tmp_path) as place:
        yield place


# --- bytes ---


@pytest.mark.parametrize("size", [1, 4_096, 4_097, MIB, 5 * MIB, 5 * MIB + 1, 17 * MIB + 7])
async def test_a_copy_has_the_bytes_of_the_result(
    host: MediaHost, place: KeptPlace, stack: AsyncExitStack, size: int
) -> None:
    content = media(size, start=b"plain text" if size < 99 else PNG_START)
    url = host.add("a.txt" if size < 99 else "a.png", content)
    copies = await copying(host, place, stack)
    [artifact] = await copies.copy(url)
    copies.check(artifact, content)
    assert place.temporary() == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_source_that_is_cut_at_every_mebibyte_once_is_copied_in_the_end(
    host: MediaHost, place: KeptPlace, stack: AsyncExitStack, chunked: bool
) -> None:
    content = media(12 * MIB)
    url = host.add("a.mp4", content)
    host.chunked = chunked
    host.cuts["a.mp4"] = [Cut(offset) for offset in range(0, 12 * MIB, MIB)]
    copies = await copying(host, place, stack)
    for _ in range(12):
        [artifact] = await copies.copy(url)
        assert artifact.copy is None
        assert artifact.storage_error
        assert place.names() == set()
    [artifact] = await copies.copy(url)
    copies.check(artifact, content)
    assert place.names() == {f"{DAY}/task/0.mp4"}
    assert place.temporary() == []
    assert copies.outcomes() == {"source": 12, "copied": 1}


# --- what is not copied ---

PAGE = b"<!DOCTYPE html><html><body>Just a moment...</body></html>"
ERROR = b'{"code": 403, "message": "no"}'
NOT_MEDIA = {
    "a page for a picture": ("a.png", PAGE),
    "an error for a picture": ("a.png", ERROR),
    "text for a picture": ("a.png", b"404 page not found"),
    "a picture for a video": ("a.mp4", PNG_START + b"x" * 99),
    "a drawing for a picture": ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"),
    "a page for a sound": ("a.mp3", b"\n <html lang=en>"),
    "a page for a text": ("a.txt", PAGE),
    "a page with a comment for a text": ("a.srt", b"<!-- x --><HTML>"),
    "an error for a text": ("a.vtt", ERROR),
    "a list of errors for lyrics": ("a.lrc", b'[{"error": 1}]'),
    "a page without an extension": ("a", PAGE),
    "an error without an extension": ("a", ERROR),
    "a page for an unknown extension": ("a.xyz", PAGE),
    "a page for an archive": ("a.zip", PAGE),
    "a picture for an archive": ("a.zip", PNG_START),
    "a page for XML": ("a.xml", b'<?xml version="1.0"?><!DOCTYPE html><html></html>'),
    "nothing": ("a.png", b""),
}


@pytest.mark.parametrize(("name", "content"), NOT_MEDIA.values(), ids=NOT_MEDIA.keys())
async def test_something_else_than_the_result_is_not_copied(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack, name: str, content: bytes
) -> None:
    copies = await copying(host, folder, stack)
    [artifact] = await copies.copy(host.add(name, content))
    assert artifact.copy is None
    assert folder.names() == set()
    assert folder.temporary() == []


MEDIA = {
    "a picture": ("a.png", PNG_START, "image/png", ".png"),
    "a picture of another format": ("a.jpg", PNG_START, "image/png", ".png"),
    "a capital extension": ("a.PNG", PNG_START, "image/png", ".png"),
    "another extension of the same type": ("a.jpeg", b"\xff\xd8\xff\xe0", "image/jpeg", ".jpeg"),
    "a video without an extension": ("a", media(64), "video/mp4", ".mp4"),
    "a sound in a container of videos": ("a.m4a", media(64), "audio/mp4", ".m4a"),
    "a song": ("a.mp3", b"ID3\x04" + b"x" * 99, "audio/mpeg", ".mp3"),
    "a song without a tag": ("a.mp3", b"\xff\xfb\x90\x44" + b"x" * 99, "audio/mpeg", ".mp3"),
    "a drawing": ("a.svg", b"<svg></svg>", "image/svg+xml", ".svg"),
    "a drawing without an extension": ("a", b"<svg></svg>", "image/svg+xml", ".svg"),
    "a page": ("a.html", PAGE, "text/html", ".html"),
    "XML": ("a.xml", b"<?xml version='1.0'?><score/>", "application/xml", ".xml"),
    "JSON": ("a.json", ERROR, "application/json", ".json"),
    "lyrics": ("a.lrc", b"[00:12.00]La la", "text/plain", ".lrc"),
    "a song text": ("a.txt", b"[Verse 1]\nLa la", "text/plain", ".txt"),
    "subtitles": ("a.srt", b"{\\an8}La", "text/plain", ".srt"),
    "anything": ("a.xyz", b"\x00\x01\x02", "application/octet-stream", ".xyz"),
    "anything without an extension": ("a", b"\x00\x01\x02", "application/octet-stream", ""),
    "an odd extension": ("a.p'n g", b"\x00\x01\x02", "application/octet-stream", ""),
}


@pytest.mark.parametrize("case", MEDIA.values(), ids=MEDIA.keys())
async def test_a_copy_gets_the_type_that_its_content_shows(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack, case: tuple[str, bytes, str, str]
) -> None:
    name, content, mime_type, extension = case
    copies = await copying(host, folder, stack)
    [artifact] = await copies.copy(host.add(name, content))
    copies.check(artifact, content)
    assert artifact.copy
    assert artifact.copy.mime_type == mime_type
    assert folder.names() == {f"{DAY}/task/0{extension}"}


@pytest.mark.parametrize("place", ["moto", "versitygw"], indirect=True)
@pytest.mark.parametrize(
    "case",
    [
        ("a.jpg", PNG_START, "image/png", None),
        ("a.svg", b"<svg></svg>", "image/svg+xml", "attachment"),
        ("a.html", PAGE, "text/html", "attachment"),
        ("a.xml", b"<?xml version='1.0'?><score/>", "application/xml", "attachment"),
    ],
)
async def test_an_object_has_the_verified_type_and_scripts_are_attachments(
    host: MediaHost,
    place: KeptPlace,
    stack: AsyncExitStack,
    case: tuple[str, bytes, str, str | None],
) -> None:
    name, content, mime_type, disposition = case
    copies = await copying(host, place, stack)
    [artifact] = await copies.copy(host.add(name, content))
    assert artifact.copy
    assert isinstance(place, S3Place)
    stored = place.object(artifact.copy.uri)
    assert stored["ContentType"] == mime_type
    assert stored.get("ContentDisposition") == disposition


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_result_that_is_too_large_is_not_copied(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack, chunked: bool
) -> None:
    host.chunked = chunked
    copies = await copying(host, folder, stack, max_bytes=3 * MIB)
    url = host.add("a.mp4", media(3 * MIB + 1))
    fits = host.add("b.mp4", media(3 * MIB))
    large, small = await copies.copy(url, fits)
    assert large.copy is None
    assert large.storage_error == "the result is larger than RESULTS_MAX_BYTES (3145728)"
    copies.check(small, host.files["b.mp4"])
    assert folder.temporary() == []


async def test_a_source_that_falls_silent_is_abandoned(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack
) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = MIB
        await response.prepare(request)
        await response.write(media(9_999))
        await asyncio.Event().wait()
        return response

    host.answers["a.mp4"] = hang
    copies = await copying(host, folder, stack, SourceTimes(stall_seconds=0.1))
    [artifact] = await copies.copy(host.url("a.mp4"))
    assert artifact.storage_error
    assert folder.temporary() == []


async def test_a_source_below_the_minimum_rate_is_abandoned(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack
) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(media(9_999))
        while True:
            await asyncio.sleep(0.01)
            await response.write(b"x")

    host.answers["a.mp4"] = drip
    times = SourceTimes(rate_seconds=0.1, rate_min_bytes=10_000_000)
    copies = await copying(host, folder, stack, times)
    [artifact] = await copies.copy(host.url("a.mp4"))
    assert artifact.storage_error == "the server of the result is too slow"


# --- dead links ---


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_dead_link_is_replaced_by_a_fresh_one_once(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack, status: int
) -> None:
    async def dead(request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(status=status)

    content = media(MIB)
    host.answers["dead.mp4"] = dead
    dead_url = host.url("dead.mp4")
    host.fresh[dead_url] = host.add("fresh.mp4", content)
    copies = await copying(host, folder, stack)
    [artifact] = await copies.copy(dead_url)
    copies.check(artifact, content)
    assert artifact.url == dead_url
    host.fresh[dead_url] = dead_url
    [artifact] = await copies.copy(dead_url)
    assert artifact.copy is None
    assert str(status) in artifact.storage_error
    assert host.asked[f"fresh {dead_url}"] == 2


@pytest.mark.parametrize("status", [400, 429, 500, 503, 206, 204, 304])
async def test_other_answers_ask_for_no_fresh_link(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack, status: int
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(status=status, body=None if status in {204, 304} else media(99))

    host.answers["a.mp4"] = answer
    copies = await copying(host, folder, stack)
    [artifact] = await copies.copy(host.url("a.mp4"))
    assert artifact.copy is None
    assert not any(name.startswith("fresh") for name in host.asked)


# --- several results ---


async def test_results_are_copied_at_the_same_time_and_stay_in_their_order(
    host: MediaHost, place: KeptPlace, stack: AsyncExitStack
) -> None:
    arrived = asyncio.Semaphore(0)
    contents = [media(6 * MIB, seed) for seed in range(4)]
    urls = [host.add(f"{index}.mp4", content) for index, content in enumerate(contents)]

    async def send_last_first(request: web.Request) -> web.StreamResponse:
        index = int(request.match_info["name"][0])
        for _ in range(3 - index):  # not before all that come after it
            await arrived.acquire()
        answer = await host.send_file(request, request.match_info["name"])
        for _ in range(index):
            arrived.release()
        return answer

    host.answers |= {f"{index}.mp4": send_last_first for index in range(4)}
    copies = await copying(host, place, stack)
    artifacts = await copies.copy(*urls)
    for artifact, content in zip(artifacts, contents, strict=True):
        copies.check(artifact, content)
    assert place.names() == {f"{DAY}/task/{index}.mp4" for index in range(4)}


async def test_only_results_without_a_copy_are_copied_again(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack
) -> None:
    urls = [host.add(f"{index}.png", PNG_START + bytes(index)) for index in range(3)]
    host.cuts["1.png"] = [Cut(3, times=2)]
    copies = await copying(host, folder, stack)
    artifacts = await copies.copy(*urls, times=3)
    assert all(artifact.copy and not artifact.storage_error for artifact in artifacts)
    assert [host.asked[f"{index}.png"] for index in range(3)] == [1, 3, 1]


# --- the lease ---


async def test_a_copy_whose_lease_is_lost_is_not_completed(
    host: MediaHost, place: KeptPlace, stack: AsyncExitStack
) -> None:
    async def is_lost() -> bool:
        assert host.asked["a.mp4"], "confirmed at the end"
        return False

    copies = await copying(host, place, stack)
    artifact = Artifact(host.add("a.mp4", media(11 * MIB)), "video/mp4")
    [left] = await copies.copier.copy_all(TASK, (artifact,), is_lost)
    assert left.copy is None
    assert place.names() == set()
    assert place.temporary() == []
    assert copies.outcomes() == {"lease_lost": 1}


async def test_an_unexpected_failure_is_one_of_its_result_only(
    host: MediaHost, folder: KeptPlace, stack: AsyncExitStack
) -> None:
    copies = await copying(host, folder, stack)
    urls = [host.add(f"{index}.png", PNG_START) for index in range(3)]
    answers = iter([True, False, True])

    async def confirm() -> bool:
        if next(answers):
            return True
        raise RuntimeError("unexpected")

    artifacts = tuple(Artifact(url, "image/png") for url in urls)
    copied = await copies.copier.copy_all(TASK, artifacts, confirm)
    assert sum(each.copy is not None for each in copied) == 2
    assert {each.storage_error for each in copied} == {"", "the copy failed"}
    assert folder.temporary() == []
