"""The files of a SQLite database: locked while it is open, and watched while it is in use.

SQLite continues to write to a file that was deleted or replaced, and all of that would be missing
after a restart. So the files are compared with those that were opened, by stat() only: closing
another descriptor of the database would drop SQLite's own locks on it.
"""

import fcntl
import logging
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from peewee import OperationalError

from storage.errors import StorageConfigError, StorageUnavailableError

SQLITE_MAGIC = b"SQLite format 3\0"
CHECK_SECONDS = 1.0  # between two checks of the files, however many transactions there are

logger = logging.getLogger(__name__)

Identity = tuple[int, int]


class SqliteFiles:
    """The database, its lock, and SQLite's own files next to it.

    Two pollers on one file would each assume to be the only one, and other users may not read it:
    it contains prompts. A lock file next to the database covers symbolic links. The lock on the
    database itself covers hard links and a lock file that was deleted; only Linux keeps such a lock
    separate from SQLite's own.
    """

    def __init__(self, path: Path) -> None:
        """Lock a database before SQLite opens it; create an empty file if there is none.

        Raises:
            StorageConfigError: Another process uses it, or it is not a SQLite database.
            StorageUnavailableError: It cannot be opened.
        """
        self._path = path
        self._checked = -CHECK_SECONDS
        self._lost: Path | None = None
        with ExitStack() as locks:
            try:
                if path.exists() and not _is_sqlite(path):
                    raise StorageConfigError(f"{path} is not a SQLite database")
                self._real = path.resolve()
                lock = locks.enter_context(self._named(".lock").open("w"))
                self._lock(lock)
                file = locks.enter_context(_opened(self._real))
                if sys.platform == "linux":
                    self._lock(file)
            except (OSError, RuntimeError) as error:  # the latter for links that form a loop
                words = getattr(error, "strerror", None) or str(error)
                raise StorageUnavailableError(f"cannot open {path}: {words}") from None
            opened = _identity(os.fstat(file.fileno()))
            self._used: dict[Path, Identity] = {
                path: opened,  # a link to the file may be replaced, too
                self._real: opened,
                self._named(".lock"): _identity(os.fstat(lock.fileno())),
            }
            self._locks = locks.pop_all()

    def watch(self) -> None:
        """Watch SQLite's own files as well: call it while a connection keeps them open."""
        for file in (self._named("-wal"), self._named("-shm")):
            if file.exists():
                self._used[file] = _identity(file.stat())
        self.check()

    def check(self) -> None:
        """Compare the files with those that were opened, at most once a second.

        Raises:
            OperationalError: One was deleted, moved or replaced: what is written now would be lost.
        """
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return
        lost = next((file for file, opened in self._used.items() if not _is_at(file, opened)), None)
        if lost is not None:
            if self._lost is None:
                logger.error("%s; nothing is stored until then", _words(lost))
            self._lost = lost
            raise OperationalError(_words(lost))
        if self._lost is not None:
            logger.info("%s is back", self._lost)
            self._lost = None
        self._checked = time.monotonic()

    def close(self) -> None:
        """Let other processes use the database. Close SQLite's connections first."""
        self._locks.close()

    def _named(self, suffix: str) -> Path:
        return self._real.with_name(self._real.name + suffix)

    def _lock(self, file: IO[Any]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageConfigError(
                f"{self._path} is in use by another process of this service"
            ) from None


def _words(lost: Path) -> str:
    return (
        f"{lost} was deleted, moved or replaced while this service uses it:"
        " put it back, or restart the service"
    )


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC)) in {b"", SQLITE_MAGIC}


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _is_at(path: Path, opened: Identity) -> bool:
    try:
        return _identity(path.stat()) == opened
    except OSError:
        return False
