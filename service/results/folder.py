"""A folder as a storage: a file is complete, and persisted, once it has its name.

The folder may be on a server that stops answering. Nothing else waits for it then, and the calls
fail in the end.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from service.results.content import Content
from service.results.errors import MissingError, StoreError
from service.results.places import READ_BYTES, Place
from service.results.threads import DaemonThreads

INCOMING = ".incoming"  # the folder of files that are not complete yet
ABANDONED_SECONDS = 3_600.0
THREADS_MAX = 32
STALL_SECONDS = 60.0  # for one operation: what a request to an object store may take, too
DISCARD_SECONDS = 1.0

T = TypeVar("T")

_threads = DaemonThreads(THREADS_MAX)


class Folder:
    """Files in a folder. Everything that may wait for the disk runs in threads."""

    def __init__(self, place: Place, stall_seconds: float = STALL_SECONDS) -> None:
        """Create the folder if there is none.

        It is not created later: a volume that is no longer mounted must not be replaced by a
        folder of another file system.

        Args:
            place: Where the folder is.
            stall_seconds: How long one operation may take.

        Raises:
            StoreError: It cannot be created.
        """
        self.place = place
        self._stall_seconds = stall_seconds
        self._root = Path(place.path)
        self._incoming = self._root / INCOMING
        with _store_errors():
            self._incoming.mkdir(parents=True, exist_ok=True)

    async def put(self, key: str, pieces: AsyncIterator[bytes], content: Content) -> None:
        """Write a file under a temporary name, and rename it once it is on disk."""
        del content  # files have no media types
        temporary = self._incoming / uuid4().hex
        file = await self._in_thread(_create, temporary)
        try:
            async for piece in pieces:
                await self._in_thread(file.write, piece)
            await self._in_thread(self._finish, file, temporary, key)
        except BaseException:
            with suppress(StoreError):  # `tidy` removes it later
                await self._in_thread(_discard, file, temporary, seconds=DISCARD_SECONDS)
            raise

    async def read(self, key: str, start: int, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the content of a file."""
        while start < size:
            piece = await self._in_thread(self._read, key, start, min(READ_BYTES, size - start))
            if not piece:
                raise StoreError("the file is shorter than the copy was")
            start += len(piece)
            yield piece

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete files, and the folders that become empty."""
        for key in keys:
            await self._in_thread(self._delete, key)

    async def sign(self, key: str, seconds: int) -> str | None:
        """Return None: there are no links to files."""
        del key, seconds
        return None

    async def tidy(self) -> None:
        """Delete temporary files that nobody has written to for an hour."""
        await self._in_thread(self._tidy)

    async def _in_thread(
        self, call: Callable[..., T], *arguments: object, seconds: float | None = None
    ) -> T:
        """Call in a thread.

        Raises:
            StoreError: An operation of the system failed, or does not end.
        """
        try:
            async with asyncio.timeout(seconds or self._stall_seconds):
                with _store_errors():
                    return await _threads.run(call, *arguments)
        except TimeoutError:
            raise StoreError("the file system of RESULTS_URL does not answer") from None

    def _path(self, key: str) -> Path:
        """Return the path of a file.

        Raises:
            StoreError: It is outside the folder, even by a symbolic link.
        """
        path = self._root / key
        if not path.resolve().is_relative_to(self._root.resolve()) or path == self._root:
            raise StoreError("the file is outside the folder of RESULTS_URL")
        return path

    def _finish(self, file: BinaryIO, temporary: Path, key: str) -> None:
        """Persist a file, and give it its name; a folder is persisted after each change of it."""
        target = self._path(key)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        for folder in {target.parent, *(each.parent for each in missing)}:
            _persist(folder)

    def _read(self, key: str, start: int, size: int) -> bytes:
        self._check_present()
        with self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _check_present(self) -> None:
        """Raise StoreError if the folder is gone, so that no file in it is taken for missing."""
        if not self._incoming.exists():
            raise StoreError("the folder of RESULTS_URL is missing")

    def _delete(self, key: str) -> None:
        self._check_present()
        path = self._path(key)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty
            for folder in path.parents:
                if folder == self._root:
                    break
                folder.rmdir()

    def _tidy(self) -> None:
        abandoned = time.time() - ABANDONED_SECONDS
        with suppress(FileNotFoundError):
            for file in self._incoming.iterdir():
                with suppress(OSError):
                    if file.stat().st_mtime < abandoned:
                        file.unlink()


def _create(path: Path) -> BinaryIO:
    return path.open("xb")


def _discard(file: BinaryIO, path: Path) -> None:
    """Remove a file that will not be completed. If that fails, it is removed by `tidy`."""
    with suppress(OSError):
        file.close()
    with suppress(OSError):
        path.unlink()


def _persist(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn errors of the system into StoreError, whose message does not contain a path."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(error.strerror or "missing") from None
    except OSError as error:
        raise StoreError(error.strerror or type(error).__name__) from None
