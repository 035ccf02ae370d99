"""Hosts of results that compress, describe parts wrongly, or are slow in other ways."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from service.results.decoding import PIECE_BYTES, Decoder
from service.results.source import SourceTimes
from tests.support.copying import Copying, copying
from tests.support.kept_places import FolderPlace
from tests.support.media_host import MIB, MediaHost, media, media_host, raw
from tests.support.waiting import DEADLINE_SECONDS

CONTENT = media(300_001)
ZIPPED = gzip.compress(CONTENT)
MEMBERS = gzip.compress(CONTENT[:999]) + gzip.compress(CONTENT[999:])
DEFLATED = zlib.compress(CONTENT)


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        yield host


@pytest.fixture
async def copies(host: MediaHost, tmp_path: Path, stack: AsyncExitStack) -> Copying:
    times = SourceTimes(connect_seconds=0.3, stall_seconds=0.3)
    return await copying(host, FolderPlace(tmp_path / "results"), stack, times)


def response(body: bytes, *codings: str, chunked: bool = False) -> bytes:
    """Return a response with a compressed body."""
    lines = ["HTTP/1.1 200 OK", *(f"Content-Encoding: {coding}" for coding in codings)]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


# --- compressed, although they are asked not to ---

COMPRESSED = {
    "gzip": (ZIPPED, "gzip"),
    "GZIP": (ZIPPED, "GZIP"),
    "x-gzip": (ZIPPED, "x-gzip"),
    "several members": (MEMBERS, "gzip"),
    "deflate": (DEFLATED, "deflate"),
    "identity and gzip": (ZIPPED, "identity, gzip"),
    "two headers": (ZIPPED, "identity | gzip"),
    "a name that is no compression": (CONTENT, "aws-chunked"),
    "an empty name": (CONTENT, ""),
}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("case", COMPRESSED.values(), ids=COMPRESSED)
async def test_a_compressed_result_is_stored_as_it_was_before(
    host: MediaHost, copies: Copying, case: tuple[bytes, str], chunked: bool
) -> None:
    body, codings = case
    host.answers["a.mp4"] = raw(response(body, *codings.split(" | "), chunked=chunked))
    [artifact] = await copies.copy(host.url("a.mp4"))
    copies.check(artifact, CONTENT)


DAMAGED = {
    "cut": (ZIPPED[:-50_000], "gzip"),
    "cut at its checksum": (ZIPPED[:-8], "gzip"),
    "cut by a byte": (ZIPPED[:-1], "gzip"),
    "cut between its members": (MEMBERS[:-1], "gzip"),
    "only its beginning": (ZIPPED[:12], "gzip"),
    "a wrong checksum": (ZIPPED[:-8] + bytes(8), "gzip"),
    "followed by something else": (ZIPPED + b"something else", "gzip"),
    "not compressed": (CONTENT, "gzip"),
    "a cut deflate": (DEFLATED[:-1_000], "deflate"),
    "two compressions": (gzip.compress(ZIPPED), "gzip, gzip"),
    "an unknown compression": (CONTENT, "br"),
    "another unknown compression": (CONTENT, "zstd"),
}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED)
async def test_a_compressed_result_that_is_cut_or_damaged_is_not_stored(
    host: MediaHost, copies: Copying, case: tuple[bytes, str], chunked: bool
) -> None:
    body, codings = case
    host.answers["a.xyz"] = raw(response(body, *codings.split(" | "), chunked=chunked))
    [artifact] = await copies.copy(host.url("a.xyz"))
    assert artifact.copy is None
    assert copies.outcomes() == {"source": 1}
    assert copies.place.names() == set()
    assert copies.place.temporary() == []


async def test_what_a_compressed_result_expands_to_is_limited(
    host: MediaHost, tmp_path: Path, stack: AsyncExitStack
) -> None:
    copies = await copying(host, FolderPlace(tmp_path / "results"), stack, max_bytes=MIB)
    host.answers["a.mp4"] = raw(response(gzip.compress(media(99) + bytes(9 * MIB)), "gzip"))
    await copies.copy(host.url("a.mp4"))
    assert copies.outcomes() == {"too_large": 1}


def test_compressed_bytes_are_expanded_in_small_pieces() -> None:
    content = bytes(20 * MIB)
    decoder = Decoder()
    pieces = list(decoder.pieces(gzip.compress(content)))
    assert decoder.is_complete
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= PIECE_BYTES


# --- slow ---


async def test_a_host_that_never_finishes_its_headers_is_abandoned(
    host: MediaHost, copies: Copying
) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\n")
        while not request.transport.is_closing():
            request.transport.write(b"x")
            await asyncio.sleep(0.01)
        return web.Response()

    host.answers["a.mp4"] = drip
    async with asyncio.timeout(DEADLINE_SECONDS):
        [artifact] = await copies.copy(host.url("a.mp4"))
    assert artifact.copy is None
    assert copies.outcomes() == {"source": 1}
