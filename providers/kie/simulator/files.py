"""The uploaded files: in a folder, limited in number and size, kept over a restart if wanted.

Each file has a metadata file next to it, written last: a file without readable metadata is ignored.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

FILES_MAX: Final = 10_000
FILES_MAX_BYTES: Final = 4 * 1024**3
KEPT_SECONDS: Final = 24 * 3600
"""How long an upload outlives its simulator: as long as Kie keeps one."""
NOTE_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that can be downloaded.

    Attributes:
        path: The path of its download URL.
        base_url: The host in its download URL.
        size_bytes: Its size.
        content_type: Its media type.
    """

    path: str
    base_url: str
    size_bytes: int
    content_type: str


class FileStore:
    """The uploaded files by their paths, oldest first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, tuple[StoredFile, Path]] = {}
        self._kept_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        for place in sorted(folder.iterdir(), key=_modified):
            if place.suffix != NOTE_SUFFIX:
                self._remember(place)

    def new_place(self) -> Path:
        """Return a new path to write a body to before it is known to be complete."""
        return self._folder / uuid4().hex

    def get(self, path: str) -> tuple[StoredFile, Path] | None:
        """Return the file of that path and its place on disk."""
        return self._files.get(path)

    def put(self, file: StoredFile, place: Path) -> None:
        """Keep the content at `place`; it replaces an earlier file of its path."""
        _note_of(place).write_text(json.dumps(asdict(file)), encoding="utf-8")
        self._keep(file, place)

    def clear(self) -> None:
        """Forget all files."""
        for path in list(self._files):
            self._drop(path)

    @property
    def base_urls(self) -> list[str]:
        """The hosts of the download URLs, oldest first."""
        return [file.base_url for file, _ in self._files.values()]

    def _remember(self, place: Path) -> None:
        file = _read_note(_note_of(place))
        if _modified(place) < time.time() - KEPT_SECONDS:
            _delete(place)
        elif file:
            self._keep(file, place)

    def _keep(self, file: StoredFile, place: Path) -> None:
        self._drop(file.path)
        self._files[file.path] = file, place
        self._kept_bytes += file.size_bytes
        while len(self._files) > FILES_MAX or self._kept_bytes > FILES_MAX_BYTES:
            self._drop(next(iter(self._files)))

    def _drop(self, path: str) -> None:
        if path in self._files:
            file, place = self._files.pop(path)
            self._kept_bytes -= file.size_bytes
            _delete(place)


def _note_of(place: Path) -> Path:
    return place.with_suffix(NOTE_SUFFIX)


def _read_note(note: Path) -> StoredFile | None:
    try:
        values: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return StoredFile(**values)
    except (OSError, ValueError, TypeError):
        return None


def _delete(place: Path) -> None:
    _note_of(place).unlink(missing_ok=True)
    place.unlink(missing_ok=True)


def _modified(place: Path) -> float:
    with suppress(OSError):
        return place.stat().st_mtime
    return 0.0
