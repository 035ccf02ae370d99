"""How servers of results answer requests for a part of a file."""

import re
from collections.abc import Callable

from aiohttp import web

from tests.support.media_host import Answer, MediaHost

PIECE_BYTES = 100_000


def _offset(request: web.Request) -> int:
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    return int(found[1]) if found else 0


def _partial(content: bytes, start: int, end: int, total: str) -> web.Response:
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{total}"}
    return web.Response(status=206, body=content[start:end], headers=headers)


def _none(total: str) -> web.Response:
    return web.Response(status=416, headers={"Content-Range": f"bytes */{total}"})


def serves_ranges(host: MediaHost, name: str) -> Answer:
    """Answer as most servers do."""

    async def answer(request: web.Request) -> web.StreamResponse:
        content, start = host.files[name], _offset(request)
        if "Range" not in request.headers:
            return await host.send_file(request, name)
        if start >= len(content):
            return _none(str(len(content)))
        return _partial(content, start, len(content), str(len(content)))

    return answer


def hides_the_size(host: MediaHost, name: str) -> Answer:
    """Answer with ranges of a file whose size is not announced."""

    async def answer(request: web.Request) -> web.StreamResponse:
        content, start = host.files[name], _offset(request)
        if "Range" not in request.headers:
            host.chunked = True
            return await host.send_file(request, name)
        if start >= len(content):
            return _none("*")
        return _partial(content, start, len(content), "*")

    return answer


def serves_small_parts(host: MediaHost, name: str) -> Answer:
    """Answer with less than was asked for."""

    async def answer(request: web.Request) -> web.StreamResponse:
        content, start = host.files[name], _offset(request)
        if "Range" not in request.headers:
            return await host.send_file(request, name)
        end = min(len(content), start + PIECE_BYTES)
        if start >= len(content):
            return _none(str(len(content)))
        return _partial(content, start, end, str(len(content)))

    return answer


def serves_more(host: MediaHost, name: str) -> Answer:
    """Answer with a part that begins earlier than was asked for."""

    async def answer(request: web.Request) -> web.StreamResponse:
        content, start = host.files[name], _offset(request)
        if "Range" not in request.headers:
            return await host.send_file(request, name)
        earlier = max(0, start - 999)
        if earlier >= len(content):
            return _none(str(len(content)))
        return _partial(content, earlier, len(content), str(len(content)))

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
        ignores_ranges,
        ignores_ranges_and_hides_the_size,
    )
}
