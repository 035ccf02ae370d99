"""Errors of calls: one exception, and one table from its reason to the gRPC status code."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from urllib.parse import quote

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from providers.base import Violation

DOMAIN = "generation.v1"
# An error is sent in HTTP/2 trailers. By default nginx accepts 4 KiB of them, and marks a server
# that sends more as failed. The message is percent-encoded there; the details, which repeat it,
# are base64-encoded.
ERROR_MAX_BYTES = 3_000  # the size of the message and the details, encoded
MESSAGE_MAX_BYTES = 600
MESSAGE_MAX_ENCODED_BYTES = 900
# The details contain the fields and descriptions of broken rules; the message needs only the first.
RULES_MAX_BYTES = 300
RULE_MAX_BYTES = 300  # the size of a field, and of its description
VIOLATIONS_MAX = 100  # reported for one call
METADATA_MAX_BYTES = 128
UNENCODED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # in gRPC's messages

CODES = {
    "INVALID_PARAMS": grpc.StatusCode.INVALID_ARGUMENT,
    "PROVIDER_REJECTED": grpc.StatusCode.INVALID_ARGUMENT,
    "PROVIDER_UNAUTHORIZED": grpc.StatusCode.FAILED_PRECONDITION,
    "CREDITS_EXHAUSTED": grpc.StatusCode.FAILED_PRECONDITION,
    "MODEL_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "PROVIDER_ERROR": grpc.StatusCode.ABORTED,
    "PROVIDER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "MODEL_NOT_ALLOWED": grpc.StatusCode.PERMISSION_DENIED,
    "TASK_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "REQUEST_ID_REUSED": grpc.StatusCode.ALREADY_EXISTS,
    "ARTIFACT_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "ARTIFACT_NOT_STORED": grpc.StatusCode.FAILED_PRECONDITION,
    "ALREADY_SUBMITTED": grpc.StatusCode.FAILED_PRECONDITION,
    "UPLOAD_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "UPLOAD_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "STORAGE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "STREAM_EXPIRED": grpc.StatusCode.UNAVAILABLE,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "RESUME_TOKEN_EXPIRED": grpc.StatusCode.OUT_OF_RANGE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
RETRY_SECONDS = {
    "PROVIDER_UNAVAILABLE": 5.0,
    "RATE_LIMITED": 5.0,
    "STORAGE_UNAVAILABLE": 1.0,
    "STREAM_EXPIRED": 0.0,
    "SHUTTING_DOWN": 1.0,
}
# What each limit counts, and what a caller can do about it.
LIMITS = {
    "queue": ("tasks waiting to be sent", "retry once some of them have been sent"),
    "creates_per_minute": ("creates in a minute", "retry later, as RetryInfo says"),
    "requests": ("bytes of parameters being stored", "retry once they are stored"),
    "watches": ("open streams", "close one of them first"),
    "uploads": ("uploads and downloads at a time", "retry once one of them has ended"),
    "lists": ("lists at a time", "retry once one of them has been answered"),
}
# If a task FAILED for one of these, the provider refused it: nothing was bought, and CreateTask
# returns the error.
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
    """The error that ends a call.

    Every part of it is limited in size, so that it can be logged and sent unchanged.

    Attributes:
        reason: A key of CODES.
        message: Truncated to what a status may contain.
        metadata: Goes into ErrorInfo, such as the task_id.
        violations: Go into BadRequest.
        retry_seconds: Goes into RetryInfo; by default from RETRY_SECONDS.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_seconds: float | None = None,
    ) -> None:
        self.message = _cut_message(message)
        super().__init__(self.message)
        self.reason = reason
        self.metadata = {
            key: _cut(value, METADATA_MAX_BYTES) for key, value in (metadata or {}).items()
        }
        self.violations = violations[:VIOLATIONS_MAX]
        self.retry_seconds = RETRY_SECONDS.get(reason) if retry_seconds is None else retry_seconds

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return CODES[self.reason]

    def status(self) -> grpc.Status:
        """Return the rich status, for `context.abort_with_status`."""
        if self.metadata or self.violations:
            return self._status()
        return _plain_status(self.reason, self.message, self.retry_seconds)

    def _status(self) -> grpc.Status:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.append(_pack(self._info()))
        if self.retry_seconds is not None:
            status.details.append(_pack(_retry_info(self.retry_seconds)))
        if self.violations:
            room = ERROR_MAX_BYTES - len(_percent_encoded(self.message))
            _add_violations(status, self.violations, room)
        rich: grpc.Status = rpc_status.to_status(status)
        return rich

    def _info(self) -> error_details_pb2.ErrorInfo:
        return error_details_pb2.ErrorInfo(
            reason=self.reason, domain=DOMAIN, metadata=self.metadata
        )


@lru_cache(maxsize=64)
def _plain_status(reason: str, message: str, retry_seconds: float | None) -> grpc.Status:
    """Build a status once, and reuse it: refused callers tend to repeat the same call."""
    return ServiceError(reason, message, retry_seconds=retry_seconds)._status()  # noqa: SLF001


def invalid(field: str, description: str) -> ServiceError:
    """Return the error for one broken rule."""
    return invalid_params([Violation(field, description)])


def invalid_params(violations: Iterable[Violation]) -> ServiceError:
    """Return the error for broken rules, limited to what one call reports."""
    reported = list(islice(violations, VIOLATIONS_MAX))
    return ServiceError("INVALID_PARAMS", _words(reported), violations=reported)


def rate_limited(
    limit: str, most: int, *, caller: str = "", retry_seconds: float | None = None
) -> ServiceError:
    """Return the error for a call over a limit of the caller, or else of the service."""
    counted, advice = LIMITS[limit]
    who, scope = (f"caller {caller}", "caller") if caller else ("the service", "service")
    return ServiceError(
        "RATE_LIMITED",
        f"{who} has reached its limit `{limit}` of {most} {counted}:"
        f" {advice if caller else 'retry later'}",
        metadata={"limit": limit, "max": str(most), "scope": scope},
        retry_seconds=retry_seconds,
    )


def shutting_down() -> ServiceError:
    """Return the error that ends streams at a shutdown."""
    return ServiceError("SHUTTING_DOWN", "the server is shutting down; reconnect")


def not_found(task_id: str) -> ServiceError:
    """Return the error for a task that does not exist or belongs to another caller."""
    return ServiceError("TASK_NOT_FOUND", f"there is no task {task_id}")


def _words(violations: Sequence[Violation]) -> str:
    """Describe the first broken rules, and count the others."""
    words = ""
    for number, violation in enumerate(violations):
        rule = f"{_cut(violation.field)} {_cut(violation.description)}"
        if number and len(words) + len(rule) > RULES_MAX_BYTES:
            return f"{words}; and {len(violations) - number} more"
        words += f"; {rule}" if number else rule
    return words


def _add_violations(status: status_pb2.Status, violations: Sequence[Violation], room: int) -> None:
    """Add as many fields as fit into the encoded status."""
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        bad_request.field_violations.add(
            field=_cut(violation.field), description=_cut(violation.description)
        )
        if _base64_bytes(status.ByteSize() + _pack(bad_request).ByteSize()) > room:
            del bad_request.field_violations[-1]
            break
    status.details.append(_pack(bad_request))


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(round(seconds * 1_000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _pack(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _base64_bytes(size: int) -> int:
    return math.ceil(size / 3) * 4


def _cut(text: str, max_bytes: int = RULE_MAX_BYTES) -> str:
    return text[:max_bytes].encode(errors="replace")[:max_bytes].decode(errors="ignore")


def _cut_message(text: str) -> str:
    """Truncate a message to its limits, both plain and percent-encoded."""
    text = _cut(text, MESSAGE_MAX_BYTES)
    if len(_percent_encoded(text)) <= MESSAGE_MAX_ENCODED_BYTES:
        return text
    sizes = accumulate(len(_percent_encoded(character)) for character in text)
    return text[: sum(size <= MESSAGE_MAX_ENCODED_BYTES for size in sizes)]


def _percent_encoded(message: str) -> str:
    return quote(message, safe=UNENCODED)
