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


def serves_later_parts(host: MediaHost, name: str) -> Answer:
    """Answer with a part that begins later than was asked for."""

    async def answer(request: web.Request) -> web.StreamResponse:
        content, start = host.files[name], _offset(request) + 1
        if "Range" not in request.headers:
            return await host.send_file(request, name)
        if start >= len(content):
            return _none(str(len(content)))
        return _partial(content, start, len(content), str(len(content)))

    return answer


def does_not_describe_parts(host: MediaHost, name: str) -> Answer:
    """Answer with a part, and do not say which."""

    async def answer(request: web.Request) -> web.StreamResponse:
        content, start = host.files[name], _offset(request)
        if "Range" not in request.headers:
            return await host.send_file(request, name)
        return web.Response(status=206, body=content[start:])

    return answer


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
        if start >= len(body):
            return _none(str(len(body)))
        response = _partial(body, start, len(body), str(len(body)))
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
