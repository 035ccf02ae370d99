"""Saves a task's results. Their URLs expire after a day; the files stay.

The URLs of a task come from the service and are trusted. Where a redirect leads is decided by a
foreign server, so a redirect is followed only to an https URL on a public address.
"""

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from client import media
from client.addresses import PublicResolver, is_literal, is_public
from generated.generation.v1.generation_pb2 import Artifact, GenerationTask

MAX_ARTIFACT_BYTES = 2 * 1024**3
MAX_SAVE_BYTES = 4 * 1024**3
MAX_REDIRECTS = 5
CHUNK_BYTES = 1024 * 1024
# No limit on a whole download, which may be large: MinimumRate ends those that do not progress.
_TIMEOUT = aiohttp.ClientTimeout(total=None)
_REDIRECTS = (301, 302, 303, 307, 308)


class DownloadError(Exception):
    """A result could not be fetched from its URL.

    The task is not affected: try again before the URL expires.
    """

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url = url


@dataclass(frozen=True)
class MinimumRate:
    """How slow a download may be before it is given up.

    Attributes:
        bytes: how many must arrive in each period.
        seconds: the length of a period, and how long the headers of a response may take.
    """

    bytes: int = 120 * 1024
    seconds: float = 30.0

    def __str__(self) -> str:
        return f"{self.bytes} bytes in {self.seconds:g} s"


_DEFAULT_RATE = MinimumRate()


async def save_artifacts(
    task: GenerationTask,
    folder: str | Path,
    *,
    name: str | None = None,
    max_bytes: int = MAX_ARTIFACT_BYTES,
    max_total_bytes: int = MAX_SAVE_BYTES,
    minimum_rate: MinimumRate = _DEFAULT_RATE,
    allow_private: bool = False,
) -> list[Path]:
    """Downloads every artifact of a task as `<name>_<n>.<extension>`, n from 1.

    A file appears under its name only when it is complete, and replaces one of that name.

    Args:
        task: a snapshot that ended; one without artifacts saves nothing.
        folder: where to save; it is created if it is missing.
        name: how the files are named; None takes the task's id.
        max_bytes: the largest file to accept.
        max_total_bytes: the most to accept for all files together.
        minimum_rate: a slower download is given up.
        allow_private: follow redirects to private addresses and to http URLs, too.

    Raises:
        DownloadError: the URL does not answer, or not with the announced kind of file, or with too
            many bytes, or too slowly, or it redirects to an address that is not allowed.
        OSError: the folder or the disk.
    """
    folder = Path(folder)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    saved = []
    left = max_total_bytes
    async with _Downloader(minimum_rate, allow_private=allow_private) as downloader:
        for number, artifact in enumerate(task.artifacts, start=1):
            limit = min(max_bytes, left)
            stem = folder / _stem(name or task.id, number)
            path = await downloader.save(artifact, stem, limit)
            left -= (await asyncio.to_thread(path.stat)).st_size
            saved.append(path)
    return saved


def _stem(name: str, number: int) -> str:
    """Return a name that is safe in any folder, whatever the server called the task."""
    safe_name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:100] or "task"
    return f"{safe_name}_{number}"


class _Downloader:
    """Fetches URLs into files. Connections for redirects are kept apart, as they are restricted."""

    def __init__(self, minimum_rate: MinimumRate, *, allow_private: bool) -> None:
        self._minimum_rate = minimum_rate
        self._allow_private = allow_private
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._trusted = await self._exits.enter_async_context(
            aiohttp.ClientSession(timeout=_TIMEOUT)
        )
        resolver = None if self._allow_private else PublicResolver()
        self._redirected = await self._exits.enter_async_context(
            aiohttp.ClientSession(
                timeout=_TIMEOUT, connector=aiohttp.TCPConnector(resolver=resolver)
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def save(self, artifact: Artifact, stem: Path, max_bytes: int) -> Path:
        """Saves an artifact as `stem` with the extension of its media type; returns the path."""
        try:
            with _temporary_file(stem) as (part, file):
                with file:
                    served = await self._fetch(artifact.url, file, max_bytes)
                head = await asyncio.to_thread(_read_head, part)
                if wrong := media.problem(head, artifact.mime_type, served):
                    raise DownloadError(artifact.url, wrong)
                media_type = media.sniffed(head) or artifact.mime_type
                path = stem.with_name(stem.name + media.extension(media_type))
                await asyncio.to_thread(part.replace, path)
                return path
        except TimeoutError as error:
            why = f"too slow: less than {self._minimum_rate}"
            raise DownloadError(artifact.url, why) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise DownloadError(artifact.url, str(error) or type(error).__name__) from error

    @asynccontextmanager
    async def _open(self, first_url: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yields the response to a URL, after its redirects."""
        url, session = first_url, self._trusted
        for _ in range(MAX_REDIRECTS + 1):
            async with AsyncExitStack() as exits:
                async with asyncio.timeout(self._minimum_rate.seconds):
                    request = session.get(_as_is(url), allow_redirects=False)
                    response = await exits.enter_async_context(request)
                if response.status == 200:  # noqa: PLR2004 - HTTP's OK
                    yield response
                    return
                location = response.headers.get("Location", "")
                if response.status not in _REDIRECTS or not location:
                    raise DownloadError(first_url, f"HTTP {response.status}")
                url, session = urljoin(url, location), self._redirected
                self._check_redirect(first_url, url)
        raise DownloadError(first_url, f"more than {MAX_REDIRECTS} redirects")

    def _check_redirect(self, first_url: str, url: str) -> None:
        """Raises DownloadError for a redirect that must not be followed."""
        if self._allow_private:
            return
        to = URL(url)
        host = to.host or ""
        # What a name resolves to is checked when it is resolved.
        if to.scheme != "https" or not host or (is_literal(host) and not is_public(host)):
            why = f"redirects to {url}, which is not an https URL on a public address"
            raise DownloadError(first_url, why)

    async def _fetch(self, url: str, file: BinaryIO, max_bytes: int) -> str:
        """Writes what a URL serves into a file; returns the Content-Type."""
        room = max_bytes
        pace = _Pace(self._minimum_rate)
        async with self._open(url) as response:
            chunks = response.content.iter_chunked(CHUNK_BYTES)
            while chunk := await pace.next_of(chunks):
                room -= len(chunk)
                if room < 0:
                    raise DownloadError(url, f"larger than {max_bytes} bytes")
                await asyncio.to_thread(file.write, chunk)
            return response.headers.get("Content-Type", "")


class _Pace:
    """Holds one download to a MinimumRate. Only time spent waiting for the server counts."""

    def __init__(self, rate: MinimumRate) -> None:
        self._rate = rate
        self._begin_period()

    def _begin_period(self) -> None:
        self._missing_bytes = self._rate.bytes
        self._seconds_left = self._rate.seconds

    async def next_of(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Returns the next chunk, empty at the end. Raises TimeoutError when it is too slow."""
        began = time.monotonic()
        async with asyncio.timeout(self._seconds_left):
            chunk = await anext(chunks, b"")
        self._seconds_left -= time.monotonic() - began
        self._missing_bytes -= len(chunk)
        if self._missing_bytes <= 0:
            self._begin_period()
        return chunk


def _as_is(url: str) -> URL:
    """Return a URL that is requested byte for byte, as its signature may cover every byte."""
    # What is not allowed in a URL at all has to be quoted.
    return URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)


@contextmanager
def _temporary_file(stem: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yields a new file beside `stem`, which is removed unless it is renamed meanwhile.

    Its name cannot be guessed and it must not exist, so that no planted link is followed.
    """
    part = stem.with_name(f".{stem.name}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    file = os.fdopen(os.open(part, flags, 0o666), "wb")
    try:
        yield part, file
    finally:
        file.close()
        part.unlink(missing_ok=True)


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(media.HEAD_BYTES)
