"""What a call can raise, read from google.rpc.Status.

    GenerationError                any call that failed, also for a reason unknown to this client
    ├── InvalidRequestError        the request is invalid: fix what `violations` name
    ├── RefusedError               the provider said no; of a create, `task_id` is the FAILED task.
    │                              Or the model is disabled, or not allowed for this caller
    ├── TaskNotFoundError          no such task, or another caller's
    ├── UnauthenticatedError       the token is missing or wrong, or TLS fails (certificates)
    └── UnavailableError           not now: call again, `retry_after` seconds later if it is set

A task that was accepted and then FAILED is no error of a call: it is the last snapshot, and
`task.failure` says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

DOMAIN = "generation.v1"

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Violation:
    """A broken rule: the field's path in the request, and what is wrong with it."""

    field: str
    description: str


class GenerationError(Exception):
    """A call failed.

    Attributes:
        code: the gRPC status code.
        reason: a name of ErrorReason without its prefix; "" when the answer is not the service's
            own (a lost connection, a proxy, an unknown method).
        message: for people.
        metadata: ErrorInfo.metadata.
        violations: the broken rules, by field.
        retry_after: the seconds after which the service suggests another try.
        request_id: of a create, the id that went with it: a create again with this id buys nothing
            twice.
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
        """The task that the error is about, as one that the provider refused; "" for none."""
        return self.metadata.get("task_id", "")


class TokenError(ValueError):
    """A token that no call can carry; found before any call."""


class InvalidRequestError(GenerationError):
    """The request is wrong as it stands; `violations` name the fields."""


class RefusedError(GenerationError):
    """The provider said no: after a create, the task is stored FAILED as `task_id`.

    Or this service did, and there is no task: the caller may not use the model, or nobody may.
    """


class TaskNotFoundError(GenerationError):
    """There is no such task, or it is another caller's."""


class UnauthenticatedError(GenerationError):
    """The token is missing or wrong, or TLS does not work with the certificates there are."""


class UnavailableError(GenerationError):
    """The service cannot answer now; another try may succeed.

    It should come after `retry_after` seconds if that is set. A create that ends so may have been
    accepted: call again with the error's `request_id`.
    """


_BY_REASON: Mapping[str, type[GenerationError]] = {
    "MODEL_NOT_ALLOWED": RefusedError,
    "MODEL_UNAVAILABLE": RefusedError,
    "CREDITS_EXHAUSTED": RefusedError,
    "PROVIDER_ERROR": RefusedError,
    "PROVIDER_REJECTED": RefusedError,
    "PROVIDER_UNAUTHORIZED": RefusedError,
    "RATE_LIMITED": UnavailableError,
    "UPLOAD_TOO_LARGE": InvalidRequestError,
}

# Without the service's ErrorInfo these mean that the answer was lost on the way: a connection that
# broke, a proxy, a server that died. Libraries and proxies differ in which of them they report.
_LOST = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)

# C-core's words for a TLS handshake that fails for good, in lower case. "Handshake read failed" is
# only a lost connection.
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
    """Translates what grpc raised.

    Details that are missing, foreign or broken leave the code and the message.
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
        retry_after=None if retry is None else retry.retry_delay.ToTimedelta().total_seconds(),
    )


def _class_of(code: grpc.StatusCode, reason: str, message: str) -> type[GenerationError]:
    if not reason and any(words in message.lower() for words in _TLS_FAILURES):
        return UnauthenticatedError
    # A server that is overloaded may end a stream with RESOURCE_EXHAUSTED and nothing else.
    overloaded = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "RST_STREAM" in message
    if not reason and (code in _LOST or overloaded):
        return UnavailableError
    return _BY_REASON.get(reason) or _BY_CODE.get(code, GenerationError)


def _details(error: grpc.aio.AioRpcError) -> tuple[AnyMessage, ...]:
    try:
        # The synchronous reader: an AioRpcError holds its trailing metadata already.
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return ()  # contradicts the status line, or is no google.rpc.Status
    return () if status is None else tuple(status.details)


def _find(details: tuple[AnyMessage, ...], wanted: M) -> M | None:
    try:
        return wanted if any(detail.Unpack(wanted) for detail in details) else None
    except DecodeError:
        return None


def _violations(request: error_details_pb2.BadRequest | None) -> tuple[Violation, ...]:
    found = [] if request is None else request.field_violations
    return tuple(Violation(each.field, each.description) for each in found)
