"""The file in which a stream of all changes remembers where it resumes.

It holds the request with which the stream is opened again, as JSON.
"""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from kie_generation.generated.generation.v1.generation_pb2 import WatchTasksRequest

FORMAT = "kie-generation watch_tasks 1"
MAX_BYTES = 64 * 1024  # many times what a request takes


class StateFileError(Exception):
    """A state file of `watch_tasks` is damaged, or belongs to another stream."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}; use another file, or delete this one to start over")
        self.path = path


class StateFile:
    """The state of one stream. Only one process at a time may use it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self, request: WatchTasksRequest) -> None:
        """Set where a stream resumes, if the file exists; it is created otherwise.

        Raises:
            StateFileError: It is not a state file, or that of a stream with another filter.
            OSError: It cannot be read or written.
        """
        with suppress(FileNotFoundError):
            stored = self._read()
            if (stored.prompt_id, stored.ended_only) != (request.prompt_id, request.ended_only):
                what = f"prompt_id {stored.prompt_id!r} and ended_only {stored.ended_only}"
                raise StateFileError(self.path, f"belongs to a stream with {what}")
            request.CopyFrom(stored)
        self.save(request)  # also shows that it can be written, before anything is handled

    def _read(self) -> WatchTasksRequest:
        with self.path.open("rb") as file:
            content = file.read(MAX_BYTES)
        try:
            stored = json.loads(content)
            if not isinstance(stored, dict) or stored.pop("format", None) != FORMAT:
                raise StateFileError(self.path, "is not a state file of watch_tasks")
            return ParseDict(stored, WatchTasksRequest())
        except (ValueError, RecursionError, ParseError) as error:
            raise StateFileError(self.path, "is damaged") from error

    def save(self, request: WatchTasksRequest) -> None:
        """Replace the file atomically. Only its owner can read it.

        After a power failure it may be an older one, which only repeats what was delivered.
        """
        stored = {"format": FORMAT, **MessageToDict(request, preserving_proto_field_name=True)}
        try:
            self._replace(json.dumps(stored).encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _replace(self, content: bytes) -> None:
        target = self.path.resolve()  # replaces the file that a symbolic link leads to
        part = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with os.fdopen(
                os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
