"""Files that are read again when they change."""

import stat
from pathlib import Path


def stamp_of(file: Path) -> object:
    """Return what changes whenever the file does.

    Raises:
        OSError: There is no such file. Or it is a pipe or a device: reading it could block the
            event loop for good.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    return status.st_mtime_ns, status.st_size, status.st_ino
