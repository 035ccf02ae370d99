"""Downloading results from URLs.

The URLs of a task come from the service and are trusted. Redirects come from other servers, so
they are followed only to https URLs on public addresses. A proxy resolves names itself, so behind
one only names are followed, and none that is internal by its text.
"""

import asyncio
import errno
import functools
import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from kie_generation import media
from kie_generation.addresses import PublicResolver, is_literal, is_public, is_public_name
from kie_generation.decoding import decoder_of
from kie_generation.generated.generation.v1.generation_pb2 import Artifact
from kie_generation.proxies import Proxies, tls_context

MAX_ARTIFACT_BYTES = 2 * 1024**3
MAX_SAVE_BYTES = 4 * 1024**3
MAX_REDIRECTS = 5
CHUNK_BYTES = 1024 * 1024
# A large download may take long, so there is no total timeout: MinimumRate ends slow ones.
_TIMEOUT = aiohttp.ClientTimeout(total=None)
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, *range(500, 600))  # too slow, too early, too many, the server failed


class DownloadError(Exception):
    """A result could not be downloaded.

    The task is not affected: retry before the URL expires.

    Attributes:
        url: The result's.
        why: What is wrong, without the URL.
        is_transient: Whether a retry may succeed: the server or the network failed.
        saved: The files of the task that were written nevertheless.
    """

    def __init__(self, url: str, why: str, *, is_transient: bool = False) -> None:
        super().__init__(f"{url}: {why}")
        self.url = url
        self.why = why
        self.is_transient = is_transient
        self.saved: list[Path] = []


class TooLargeError(DownloadError):
    """The result is larger than the limit, wherever it is downloaded from."""


@dataclass(frozen=True)
class MinimumRate:
    """The rate below which a download is aborted.

    Attributes:
        bytes: How many bytes must arrive in each period.
        seconds: The length of a period, and the timeout for the headers of a response.
    """

    bytes: int = 120 * 1024
    seconds: float = 30.0

    def __str__(self) -> str:
        return f"{self.bytes} bytes in {self.seconds:g} s"


_log = logging.getLogger("kie_generation")
DEFAULT_RATE = MinimumRate()


class Downloader:
    """Downloads URLs into files. Redirects use a session with restricted addresses."""

    def __init__(self, minimum_rate: MinimumRate, *, allow_private: bool) -> None:
        self._minimum_rate = minimum_rate
        self._allow_private = allow_private
        self._proxies = Proxies(os.environ)
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._any_address = await self._exits.enter_async_context(_session(None))
        self._public_addresses = await self._exits.enter_async_context(_session(PublicResolver()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def save(self, artifact: Artifact, url: str, stem: Path, max_bytes: int) -> Path:
        """Save an artifact as `stem` with the extension of its media type; return the path."""
        try:
            with _temporary_file(stem) as (part, file):
                with file:
                    served = await self._fetch(url, file, max_bytes)
                if artifact.sha256 and await asyncio.to_thread(_sha256, part) != artifact.sha256:
                    why = "the SHA-256 of the content is not that of the copy"
                    raise DownloadError(artifact.url, why)
                head = await asyncio.to_thread(_read_head, part)
                if wrong := media.problem(head, artifact.mime_type, served):
                    raise DownloadError(artifact.url, wrong)
                media_type = media.sniffed(head) or artifact.mime_type
                path = stem.with_name(stem.name + media.extension(media_type))
                await asyncio.to_thread(part.replace, path)
                return path
        except TimeoutError as error:
            why = f"too slow: less than {self._minimum_rate}"
            raise DownloadError(artifact.url, why, is_transient=True) from error
        except aiohttp.ClientHttpProxyError as error:
            why = f"the proxy refused, HTTP {error.status}"
            raise DownloadError(artifact.url, why, is_transient=True) from error
        except (aiohttp.ClientError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise DownloadError(artifact.url, why, is_transient=_may_pass(error)) from error

    @asynccontextmanager
    async def _open(self, first_url: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response of a URL after following its redirects."""
        url, session = first_url, self._any_address
        for _ in range(MAX_REDIRECTS + 1):
            async with AsyncExitStack() as exits:
                async with asyncio.timeout(self._minimum_rate.seconds):
                    proxy = self._proxies.for_url(url)
                    request = session.get(_as_is(url), allow_redirects=False, proxy=proxy)
                    response = await exits.enter_async_context(request)
                if response.status == 200:  # noqa: PLR2004 - HTTP's OK
                    yield response
                    return
                location = response.headers.get("Location", "")
                if response.status not in _REDIRECTS or not location:
                    why, is_transient = f"HTTP {response.status}", response.status in _TRANSIENT
                    raise DownloadError(first_url, why, is_transient=is_transient)
                url = urljoin(url, location)
                session = self._session_for_redirect(first_url, url)
        raise DownloadError(first_url, f"more than {MAX_REDIRECTS} redirects")

    def _session_for_redirect(self, first_url: str, url: str) -> aiohttp.ClientSession:
        """Return the session that follows a redirect.

        Raises:
            DownloadError: It must not be followed.
        """
        if self._allow_private:
            return self._any_address
        to = URL(url)
        host = to.raw_host or ""
        if proxy := self._proxies.for_url(url):
            _log_unchecked(proxy)
            session, is_allowed = self._any_address, is_public_name(host)
        else:  # PublicResolver checks the addresses of names
            session, is_allowed = self._public_addresses, not is_literal(host) or is_public(host)
        if to.scheme != "https" or not host or not is_allowed:
            why = f"redirects to {url}, which is not an https URL on a public address"
            raise DownloadError(first_url, why)
        return session

    async def _fetch(self, url: str, file: BinaryIO, max_bytes: int) -> str:
        """Download a URL into a file; return the Content-Type."""
        room = max_bytes
        pace = _Pace(self._minimum_rate)
        async with self._open(url) as response:
            decoder = decoder_of(response.headers.getall("Content-Encoding", ()))
            chunks = response.content.iter_chunked(CHUNK_BYTES)
            while chunk := await pace.next_of(chunks):
                for piece in decoder.pieces(chunk) if decoder else (chunk,):
                    room -= len(piece)
                    if room < 0:
                        raise TooLargeError(url, f"larger than {max_bytes} bytes")
                    await asyncio.to_thread(file.write, piece)
            if decoder:
                decoder.check_end()
            return response.headers.get("Content-Type", "")


def _session(resolver: AbstractResolver | None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=resolver, ssl=tls_context(os.environ))
    return aiohttp.ClientSession(
        timeout=_TIMEOUT,
        connector=connector,
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
    )


@functools.cache  # logged once for each proxy
def _log_unchecked(proxy: str) -> None:
    _log.warning(
        "redirects of downloads go through the proxy %s, which resolves names: only the text of"
        " their hosts is checked",
        URL(proxy).with_user(None),
    )


def _may_pass(error: Exception) -> bool:
    """Return whether an error of aiohttp is one of the network, not of the URL."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.errno != errno.EADDRNOTAVAIL  # which PublicResolver sets
    return isinstance(error, aiohttp.ClientError) and not isinstance(error, ValueError)


class _Pace:
    """Enforces a MinimumRate on one download. Only the time spent waiting for the server counts."""

    def __init__(self, rate: MinimumRate) -> None:
        self._rate = rate
        self._begin_period()

    def _begin_period(self) -> None:
        self._missing_bytes = self._rate.bytes
        self._seconds_left = self._rate.seconds

    async def next_of(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Return the next chunk, empty at the end.

        Raises:
            TimeoutError: The download is too slow.
        """
        began = time.monotonic()
        async with asyncio.timeout(self._seconds_left):
            chunk = await anext(chunks, b"")
        self._seconds_left -= time.monotonic() - began
        self._missing_bytes -= len(chunk)
        if self._missing_bytes <= 0:
            self._begin_period()
        return chunk


def _as_is(url: str) -> URL:
    """Return a URL that is requested byte for byte: its signature may cover every byte."""
    # Characters that are not allowed in a URL must be quoted anyway.
    return URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)


@contextmanager
def _temporary_file(stem: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file in the same folder, which is removed afterwards unless it was renamed.

    Its name is random and it must not exist yet, so that no symbolic link is followed.
    """
    part = stem.with_name(f".{stem.name}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    file = os.fdopen(os.open(part, flags, 0o666), "wb")
    try:
        yield part, file
    finally:
        file.close()
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(media.HEAD_BYTES)
