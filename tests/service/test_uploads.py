"""UploadFile through a real channel: what reaches the provider, and what must not."""

import asyncio
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from kie_generation.upload import CHUNK_BYTES
from providers.kie.http import Timeouts
from providers.kie.simulator import Simulator
from service.bounds import Bounds, Grace
from service.uploads import UploadPace
from tests.support.harness import API_KEY, SERVICE, Serve, Service, upload_messages
from tests.support.paths import ROOT
from tests.support.refusals import Refusal, refusal
from tests.support.waiting import DEADLINE_SECONDS

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
MIB = 1 << 20
MESSAGE_MAX_BYTES = 4 * MIB
STREAM = "/api/file-stream-upload"

Messages = Iterable[pb.UploadFileRequest] | AsyncIterator[pb.UploadFileRequest]


def chunk(content: bytes) -> pb.UploadFileRequest:
    return pb.UploadFileRequest(chunk=content)


def metadata(**fields: Any) -> pb.UploadFileRequest:
    [message] = upload_messages(b"", **fields)
    return message


async def send(
    service: Service, messages: Messages, timeout: float = DEADLINE_SECONDS
) -> pb.UploadedFile:
    """Upload, and stop sending at the moment of the answer.

    A write that fails later overwrites the answer in grpcio 1.85 with "Internal error from Core".
    """
    call = service.stub.UploadFile(timeout=timeout)
    writing = asyncio.create_task(write(call, messages))

    def stop(_: object) -> None:
        writing.cancel()

    call.add_done_callback(stop)
    try:
        return (await call).file
    finally:
        await asyncio.gather(writing, return_exceptions=True)


async def write(call: Any, messages: Messages) -> None:
    if isinstance(messages, AsyncIterator):
        async for message in messages:
            await call.write(message)
    else:
        for message in messages:
            await call.write(message)
    await call.done_writing()


async def upload(service: Service, content: bytes = b"x", **fields: Any) -> pb.UploadedFile:
    return await send(service, upload_messages(content, **fields))


async def refused(service: Service, messages: Messages) -> Refusal:
    """Send what must be refused, and return how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(service, messages)
    return refusal(caught.value)


async def download(url: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return await response.read()


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition by checking it repeatedly."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0.005)


def open_sockets() -> int:
    """Count the sockets of this process: the channel's, the service's and the provider's."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            links.append(str(descriptor.readlink()))
    return sum(link.startswith("socket:") for link in links)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that the block leaves no call, no connection and no task behind."""
    tasks, sockets = len(asyncio.all_tasks()), open_sockets()
    yield
    await until(lambda: len(asyncio.all_tasks()) <= tasks and open_sockets() <= sockets)


# An upload touches no database, and PostgreSQL's connections, opened as needed, would be counted.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def warm(service: Service) -> None:
    """Upload once, so that connections which stay open are open."""
    await upload(service)
    service.kie.reset()


# --- a provider that answers as the test says ---


@dataclass
class Received:
    """A request as the provider saw it."""

    headers: dict[str, str]
    parts: dict[str, bytes]
    file_headers: dict[str, str]


Answer = dict[str, Any]


class UploadHost:
    """Kie's upload host, reduced to what the tests observe or break."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.received: list[Received] = []
        self.data: Answer = {"fileName": "its-name.png", "downloadUrl": "https://x.example/its.png"}
        self.handle: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.read_and_store

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        return await self.handle(request)

    async def read_and_store(self, request: web.Request) -> web.StreamResponse:
        """Read a whole multipart body and say that it is stored."""
        parts, file_headers = {}, {}
        async for part in await request.multipart():
            assert isinstance(part, aiohttp.BodyPartReader)
            assert part.name is not None
            parts[part.name] = bytes(await part.read())
            if part.name == "file":
                file_headers = dict(part.headers)
        self.received.append(Received(dict(request.headers), parts, file_headers))
        return self.stored()

    async def read_and_drop(self, request: web.Request) -> web.StreamResponse:
        """Read a body of any size, keep nothing of it, and report its size."""
        size = 0
        async for some in request.content.iter_any():
            size += len(some)
        self.data["size"] = size
        return self.stored()

    async def hold(self, _: web.Request) -> web.StreamResponse:
        """Read nothing, answer nothing."""
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def read_and_hold(self, request: web.Request) -> web.StreamResponse:
        """Read everything, answer nothing."""
        await request.read()
        return await self.hold(request)

    async def refuse(self, _: web.Request) -> web.StreamResponse:
        """Answer before anything is read."""
        return web.json_response({"success": False, "code": 401, "msg": "no key"}, status=401)

    def stored(self) -> web.Response:
        return web.json_response({"success": True, "code": 200, "msg": "ok", "data": self.data})


@pytest.fixture
async def host() -> AsyncIterator[UploadHost]:
    """An upload host on a socket."""
    host = UploadHost()
    app = web.Application(client_max_size=1 << 40)
    app.router.add_post(STREAM, host.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield host
    await runner.cleanup()


@pytest.fixture
async def hosted(serve: Serve, host: UploadHost) -> AsyncIterator[Service]:
    """The service in front of that upload host."""
    async with serve(kie_upload_url=host.url) as service:
        yield service


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


# --- rules: before any call ---

BROKEN_RULES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no name": ({"file_name": ""}, ["file_name"]),
    "a blank name": ({"file_name": " \u3000"}, ["file_name"]),
    "a name of 256 characters": ({"file_name": "x" * 256}, ["file_name"]),
    "a name of 256 bytes": ({"file_name": "猫" * 84 + ".png"}, ["file_name"]),
    "a name with a right-to-left override": ({"file_name": "a\u202egnp.exe"}, ["file_name"]),
    "a name with an isolate": ({"file_name": "a\u2066b\u2069.png"}, ["file_name"]),
    "a name with a left-to-right mark": ({"file_name": "a\u200e.png"}, ["file_name"]),
    "a name with a soft hyphen": ({"file_name": "a\u00adb.png"}, ["file_name"]),
    "a name with a byte order mark": ({"file_name": "\ufeffa.png"}, ["file_name"]),
    "a name with a line separator": ({"file_name": "a\u2028b.png"}, ["file_name"]),
    "a name with a tag character": ({"file_name": "a\U000e0041.png"}, ["file_name"]),
    "a path of 256 bytes": ({"upload_path": "é" * 128}, ["upload_path"]),
    "a path with an override": ({"upload_path": "a\u202eb"}, ["upload_path"]),
    "a name with a slash": ({"file_name": "a/b.png"}, ["file_name"]),
    "a name with a backslash": ({"file_name": "a\\b.png"}, ["file_name"]),
    "a name that is the folder": ({"file_name": "."}, ["file_name"]),
    "a name that climbs": ({"file_name": ".."}, ["file_name"]),
    "a name that climbs far": ({"file_name": "../../etc/passwd"}, ["file_name"]),
    "a name with NUL": ({"file_name": "a\0.png"}, ["file_name"]),
    "a name with CR LF": ({"file_name": 'a"\r\nX-Evil: 1\r\n\r\n.png'}, ["file_name"]),
    "a name with LF": ({"file_name": "a.png\n"}, ["file_name"]),
    "a name with DEL": ({"file_name": "a\x7f.png"}, ["file_name"]),
    "a name with a C1 control": ({"file_name": "a\x85.png"}, ["file_name"]),
    "a path of 256 characters": ({"upload_path": "x" * 256}, ["upload_path"]),
    "a path that climbs": ({"upload_path": ".."}, ["upload_path"]),
    "a path that climbs later": ({"upload_path": "a/../../b"}, ["upload_path"]),
    "a path that ends in climbing": ({"upload_path": "a/.."}, ["upload_path"]),
    "an absolute path": ({"upload_path": "/etc"}, ["upload_path"]),
    "a path that is the root": ({"upload_path": "/"}, ["upload_path"]),
    "a path with a backslash": ({"upload_path": "a\\..\\b"}, ["upload_path"]),
    "an absolute path of Windows": ({"upload_path": "\\\\host\\share"}, ["upload_path"]),
    "a path with CR LF": ({"upload_path": "a\r\nX: 1"}, ["upload_path"]),
    "a path with a tab": ({"upload_path": "a\tb"}, ["upload_path"]),
    "a type that is none": ({"content_type": "image"}, ["content_type"]),
    "a type of nothing": ({"content_type": "/"}, ["content_type"]),
    "a blank type": ({"content_type": " "}, ["content_type"]),
    "a type with a space": ({"content_type": "image/p ng"}, ["content_type"]),
    "a type with two slashes": ({"content_type": "a/b/c"}, ["content_type"]),
    "a type with CR LF": ({"content_type": "image/png\r\nX-Evil: 1"}, ["content_type"]),
    "a type with LF at its end": ({"content_type": "image/png\n"}, ["content_type"]),
    "a parameter with CR LF": ({"content_type": "image/png;a=b\r\nX: 1"}, ["content_type"]),
    "a type with quotes": ({"content_type": 'image/"png"'}, ["content_type"]),
    "a type with other letters": ({"content_type": "bild/größe"}, ["content_type"]),
    "a type without an end": ({"content_type": "a/" + "b" * 10_000}, ["content_type"]),
    "a negative size": ({"size_bytes": -1}, ["size_bytes"]),
    "a short digest": ({"sha256": b"x" * 31}, ["sha256"]),
    "a digest in hex": ({"sha256": b"0" * 64}, ["sha256"]),
    "everything": (
        {
            "file_name": "",
            "content_type": "x",
            "upload_path": "..",
            "size_bytes": -(2**63),
            "sha256": b"x",
        },
        ["file_name", "content_type", "upload_path", "size_bytes", "sha256"],
    ),
}


@pytest.mark.parametrize(("fields", "broken"), BROKEN_RULES.values(), ids=BROKEN_RULES.keys())
async def test_broken_rules_are_named_by_their_fields_before_any_call(
    service: Service, fields: dict[str, Any], broken: list[str]
) -> None:
    error = await refused(service, upload_messages(b"x", **fields))
    assert (error.code, error.reason) == (INVALID, "INVALID_PARAMS")
    assert error.fields == [f"metadata.{field}" for field in broken]
    assert STREAM not in service.kie.stats["requests"]


# --- incomplete files ---

GOOD = sha256(b"abc").digest()
MISMATCHES: dict[str, list[pb.UploadFileRequest]] = {
    "nothing at all": [],
    "no metadata first": [chunk(b"abc"), metadata()],
    "an empty message first": [pb.UploadFileRequest(), metadata(), chunk(b"abc")],
    "metadata twice": [metadata(), metadata(), chunk(b"abc")],
    "metadata again at the end": [metadata(), chunk(b"abc"), metadata()],
    "an empty message in the middle": [
        metadata(),
        chunk(b"a"),
        pb.UploadFileRequest(),
        chunk(b"b"),
    ],
    "no chunk": [metadata()],
    "only empty chunks": [metadata(), chunk(b""), chunk(b"")],
    "no chunk, of a declared size": [metadata(size_bytes=3)],
    "a size of nothing, and nothing": [metadata(size_bytes=0)],
    "a size of nothing, and something": [metadata(size_bytes=0), chunk(b"abc")],
    "shorter than declared": [metadata(size_bytes=4), chunk(b"abc")],
    "longer than declared": [metadata(size_bytes=2), chunk(b"abc")],
    "longer than declared by a chunk": [metadata(size_bytes=3), chunk(b"abc"), chunk(b"d")],
    "much shorter than declared": [metadata(size_bytes=3 * MIB), chunk(b"x" * MIB)],
    "much longer than declared": [metadata(size_bytes=3), *[chunk(b"x" * MIB)] * 3],
    "another digest": [metadata(sha256=GOOD), chunk(b"abd")],
    "another digest, right size": [metadata(sha256=GOOD, size_bytes=3), chunk(b"abd")],
    "a digest, and nothing": [metadata(sha256=sha256(b"").digest())],
    "metadata after a large file": [metadata(), *[chunk(b"x" * MIB)] * 3, metadata()],
}


@pytest.mark.parametrize("messages", MISMATCHES.values(), ids=MISMATCHES.keys())
async def test_an_incomplete_file_is_a_mismatch_and_the_provider_never_gets_it(
    service: Service, messages: list[pb.UploadFileRequest]
) -> None:
    error = await refused(service, messages)
    assert (error.code, error.reason) == (INVALID, "UPLOAD_MISMATCH")
    assert error.retry_seconds is None
    await at_the_end_no_file(service)


async def at_the_end_no_file(service: Service) -> None:
    """Wait until the provider has finished every upload, and check that it stored none."""

    def all_refused() -> bool:
        stats = service.kie.stats
        return bool(stats["uploads"]["refused"] == stats["requests"].get(STREAM, 0))

    await until(all_refused)
    assert service.kie.stats["uploads"]["completed"] == 0


async def test_a_mismatch_names_both_sizes(service: Service) -> None:
    error = await refused(service, [metadata(size_bytes=4), chunk(b"abc")])
    assert error.message == "the file has 3 bytes, not the declared size_bytes (4)"


async def test_a_wrong_upload_is_aborted_as_soon_as_it_is_certain(service: Service) -> None:
    async def more_chunks() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=3)
        yield chunk(b"abcd")
        await asyncio.Event().wait()

    assert (await refused(service, more_chunks())).reason == "UPLOAD_MISMATCH"
    await at_the_end_no_file(service)


async def test_an_unparsable_message_in_the_middle_leaves_no_file(service: Service) -> None:
    call: Any = service.channel.stream_unary(f"{SERVICE}UploadFile")
    good = [m.SerializeToString() for m in (metadata(), chunk(b"abc"))]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(iter([*good, b"\x12\xff"]))
    assert refusal(caught.value).reason == "INVALID_PARAMS"
    await at_the_end_no_file(service)


# --- too large ---


async def test_a_file_declared_too_large_is_refused_before_any_call(serve: Serve) -> None:
    async with serve(upload_max_bytes=1_000) as service:
        error = await refused(service, [metadata(size_bytes=123_456), chunk(b"x")])
    assert (error.code, error.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "UPLOAD_TOO_LARGE",
    )
    assert "123456" in error.message
    assert "1000" in error.message
    assert STREAM not in service.kie.stats["requests"]


@pytest.mark.parametrize("fields", [{}, {"size_bytes": 1_000}])
async def test_a_file_that_turns_out_too_large_is_aborted(
    serve: Serve, fields: dict[str, Any]
) -> None:
    async with serve(upload_max_bytes=1_000) as service:
        error = await refused(service, upload_messages(b"x" * 2_000, 300, **fields))
        await at_the_end_no_file(service)
    assert error.reason == "UPLOAD_TOO_LARGE"
    assert "1200" in error.message
    assert "1000" in error.message


@pytest.mark.parametrize("fields", [{}, {"size_bytes": 1_000}])
async def test_a_file_of_exactly_the_limit_is_accepted(
    serve: Serve, fields: dict[str, Any]
) -> None:
    async with serve(upload_max_bytes=1_000) as service:
        assert (await upload(service, b"x" * 1_000, **fields)).size_bytes == 1_000


# --- clients that go away ---


async def endless(
    sent: asyncio.Event, size_bytes: int | None = None, chunks: int = 3
) -> AsyncIterator[pb.UploadFileRequest]:
    """Send some chunks, and then nothing."""
    yield metadata() if size_bytes is None else metadata(size_bytes=size_bytes)
    for _ in range(chunks):
        yield chunk(b"x" * 10_000)
    sent.set()
    await asyncio.Event().wait()


async def begun(service: Service, uploads: int = 1) -> None:
    """Wait until the provider has been called so many times."""
    await until(lambda: service.kie.stats["requests"].get(STREAM, 0) >= uploads)


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_client_that_cancels_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int | None
) -> None:
    await warm(service)
    rounds, at_once = 10, 10
    async with nothing_left():
        for done in range(rounds):
            sent = [asyncio.Event() for _ in range(at_once)]
            calls = [service.stub.UploadFile(endless(event, size_bytes)) for event in sent]
            await begun(service, (done + 1) * at_once)
            await asyncio.gather(*(event.wait() for event in sent))
            for call in calls:
                call.cancel()
            for call in calls:
                with pytest.raises(asyncio.CancelledError):
                    await call
    await at_the_end_no_file(service)
    assert service.kie.stats["uploads"]["aborted"] == rounds * at_once


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_client_whose_deadline_passes_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int | None
) -> None:
    await warm(service)
    async with nothing_left():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send(service, endless(asyncio.Event(), size_bytes), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await at_the_end_no_file(service)


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_client_that_closes_its_channel_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int | None
) -> None:
    await warm(service)
    async with nothing_left():
        channel = grpc.aio.insecure_channel(service.address)
        stub: Any = GenerationServiceStub(channel)
        sent = asyncio.Event()
        call = stub.UploadFile(endless(sent, size_bytes))
        await begun(service)
        await sent.wait()
        await channel.close()
        with pytest.raises(asyncio.CancelledError):
            await call
    await at_the_end_no_file(service)


CLIENT = """
import sys, time, grpc
from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub

def messages(size_bytes):
    yield pb.UploadFileRequest(metadata=pb.UploadMetadata(file_name="a.png", size_bytes=size_bytes))
    yield pb.UploadFileRequest(chunk=b"x" * 30_000)
    print("sent", flush=True)
    time.sleep(60)

size_bytes = int(sys.argv[2]) or None
GenerationServiceStub(grpc.insecure_channel(sys.argv[1])).UploadFile(messages(size_bytes))
"""


@on_sqlite
@pytest.mark.parametrize("size_bytes", [0, 90_000])
async def test_a_client_that_is_killed_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int
) -> None:
    await warm(service)
    async with nothing_left():
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CLIENT,
            service.address,
            str(size_bytes),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdout is not None
        async with asyncio.timeout(20):
            assert await client.stdout.readline() == b"sent\n"
        await begun(service)
        client.kill()
        await client.communicate()
    await at_the_end_no_file(service)


async def test_a_server_that_shuts_down_aborts_an_unfinished_upload(
    serve: Serve,
) -> None:
    sent = asyncio.Event()
    async with serve(bounds=Bounds(grace=Grace(calls_seconds=0.05))) as service:
        call = service.stub.UploadFile(endless(sent))
        await begun(service)
        await sent.wait()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    await at_the_end_no_file(service)


# --- clients and providers that stall ---


def stalling(seconds: float) -> Bounds:
    """Return bounds that end an upload in which nothing moves for that long."""
    return Bounds(kie=Timeouts(upload_stall_seconds=seconds))


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_an_upload_of_a_stalled_client_is_aborted(
    serve: Serve, size_bytes: int | None
) -> None:
    async with serve(bounds=stalling(0.5)) as service:
        await warm(service)
        async with nothing_left():
            error = await refused(service, endless(asyncio.Event(), size_bytes))
            assert (error.code, error.reason) == (INVALID, "UPLOAD_MISMATCH")
            assert error.message == "the upload was aborted: no bytes arrived for 0.5 s"
        await at_the_end_no_file(service)


async def test_an_upload_without_metadata_is_aborted(serve: Serve) -> None:
    bounds = Bounds(uploads=UploadPace(metadata_seconds=0.1))

    async def nothing() -> AsyncIterator[pb.UploadFileRequest]:
        await asyncio.Event().wait()
        yield metadata()

    async with serve(bounds=bounds) as service:
        error = await refused(service, nothing())
    assert (error.reason, error.message) == ("UPLOAD_MISMATCH", "no metadata arrived within 0.1 s")


async def test_a_slow_upload_continues_while_bytes_arrive(
    serve: Serve,
) -> None:
    async def slow() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=6)
        for _ in range(6):
            await asyncio.sleep(0.2)  # it is the client's pace, and no wait for anything
            yield chunk(b"x")

    async with serve(bounds=stalling(1)) as service:
        assert (await send(service, slow())).size_bytes == 6


async def test_an_upload_is_aborted_if_the_provider_does_not_read(
    serve: Serve, host: UploadHost
) -> None:
    host.handle = host.hold
    taken = 0

    async def without_end() -> AsyncIterator[pb.UploadFileRequest]:
        nonlocal taken
        yield metadata()
        while True:
            yield chunk(bytes(MIB))
            taken += MIB

    async with serve(bounds=stalling(1), kie_upload_url=host.url) as service:
        error = await refused(service, without_end())
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert error.message == "the provider cannot be reached: TimeoutError"
    assert taken < 32 * MIB, "what sockets and windows hold"


async def test_an_upload_is_aborted_if_the_provider_does_not_answer(
    serve: Serve, host: UploadHost
) -> None:
    host.handle = host.read_and_hold
    async with serve(bounds=stalling(0.5), kie_upload_url=host.url) as service:
        error = await refused(service, upload_messages(b"abc", size_bytes=3))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")


async def test_a_late_client_does_not_shorten_the_providers_time_to_answer(
    serve: Serve, host: UploadHost
) -> None:
    async def ends_late() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=3)
        yield chunk(b"abc")
        await asyncio.sleep(0.7)  # it is the client's pace, and no wait for anything

    async def answers_late(request: web.Request) -> web.StreamResponse:
        await request.read()
        await asyncio.sleep(0.7)  # and this the provider's
        return host.stored()

    host.handle = answers_late
    async with serve(bounds=stalling(1), kie_upload_url=host.url) as service:
        assert (await send(service, ends_late())).size_bytes == 3


async def test_a_provider_that_refuses_early_is_reported_while_the_client_still_sends(
    hosted: Service, host: UploadHost
) -> None:
    host.handle = host.refuse

    async def without_end() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata()
        while True:
            yield chunk(bytes(65_536))

    error = await refused(hosted, without_end())
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (error.reason, error.message) == ("PROVIDER_UNAUTHORIZED", "no key")


async def test_a_provider_that_refuses_early_is_reported_while_the_client_is_silent(
    hosted: Service, host: UploadHost
) -> None:
    host.handle = host.refuse
    error = await refused(hosted, endless(asyncio.Event(), chunks=1))
    assert error.reason == "PROVIDER_UNAUTHORIZED"


@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_success_before_the_end_of_the_file_is_not_believed(
    hosted: Service, host: UploadHost, size_bytes: int | None
) -> None:
    async def content_early(request: web.Request) -> web.StreamResponse:
        await request.content.readany()
        return host.stored()

    host.handle = content_early
    error = await refused(hosted, endless(asyncio.Event(), size_bytes))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")


async def test_an_upload_can_be_retried_if_the_provider_disconnects(
    hosted: Service, host: UploadHost
) -> None:
    async def hangs_up(request: web.Request) -> web.StreamResponse:
        await request.content.readany()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    host.handle = hangs_up
    error = await refused(hosted, endless(asyncio.Event()))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert error.retry_seconds


async def test_an_upload_is_sent_once_whatever_the_provider_does(
    hosted: Service, host: UploadHost
) -> None:
    async def redirects(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=307, headers={"Location": host.url + STREAM})

    host.handle = redirects
    assert (await refused(hosted, upload_messages(b"abc"))).reason == "PROVIDER_UNAVAILABLE"
    assert host.connections == 1


async def test_an_unreachable_provider_is_unavailable(serve: Serve) -> None:
    async with AsyncExitStack() as gone:
        kie = await gone.enter_async_context(Simulator())
    async with serve(kie_upload_url=kie.url) as service:
        error = await refused(service, upload_messages(b"x" * 100_000))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert error.retry_seconds


async def test_uploads_do_not_disturb_each_other(service: Service) -> None:
    """Valid, wrong and abandoned uploads at the same time."""
    contents = [os.urandom(50_000 + i) for i in range(20)]
    sent = asyncio.Event()
    abandoned = [service.stub.UploadFile(endless(sent)) for _ in range(5)]
    results = await asyncio.gather(
        *(upload(service, content, chunk_bytes=7_001) for content in contents),
        *(upload(service, content, size_bytes=1) for content in contents[:5]),
        return_exceptions=True,
    )
    for call in abandoned:
        call.cancel()
    kinds = Counter(type(result).__name__ for result in results)
    assert kinds == {"UploadedFile": 20, "AioRpcError": 5}
    for file, content in zip(results[:20], contents, strict=True):
        assert isinstance(file, pb.UploadedFile)
        assert await download(file.download_url) == content


# --- memory ---


def peak_memory_kib(pid: int) -> int:
    """Return the peak memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(peak)


@asynccontextmanager
async def service_process(folder: Path, upload_url: str) -> AsyncIterator[tuple[int, str]]:
    """Run `python -m service`; yield its process id and address."""
    environment = {
        "PATH": os.environ["PATH"],
        "LISTEN_ADDRESS": "127.0.0.1:0",
        "ADMIN_ADDRESS": "",
        "DATABASE_URL": f"sqlite:///{folder}/generation.db",
        "KIE_API_KEY": API_KEY,
        "KIE_API_URL": upload_url,
        "KIE_UPLOAD_URL": upload_url,
        "UPLOAD_MAX_BYTES": str(1 << 40),
        "LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service",
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            while not (
                found := re.search(rb'"address": ?"([^"]+)"', await process.stdout.readline())
            ):
                assert process.returncode is None
        yield process.pid, found[1].decode()
    finally:
        process.terminate()
        await process.communicate()


@pytest.mark.parametrize("declared", [True, False], ids=["declared size", "unknown size"])
async def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, host: UploadHost, declared: bool
) -> None:
    host.handle = host.read_and_drop
    piece = os.urandom(CHUNK_BYTES)
    size = 256 * MIB

    def messages(size: int) -> Iterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=size) if declared else metadata()
        for _ in range(size // CHUNK_BYTES):
            yield chunk(piece)

    async with (
        service_process(tmp_path, host.url) as (pid, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub: Any = GenerationServiceStub(channel)
        await stub.UploadFile(messages(MIB))
        before = peak_memory_kib(pid)
        answer = await stub.UploadFile(messages(size))
        growth = peak_memory_kib(pid) - before
    assert answer.file.size_bytes == size < host.data["size"]
    assert growth < 30 * 1_024, f"{growth} KiB"
