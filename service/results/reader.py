"""Reads a result from an offset on: its copy, or the provider's URL where there is none.

A provider's server may ignore the offset, send less than it was asked for, or announce no size.
Whatever it does, the bytes that are read are those from the offset to the end, or an error is
raised.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import structlog

from service.results.content import HEAD_BYTES, extension_of, verified
from service.results.errors import (
    CopyError,
    MissingError,
    NotAllowedError,
    RangeError,
    StatusError,
)
from service.results.objects import Objects
from service.results.origin import DEAD_LINK_STATUSES, Origin
from service.results.source import Download
from storage.task import Artifact, Copy

RANGE_NOT_SATISFIABLE = 416

log = structlog.get_logger()


class BeyondEndError(Exception):
    """The result ends before the offset.

    Attributes:
        size_bytes: Its size.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the result has {size_bytes} bytes")
        self.size_bytes = size_bytes


class ResultGoneError(Exception):
    """Neither a copy nor the provider has the result; the message says why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A result that is being read.

    Attributes:
        mime_type: Its media type.
        size_bytes: The size of all of it; None if it is not known.
        sha256: The SHA-256 of all of it, hexadecimal; "" if there is no copy.
        pieces: The bytes from the offset on, in pieces of any size.
    """

    mime_type: str
    size_bytes: int | None
    sha256: str
    pieces: AsyncIterator[bytes]

    @property
    def extension(self) -> str:
        """The extension of its media type, with its dot."""
        return extension_of(self.mime_type)


class Reader:
    """Reads results, and makes links to their copies."""

    def __init__(self, objects: Objects | None, origin: Origin) -> None:
        """Keep what is needed.

        Args:
            objects: Where copies are; None if results are not kept.
            origin: Where results come from.
        """
        self._objects = objects
        self._origin = origin

    @asynccontextmanager
    async def open(self, artifact: Artifact, offset: int) -> AsyncIterator[Reading]:
        """Read a result, as long as the context lasts.

        Raises:
            BeyondEndError: The result ends before the offset.
            ResultGoneError: Neither a copy nor the provider has it.
            StoreError: The storage does not work at the moment; this may happen later, too.
            CopyError: The provider does not work at the moment; this may happen later, too.
        """
        async with AsyncExitStack() as stack:
            yield await self._open(artifact, offset, stack)

    async def _open(self, artifact: Artifact, offset: int, stack: AsyncExitStack) -> Reading:
        objects, key = self._objects, self._key_of(artifact)
        if objects and artifact.copy and key:
            try:
                return await self._open_copy(objects, artifact.copy, key, offset, stack)
            except MissingError:
                log.warning("a copy is missing in the storage", uri=artifact.copy.uri)
        try:
            return await self._open_original(artifact, offset, stack)
        except NotAllowedError as error:
            raise ResultGoneError(str(error)) from None
        except StatusError as error:
            if error.status in DEAD_LINK_STATUSES:
                raise ResultGoneError(str(error)) from None
            raise

    async def sign(self, artifact: Artifact, seconds: int) -> str | None:
        """Return a link to a copy; None if there is no copy in an object store.

        Raises:
            StoreError: The storage does not work at the moment.
        """
        key = self._key_of(artifact)
        return await self._objects.sign(key, seconds) if self._objects and key else None

    def _key_of(self, artifact: Artifact) -> str | None:
        """Return the key of a copy; None if there is none in the storage."""
        if artifact.copy is None or self._objects is None:
            return None
        return self._objects.place.key_of(artifact.copy.uri)

    # --- the copy ---

    async def _open_copy(
        self, objects: Objects, copy: Copy, key: str, offset: int, stack: AsyncExitStack
    ) -> Reading:
        size = copy.size_bytes
        if offset > size:
            raise BeyondEndError(size)
        stored = await stack.enter_async_context(aclosing(objects.read(key, offset, size)))

        async def read() -> bytes:
            return await anext(stored, b"")

        first = await read()  # fails here if the copy is missing
        pieces = await stack.enter_async_context(aclosing(_pieces(first, read, offset, size)))
        return Reading(copy.mime_type, size, copy.sha256, pieces)

    # --- the provider's URL ---

    async def _open_original(
        self, artifact: Artifact, offset: int, stack: AsyncExitStack
    ) -> Reading:
        download = await self._download(artifact.url, offset, stack)
        size = download.size
        first = await _first(download, artifact.url, offset)
        pieces = _pieces(first, download.read, offset, size)
        await stack.enter_async_context(aclosing(pieces))
        return Reading(artifact.mime_type, size, "", pieces)

    async def _download(self, url: str, offset: int, stack: AsyncExitStack) -> Download:
        """Open the URL at an offset; from the beginning if the server cannot do that."""
        try:
            return await stack.enter_async_context(self._origin.open(url, offset))
        except StatusError as error:
            if error.status != RANGE_NOT_SATISFIABLE or not offset:
                raise
        except RangeError:
            if not offset:
                raise
        return await stack.enter_async_context(self._origin.open(url))


async def _first(download: Download, url: str, offset: int) -> bytes:
    """Return the first bytes at an offset; b"" if the result ends there.

    Raises:
        NotMediaError: It begins with something other than the URL announces.
        BeyondEndError: It ends before the offset.
    """
    skip = offset - download.start
    piece = await download.read()
    if download.start == 0:
        while len(piece) < HEAD_BYTES and (more := await download.read()):
            piece += more
        verified(piece[:HEAD_BYTES], url)
    if download.size is not None and offset > download.size:
        raise BeyondEndError(download.size)
    if offset == download.size:
        return b""
    while piece and skip >= len(piece):
        skip -= len(piece)
        piece = await download.read()
    if skip and not piece:
        raise BeyondEndError(offset - skip)
    return piece[skip:]


async def _pieces(
    first: bytes, read: Callable[[], Awaitable[bytes]], offset: int, size: int | None
) -> AsyncGenerator[bytes, None]:
    """Yield the first bytes and what follows.

    Raises:
        CopyError: Something is missing at the end.
    """
    position, piece = offset, first
    del first  # a reader may stall for minutes at a later piece
    while piece:
        position += len(piece)
        yield piece
        piece = await read()
    if size is not None and position != size:
        raise CopyError(f"the result ended after {position} of {size} bytes")
