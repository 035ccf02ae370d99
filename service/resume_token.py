"""Resume tokens of WatchTasks: a position, bound to a caller, a filter and a history of changes.

A token grants no access, as all changes are filtered by the caller. Its checksum only tells a
damaged token from one that can no longer be honoured.
"""

import base64
import binascii
import struct
from dataclasses import dataclass
from hashlib import blake2b

from service.errors import ServiceError, invalid
from storage.changes import Position

VERSION = 1
TOKEN_MAX_CHARACTERS = 1_500  # more than the longest task id takes
CHECK_BYTES = 4
NUMBER_MAX = (1 << 63) - 1  # of SQLite's integers
CAUSES = {
    "deleted": "tasks that changed after it have been deleted",
    "restored": "the database was restored or replaced",
    "version": "another version of the service made it",
}
HEAD = struct.Struct(">B8s8sQ")  # the version, the epoch, the binding, the number


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Selects the tasks of a stream: of one caller, of one prompt if set, ended ones if set."""

    caller: str
    prompt_id: str = ""
    ended_only: bool = False

    def binding(self) -> bytes:
        """Return what ties a token to this filter."""
        return blake2b(repr(self).encode(), digest_size=8).digest()


def write_token(position: Position, epoch: bytes, binding: bytes) -> str:
    """Return the token of a position."""
    body = HEAD.pack(VERSION, epoch, binding, position.number) + position.task_id.encode()
    return base64.urlsafe_b64encode(body + _check(body)).decode()


def read_token(token: str, binding: bytes) -> tuple[Position, bytes]:
    """Return the position of a token, and its epoch.

    Raises:
        ServiceError: INVALID_PARAMS if it is no token, or one of another caller or filter;
            RESUME_TOKEN_EXPIRED if it was made by another version of the service.
    """
    body = _body(token)
    if body[0] != VERSION:
        raise expired("version")
    try:
        _, epoch, bound, number = HEAD.unpack(body[: HEAD.size])
        task_id = body[HEAD.size :].decode()
    except (struct.error, ValueError):
        raise _invalid() from None
    if number > NUMBER_MAX:
        raise _invalid()
    if bound != binding:
        raise invalid("resume_token", "must come from a stream with the same caller and filter")
    return Position(number, task_id), epoch


def expired(cause: str) -> ServiceError:
    """Return the error for a token that cannot be honoured, by a key of CAUSES."""
    words = f"the resume_token has expired: {CAUSES[cause]}; start again without a token"
    return ServiceError("RESUME_TOKEN_EXPIRED", words)


def _body(token: str) -> bytes:
    if len(token) > TOKEN_MAX_CHARACTERS:
        raise _invalid()
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _invalid() from None
    body, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    if not body or check != _check(body) or b"\0" in body[HEAD.size :]:
        raise _invalid()
    return body


def _check(body: bytes) -> bytes:
    return blake2b(body, digest_size=CHECK_BYTES).digest()


def _invalid() -> ServiceError:
    return invalid("resume_token", "must be a resume_token of this service, unchanged")
