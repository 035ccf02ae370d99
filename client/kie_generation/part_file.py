"""A file that is not complete yet, and that a later process may continue."""

import fcntl
import hashlib
import os
import re
import stat
from pathlib import Path, PurePath

from kie_generation import media
from kie_generation.download import DownloadError
from kie_generation.generated.generation.v1.generation_pb2 import ArtifactInfo

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


class PartFile:
    """Bytes of a result, from its beginning on. Its methods block: call them in threads.

    Attributes:
        size: How many bytes there are.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Open the file, or create it, and lock it.

        Args:
            path: The file. A symbolic link is not followed.
            what: The result, for errors.

        Raises:
            DownloadError: Another download of the result is in progress.
            OSError: It cannot be opened.
        """
        self._path = path
        self._what = what
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        self._file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(self._file.fileno())
        except BlockingIOError:
            self._file.close()
            raise DownloadError(what, "another download of it is in progress") from None
        if not stat.S_ISREG(found.st_mode):
            self._file.close()
            raise DownloadError(what, f"{path} is not a file")
        self.size = found.st_size

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self._file.write(chunk)
        self.size += len(chunk)

    def empty(self) -> None:
        """Start again from the beginning."""
        self._file.truncate(0)
        self.size = 0

    def complete(self, stem: Path, info: ArtifactInfo) -> Path:
        """Rename the file to `stem` with the extension of its type; return the path.

        Raises:
            DownloadError: The content is not the result; the file is removed.
        """
        self._file.flush()
        self._file.seek(0)
        head = self._file.read(media.HEAD_BYTES)
        if wrong := self._problem(head, info):
            self._path.unlink(missing_ok=True)
            raise DownloadError(self._what, wrong)
        path = stem.with_name(stem.name + _extension(head, info))
        self._path.replace(path)
        return path

    def close(self) -> None:
        """Close the file. What it contains remains, unless it is nothing."""
        self._file.close()
        if not self.size:
            self._path.unlink(missing_ok=True)

    def _problem(self, head: bytes, info: ArtifactInfo) -> str:
        """Return what is wrong with the content, "" if nothing is."""
        if info.sha256:
            self._file.seek(0)
            if hashlib.file_digest(self._file, "sha256").digest() != info.sha256:
                return "the SHA-256 of the content is not that of the copy"
            return ""
        if info.HasField("size_bytes") and info.size_bytes != self.size:
            return f"it has {self.size} bytes, not {info.size_bytes}"
        return media.problem(head, info.mime_type, info.mime_type)


def _extension(head: bytes, info: ArtifactInfo) -> str:
    """Return the extension of what a file is or, if that is not recognised, should be."""
    if found := media.sniffed(head):
        return media.extension(found)
    suffix = PurePath(info.file_name).suffix
    return suffix if _SUFFIX.fullmatch(suffix) else media.extension(info.mime_type)
