"""HTTP as Kie's API needs it: sessions, bounded responses, and the outcome of each request."""

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import hdrs
from aiohttp.connector import Connection

from providers.base import CallObserver
from providers.kie.envelope import (
    HTTP_CLIENT_ERRORS,
    Envelope,
    UnreadableAnswerError,
    is_complete,
    parse_envelope,
)
from providers.proxies import Proxies, tls_context

HIDDEN = b"(hidden)"
SECRET_MIN_CHARACTERS = 8
ANSWER_MAX_BYTES = 8 << 20
ANSWER_START_BYTES = 65_536  # what is read of a larger response: an id is near its start
HEADER_MAX_BYTES = 65_536
CONNECT_SECONDS = 10
PAGE_SECONDS = 10
POLL_CONNECTIONS = 256
USER_AGENT = "kie-generation-service"  # Kie's edge answers 403 to aiohttp's default


class NotConnectedError(aiohttp.ClientConnectionError):
    """A proxy made no connection to Kie."""


NOT_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    NotConnectedError,
)
BROKEN_BODY = (aiohttp.ClientError, TimeoutError, OSError)
BROKEN = (*BROKEN_BODY, UnreadableAnswerError)
CODES = range(100, 600)  # reported to an observer by their number


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long requests to Kie may take.

    Attributes:
        create_seconds: For the response to a paid request. Recorded creates took less than a
            second; the longer we wait, the fewer responses are lost.
        second_look_seconds: What a create gets on top: after a suspend its time is over, but the
            response may already be in the socket.
        poll_seconds: For a poll.
        rest_seconds: For the rest of a response that is complete JSON already.
        upload_stall_seconds: For each piece of an upload, and for the response to the last one.
    """

    create_seconds: float = 60
    second_look_seconds: float = 1
    poll_seconds: float = 20
    rest_seconds: float = 2
    upload_stall_seconds: float = 60


TIMEOUTS = Timeouts()


class _Connector(aiohttp.TCPConnector):
    """Reports what goes wrong before a request is sent as "not connected", whatever a proxy does.

    A proxy that answers CONNECT with garbage, or with nothing, causes the same errors as a server
    that does so after the request.
    """

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        try:
            return await super().connect(req, traces, timeout)
        except (*NOT_CONNECTED, TimeoutError):
            raise
        except aiohttp.ClientHttpProxyError as error:
            raise NotConnectedError(f"the proxy refused, HTTP {error.status}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if req.proxy is None:
                raise
            words = f"the proxy made no connection, {type(error).__name__}"
            raise NotConnectedError(words) from error


class Sessions:
    """The connection pools to Kie, each with the proxy that the environment names.

    Attributes:
        reads: For polls; its connections are reused.
        creates: For paid requests; each has its own connection. If the peer had closed a
            reused one, the request would fail after it was sent, and nobody could tell whether the
            task was bought. On a new connection "not connected" (safe to repeat) and "sent, no
            response" (never to repeat) are different errors.
        uploads: For uploads; each has its own connection.
    """

    def __init__(self, api_url: str, upload_url: str) -> None:
        proxies = Proxies(os.environ)
        tls = tls_context(os.environ)
        api, upload = proxies.for_url(api_url), proxies.for_url(upload_url)
        self.reads = self._session(api, _Connector(ssl=tls, limit=POLL_CONNECTIONS))
        self.creates = self._session(api, _Connector(ssl=tls, limit=0, force_close=True))
        self.uploads = self._session(upload, _Connector(ssl=tls, limit=0, force_close=True))

    @staticmethod
    def _session(proxy: str | None, connector: _Connector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={hdrs.USER_AGENT: USER_AGENT},
            connector=connector,
            proxy=proxy,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=HEADER_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
        )

    async def close(self) -> None:
        """Close every connection."""
        for session in (self.reads, self.creates, self.uploads):
            await session.close()


def authorization(api_key: str) -> dict[str, str]:
    """Return the headers that authenticate a request."""
    return {hdrs.AUTHORIZATION: f"Bearer {api_key}"}


class Exchange:
    """One request, from its start until its end is reported to the observer.

    Its code is that of the response, or a word for why there is none: `not_connected`, `no_answer`,
    `unreadable`, or `given_up` if this side stopped before it was answered or broken.
    """

    def __init__(self, endpoint: str, observe: CallObserver) -> None:
        self._endpoint = endpoint
        self._observe = observe
        self._code = ""

    def answered(self, code: int) -> None:
        """Record the code of an envelope."""
        self._code = str(code) if code in CODES else "other"

    def broke(self, error: BaseException) -> None:
        """Record why there is no response, if the provider or the network is the cause."""
        if isinstance(error, NOT_CONNECTED):
            self._code = "not_connected"
        elif isinstance(error, UnreadableAnswerError):
            self._code = "unreadable"
        elif isinstance(error, BROKEN):
            self._code = "no_answer"

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not self._code:
            self.broke(error)
        self._observe(self._endpoint, self._code or "given_up", time.monotonic() - self._started)


async def read_envelope(
    response: aiohttp.ClientResponse,
    exchange: Exchange,
    *,
    secrets: tuple[str, ...],
    rest_seconds: float,
) -> Envelope:
    """Read a response, bounded and with our secrets hidden.

    Raises:
        UnreadableAnswerError: It is too large, or not an envelope.
    """
    body = await read_body(response, secrets=secrets, rest_seconds=rest_seconds)
    envelope = parse_envelope(response.status, body)
    exchange.answered(envelope.code)
    return envelope


async def read_body(
    response: aiohttp.ClientResponse,
    *,
    secrets: tuple[str, ...],
    rest_seconds: float,
    max_bytes: int = ANSWER_MAX_BYTES,
) -> bytes:
    """Read a bounded response; complete JSON, and a page of a 4xx, need not arrive as a whole.

    Raises:
        UnreadableAnswerError: It is too large, or incomplete.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(PAGE_SECONDS if _is_page(response, body) else None):
            while chunk := await _next_chunk(response, body, rest_seconds):
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(response, body, max_bytes)
    except BROKEN as error:
        if _is_page(response, body):
            return _without(secrets, bytes(body[:ANSWER_START_BYTES]))
        if not body or isinstance(error, UnreadableAnswerError):
            raise
        if not is_complete(bytes(body)):
            text = body.decode(errors="replace")
            raise UnreadableAnswerError(describe(error), text=text) from error
    return _without(secrets, bytes(body))


def _is_page(response: aiohttp.ClientResponse, body: bytearray) -> bool:
    """Return whether the status says all: it refuses, and no JSON follows that could differ."""
    return response.status in HTTP_CLIENT_ERRORS and not body.lstrip().startswith((b"{", b"["))


def _too_large(
    response: aiohttp.ClientResponse, body: bytearray, max_bytes: int
) -> UnreadableAnswerError:
    text = bytes(body[:ANSWER_START_BYTES]).decode(errors="replace")
    return UnreadableAnswerError(f"more than {max_bytes} bytes", about_us=response.ok, text=text)


async def _next_chunk(
    response: aiohttp.ClientResponse, body: bytearray, rest_seconds: float
) -> bytes:
    """Wait for more, but only briefly if the JSON is complete."""
    if not body or response.content.is_eof():
        return await response.content.readany()
    try:
        async with asyncio.timeout(rest_seconds):
            return await response.content.readany()
    except TimeoutError:
        return b"" if is_complete(bytes(body)) else await response.content.readany()


def _without(secrets: tuple[str, ...], text: bytes) -> bytes:
    """Hide our secrets in a response; a value that is too short to be one is just a word."""
    for secret in secrets:
        if len(secret) >= SECRET_MIN_CHARACTERS:
            text = text.replace(secret.encode(), HIDDEN)
    return text


def describe(error: BaseException) -> str:
    """Return what happened, without URLs, which may contain secrets."""
    match error:
        case UnreadableAnswerError() | NotConnectedError():
            return str(error)
        case aiohttp.ClientProxyConnectionError():
            return f"the proxy {error.host} port {error.port} cannot be reached: {error.strerror}"
        case aiohttp.ClientConnectorDNSError():
            return f"DNS does not resolve {error.host}: {error.os_error.strerror}"
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "")
            return f"the certificate of {error.host} was rejected: {reason or error.strerror}"
        case aiohttp.ClientConnectorSSLError():
            reason = getattr(error.os_error, "reason", None) or error.os_error.strerror
            return f"TLS with {error.host} failed: {reason}"
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return f"{error.host} port {error.port} refused the connection"
        case aiohttp.ClientConnectorError():
            return f"{error.host} cannot be reached: {error.strerror or error.os_error}"
        case aiohttp.ConnectionTimeoutError():
            return f"no connection within {CONNECT_SECONDS} s"
        case _:
            return type(error).__name__
