"""Saving the results of a task before their URLs expire, or from their copies afterwards."""

import asyncio
import glob
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kie_generation.download import (
    DEFAULT_RATE,
    MAX_ARTIFACT_BYTES,
    MAX_SAVE_BYTES,
    Downloader,
    DownloadError,
    MinimumRate,
    TooLargeError,
)
from kie_generation.errors import GenerationError, UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import GenerationTask

if TYPE_CHECKING:  # it imports this module
    from kie_generation.artifacts import ArtifactCalls


@dataclass(frozen=True)
class _Saver:
    """Saves the artifacts of one task."""

    downloader: Downloader
    task: GenerationTask
    folder: Path
    name: str
    service: "ArtifactCalls | None"

    async def save_all(
        self, max_bytes: int, max_total_bytes: int, *, overwrite: bool
    ) -> list[Path]:
        """Save the artifacts one after the other; the others are saved even if one fails."""
        saved: list[Path] = []
        errors: list[DownloadError] = []
        left = max_total_bytes
        for index in range(len(self.task.artifacts)):
            if not overwrite and await asyncio.to_thread(self.is_saved, index):
                continue
            try:
                path = await self.save(index, min(max_bytes, left))
            except DownloadError as error:
                errors.append(error)
                continue
            left -= (await asyncio.to_thread(path.stat)).st_size
            saved.append(path)
        if errors:
            raise _worst(errors, saved)
        return saved

    def is_saved(self, index: int) -> bool:
        """Return whether an artifact was saved before, of whatever type."""
        pattern = f"{glob.escape(stem_of(self.name, index))}.*"
        return any(self.folder.glob(pattern))

    async def save(self, index: int, max_bytes: int) -> Path:
        """Save an artifact from the provider or, if that does not have it, from a copy."""
        artifact, stem = self.task.artifacts[index], self.folder / stem_of(self.name, index)
        failed: DownloadError | None = None
        async with aclosing(self._urls(index)) as urls:
            async for url in urls:
                try:
                    return await self.downloader.save(artifact, url, stem, max_bytes)
                except TooLargeError:
                    raise
                except DownloadError as error:
                    failed = failed or error
        assert failed, "an artifact has at least one URL"
        if self.service is None:
            raise failed
        try:
            return await self.service.save_artifact(
                self.task.id, index, self.folder, name=self.name, max_bytes=max_bytes
            )
        except GenerationError as error:
            is_transient = failed.is_transient or isinstance(error, UnavailableError)
            why = f"{failed.why}; {error.message}"
            raise DownloadError(failed.url, why, is_transient=is_transient) from error

    async def _urls(self, index: int) -> AsyncGenerator[str, None]:
        """Yield the URLs of an artifact. A link to its copy is made only if it is needed."""
        artifact = self.task.artifacts[index]
        yield artifact.url
        if artifact.public_url:
            yield artifact.public_url
        link = ""
        if self.service is not None and artifact.storage_uri:
            with suppress(GenerationError):  # the copy may be in a folder
                link = (await self.service.sign_artifact(self.task.id, index)).url
        if link:
            yield link


async def save_artifacts(
    task: GenerationTask,
    folder: str | Path,
    *,
    name: str | None = None,
    max_bytes: int = MAX_ARTIFACT_BYTES,
    max_total_bytes: int = MAX_SAVE_BYTES,
    minimum_rate: MinimumRate = DEFAULT_RATE,
    allow_private: bool = False,
    overwrite: bool = True,
    service: "ArtifactCalls | None" = None,
) -> list[Path]:
    """Download all artifacts of a task as `<name>_<n>.<extension>`, with n from 1.

    A file appears under its name only when it is complete.

    Args:
        task: The terminal snapshot; if it has no artifacts, nothing is saved.
        folder: Where to save the files; it is created if it is missing.
        name: The first part of the file names; None uses the task's id.
        max_bytes: The maximum size of a file.
        max_total_bytes: The maximum size of all files together.
        minimum_rate: Slower downloads are aborted.
        allow_private: Also follow redirects to private addresses and to http URLs.
        overwrite: Whether to replace existing files; otherwise their artifacts are left out.
        service: The client that may have copies; set by its own method `save_artifacts`.

    Returns:
        The paths of the files that were written, in the order of the artifacts.

    Raises:
        DownloadError: A URL does not respond, is too slow, redirects to an address that is not
            allowed, or serves a file that is too large or not of the declared type. The other
            artifacts are saved nevertheless.
        OSError: A file or the folder cannot be written.
    """
    folder = Path(folder)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with Downloader(minimum_rate, allow_private=allow_private) as downloader:
        saver = _Saver(downloader, task, folder, name or task.id, service)
        return await saver.save_all(max_bytes, max_total_bytes, overwrite=overwrite)


def stem_of(name: str, index: int) -> str:
    """Return a file name without extension that is safe for any task id."""
    safe_name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:100] or "task"
    return f"{safe_name}_{index + 1}"


def _worst(errors: list[DownloadError], saved: list[Path]) -> DownloadError:
    """Return the error to raise: the first one that a retry may fix, or else the first one."""
    error = next((each for each in errors if each.is_transient), errors[0])
    error.saved = saved
    return error
