"""Uploads against slow callers, slow providers and odd answers: how long, how much memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from aiohttp import web

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.http import Timeouts
from providers.kie.simulator import Simulator
from service.bounds import Bounds
from service.uploads import UploadPace
from tests.support.harness import Serve, Service, serving
from tests.support.refusals import refused
from tests.support.uploading import (
    MESSAGE,
    MIB,
    UploadHost,
    chunk,
    metadata,
    raw_host,
    send,
    upload,
)

QUICK = Bounds(uploads=UploadPace(bytes_per_second=10_000, window_seconds=0.3))


@pytest.fixture
def serve_sqlite(tmp_path: Path, kie: Simulator) -> Serve:
    """The service on SQLite only, as no task is stored."""
    return lambda **settings: serving(tmp_path, kie, **settings)


# --- slow callers ---


async def drip(piece: bytes, seconds: float) -> AsyncIterator[pb.UploadFileRequest]:
    yield metadata()
    yield chunk(b"x")
    while True:
        await asyncio.sleep(seconds)  # it is the client's pace, and no wait for anything
        yield chunk(piece)


@pytest.mark.parametrize("piece", [b"x", b"", b"x" * 100], ids=["a byte", "nothing", "100 bytes"])
async def test_an_upload_below_the_minimum_rate_ends(serve: Serve, piece: bytes) -> None:
    async with serve(bounds=QUICK) as service:
        error = await refused(send(service, drip(piece, 0.03)))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UPLOAD_MISMATCH")
    assert "slower than 10000 bytes/s" in error.message


async def test_each_window_counts_for_itself(serve: Serve) -> None:
    """What was sent quickly before does not pay for a drip afterwards."""

    async def quick_then_slow() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata()
        for _ in range(5):
            yield chunk(b"x" * MIB)
        async for message in drip(b"x", 0.05):
            if message.chunk:
                yield message

    async with serve(bounds=QUICK) as service:
        error = await refused(send(service, quick_then_slow()))
    assert "slower than" in error.message


async def test_a_caller_at_the_minimum_rate_is_served(serve: Serve) -> None:
    async def steady() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata()
        for _ in range(20):
            await asyncio.sleep(0.05)  # it is the client's pace, and no wait for anything
            yield chunk(b"x" * 2_000)

    async with serve(bounds=QUICK) as service:
        assert (await send(service, steady())).size_bytes == 40_000


async def test_a_caller_is_not_blamed_for_a_slow_provider(serve: Serve, host: UploadHost) -> None:
    async def reads_slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1)  # it is the provider's pace
        return await host.read_and_drop(request)

    host.handle = reads_slowly
    async with serve(bounds=QUICK, kie_upload_url=host.url) as service:
        file = await upload(service, bytes(8 * MIB), chunk_bytes=MIB)
    assert file.size_bytes == 8 * MIB


# --- slow providers ---


async def test_an_upload_is_aborted_if_the_provider_reads_too_slowly(
    serve: Serve,
) -> None:
    bounds = Bounds(kie=Timeouts(upload_stall_seconds=1))

    async def sips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        for _ in range(1_000):
            await reader.read(1)
            await asyncio.sleep(0.1)  # it is the provider's pace

    async with raw_host(sips) as url, serve(bounds=bounds, kie_upload_url=url) as service:
        error = await refused(send(service, [metadata(), *[chunk(bytes(MESSAGE))] * 8]))
    assert error.reason == "PROVIDER_UNAVAILABLE"


# --- odd answers ---


def answer(status: str, body: bytes, *headers: str) -> bytes:
    head = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(head).encode() + body


def envelope(code: int, msg: str) -> bytes:
    return json.dumps({"success": False, "code": code, "msg": msg}).encode()


EARLY = {
    "401 in an envelope": (
        answer("401 Unauthorized", envelope(401, "Invalid API Key")),
        "PROVIDER_UNAUTHORIZED",
    ),
    "401 in an envelope, HTTP 200": (
        answer("200 OK", envelope(401, "Invalid API Key")),
        "PROVIDER_UNAUTHORIZED",
    ),
    "401 of a proxy": (answer("401 Unauthorized", b"<html>no</html>"), "PROVIDER_UNAUTHORIZED"),
    "413 in an envelope": (
        answer("413 Payload Too Large", envelope(413, "File too large")),
        "UPLOAD_TOO_LARGE",
    ),
    "413 of nginx": (
        answer("413 Request Entity Too Large", b"<html>413</html>", "Connection: close"),
        "UPLOAD_TOO_LARGE",
    ),
    "413 without a body": (answer("413 Content Too Large", b""), "UPLOAD_TOO_LARGE"),
}
CLOSINGS = ["close", "abort", "half", "stay"]


@pytest.mark.parametrize("closing", CLOSINGS)
@pytest.mark.parametrize("size_bytes", [None, 40 * MIB], ids=["unknown size", "declared size"])
@pytest.mark.parametrize(("reply", "reason"), EARLY.values(), ids=EARLY.keys())
async def test_an_early_answer_counts_however_the_provider_closes(
    serve_sqlite: Serve,
    closing: str,
    size_bytes: int | None,
    reply: bytes,
    reason: str,
) -> None:
    async def answers_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(1_000)
        writer.write(reply)
        await writer.drain()
        if closing == "close":
            writer.close()
        elif closing == "abort":
            await asyncio.sleep(0.05)  # a reset at once may overtake the answer
            writer.transport.abort()
        elif closing == "half":
            writer.write_eof()

    fields = {} if size_bytes is None else {"size_bytes": size_bytes}
    async with raw_host(answers_early) as url, serve_sqlite(kie_upload_url=url) as service:
        error = await refused(send(service, [metadata(**fields), *[chunk(bytes(MIB))] * 40]))
    assert error.reason == reason


@pytest.mark.parametrize("words", ["File type not supported", "Bad path"])
async def test_success_false_under_code_200_is_a_refusal_with_the_providers_message(
    hosted: Service, host: UploadHost, words: str
) -> None:
    async def refuses(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response({"success": False, "code": 200, "msg": words})

    host.handle = refuses
    error = await refused(send(hosted, [metadata(), chunk(b"abc")]))
    assert (error.reason, error.message) == ("PROVIDER_REJECTED", words)
    assert error.retry_seconds is None
    assert host.connections == 1


@pytest.mark.parametrize(
    "url",
    [" https://x.example/a.png ", "\thttps://x.example/a.png\n", "\u3000https://x.example/a.png"],
)
async def test_spaces_around_a_url_are_removed(hosted: Service, host: UploadHost, url: str) -> None:
    host.data["downloadUrl"] = url
    assert (await upload(hosted)).download_url == "https://x.example/a.png"


async def test_blanks_in_a_url_are_encoded(hosted: Service, host: UploadHost) -> None:
    host.data["downloadUrl"] = "https://x.example/my cat.png"
    assert (await upload(hosted)).download_url == "https://x.example/my%20cat.png"


@pytest.mark.parametrize(
    "url",
    ["https://", "https:///a.png", "/a.png", "a.png", "ftp://x.example/a", "javascript:x", "https://[x",
     "https://x.example/a\r\nb", "https://x.example/a\u3000b", "https://x example/a", " ", None, 5, ["https://x.example/"]],
)  # fmt: skip
async def test_an_unusable_url_is_not_a_success(
    hosted: Service, host: UploadHost, url: object
) -> None:
    host.data["downloadUrl"] = url
    error = await refused(send(hosted, [metadata(), chunk(b"abc")]))
    assert error.reason == "PROVIDER_UNAVAILABLE"
    assert error.message == "the provider stored the file but returned no usable URL"


@pytest.mark.parametrize("expires_at", ["2020-01-01T00:00:00Z", 1_577_836_800_000, 1])
async def test_an_expiry_in_the_past_is_ignored(
    hosted: Service, host: UploadHost, expires_at: object
) -> None:
    host.data["expiresAt"] = expires_at
    file = await upload(hosted)
    assert file.expire_time.seconds - file.upload_time.seconds == 86_400
