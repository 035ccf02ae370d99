"""Results through the service: streams that are resumed, files, and links to copies.

The service has a copy of each result if its operator keeps results. Where there is no copy, it
reads the provider's URL.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from kie_generation.connection import CALL_TIMEOUT_SECONDS, Connection, ignore
from kie_generation.download import (
    DEFAULT_RATE,
    MAX_ARTIFACT_BYTES,
    MAX_SAVE_BYTES,
    DownloadError,
    MinimumRate,
)
from kie_generation.errors import InvalidRequestError, UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import (
    ArtifactInfo,
    DownloadArtifactRequest,
    DownloadArtifactResponse,
    GenerationTask,
    SignArtifactRequest,
    SignArtifactResponse,
)
from kie_generation.part_file import PartFile
from kie_generation.saving import save_artifacts, stem_of
from kie_generation.streams import Reconnecting, StreamPolicy, ended_too_early, read_stream

DOWNLOAD_TIMEOUT_SECONDS = 120.0

OpenDownload: TypeAlias = Callable[
    [int], grpc.aio.UnaryStreamCall[DownloadArtifactRequest, DownloadArtifactResponse]
]
OnInfo: TypeAlias = Callable[[ArtifactInfo], Any]


class ArtifactCalls(Connection):
    """The methods of a client that are about results."""

    def download_artifact(
        self,
        task_id: str,
        index: int = 0,
        *,
        offset: int = 0,
        on_info: OnInfo | None = None,
        timeout: float = DOWNLOAD_TIMEOUT_SECONDS,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the content of a result, in chunks of up to 128 KiB.

        A lost stream is resumed automatically, after the last byte received.

        Args:
            task_id: The task.
            index: The position in `task.artifacts`, from 0.
            offset: How many bytes at the beginning to leave out.
            on_info: Called once, before the first chunk, with the size and the type of the result.
            timeout: Seconds without any content after which the download fails.

        Raises:
            ArtifactNotFoundError: The task has no such result, or it no longer exists.
            DownloadError: The content has another SHA-256 than its copy should have.
            GenerationError: An error that a retry cannot fix, at once; UnavailableError only after
                the timeout.
        """

        def open_stream(received: int) -> Any:
            request = DownloadArtifactRequest(task_id=task_id, index=index, offset=received)
            return self._stub.DownloadArtifact(request, metadata=self._metadata)

        policy = replace(
            self._watch_policy, heartbeat_timeout_seconds=timeout, give_up_after_seconds=timeout
        )
        return _content(open_stream, offset, policy, on_info or ignore, _named(task_id, index))

    async def save_artifact(
        self,
        task_id: str,
        index: int,
        folder: str | Path,
        *,
        name: str | None = None,
        max_bytes: int = MAX_ARTIFACT_BYTES,
        timeout: float = DOWNLOAD_TIMEOUT_SECONDS,
    ) -> Path:
        """Download a result to `<name>_<n>.<extension>`, with n from 1, and return the path.

        What an earlier download of the same result left in the folder when it was interrupted is
        not downloaded again. The file appears under its name only when it is complete.

        Args:
            task_id: The task.
            index: The position in `task.artifacts`, from 0.
            folder: Where to save the file; it is created if it is missing.
            name: The first part of the file name; None uses the task's id.
            max_bytes: The maximum size of the file.
            timeout: Seconds without any content after which the download fails.

        Raises:
            DownloadError: The result is too large or damaged, or is being downloaded already.
            OSError: The file or the folder cannot be written.
            GenerationError: As for `download_artifact`.
        """
        folder = Path(folder)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        what = _named(task_id, index)
        part = await asyncio.to_thread(PartFile, folder / f".{stem_of(task_id, index)}.part", what)
        try:
            info = await self._fetch(part, task_id, index, max_bytes=max_bytes, timeout=timeout)
            stem = folder / stem_of(name or task_id, index)
            return await asyncio.to_thread(part.complete, stem, info)
        finally:
            await asyncio.to_thread(part.close)

    async def _fetch(
        self, part: PartFile, task_id: str, index: int, *, max_bytes: int, timeout: float
    ) -> ArtifactInfo:
        """Download what is missing at the end of a file, and return what the result is."""
        infos: list[ArtifactInfo] = []
        try:
            chunks = self.download_artifact(
                task_id, index, offset=part.size, on_info=infos.append, timeout=timeout
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    if part.size + len(chunk) > max_bytes:
                        raise DownloadError(
                            _named(task_id, index), f"larger than {max_bytes} bytes"
                        )
                    await asyncio.to_thread(part.write, chunk)
        except InvalidRequestError:
            if infos or not part.size:
                raise
            # The file is larger than the result, so it is left over from something else.
            await asyncio.to_thread(part.empty)
            return await self._fetch(part, task_id, index, max_bytes=max_bytes, timeout=timeout)
        return infos[0]

    async def sign_artifact(
        self,
        task_id: str,
        index: int = 0,
        *,
        lifetime_seconds: int = 0,
        timeout: float = CALL_TIMEOUT_SECONDS,
    ) -> SignArtifactResponse:
        """Return a link to the copy of a result, which works for a while without any token.

        Args:
            task_id: The task.
            index: The position in `task.artifacts`, from 0.
            lifetime_seconds: How long the link works, at most a week; 0 means an hour.
            timeout: Seconds for all attempts.

        Raises:
            ArtifactNotFoundError: The task has no such result.
            GenerationError: With the reason ARTIFACT_NOT_STORED if it has no copy in an object
                store.
        """
        request = SignArtifactRequest(
            task_id=task_id, index=index, lifetime_seconds=lifetime_seconds
        )
        return await self._call(self._stub.SignArtifact, request, timeout)

    async def save_artifacts(
        self,
        task: GenerationTask,
        folder: str | Path,
        *,
        name: str | None = None,
        max_bytes: int = MAX_ARTIFACT_BYTES,
        max_total_bytes: int = MAX_SAVE_BYTES,
        minimum_rate: MinimumRate = DEFAULT_RATE,
        allow_private: bool = False,
        overwrite: bool = True,
    ) -> list[Path]:
        """Download all artifacts of a task, even if the provider's URLs no longer work.

        Each artifact is downloaded from the first of these that works: the provider's URL, the
        public URL of the copy, a link of `sign_artifact`, `download_artifact`. Otherwise it is the
        same as the function `save_artifacts`.
        """
        return await save_artifacts(
            task,
            folder,
            name=name,
            max_bytes=max_bytes,
            max_total_bytes=max_total_bytes,
            minimum_rate=minimum_rate,
            allow_private=allow_private,
            overwrite=overwrite,
            service=self,
        )


def _named(task_id: str, index: int) -> str:
    return f"artifact {index} of task {task_id}"


async def _content(
    open_stream: OpenDownload, offset: int, policy: StreamPolicy, on_info: OnInfo, what: str
) -> AsyncGenerator[bytes, None]:
    """Yield the content from an offset on; reopen the stream whenever it is lost."""
    received, digest = offset, hashlib.sha256()
    first_info: ArtifactInfo | None = None
    reconnecting = Reconnecting(policy, ignore)
    while True:
        try:
            silence_seconds = policy.heartbeat_timeout_seconds
            responses = read_stream(open_stream(received), silence_seconds, may_end=True)
            async with aclosing(responses):
                async for response in responses:
                    if response.HasField("info"):
                        info = response.info
                        if first_info is None:
                            first_info = info
                            on_info(info)
                        continue
                    reconnecting.received(progress=True)
                    chunk = response.chunk
                    received += len(chunk)
                    digest.update(chunk)
                    yield chunk
            _check_complete(first_info, received)
        except UnavailableError as lost:
            await reconnecting.lost(lost)
        else:
            break
    if offset == 0 and first_info and first_info.sha256 not in (b"", digest.digest()):
        raise DownloadError(what, "the SHA-256 of the content is not that of the copy")


def _check_complete(info: ArtifactInfo | None, received: int) -> None:
    """Raise UnavailableError if a broken proxy has ended the stream with OK."""
    if info is None or (info.HasField("size_bytes") and received < info.size_bytes):
        raise ended_too_early()
