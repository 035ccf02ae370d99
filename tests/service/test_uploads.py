"""UploadFile through a real channel: what reaches the provider, and what must not."""

import asyncio
import os
import re
import time
from datetime import UTC
from hashlib import sha256

import pytest

from tests.support.harness import API_KEY, Serve, Service, upload_messages
from tests.support.uploading import MIB, UploadHost, chunk, download, metadata, send, upload

MESSAGE_MAX_BYTES = 4 * MIB


# --- what arrives ---


@pytest.mark.parametrize(
    ("size", "chunk_bytes"),
    [
        (1, 1),
        (700, 1),
        (65_537, 7),
        (1_000_003, 65_536),
        (1_000_003, 65_537),
        (3 * MIB, MIB),
        (10_000_019, 999_983),
        (9 * MIB, MESSAGE_MAX_BYTES - 64),
    ],
)
@pytest.mark.parametrize("declared", [True, False], ids=["declared size", "unknown size"])
async def test_content_arrives_byte_for_byte_however_it_is_cut(
    service: Service, size: int, chunk_bytes: int, declared: bool
) -> None:
    content = os.urandom(size)
    fields = {"size_bytes": size, "sha256": sha256(content).digest()} if declared else {}
    file = await send(service, upload_messages(content, chunk_bytes, **fields))
    assert (file.size_bytes, file.sha256) == (size, sha256(content).digest())
    assert await download(file.download_url) == content


@pytest.mark.parametrize("declared", [True, False], ids=["declared size", "unknown size"])
async def test_empty_chunks_are_harmless(service: Service, declared: bool) -> None:
    pieces = [b"", b"ab", b"", b"", b"c", b""]
    fields = {"size_bytes": 3} if declared else {}
    file = await send(service, [metadata(**fields), *map(chunk, pieces)])
    assert file.size_bytes == 3
    assert await download(file.download_url) == b"abc"


async def test_content_that_looks_like_multipart_or_http_is_only_content(service: Service) -> None:
    content = (
        b'--x\r\nContent-Disposition: form-data; name="fileName"\r\n\r\nevil\r\n--x--\r\n0\r\n\r\n'
    )
    file = await upload(service, content * 3, chunk_bytes=11)
    assert await download(file.download_url) == content * 3


@pytest.mark.parametrize("declared", [True, False], ids=["declared size", "unknown size"])
async def test_the_body_has_a_content_length_only_if_the_size_is_known(
    hosted: Service, host: UploadHost, declared: bool
) -> None:
    fields = {"size_bytes": 100_000} if declared else {}
    await upload(hosted, b"x" * 100_000, **fields)
    [request] = host.received
    assert request.parts["file"] == b"x" * 100_000
    if declared:
        assert int(request.headers["Content-Length"]) > 100_000
        assert "Transfer-Encoding" not in request.headers
    else:
        assert request.headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in request.headers


async def test_the_provider_gets_our_key_the_path_the_name_and_the_type(
    hosted: Service, host: UploadHost
) -> None:
    await upload(hosted, b"abc", file_name="a b.webp", upload_path="cats/tom")
    [request] = host.received
    assert request.headers["Authorization"] == f"Bearer {API_KEY}"
    assert request.parts["uploadPath"] == b"cats/tom"
    name = request.parts["fileName"].decode()
    assert re.fullmatch(r"[0-9a-f]{32}-a b\.webp", name)
    assert list(request.parts) == ["uploadPath", "fileName", "file"], "the large part comes last"
    assert request.file_headers["Content-Type"] == "image/webp"
    disposition = request.file_headers["Content-Disposition"]
    assert disposition == f'form-data; name="file"; filename="{name}"'


# --- names, types, paths, times ---


async def test_two_uploads_of_one_name_do_not_overwrite_each_other(service: Service) -> None:
    files = await asyncio.gather(
        *(upload(service, bytes([i]), file_name="a.png") for i in range(9))
    )
    assert len({file.file_name for file in files}) == 9
    assert all(re.fullmatch(r"[0-9a-f]{32}-a\.png", file.file_name) for file in files)
    for i, file in enumerate(files):
        assert await download(file.download_url) == bytes([i])


async def test_the_name_path_and_url_returned_are_the_providers(
    hosted: Service, host: UploadHost
) -> None:
    host.data = {
        "fileName": "renamed.png",
        "filePath": "kieai/1/x/renamed.png",
        "downloadUrl": "https://files.example/renamed.png",
        "mimeType": "image/x-theirs",
    }
    file = await upload(hosted)
    assert file.file_name == "renamed.png"
    assert file.file_path == "kieai/1/x/renamed.png"
    assert file.download_url == "https://files.example/renamed.png"
    assert file.mime_type == "image/x-theirs"


async def test_the_type_sent_is_returned_if_the_provider_reports_none(
    hosted: Service, host: UploadHost
) -> None:
    assert (await upload(hosted, file_name="a.gif")).mime_type == "image/gif"


@pytest.mark.parametrize(
    ("file_name", "content_type"),
    [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("a.mp4", "video/mp4"),
        ("a.b.png", "image/png"),
        ("a.what", "application/octet-stream"),
        ("a", "application/octet-stream"),
        (".png", "application/octet-stream"),
        ("a.svg.gz", "application/octet-stream"),
    ],
)
async def test_the_type_is_guessed_from_the_extension_unless_it_is_given(
    hosted: Service, host: UploadHost, file_name: str, content_type: str
) -> None:
    await upload(hosted, file_name=file_name)
    await upload(hosted, file_name=file_name, content_type="image/x-mine; a=b")
    types = [request.file_headers["Content-Type"] for request in host.received]
    assert types == [content_type, "image/x-mine; a=b"]


@pytest.mark.parametrize(
    ("upload_path", "folder"),
    [
        ("", "user-uploads"),
        ("cats", "cats"),
        ("cats/", "cats"),
        ("cats//", "cats"),
        ("cats/tom and co", "cats/tom and co"),
        ("katzen/größe/猫", "katzen/größe/猫"),
        ("a..b/.c", "a..b/.c"),
    ],
)
async def test_the_path_is_the_one_given_or_user_uploads(
    hosted: Service, host: UploadHost, upload_path: str, folder: str
) -> None:
    await upload(hosted, upload_path=upload_path)
    assert host.received[0].parts["uploadPath"].decode() == folder


NAMES = {
    "umlauts": "Größe.png",
    "decomposed umlauts": "Gro\u0308ße.png",
    "Chinese": "提示词.png",
    "Hebrew": "חתול.png",
    "an emoji": "🐈.png",
    "a family of joined emoji": "👨\u200d👩\u200d👧.png",
    "the narrow space of a Mac's screenshots": "Screenshot 2026-11-22 at 9.41.00\u202fAM.png",
    "a space that does not break": "a\u00a0b.png",
    "quotes": "a\"b'c.png",
    "what headers are made of": "a;b=c:d,e.png",
    "what URLs are made of": "a%20b&c?d#e+f.png",
    "dots": "...a..b...png",
    "a leading dash": "-rf.png",
    "255 characters": "x" * 251 + ".png",
    "255 bytes of wide characters": "猫" * 83 + "xx.png",
    "a joiner between letters": "मे\u200cरा.png",
}


@pytest.mark.parametrize("file_name", NAMES.values(), ids=NAMES.keys())
async def test_a_name_of_any_letters_reaches_the_provider_as_it_is(
    hosted: Service, host: UploadHost, file_name: str
) -> None:
    await upload(hosted, b"abc", file_name=file_name)
    [request] = host.received
    assert request.parts["fileName"].decode()[33:] == file_name
    assert request.parts["file"] == b"abc"
    disposition = request.file_headers["Content-Disposition"]
    [filename] = re.findall(r'^form-data; name="file"; filename="([^"]*)"$', disposition)
    assert filename.replace("%22", '"')[33:] == file_name, "as browsers send it"


async def test_a_unicode_name_is_stored_and_found_by_its_url(service: Service) -> None:
    file = await upload(service, b"abc", file_name="猫 Größe.png", upload_path="katzen/größe")
    assert file.file_name.endswith("-猫 Größe.png")
    assert await download(file.download_url) == b"abc"


async def test_a_file_expires_after_the_retention_if_the_provider_reports_no_expiry(
    serve: Serve, host: UploadHost
) -> None:
    host.data["uploadedAt"] = "2026-01-02T03:04:05.678Z"
    async with serve(kie_upload_url=host.url, upload_retention_seconds=100) as service:
        file = await upload(service)
    assert file.upload_time.ToJsonString() == "2026-01-02T03:04:05.678Z"
    assert file.expire_time.ToJsonString() == "2026-01-02T03:05:45.678Z"


async def test_a_file_was_uploaded_now_if_the_provider_reports_no_time(hosted: Service) -> None:
    before = time.time()
    file = await upload(hosted)
    uploaded = file.upload_time.ToDatetime(UTC).timestamp()
    assert before - 0.001 <= uploaded <= time.time()
    assert file.expire_time.seconds - file.upload_time.seconds == 86_400


@pytest.mark.parametrize(
    "expires_at", ["2026-01-05T00:00:00Z", "2026-01-05 00:00:00", 1_767_571_200_000]
)
async def test_a_file_expires_when_the_provider_says_so(
    hosted: Service, host: UploadHost, expires_at: object
) -> None:
    host.data |= {"uploadedAt": "2026-01-02T03:04:05.678Z", "expiresAt": expires_at}
    assert (await upload(hosted)).expire_time.ToJsonString() == "2026-01-05T00:00:00Z"


@pytest.mark.parametrize("nonsense", ["soon", None, [], {}, -1, "", True, 10**30])
async def test_invalid_times_and_names_do_not_fail_an_upload(
    hosted: Service, host: UploadHost, nonsense: object
) -> None:
    host.data |= dict.fromkeys(("uploadedAt", "expiresAt", "fileName", "mimeType"), nonsense)
    file = await upload(hosted)
    assert file.download_url == "https://x.example/its.png"
    assert file.expire_time.seconds - file.upload_time.seconds == 86_400
