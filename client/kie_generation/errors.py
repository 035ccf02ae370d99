"""What a call can raise, read from google.rpc.Status.

    GenerationError                a failed call; raised itself for reasons without a subclass
    ├── InvalidRequestError        the request is invalid: fix what `violations` name
    ├── RefusedError               the provider refused; after a create, `task_id` is the FAILED
    │                              task. Or the model is disabled or not allowed for this caller
    ├── ArtifactNotFoundError      the task has no such result, or it no longer exists
    ├── TaskNotFoundError          the task does not exist or belongs to another caller
    ├── UnauthenticatedError       the token is missing or invalid, or TLS fails (certificates)
    └── UnavailableError           temporarily unavailable: retry (after `retry_after` seconds)

A task that was accepted and failed later does not raise: its last snapshot has the status FAILED,
and `task.failure` says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

DOMAIN = "generation.v1"

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Violation:
    """An invalid field: its path in the request, and what is wrong with it."""

    field: str
    description: str


class GenerationError(Exception):
    """A call failed.

    Attributes:
        code: The gRPC status code.
        reason: A name of ErrorReason without its prefix; "" if the error does not come from the
            service itself (a lost connection, a proxy, an unknown method).
        message: The explanation, for people.
        metadata: The metadata of google.rpc.ErrorInfo.
        violations: The invalid fields, from google.rpc.BadRequest.
        retry_after: The seconds to wait before a retry, from google.rpc.RetryInfo.
        request_id: The id that a create was sent with. Repeating the create with this id never
            pays twice.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after = retry_after
        self.request_id = ""

    @property
    def task_id(self) -> str:
        """The task that the error is about, such as one that the provider refused; "" for none."""
        return self.metadata.get("task_id", "")


class TokenError(ValueError):
    """The token contains characters that cannot be sent; raised before any call."""


class InvalidRequestError(GenerationError):
    """The request is invalid; `violations` name the fields."""


class RefusedError(GenerationError):
    """The provider refused; after a create, the task is stored as FAILED, and `task_id` is its id.

    Or the service refused, and there is no task: the model is disabled or not allowed here.
    """


class ArtifactNotFoundError(GenerationError):
    """The task has no such result, or neither a copy nor the provider still has it."""


class TaskNotFoundError(GenerationError):
    """The task does not exist or belongs to another caller."""


class UnauthenticatedError(GenerationError):
    """The token is missing or invalid, or TLS fails with the given certificates."""


class UnavailableError(GenerationError):
    """The service is temporarily unavailable; a retry may succeed.

    Wait `retry_after` seconds before it, if that is set. A create that ends this way may have been
    accepted: repeat it with the error's `request_id`.
    """


_BY_REASON: Mapping[str, type[GenerationError]] = {
    "ARTIFACT_NOT_FOUND": ArtifactNotFoundError,
    "MODEL_NOT_ALLOWED": RefusedError,
    "MODEL_UNAVAILABLE": RefusedError,
    "CREDITS_EXHAUSTED": RefusedError,
    "PROVIDER_ERROR": RefusedError,
    "PROVIDER_REJECTED": RefusedError,
    "PROVIDER_UNAUTHORIZED": RefusedError,
    "RATE_LIMITED": UnavailableError,
    "UPLOAD_TOO_LARGE": InvalidRequestError,
}

# Without the service's ErrorInfo these mean that the response was lost: a broken connection, a
# proxy, a killed server. gRPC libraries and proxies differ in which of them they report.
_LOST = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)

# How C-core describes a TLS handshake that fails permanently, in lower case. "Handshake read
# failed" is not among them: it is only a lost connection.
_TLS_FAILURES = ("handshake failed", "security handshaker", "certificate verify failed")

_BY_CODE: Mapping[grpc.StatusCode, type[GenerationError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: UnavailableError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: TaskNotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: UnauthenticatedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}


def from_rpc(error: grpc.aio.AioRpcError) -> GenerationError:
    """Translate an error of gRPC.

    If its details are missing, unknown or malformed, only the code and the message are used.
    """
    details = _details(error)
    info = _find(details, error_details_pb2.ErrorInfo())
    retry = _find(details, error_details_pb2.RetryInfo())
    reason = info.reason if info is not None and info.domain == DOMAIN else ""
    message = error.details() or ""
    return _class_of(error.code(), reason, message)(
        error.code(),
        message,
        reason=reason,
        metadata=info.metadata if info is not None and reason else None,
        violations=_violations(_find(details, error_details_pb2.BadRequest())),
        retry_after=None if retry is None else _seconds(retry.retry_delay),
    )


def _class_of(code: grpc.StatusCode, reason: str, message: str) -> type[GenerationError]:
    if not reason and any(words in message.lower() for words in _TLS_FAILURES):
        return UnauthenticatedError
    # An overloaded server may reset a stream with RESOURCE_EXHAUSTED and without details.
    overloaded = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "RST_STREAM" in message
    if not reason and (code in _LOST or overloaded):
        return UnavailableError
    return _BY_REASON.get(reason) or _BY_CODE.get(code, GenerationError)


def _details(error: grpc.aio.AioRpcError) -> tuple[AnyMessage, ...]:
    try:
        # The synchronous function: an AioRpcError already holds its trailing metadata.
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return ()  # not a google.rpc.Status, or it contradicts the status of the call
    return () if status is None else tuple(status.details)


def _find(details: tuple[AnyMessage, ...], wanted: M) -> M | None:
    try:
        return wanted if any(detail.Unpack(wanted) for detail in details) else None
    except DecodeError:
        return None


def _seconds(delay: Duration) -> float:
    """Return a delay in seconds, whatever a server sends: a timedelta takes only valid ones."""
    return max(0.0, delay.seconds + delay.nanos / 1_000_000_000)


def _violations(request: error_details_pb2.BadRequest | None) -> tuple[Violation, ...]:
    found = [] if request is None else request.field_violations
    return tuple(Violation(each.field, each.description) for each in found)
