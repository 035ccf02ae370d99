"""An HTTP/1.1 server that limits each client's time, headers, bodies and connections.

aiohttp itself waits indefinitely for the end of a request that has begun.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError

from service.sparse import SparseLog

BROKEN_BODY = (TimeoutError, OSError, web.RequestPayloadError, HttpProcessingError)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one server allows its clients.

    Attributes:
        request_seconds: From the opening of a connection, or the first byte of a later request, to
            the end of that request.
        answer_seconds: From there to the last byte of the response.
        idle_seconds: Between two requests.
        linger_seconds: How long an unread body is discarded before its connection is closed, so
            that the client can read the response first.
        header_bytes: The size of all headers of a request; each one is at most 8 KiB.
        header_lines: The number of its headers.
        connections: Beyond these, the connection whose state changed longest ago is closed.
    """

    request_seconds: float = 10.0
    answer_seconds: float = 30.0
    idle_seconds: float = 75.0
    linger_seconds: float = 1.0
    header_bytes: int = 16 << 10
    header_lines: int = 64
    connections: int = 500


class HttpServer(web.Server):
    """Creates the protocol of each connection, as `loop.create_server` expects."""

    def __init__(self, handler: Handler, limits: HttpLimits) -> None:
        super().__init__(self._answer)
        self._handler = handler
        self._limits = limits
        self._oldest_first: dict[_Connection, None] = {}
        self._log = SparseLog()

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(self, self._limits)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        _connection(request).answering()
        headers_bytes = sum(len(name) + len(value) for name, value in request.raw_headers)
        if headers_bytes > self._limits.header_bytes:
            return _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return await self._handler(request)

    def changed(self, connection: "_Connection") -> None:
        """Record that a connection is new or has changed its state.

        If there are too many, the one that changed longest ago is closed. A client that opens many
        mostly closes its own: a request of another client is answered before its connection is the
        oldest.
        """
        self._oldest_first.pop(connection, None)
        if len(self._oldest_first) >= self._limits.connections:
            next(iter(self._oldest_first)).abort()
        self._oldest_first[connection] = None

    def closed(self, connection: "_Connection") -> None:
        """Forget a connection."""
        self._oldest_first.pop(connection, None)

    def refuse(self, peer: str | None) -> web.Response:
        """Answer a request that cannot be parsed: TLS, HTTP/2, garbage, a too long header."""
        self._log.write(logging.INFO, "not a usable HTTP/1 request", peer=peer)
        return _refusal(HTTPStatus.BAD_REQUEST)


class _State(Enum):
    BEGUN = auto()  # waiting for the headers of a request
    TAKEN = auto()  # the headers have arrived; the body may still be arriving
    IDLE = auto()  # between two requests


class _Connection(web.RequestHandler):
    """One connection, with one timer for its current state.

    Between two requests, aiohttp's own timer runs.
    """

    __slots__ = ("_header_bytes", "_limits", "_server", "_state", "_timer", "request_deadline")

    def __init__(self, server: HttpServer, limits: HttpLimits) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle_seconds,
            access_log=None,  # type: ignore[arg-type] # None is how aiohttp switches it off
            max_headers=limits.header_lines,
            lingering_time=limits.linger_seconds,
            auto_decompress=False,
        )
        self._server = server
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._state = _State.BEGUN
        self._header_bytes = 0
        self.request_deadline = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Expect a request."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Receive a part of a request."""
        if self._state is _State.IDLE:
            self._begin()
        requests = self._request_count
        super().data_received(data)
        if self._state is not _State.BEGUN:
            return
        if self._request_count > requests:
            self._state = _State.TAKEN
            return
        self._header_bytes += len(data)
        if self._header_bytes > self._limits.header_bytes:
            self.abort()

    def _begin(self) -> None:
        self._header_bytes = 0
        self.request_deadline = self._loop.time() + self._limits.request_seconds
        self._enter(_State.BEGUN, self._limits.request_seconds)

    def answering(self) -> None:
        """Record that a handler has started on the request."""
        self._enter(_State.TAKEN, self._limits.request_seconds + self._limits.answer_seconds)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the response, and wait for the next request."""
        finished = await super().finish_response(request, resp, start_time)
        if request.content.is_eof():  # otherwise aiohttp lingers and closes
            self._cancel_timer()
            self._state = _State.IDLE
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a malformed request without a traceback, and leave our own errors to aiohttp."""
        if isinstance(exc, HttpProcessingError):
            return self._server.refuse(request.remote)
        return super().handle_error(request, status, exc, message)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel the timer, and forget the connection."""
        self._cancel_timer()
        self._server.closed(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close at once: `close` would wait for a client that does not read."""
        self._server.closed(self)
        if self.transport is not None:
            self.transport.abort()

    def _enter(self, state: "_State", seconds: float) -> None:
        self._state = state
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, self.abort)
        self._server.changed(self)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def read_body(request: web.BaseRequest, max_bytes: int) -> bytes:
    """Return up to `max_bytes` of a request's body: what arrived in time."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    with suppress(*BROKEN_BODY):
        async with asyncio.timeout_at(_connection(request).request_deadline):
            while len(body) < max_bytes and (some := await request.content.readany()):
                body += some
    return bytes(body[:max_bytes])


def _connection(request: web.BaseRequest) -> _Connection:
    connection = request.protocol
    assert isinstance(connection, _Connection)
    return connection


def _refusal(status: HTTPStatus) -> web.Response:
    response = web.Response(status=status, text=f"{status.phrase}; this port speaks HTTP/1.1\n")
    response.force_close()
    return response
