"""DownloadArtifact and SignArtifact: results for callers, from the copy or from the provider."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager

import structlog

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Violation
from service.errors import ServiceError, invalid, invalid_params
from service.messages import timestamp
from service.results.errors import CopyError, StoreError
from service.results.reader import BeyondEndError, Reader, Reading, ResultGoneError
from service.rules import task_id_rules
from service.uploads import UploadPace
from storage.task import Artifact, Task

CHUNK_MIN_BYTES = 64 << 10  # only the last chunk may be smaller
CHUNK_MAX_BYTES = 128 << 10
LIFETIME_SECONDS = 3_600
LIFETIME_MAX_SECONDS = 604_800  # no store signs links for longer

log = structlog.get_logger()

Write = Callable[[pb.DownloadArtifactResponse], Awaitable[None]]


def check_download(request: pb.DownloadArtifactRequest) -> None:
    """Raise INVALID_PARAMS with every broken rule of the request."""
    _check(request, "offset", "must not be negative" if request.offset < 0 else "")


def check_sign(request: pb.SignArtifactRequest) -> None:
    """Raise INVALID_PARAMS with every broken rule of the request."""
    is_valid = 0 <= request.lifetime_seconds <= LIFETIME_MAX_SECONDS
    rule = "" if is_valid else f"must be from 0 to {LIFETIME_MAX_SECONDS}"
    _check(request, "lifetime_seconds", rule)


def _check(
    request: pb.DownloadArtifactRequest | pb.SignArtifactRequest, field: str, rule: str
) -> None:
    violations = task_id_rules(request.task_id)
    if request.index < 0:
        violations.append(Violation("index", "must not be negative"))
    if rule:
        violations.append(Violation(field, rule))
    if violations:
        raise invalid_params(violations)


class Artifacts:
    """Reads results, and makes links to them."""

    def __init__(self, reader: Reader, pace: UploadPace, is_draining: Callable[[], bool]) -> None:
        """Keep what is needed.

        Args:
            reader: Reads results, and makes links.
            pace: How slowly a caller may read.
            is_draining: Returns whether the process is shutting down.
        """
        self._reader = reader
        self._pace = pace
        self._is_draining = is_draining

    async def download(self, task: Task, index: int, offset: int, write: Write) -> None:
        """Write what a result is, and then its content from an offset on.

        Raises:
            ServiceError: INVALID_PARAMS, ARTIFACT_NOT_FOUND; PROVIDER_UNAVAILABLE, STREAM_EXPIRED
                or SHUTTING_DOWN, also after some of the content.
        """
        artifact = _artifact(task, index)
        with _errors(task.id, index):
            async with self._reader.open(artifact, offset) as reading:
                await write(pb.DownloadArtifactResponse(info=_info(task.id, index, reading)))
                await self._write_content(reading.pieces, _Pace(write, self._pace))

    async def _write_content(self, pieces: AsyncIterator[bytes], pace: "_Pace") -> None:
        async with aclosing(_chunks(pieces)) as chunks:
            async for chunk in chunks:
                if self._is_draining():
                    words = "the server is shutting down; call again with the new offset"
                    raise ServiceError("SHUTTING_DOWN", words)
                await pace.write(chunk)

    async def sign(self, task: Task, index: int, seconds: int) -> pb.SignArtifactResponse:
        """Return a link to a copy.

        Raises:
            ServiceError: ARTIFACT_NOT_FOUND, ARTIFACT_NOT_STORED, PROVIDER_UNAVAILABLE.
        """
        artifact = _artifact(task, index)
        lifetime = seconds or LIFETIME_SECONDS
        # The link is signed by the clock of this machine, in whole seconds.
        expire_time = int(time.time()) + lifetime
        with _errors(task.id, index):
            url = await self._reader.sign(artifact, lifetime)
        if url is None:
            raise ServiceError(
                "ARTIFACT_NOT_STORED",
                "there is no copy in an object store: use DownloadArtifact",
                metadata=_metadata(task.id, index),
            )
        return pb.SignArtifactResponse(url=url, expire_time=timestamp(expire_time))


class _Pace:
    """Writes chunks, unless the caller reads too slowly."""

    def __init__(self, write: Write, pace: UploadPace) -> None:
        self._write = write
        self._pace = pace
        self._waited_seconds = 0.0
        self._read_bytes = 0

    async def write(self, chunk: bytes) -> None:
        """Write a chunk, as soon as the caller has read enough of those before.

        Raises:
            ServiceError: STREAM_EXPIRED.
        """
        began = time.monotonic()
        window_seconds = self._pace.window_seconds
        try:
            # A write to a caller that has stopped reading may never return.
            async with asyncio.timeout(window_seconds) as patience:
                await self._write(pb.DownloadArtifactResponse(chunk=chunk))
        except TimeoutError:
            if not patience.expired():
                raise
            raise _too_slow(self._pace) from None
        self._waited_seconds += time.monotonic() - began
        self._read_bytes += len(chunk)
        if self._waited_seconds >= window_seconds:
            if self._read_bytes < self._waited_seconds * self._pace.bytes_per_second:
                raise _too_slow(self._pace)
            self._waited_seconds, self._read_bytes = 0.0, 0


def _too_slow(pace: UploadPace) -> ServiceError:
    words = (
        f"the result was read more slowly than {pace.bytes_per_second} bytes/s;"
        " call again with the new offset"
    )
    return ServiceError("STREAM_EXPIRED", words)


async def _chunks(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Join and cut pieces of any size into chunks."""
    pending: list[bytes] = []
    size = 0
    async for piece in pieces:
        pending.append(piece)
        size += len(piece)
        if size < CHUNK_MIN_BYTES:
            continue
        joined = b"".join(pending)
        start = 0
        while size - start >= CHUNK_MIN_BYTES:
            yield joined[start : start + CHUNK_MAX_BYTES]
            start += CHUNK_MAX_BYTES
        pending = [joined[start:]] if start < size else []
        size = sum(map(len, pending))
    if size:
        yield b"".join(pending)


def _info(task_id: str, index: int, reading: Reading) -> pb.ArtifactInfo:
    return pb.ArtifactInfo(
        file_name=f"{task_id}_{index + 1}{reading.extension}",
        mime_type=reading.mime_type,
        size_bytes=reading.size_bytes,
        sha256=bytes.fromhex(reading.sha256),
    )


def _artifact(task: Task, index: int) -> Artifact:
    """Return a result of a task.

    Raises:
        ServiceError: ARTIFACT_NOT_FOUND.
    """
    if index < len(task.artifacts):
        return task.artifacts[index]
    words = f"the task has {len(task.artifacts)} artifacts, and their indices begin with 0"
    raise _not_found(words, task.id, index)


def _not_found(words: str, task_id: str, index: int) -> ServiceError:
    return ServiceError("ARTIFACT_NOT_FOUND", words, metadata=_metadata(task_id, index))


def _metadata(task_id: str, index: int) -> dict[str, str]:
    return {"task_id": task_id, "index": str(index)}


@contextmanager
def _errors(task_id: str, index: int) -> Iterator[None]:
    """Turn errors of the storage and of the provider's server into those for the caller."""
    try:
        yield
    except BeyondEndError as error:
        raise invalid("offset", f"must be at most {error.size_bytes}, the size") from None
    except ResultGoneError as error:
        words = f"neither a copy nor the provider has the result: {error}"
        raise _not_found(words, task_id, index) from None
    except CopyError as error:
        raise ServiceError("PROVIDER_UNAVAILABLE", str(error)) from None
    except StoreError as error:
        # What the storage says is for the operator.
        log.warning("the storage did not answer", reason=str(error))
        words = "the storage of results is unavailable; retry"
        raise ServiceError("PROVIDER_UNAVAILABLE", words) from None
