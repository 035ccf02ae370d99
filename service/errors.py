"""What goes wrong with a call: one exception, and one table from its reason to the gRPC status."""

from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from providers.base import Violation

DOMAIN = "generation.v1"
# Error details travel in HTTP/2 trailers, of which clients take 8 KiB by default; percent- and
# base64-encoding included.
MESSAGE_MAX_BYTES = 600
VIOLATIONS_MAX_BYTES = 2_400

CODES = {
    "INVALID_PARAMS": grpc.StatusCode.INVALID_ARGUMENT,
    "PROVIDER_REJECTED": grpc.StatusCode.INVALID_ARGUMENT,
    "PROVIDER_UNAUTHORIZED": grpc.StatusCode.FAILED_PRECONDITION,
    "CREDITS_EXHAUSTED": grpc.StatusCode.FAILED_PRECONDITION,
    "MODEL_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "PROVIDER_ERROR": grpc.StatusCode.ABORTED,
    "PROVIDER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TASK_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "REQUEST_ID_REUSED": grpc.StatusCode.ALREADY_EXISTS,
    "ALREADY_SUBMITTED": grpc.StatusCode.FAILED_PRECONDITION,
    "UPLOAD_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "UPLOAD_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "STORAGE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "STREAM_EXPIRED": grpc.StatusCode.UNAVAILABLE,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
RETRY_SECONDS = {
    "PROVIDER_UNAVAILABLE": 5.0,
    "RATE_LIMITED": 5.0,
    "STORAGE_UNAVAILABLE": 1.0,
    "STREAM_EXPIRED": 0.0,
    "SHUTTING_DOWN": 1.0,
}
# A task that FAILED for one of these was refused by the provider: nothing was bought, and
# CreateTask says so.
REFUSALS = frozenset(
    {
        "PROVIDER_REJECTED",
        "PROVIDER_UNAUTHORIZED",
        "CREDITS_EXHAUSTED",
        "MODEL_UNAVAILABLE",
        "PROVIDER_ERROR",
    }
)


class ServiceError(Exception):
    """The end of a call that did not succeed.

    Attributes:
        reason: A key of CODES.
        metadata: Goes into ErrorInfo, such as the task_id.
        violations: Go into BadRequest.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.violations = violations

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return CODES[self.reason]

    def status(self) -> grpc.Status:
        """Return the rich status, for `context.abort_with_status`."""
        message = _cut(self.message, MESSAGE_MAX_BYTES)
        status = status_pb2.Status(code=self.code.value[0], message=message)
        status.details.extend(map(_pack, self._details()))
        rich: grpc.Status = rpc_status.to_status(status)
        return rich

    def _details(self) -> list[Message]:
        info = error_details_pb2.ErrorInfo(
            reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata)
        )
        details: list[Message] = [info]
        if self.violations:
            details.append(_bad_request(self.violations))
        if self.reason in RETRY_SECONDS:
            details.append(_retry_info(RETRY_SECONDS[self.reason]))
        return details


def invalid(field: str, description: str) -> ServiceError:
    """Return the error of one broken rule."""
    return invalid_params([Violation(field, description)])


def invalid_params(violations: Sequence[Violation]) -> ServiceError:
    """Return the error of broken rules, all at once."""
    words = "; ".join(f"{v.field} {v.description}" for v in violations)
    return ServiceError("INVALID_PARAMS", words, violations=violations)


def not_found(task_id: str) -> ServiceError:
    """Return the error of a task that is not there, or not the caller's."""
    return ServiceError("TASK_NOT_FOUND", f"there is no task {task_id}")


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    """Name the fields, as many as a trailer holds."""
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        bad_request.field_violations.add(
            field=violation.field, description=_cut(violation.description, MESSAGE_MAX_BYTES)
        )
        if bad_request.ByteSize() > VIOLATIONS_MAX_BYTES:
            break
    return bad_request


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(round(seconds * 1_000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _pack(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore")
