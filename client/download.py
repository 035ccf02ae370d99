"""Saves a task's results. Their URLs expire after a day; the files stay."""

import asyncio
import mimetypes
import re
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from generated.generation.v1.generation_pb2 import Artifact, GenerationTask

MAX_ARTIFACT_BYTES = 2 * 1024**3
CHUNK_BYTES = 1024 * 1024
# No bound on the whole download, which may be large; on silence there is one.
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)


class DownloadError(Exception):
    """A result could not be fetched from its URL.

    The task is not affected: try again before the URL expires.
    """

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url = url


async def save_artifacts(
    task: GenerationTask, folder: str | Path, *, max_bytes: int = MAX_ARTIFACT_BYTES
) -> list[Path]:
    """Downloads every artifact of a task as `<task id>_<n>.<extension>`, n from 1.

    A file appears under its name only when it is complete, and replaces one of that name.

    Args:
        task: a snapshot that ended; one without artifacts saves nothing.
        folder: where to save; it is made if it is missing.
        max_bytes: the largest file to accept.

    Raises:
        DownloadError: the URL does not answer, or with more than max_bytes.
        OSError: the folder or the disk.
    """
    folder = Path(folder)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    saved = []
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        for number, artifact in enumerate(task.artifacts, start=1):
            path = folder / file_name(task.id, number, artifact)
            await _download(session, artifact.url, path, max_bytes)
            saved.append(path)
    return saved


def file_name(task_id: str, number: int, artifact: Artifact) -> str:
    """Returns a name that is safe in any folder, whatever the server called the task."""
    safe_id = re.sub(r"[^A-Za-z0-9_-]", "_", task_id)[:100] or "task"
    return f"{safe_id}_{number}{_extension(artifact)}"


def _extension(artifact: Artifact) -> str:
    """Returns the extension by the URL, else by the media type."""
    suffix = Path(urlsplit(artifact.url).path).suffix.lower()
    if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix):
        return suffix
    return mimetypes.guess_extension(artifact.mime_type) or ".bin"


async def _download(session: aiohttp.ClientSession, url: str, path: Path, max_bytes: int) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        async with session.get(url, raise_for_status=True) as response:
            await _write(response, part, url, max_bytes)
        await asyncio.to_thread(part.replace, path)
    except aiohttp.ClientResponseError as error:
        raise DownloadError(url, f"HTTP {error.status}") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DownloadError(url, str(error) or type(error).__name__) from error
    finally:
        part.unlink(missing_ok=True)


async def _write(response: aiohttp.ClientResponse, part: Path, url: str, max_bytes: int) -> None:
    room = max_bytes
    with await asyncio.to_thread(part.open, "wb") as file:
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            room -= len(chunk)
            if room < 0:
                raise DownloadError(url, f"larger than {max_bytes} bytes")
            await asyncio.to_thread(file.write, chunk)
