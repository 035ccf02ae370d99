"""What the simulated hosts share: envelopes, limited bodies, and spoiled answers."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import uuid4

from aiohttp import hdrs, web
from aiohttp.web_response import ContentCoding

from providers.kie.simulator.exact import Exact
from providers.kie.simulator.faults import FaultRule

JSON_MAX_BYTES: Final = 1024 * 1024
READ_BYTES: Final = 64 * 1024
HANG_CHECK_SECONDS: Final = 0.05
GZIP: Final = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)
GARBAGE: Final = "<!DOCTYPE html><html><body>Just a moment...</body></html>"


def envelope(code: int, msg: str, data: object = None) -> dict[str, Any]:
    """`{code, msg, data}`, the body of every answer of the API host."""
    return {"code": code, "msg": msg, "data": data}


def api_answer(body: Mapping[str, Any], status: int = 200) -> web.Response:
    """Return a JSON answer with the headers of the API host: chunked, with a session cookie."""
    answer = web.Response(text=json.dumps(body, separators=(",", ":")), status=status)
    answer.headers["Content-Type"] = "application/json;charset=UTF-8"
    answer.headers["Set-Cookie"] = f"JSESSIONID={uuid4().hex.upper()}; Path=/; HttpOnly"
    answer.enable_chunked_encoding()
    return answer


@web.middleware
async def answer_in_gzip(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    """Compress API answers for clients that accept gzip, as both real hosts do."""
    answer: web.StreamResponse = await handler(request)
    accepted = GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
    is_api = request.path.startswith("/api/")
    if accepted and is_api and isinstance(answer, web.Response) and answer.body:
        answer.enable_compression(ContentCoding.gzip)
    return answer


def bearer_of(request: web.Request) -> str | None:
    """Return the key of `Authorization: Bearer <key>`, or None."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return (key.strip() or None) if scheme.lower() == "bearer" else None


async def bounded_body(request: web.Request, max_bytes: int) -> bytes:
    """Return the request's body.

    Raises:
        HTTPRequestEntityTooLarge: It is longer than `max_bytes`.
    """
    body = bytearray()
    async for chunk in request.content.iter_chunked(READ_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise web.HTTPRequestEntityTooLarge(max_size=max_bytes, actual_size=len(body))
    return bytes(body)


async def read_json(request: web.Request, max_bytes: int = JSON_MAX_BYTES) -> object:
    """Return the request's body as a JSON value.

    Raises:
        ValueError: It is none.
        HTTPRequestEntityTooLarge: It is longer than `max_bytes`.
    """
    raw = await bounded_body(request, max_bytes)
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ValueError("the request body is not valid JSON") from None


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which are not JSON although Python reads them.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not JSON")


async def json_object(request: web.Request, max_bytes: int = JSON_MAX_BYTES) -> dict[str, Any]:
    """Return the request's body as a JSON object.

    Raises:
        ValueError: It is none.
        HTTPRequestEntityTooLarge: It is longer than `max_bytes`.
    """
    value = await read_json(request, max_bytes)
    if not isinstance(value, dict):
        raise ValueError("the request body is not a JSON object")  # noqa: TRY004 - callers catch one
    return value


async def spoiled(
    rule: FaultRule,
    request: web.Request,
    not_found: Mapping[str, Any] | None = None,
    **values: str,
) -> web.StreamResponse | None:
    """Return the answer to `request` that `rule` produces; None if it only delays it.

    Args:
        rule: The fault.
        request: The request to answer.
        not_found: The answer for an unknown task.
        values: The placeholders that the body of `exact` may contain: `taskId`, `downloadUrl`.
    """
    kind = rule.kind.removeprefix("accept_then_")
    match kind:
        case "code":
            body = envelope(rule.code, rule.msg)
            return api_answer({"success": False, **body} if rule.endpoint == "upload" else body)
        case "http":
            return web.Response(status=rule.status, text=rule.body, content_type=_type_of(rule))
        case "reset":
            return cut(request)
        case "hang":
            await _client_gone(request)
            return cut(request)
        case "slow":
            await asyncio.sleep(rule.seconds)
            return None
        case "exact":
            return await _send_exactly(rule.exact, request, **values)
        case "not_visible":
            return api_answer(not_found or {})
        case _:
            return _odd_answer(kind)


def _odd_answer(kind: str) -> web.Response:
    """Return an answer of HTTP 200 without the expected content."""
    match kind:
        case "garbage":
            return web.Response(text=GARBAGE, content_type="text/html")
        case "empty":
            return web.Response()
        case "null_data":
            return api_answer(envelope(200, "success"))
        case "wrong_types":
            return api_answer({"code": "200", "msg": ["success"], "data": "data"})
        case "no_id":
            return api_answer(envelope(200, "success", {}))
        case _:
            raise AssertionError(f"{kind} does not spoil an answer")


async def _send_exactly(exact: Exact, request: web.Request, **values: str) -> web.StreamResponse:
    """Write the bytes of `exact` past aiohttp, which would correct them, and close."""
    await asyncio.sleep(exact.delay_seconds)
    if request.transport is not None:
        request.transport.write(exact.answer(**values))
    if exact.stays_open:
        await _client_gone(request)
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def _client_gone(request: web.Request) -> None:
    """Wait until the client closes its connection; aiohttp does not notify a handler of that."""
    while request.transport is not None:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(HANG_CHECK_SECONDS)


def cut(request: web.Request) -> web.StreamResponse:
    """Close the connection at once, without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _type_of(rule: FaultRule) -> str:
    return "text/html" if rule.body.lstrip().startswith("<") else "text/plain"


async def send_bytes(
    request: web.Request, content: bytes, content_type: str, *, truncated: bool = False
) -> web.StreamResponse:
    """Send `content` or the requested range of it; stop half-way if `truncated`."""
    try:
        wanted = request.http_range
        start, stop, _ = wanted.indices(len(content))
    except ValueError:
        start, stop, wanted = 0, 0, slice(0, 0)
    answer = web.StreamResponse(headers={"Accept-Ranges": "bytes", "Content-Type": content_type})
    if start >= stop:
        answer.headers["Content-Range"] = f"bytes */{len(content)}"
        answer.set_status(416)
    elif wanted != slice(None, None, 1):
        answer.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        answer.set_status(206)
    answer.content_length = stop - start
    await answer.prepare(request)
    if request.method != "HEAD":
        await answer.write(content[start : start + (stop - start) // 2])
        if truncated:
            return cut(request)
        await answer.write(content[start + (stop - start) // 2 : stop])
    await answer.write_eof()
    return answer
