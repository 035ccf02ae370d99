"""Files that are read again when they change."""

import math
import stat
import time
from pathlib import Path

RECHECK_SECONDS = 1.0


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
        """Return whether it is time for the next check; if so, the following one is due later."""
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
            content = self._path.read_bytes()
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
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    return status.st_mtime_ns, status.st_size, status.st_ino
