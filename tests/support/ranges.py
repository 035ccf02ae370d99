"""How servers of results answer requests for a part of a file."""

import gzip
import re
from collections.abc import Callable

from aiohttp import web

from tests.support.media_host import Answer, MediaHost

PIECE_BYTES = 100_000


def _offset(request: web.Request) -> int:
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    return int(found[1]) if found else 0


def _part(
    content: bytes, start: int, end: int | None = None, total: str | None = None
) -> web.Response:
    """Return a part of a file and what it says of the size; 416 beyond the end."""
    total = total or str(len(content))
    if start >= len(content):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{total}"})
    body = content[start:end]
    headers = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{total}"}
    return web.Response(status=206, body=body, headers=headers)


def _serves(host: MediaHost, name: str, part: Callable[[bytes, int], web.Response]) -> Answer:
    """Answer with the whole file, or, if a part was asked for, with `part(content, start)`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "Range" not in request.headers:
            return await host.send_file(request, name)
        return part(host.files[name], _offset(request))

    return answer


def serves_ranges(host: MediaHost, name: str) -> Answer:
    """Answer as most servers do."""
    return _serves(host, name, _part)


def hides_the_size(host: MediaHost, name: str) -> Answer:
    """Answer with ranges of a file whose size is not announced."""
    host.chunked = True
    return _serves(host, name, lambda content, start: _part(content, start, total="*"))


def serves_small_parts(host: MediaHost, name: str) -> Answer:
    """Answer with less than was asked for."""
    return _serves(host, name, lambda content, start: _part(content, start, start + PIECE_BYTES))


def serves_more(host: MediaHost, name: str) -> Answer:
    """Answer with a part that begins earlier than was asked for."""
    return _serves(host, name, lambda content, start: _part(content, max(0, start - 999)))


def serves_later_parts(host: MediaHost, name: str) -> Answer:
    """Answer with a part that begins later than was asked for."""
    return _serves(host, name, lambda content, start: _part(content, start + 1))


def does_not_describe_parts(host: MediaHost, name: str) -> Answer:
    """Answer with a part, and do not say which."""
    return _serves(
        host, name, lambda content, start: web.Response(status=206, body=content[start:])
    )


def compresses(host: MediaHost, name: str) -> Answer:
    """Answer with the whole file, always, and compressed."""

    async def answer(request: web.Request) -> web.StreamResponse:
        del request
        body = gzip.compress(host.files[name], 1)
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    return answer


def compresses_before_it_takes_parts(host: MediaHost, name: str) -> Answer:
    """Answer with parts of the compressed file."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body, start = gzip.compress(host.files[name], 1), _offset(request)
        if "Range" not in request.headers:
            return web.Response(body=body, headers={"Content-Encoding": "gzip"})
        response = _part(body, start)
        response.headers["Content-Encoding"] = "gzip"
        return response

    return answer


def ignores_ranges(host: MediaHost, name: str) -> Answer:
    """Answer with the whole file, always."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await host.send_file(request, name)

    return answer


def ignores_ranges_and_hides_the_size(host: MediaHost, name: str) -> Answer:
    """Answer with the whole file, always, and do not announce its size."""

    async def answer(request: web.Request) -> web.StreamResponse:
        host.chunked = True
        return await host.send_file(request, name)

    return answer


SERVERS: dict[str, Callable[[MediaHost, str], Answer]] = {
    answer.__name__: answer
    for answer in (
        serves_ranges,
        hides_the_size,
        serves_small_parts,
        serves_more,
        serves_later_parts,
        does_not_describe_parts,
        compresses,
        compresses_before_it_takes_parts,
        ignores_ranges,
        ignores_ranges_and_hides_the_size,
    )
}
