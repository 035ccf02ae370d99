"""Downloads of results: what is saved, and what is refused."""

import asyncio
import gzip
import random
import socket
import zlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp.resolver import DefaultResolver

from kie_generation import DownloadError, MinimumRate, save_artifacts
from kie_generation.addresses import is_public
from kie_generation.generated.generation.v1.generation_pb2 import Artifact
from tests.support.results_server import PNG, serving_results
from tests.support.scripted_server import success

MP4 = b"\x00\x00\x00\x20ftypisom video"


def saved_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def save(folder: Path, *artifacts: Artifact, **how: Any) -> list[Path]:
    return await save_artifacts(success(1, artifacts=artifacts), folder, **how)


async def test_every_artifact_is_saved_under_the_tasks_id_and_its_number(tmp_path: Path) -> None:
    async with serving_results() as results:
        artifact = results.add("/picture.png", PNG)
        saved = await save(tmp_path / "new", artifact, artifact)
    assert [path.read_bytes() for path in saved] == [PNG] * 2
    assert saved_in(tmp_path / "new") == ["t-1_1.png", "t-1_2.png"]


@pytest.mark.parametrize(
    ("path", "why"), [("/missing", "HTTP 404"), ("/broken", "payload"), ("/picture.png", "larger")]
)
async def test_a_download_that_fails_leaves_no_file(tmp_path: Path, path: str, why: str) -> None:
    async with serving_results() as results:
        with pytest.raises(DownloadError, match=why):
            await save(tmp_path, Artifact(url=results.base + path), max_bytes=5)
    assert saved_in(tmp_path) == []


LARGE = PNG + random.Random(1).randbytes(300_000)
ZIPPED, MEMBERS = gzip.compress(LARGE), gzip.compress(LARGE[:99]) + gzip.compress(LARGE[99:])


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        *(
            (ZIPPED, "gzip"),
            (ZIPPED, "x-gzip"),
            (MEMBERS, "gzip"),
            (zlib.compress(LARGE), "deflate"),
        ),
        *((LARGE, "identity"), (LARGE, "aws-chunked")),
    ],
)
async def test_a_compressed_result_is_saved_as_it_was_before(
    tmp_path: Path, body: bytes, coding: str
) -> None:
    async with serving_results() as results:
        artifact = results.add("/picture.png", body)
        results.codings["/picture.png"] = coding
        [path] = await save(tmp_path, artifact)
    assert path.read_bytes() == LARGE


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        *((ZIPPED[:-50_000], "gzip"), (ZIPPED[:-1], "gzip"), (MEMBERS[:-1], "gzip")),
        *((ZIPPED + b"x", "gzip"), (LARGE, "gzip"), (zlib.compress(LARGE)[:-999], "deflate")),
        *((gzip.compress(ZIPPED), "gzip, gzip"), (LARGE, "br"), (LARGE, "zstd")),
    ],
)
async def test_a_compressed_result_that_is_cut_or_damaged_is_not_saved(
    tmp_path: Path, body: bytes, coding: str
) -> None:
    async with serving_results() as results:
        artifact = results.add("/picture.png", body)
        results.codings["/picture.png"] = coding
        with pytest.raises(DownloadError, match="compressed") as found:
            await save(tmp_path, artifact)
    assert found.value.is_transient
    assert saved_in(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/hosts", "", "http://", "https://[::1", "x" * 9])
async def test_an_invalid_url_is_a_download_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError):
        await save(tmp_path, Artifact(url=url))
    assert saved_in(tmp_path) == []


# --- names ---


@pytest.mark.parametrize(
    ("task_id", "name"), [("../../etc/x", "______etc_x_1.png"), ("", "task_1.png")]
)
async def test_a_file_name_is_safe_whatever_the_task_is_called(
    tmp_path: Path, task_id: str, name: str
) -> None:
    async with serving_results() as results:
        task = success(1, artifacts=[results.add("/x", PNG)])
        task.id = task_id
        await save_artifacts(task, tmp_path)
    assert saved_in(tmp_path) == [name]


@pytest.mark.parametrize(
    ("path", "mime_type", "content", "extension"),
    [
        ("/a", "video/mp4", MP4, ".mp4"),
        ("/x.php", "image/png", PNG, ".png"),
        ("/y.html", "IMAGE/PNG; q=1", PNG, ".png"),
        ("/z.php", "application/x-php", b"what is this", ".bin"),
        ("/z.sh", "text/x-shellscript", b"#!/bin/sh", ".bin"),
        ("/z.exe", "", b"MZ", ".bin"),
        ("/z.png", "", b"\x00\x01 of no known kind", ".bin"),
        ("/z.exe", "application/octet-stream", PNG, ".png"),
        ("/z.png", "image/png", b"\xff\xd8\xff a JPEG", ".jpg"),
        ("/z.mp4", "video/mp4", b"\x1a\x45\xdf\xa3 WebM", ".webm"),
    ],
)
async def test_the_extension_is_that_of_a_known_media_type_never_the_urls(
    tmp_path: Path, path: str, mime_type: str, content: bytes, extension: str
) -> None:
    async with serving_results() as results:
        results.add(path, content, "application/octet-stream")
        await save(tmp_path, Artifact(url=results.base + path, mime_type=mime_type))
    assert saved_in(tmp_path) == [f"t-1_1{extension}"]


async def test_planted_links_are_neither_followed_nor_written_through(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"keep me")
    folder = tmp_path / "results"
    folder.mkdir()
    for name in (".t-1_1.png.part", "t-1_1.png"):
        (folder / name).symlink_to(secret)
    async with serving_results() as results:
        (path,) = await save(folder, results.add("/picture.png", PNG))
    assert secret.read_bytes() == b"keep me"
    assert not path.is_symlink()
    assert path.read_bytes() == PNG


async def test_saves_of_one_task_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    async with serving_results() as results:
        artifact = results.add("/large.png", PNG * 100_000)
        await asyncio.gather(*(save(tmp_path, artifact) for _ in range(8)))
    assert saved_in(tmp_path) == ["t-1_1.png"]
    assert (tmp_path / "t-1_1.png").read_bytes() == PNG * 100_000


# --- what is no result ---

HTML = b"<!doctype html><title>expired</title>"


@pytest.mark.parametrize("mime_type", ["image/png", "video/mp4", "", "application/octet-stream"])
@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "image/png"),
        (HTML, "text/html; charset=utf-8"),
        (HTML, "image/png"),
        (b"\xef\xbb\xbf\r\n " + HTML, "image/png"),
        (b'{"code": 403}', "application/json"),
        (b'\n[{"code": 403}]', "image/png"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "application/xml"),
        (b"link expired", "text/plain"),
    ],
)
async def test_an_error_page_or_nothing_is_not_saved_as_a_result(
    tmp_path: Path, mime_type: str, content: bytes, content_type: str
) -> None:
    async with serving_results() as results:
        artifact = results.add("/picture.png", content, content_type)
        artifact.mime_type = mime_type
        with pytest.raises(DownloadError, match=r"empty|document"):
            await save(tmp_path, artifact)
    assert saved_in(tmp_path) == []


@pytest.mark.parametrize(
    ("mime_type", "content"),
    [("image/png", MP4), ("video/mp4", PNG), ("image/png", b"\x89PNX"), ("image/webp", b"RIFF")],
)
async def test_a_file_of_another_kind_than_announced_is_refused(
    tmp_path: Path, mime_type: str, content: bytes
) -> None:
    async with serving_results() as results:
        artifact = results.add("/picture", content)
        artifact.mime_type = mime_type
        with pytest.raises(DownloadError, match=f"expected {mime_type}, got"):
            await save(tmp_path, artifact)
    assert saved_in(tmp_path) == []


# --- signed URLs and redirects ---

SIGNED = "/a%2Fb/~x%7Ey+z.png?sig=a%2Fb%7E~c+d%20e%3D&x=%41;!*'()%E2%82%AC"


async def test_a_signed_url_is_requested_byte_for_byte_also_after_a_redirect(
    tmp_path: Path,
) -> None:
    async with serving_results() as results:
        results.files["/a/b/~x~y+z.png"] = ("image/png", PNG)
        results.redirects = {"/absolute": results.base + SIGNED, "/relative": SIGNED}
        artifacts = [
            Artifact(url=results.base + path) for path in (SIGNED, "/absolute", "/relative")
        ]
        await save(tmp_path, *artifacts, allow_private=True)
    assert results.asked == [SIGNED, "/absolute", SIGNED, "/relative", SIGNED]


async def test_a_url_with_characters_that_no_url_may_have_is_quoted(tmp_path: Path) -> None:
    async with serving_results() as results:
        results.files["/a b é"] = ("image/png", PNG)
        await save(tmp_path, Artifact(url=results.base + "/a b é"))
    assert results.asked == ["/a%20b%20%C3%A9"]


INTERNAL = [
    "http://127.0.0.1:1/x.png",
    "https://127.0.0.1/x.png",
    "https://localhost/x.png",
    "https://2130706433/x.png",
    "https://127.1/x.png",
    "https://[::1]/x.png",
    "https://[::ffff:10.0.0.1]/x.png",
    "https://[64:ff9b::a00:1]/x.png",
    "https://10.0.0.1/x.png",
    "http://169.254.169.254/latest/meta-data",
    "http://example.com/x.png",
    "file:///etc/passwd",
    "//127.0.0.1/x.png",
    "/picture.png",
    "",
]


@pytest.mark.parametrize("location", INTERNAL)
async def test_a_redirect_is_followed_only_to_https_on_a_public_address(
    tmp_path: Path, location: str
) -> None:
    async with serving_results() as results:
        results.redirects = {"/moved": location}
        with pytest.raises(DownloadError):
            await save(tmp_path, Artifact(url=results.base + "/moved", mime_type="image/png"))
        assert results.asked == ["/moved"]
    assert saved_in(tmp_path) == []


async def test_a_redirect_to_a_name_that_resolves_to_a_private_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: Any) -> list[Any]:
        address = {"proto": 0, "flags": 0, "family": socket.AF_INET, "port": 443}
        return [
            {**address, "hostname": "cdn.example", "host": host}
            for host in ("93.184.215.14", "10.0.0.1")
        ]

    async with serving_results() as results:
        monkeypatch.setattr(DefaultResolver, "resolve", resolve)
        results.redirects = {"/moved": "https://cdn.example/x.png"}
        with pytest.raises(DownloadError, match=r"10\.0\.0\.1, which is not a public address"):
            await save(tmp_path, Artifact(url=results.base + "/moved"))


async def test_redirects_to_private_addresses_are_followed_when_allowed(tmp_path: Path) -> None:
    async with serving_results() as results, serving_results() as internal:
        results.redirects = {"/moved": f"{internal.base}/picture.png"}
        await save(tmp_path, Artifact(url=f"{results.base}/moved"), allow_private=True)
    assert saved_in(tmp_path) == ["t-1_1.png"]


async def test_an_endless_redirect_is_aborted(tmp_path: Path) -> None:
    async with serving_results() as results:
        results.redirects = {"/moved": "/moved"}
        with pytest.raises(DownloadError, match="redirects"):
            await save(tmp_path, Artifact(url=f"{results.base}/moved"), allow_private=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::7f00:1", False),
        ("::ffff:192.168.0.1", False),
        ("2002:7f00:1::", False),
        ("100.64.0.1", False),
        ("169.254.1.1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),  # noqa: S104 - not an address to listen on
        ("::", False),
        ("::127.0.0.1", False),
        ("example.com", False),
    ],
)
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


# --- limits ---


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
async def test_a_download_below_the_minimum_rate_is_aborted(tmp_path: Path, path: str) -> None:
    async with serving_results() as results:
        with pytest.raises(DownloadError, match=r"too slow: less than 1000 bytes in 0\.2 s"):
            await save(
                tmp_path,
                Artifact(url=results.base + path),
                minimum_rate=MinimumRate(bytes=1000, seconds=0.2),
            )
    assert saved_in(tmp_path) == []


async def test_the_size_of_all_files_of_a_save_is_limited(tmp_path: Path) -> None:
    async with serving_results() as results:
        artifact = results.add("/picture.png", PNG)
        with pytest.raises(DownloadError, match="larger than"):
            await save(tmp_path, *[artifact] * 3, max_total_bytes=2 * len(PNG) + 1)
    assert saved_in(tmp_path) == ["t-1_1.png", "t-1_2.png"]
