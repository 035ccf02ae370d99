"""Copies one result from the provider's URL into the storage.

    open the URL -> recognise its first bytes -> stream it, hashed and counted -> confirm the lease
    -> complete the object

A copy that fails leaves no object. A copy that is repeated replaces the object of the earlier one:
the key depends on the task, the position of the result and what it is.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from service.copy_metrics import CopyMetrics
from service.results.content import HEAD_BYTES, Content, verified
from service.results.errors import (
    COPIED,
    CopyError,
    LeaseLostError,
    StorageFailedError,
    StoreError,
    TooLargeError,
)
from service.results.objects import Objects
from service.results.origin import Origin
from service.results.source import Download
from storage.task import Artifact, Copy, Task

PIECE_BYTES = 1 << 20  # what is passed on at a time: each piece takes 0.1 ms of the event loop

Confirm = Callable[[], Awaitable[bool]]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CopyLimits:
    """The limits of copies.

    Attributes:
        result_max_bytes: The largest result that is copied.
        copies_max: How many results are copied at a time.
    """

    result_max_bytes: int
    copies_max: int


class Copier:
    """Copies results, a limited number at a time."""

    def __init__(
        self,
        objects: Objects,
        origin: Origin,
        limits: CopyLimits,
        metrics: CopyMetrics,
    ) -> None:
        """Keep what is needed.

        Args:
            objects: Where copies go.
            origin: Where results come from.
            limits: The limits of copies.
            metrics: Counts them.
        """
        self._objects = objects
        self._origin = origin
        self._limits = limits
        self._metrics = metrics
        self._turns = asyncio.Semaphore(limits.copies_max)

    async def copy_all(
        self,
        task: Task,
        artifacts: tuple[Artifact, ...],
        confirm: Confirm,
        seconds: float | None = None,
    ) -> tuple[Artifact, ...]:
        """Copy the results of a task that have no copy yet, at the same time and in their order.

        Args:
            task: The task.
            artifacts: Its results.
            confirm: Returns whether this process may still complete a copy.
            seconds: How long all of it may take; None means no limit but the lowest rate of a
                server.

        Returns:
            The results, each with its copy, or with the reason why there is none.
        """
        copies = (
            self._copy_or_explain(task, index, artifact, confirm, seconds)
            for index, artifact in enumerate(artifacts)
        )
        return tuple(await asyncio.gather(*copies))

    async def _copy_or_explain(
        self, task: Task, index: int, artifact: Artifact, confirm: Confirm, seconds: float | None
    ) -> Artifact:
        if artifact.copy:
            return artifact
        try:
            copied = await self._copy_in_time(_stem(task, index), artifact, confirm, seconds)
        except CopyError as error:
            self._metrics.ended(error.outcome)
            log.warning("a result was not copied", index=index, reason=str(error))
            return replace(artifact, storage_error=str(error))
        except Exception:  # isolate failures: copies are tried for a limited time, whatever fails
            self._metrics.ended(CopyError.outcome)
            log.exception("a copy failed", index=index)
            return replace(artifact, storage_error="the copy failed")
        self._metrics.ended(COPIED)
        log.debug("a result was copied", index=index, uri=copied.copy and copied.copy.uri)
        return copied

    async def _copy_in_time(
        self, stem: str, artifact: Artifact, confirm: Confirm, seconds: float | None
    ) -> Artifact:
        """Copy a result when it is its turn."""
        try:
            async with asyncio.timeout(seconds), self._turns:
                return await self._copy(stem, artifact, confirm)
        except TimeoutError:
            raise CopyError("the result was not copied in time") from None

    async def _copy(self, stem: str, artifact: Artifact, confirm: Confirm) -> Artifact:
        async with self._origin.open(artifact.url) as download:
            body = _Body(download, self._limits.result_max_bytes, confirm)
            content = verified(await body.head(), artifact.url)
            key = stem + content.extension
            await self._put(key, body, content)
        self._metrics.copied(body.size)
        uri = self._objects.place.uri_of(key)
        copy = Copy(uri, body.size, body.sha256, content.mime_type)
        return replace(artifact, copy=copy, storage_error="")

    async def _put(self, key: str, body: "_Body", content: Content) -> None:
        try:
            await self._objects.put(key, body.pieces(), content)
        except StoreError as error:
            # What the storage says is for the operator: callers see results, not the storage.
            log.warning("the storage did not take a copy", reason=str(error))
            raise StorageFailedError("the storage did not take the copy") from None


class _Body:
    """The content of a result on its way: counted, hashed, and checked at its end.

    Attributes:
        size: How many bytes have arrived.
    """

    def __init__(self, download: Download, max_bytes: int, confirm: Confirm) -> None:
        if (download.length or 0) > max_bytes:
            raise _too_large(max_bytes)
        self._download = download
        self._max_bytes = max_bytes
        self._confirm = confirm
        self._hash = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.size = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 of what has arrived, hexadecimal."""
        return self._hash.hexdigest()

    async def head(self) -> bytes:
        """Return the first bytes."""
        while self._pending_bytes < HEAD_BYTES and await self._receive():
            pass
        if not self.size:
            raise CopyError("the result is empty")
        self._pending = [b"".join(self._pending)]
        return self._pending[0][:HEAD_BYTES]

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the content; before it ends, check that it is complete and still ours to store."""
        while await self._receive():
            if self._pending_bytes >= PIECE_BYTES:
                yield await self._take()
        if self._pending:
            yield await self._take()
        length = self._download.length
        if length is not None and length != self.size:
            raise CopyError(f"{self.size} of {length} bytes arrived")
        if not await self._confirm():
            raise LeaseLostError("another process has taken over the copy")

    async def _receive(self) -> bool:
        """Receive the next bytes; return whether there were any."""
        received = await self._download.read()
        self.size += len(received)
        if self.size > self._max_bytes:
            raise _too_large(self._max_bytes)
        if received:
            self._pending.append(received)
            self._pending_bytes += len(received)
        return bool(received)

    async def _take(self) -> bytes:
        """Return what has arrived, hashed in a thread, so that calls do not wait for it."""
        piece = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        await asyncio.to_thread(self._hash.update, piece)
        return piece


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(f"the result is larger than RESULTS_MAX_BYTES ({max_bytes})")


def _stem(task: Task, index: int) -> str:
    """Return the key of a result without its extension."""
    day = time.strftime("%Y/%m/%d", time.gmtime(task.create_time))
    return f"{day}/{task.id}/{index}"
