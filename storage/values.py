"""What a task consists of: its status, its stage and its lane, its results, and why it failed."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The status of a task. The names are the proto's, without their prefix."""

    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class Lane(StrEnum):
    """The queue in which a task waits for its due time.

    An ended task waits in none, unless a late delivery is possible.
    """

    SUBMIT = "submit"
    POLL = "poll"
    LATE = "late"
    STORE = "store"


class Stage(StrEnum):
    """How far a PENDING task is. The names are the proto's, without their prefix."""

    ACCEPTED = "ACCEPTED"
    SUBMITTING = "SUBMITTING"
    QUEUED = "QUEUED"
    GENERATING = "GENERATING"
    STORING = "STORING"


@dataclass(frozen=True, slots=True)
class Copy:
    """A result in our own storage.

    Attributes:
        uri: Where it is.
        size_bytes: Its size.
        sha256: The SHA-256 of its content, hexadecimal.
        mime_type: The media type that its content shows.
    """

    uri: str
    size_bytes: int
    sha256: str
    mime_type: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """One result.

    Attributes:
        url: Where the provider serves it.
        mime_type: Its media type, by its URL.
        copy: Its copy, if there is one.
        storage_error: Why there is no copy, if results are copied.
        more: What a newer version stored with it: a JSON object as text, or "".
    """

    url: str
    mime_type: str
    copy: Copy | None = None
    storage_error: str = ""
    more: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task failed: the name of an ErrorReason, a message, and the provider's code or ""."""

    reason: str
    message: str
    provider_code: str = ""
