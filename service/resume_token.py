"""Resume tokens of WatchTasks: a position, bound to a caller, a filter and a history of changes.

The checksum in a token distinguishes a damaged token from one that has expired.
"""

import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from service.errors import ServiceError, invalid
from service.tokens import binding, decode_token, encode_token
from storage.changes import Position

VERSION = 1
TOKEN_MAX_CHARACTERS = 1_500  # more than the longest task id takes
CHECK_BYTES = 4
NUMBER_MAX = (1 << 63) - 1  # the largest INTEGER of SQLite
CAUSES = {
    "deleted": "tasks that changed after it have been deleted",
    "restored": "the database was restored or replaced",
    "version": "another version of the service made it",
}
# The version, the epoch, the binding, the start, the number; the id of the task follows.
HEAD = struct.Struct(">B8s8sQQ")


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which tasks a stream of all changes has: of a caller, of a prompt, only ended ones."""

    caller: str
    prompt_id: str = ""
    ended_only: bool = False

    def binding(self) -> bytes:
        """Return what binds a token to this filter."""
        return binding(repr(self))


class ResumePoint(NamedTuple):
    """Where a stream continues.

    Attributes:
        epoch: The history of changes that it belongs to.
        start: The number of the first change that could not be read yet when the stream began. A
            stream misses nothing if a task is deleted whose last change came before that.
        position: Everything before it was sent.
    """

    epoch: bytes
    start: int
    position: Position


def write_token(point: ResumePoint, bound: bytes) -> str:
    """Return the token of a point."""
    epoch, start, (number, task_id) = point
    body = HEAD.pack(VERSION, epoch, bound, start, number) + task_id.encode()
    return encode_token(body + _check(body))


def read_token(token: str, bound: bytes) -> ResumePoint | None:
    """Return the point of a token; None if another version of the service made it.

    Raises:
        ServiceError: INVALID_PARAMS if it is not a token, or comes from another caller or filter.
    """
    body = _body(token)
    if body[0] != VERSION:
        return None
    try:
        _, epoch, bound_to, start, number = HEAD.unpack(body[: HEAD.size])
        task_id = body[HEAD.size :].decode()
    except (struct.error, ValueError):
        raise _invalid() from None
    if max(start, number) > NUMBER_MAX:
        raise _invalid()
    if bound_to != bound:
        raise invalid("resume_token", "must come from a stream with the same caller and filter")
    return ResumePoint(epoch, start, Position(number, task_id))


def expired(cause: str) -> ServiceError:
    """Return the error for a token that cannot be honoured, by a key of CAUSES."""
    words = f"the resume_token has expired: {CAUSES[cause]}; start again without a token"
    return ServiceError("RESUME_TOKEN_EXPIRED", words)


def _body(token: str) -> bytes:
    raw = decode_token(token, TOKEN_MAX_CHARACTERS) or b""
    body, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    if not body or check != _check(body) or b"\0" in body[HEAD.size :]:
        raise _invalid()
    return body


def _check(body: bytes) -> bytes:
    return blake2b(body, digest_size=CHECK_BYTES).digest()


def _invalid() -> ServiceError:
    return invalid("resume_token", "must be a resume_token of this service, unchanged")
