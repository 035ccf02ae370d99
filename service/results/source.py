"""Downloads of results from URLs that are not trusted."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import aiohttp
import structlog
from aiohttp import hdrs
from yarl import URL

from providers.kie.http import USER_AGENT, describe
from providers.proxies import Proxies, tls_context
from service.results.decoding import decoder_of
from service.results.errors import CopyError, NotAllowedError, RangeError, StatusError
from service.results.hosts import FetchRules, PublicResolver

REDIRECTS = frozenset({301, 302, 303, 307, 308})
READ_BYTES = 64 << 10  # at a time: hashing them takes 0.1 ms of the event loop
OK, PARTIAL_CONTENT = 200, 206
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:(\d{1,18})|\*)")
HEADERS = {
    hdrs.USER_AGENT: USER_AGENT,
    hdrs.ACCEPT_ENCODING: "identity",  # sizes and ranges are those of the result itself
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SourceTimes:
    """How patient a download is.

    Attributes:
        connect_seconds: For a connection, with the resolution of the name.
        stall_seconds: For the next bytes, and for all headers of a response.
        rate_seconds: The time, spent waiting for the server, over which its rate is measured.
        rate_min_bytes: How many bytes must arrive in that time.
        redirects_max: How many redirects are followed.
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 60.0
    rate_seconds: float = 60.0
    rate_min_bytes: int = 60 * (16 << 10)
    redirects_max: int = 5


class Download:
    """The body of a response.

    Attributes:
        start: Where in the result the body begins: 0 if the server ignored the offset.
        length: How many bytes it announces; None if it does not.
        size: The size of the whole result; None if it is not announced.
    """

    def __init__(self, response: aiohttp.ClientResponse, times: SourceTimes) -> None:
        self._response = response
        self._times = times
        self._waited_seconds = 0.0
        self._arrived_bytes = 0
        self._decoder = decoder_of(response.headers.getall(hdrs.CONTENT_ENCODING, ()))
        self._decoded: Iterator[bytes] = iter(())
        self.length = None if self._decoder else response.content_length
        self.start, self.size = 0, self.length
        if response.status == PARTIAL_CONTENT:
            if self._decoder:
                raise RangeError("the server of the result sent a range of its compressed form")
            self.start, self.size = _range(response)

    async def read(self) -> bytes:
        """Return the next bytes; b"" at the end.

        Raises:
            CopyError: The connection broke, the server is too slow, or the end is missing.
        """
        if self._decoder is None:
            return await self._receive()
        while not (piece := next(self._decoded, b"")):
            if not (received := await self._receive()):
                if not self._decoder.is_complete:
                    raise CopyError("the compressed content of the result is cut off")
                break
            self._decoded = self._decoder.pieces(received)
        return piece

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            piece = await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise CopyError(f"the download broke: {describe(error)}") from None
        self._waited_seconds += loop.time() - started
        self._arrived_bytes += len(piece)
        if self._waited_seconds >= self._times.rate_seconds:
            if piece and self._arrived_bytes < self._times.rate_min_bytes:
                raise CopyError("the server of the result is too slow")
            self._waited_seconds, self._arrived_bytes = 0.0, 0
        return piece


class Source:
    """Fetches what FetchRules allow, through the proxy of the environment if there is one.

    Create it inside the event loop that uses it, and close it there.
    """

    def __init__(self, rules: FetchRules, times: SourceTimes) -> None:
        self._rules = rules
        self._times = times
        self._direct = _session(times, PublicResolver(rules))
        # The proxy resolves the names. Its own address may well be a private one.
        self._proxied = _session(times, None)
        self._proxies = Proxies(os.environ)
        self._has_warned = False

    async def close(self) -> None:
        """Close every connection."""
        await self._direct.close()
        await self._proxied.close()

    @asynccontextmanager
    async def open(self, text: str, offset: int = 0) -> AsyncIterator[Download]:
        """Download from a URL; every redirect is checked as the URL is.

        Args:
            text: The URL.
            offset: How many bytes to leave out, if the server can.

        Raises:
            CopyError: It cannot be downloaded.
        """
        for _ in range(self._times.redirects_max + 1):
            url = self._rules.check(text)
            async with self._get(url, offset) as response:
                if response.status not in REDIRECTS:
                    _check_status(response, PARTIAL_CONTENT if offset else OK)
                    download = Download(response, self._times)
                    if download.start > offset:
                        raise RangeError(
                            "the server of the result sent a later range than requested"
                        )
                    yield download
                    return
                text = _location(url, response)
        raise CopyError("the result is redirected too often")

    @asynccontextmanager
    async def _get(self, url: URL, offset: int) -> AsyncIterator[aiohttp.ClientResponse]:
        session, proxy = self._direct, self._proxy(url)
        if proxy:
            session = self._proxied
        headers = {hdrs.RANGE: f"bytes={offset}-"} if offset else {}
        try:
            # Each byte of the headers extends the timeout of the session.
            async with asyncio.timeout(self._times.connect_seconds + self._times.stall_seconds):
                response = await session.get(
                    url, allow_redirects=False, proxy=proxy, headers=headers
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise CopyError(f"the result cannot be fetched: {describe(error)}") from None
        async with response:
            yield response

    def _proxy(self, url: URL) -> str | None:
        """Return the proxy for a URL.

        Raises:
            NotAllowedError: What the proxy would connect to cannot be checked well enough.
        """
        proxy = self._proxies.for_url(str(url))
        if proxy is None:
            return None
        host = url.raw_host or ""
        if self._rules.is_exempt(host, url.port or 0):
            return proxy
        if _is_address(host):
            raise NotAllowedError("the URL of the result contains an address, not a name")
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "results are fetched through a proxy: the addresses of their hosts are not checked"
            )
        return proxy


def _session(times: SourceTimes, resolver: PublicResolver | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers=HEADERS,
        # A connection is used once, so it always goes to an address that was just checked.
        connector=aiohttp.TCPConnector(
            resolver=resolver,
            use_dns_cache=False,
            force_close=True,
            limit=0,
            ssl=tls_context(os.environ),
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # aiohttp takes cut content for complete
        read_bufsize=READ_BYTES,
        timeout=aiohttp.ClientTimeout(
            total=None, connect=times.connect_seconds, sock_read=times.stall_seconds
        ),
    )


def _check_status(response: aiohttp.ClientResponse, expected: int) -> None:
    if response.status not in {OK, expected}:
        raise StatusError(response.status)


def _location(url: URL, response: aiohttp.ClientResponse) -> str:
    try:
        return str(url.join(URL(response.headers.get(hdrs.LOCATION, ""), encoded=True)))
    except ValueError:
        raise CopyError("the result is redirected to an invalid URL") from None


def _range(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Return where a partial response begins, and the size of the whole if it is known."""
    found = CONTENT_RANGE.match(response.headers.get(hdrs.CONTENT_RANGE, ""))
    if found is None:
        raise RangeError("the server of the result sent a range without saying which one")
    return int(found[1]), int(found[2]) if found[2] else None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
