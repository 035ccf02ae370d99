"""Files of settings, which are read again when they change."""

import math
import os
import stat
import time
from pathlib import Path

RECHECK_SECONDS = 1.0
FILE_MAX_BYTES = 1 << 20  # reading more would delay every call


class UnusableFileError(OSError, ValueError):
    """A file that is not regular, or too large."""


class WatchedFile:
    """A file, or none, that is checked for changes at most once in a while."""

    def __init__(self, path: Path | None, recheck_seconds: float = RECHECK_SECONDS) -> None:
        """Note the file as it is now.

        Raises:
            OSError: It does not exist, or is not a regular file.
        """
        self._path = path
        self._recheck_seconds = recheck_seconds
        self._stamp = stamp_of(path) if path else None
        self._checked = -math.inf

    def is_due(self) -> bool:
        """Return whether the next check is due; if it is, schedule the one after it."""
        now = time.monotonic()
        if now - self._checked < self._recheck_seconds:
            return False
        self._checked = now
        return True

    def changed(self) -> bytes | None:
        """Return the content if the file has changed since the last check.

        Raises:
            OSError: It cannot be read. It counts as changed when it can be read again.
        """
        if self._path is None:
            return None
        try:
            if (stamp := stamp_of(self._path)) == self._stamp:
                return None
            content = read_file(self._path)
        except OSError:
            self._stamp = None
            raise
        self._stamp = stamp
        return content


def stamp_of(file: Path) -> object:
    """Return a value that changes whenever the file does.

    Raises:
        OSError: The file does not exist. Or it is a pipe or a device: reading it could block the
            event loop for good.
    """
    status = file.stat()
    _check_type(status)
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_file(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: It cannot be read, is not a regular file or is larger than FILE_MAX_BYTES.
    """
    # A pipe that nobody writes to would block otherwise.
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
        _check_type(os.fstat(opened.fileno()))
        content = opened.read(FILE_MAX_BYTES + 1)
    if len(content) > FILE_MAX_BYTES:
        raise UnusableFileError(f"it is larger than {FILE_MAX_BYTES >> 10} KiB")
    return content


def text_in(content: bytes) -> str:
    """Return the text of a file, without the byte order mark that editors on Windows write.

    Raises:
        UnicodeDecodeError: It is not UTF-8.
    """
    return content.decode("utf-8-sig")


def _check_type(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError("it is not a regular file")
