"""From what ended a call to its status: count it, log it, and delay callers that repeat it."""

import asyncio
import logging
import math
import uuid
from typing import Any

import grpc
import structlog

from service.calls import Call
from service.errors import ServiceError
from service.metrics import Metrics
from service.outage_log import OutageLog
from service.refusals import RefusalPace
from service.sparse import SparseLog
from storage.errors import StorageUnavailableError

OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})  # they need no token
SLOW_SECONDS = {"CreateTask": 15.0, "QueryTask": 1.0, "ListTasks": 1.0, "CancelTask": 1.0}
CALLERS_ERRORS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
DELAYED = CALLERS_ERRORS | {grpc.StatusCode.RESOURCE_EXHAUSTED}
PLANNED = frozenset({"STREAM_EXPIRED", "SHUTTING_DOWN"})

log = structlog.get_logger()


class Method:
    """What all calls of a method share, looked up once."""

    __slots__ = ("calls", "handler", "is_open", "name", "slow_seconds")

    def __init__(self, path: str, metrics: Metrics) -> None:
        self.name = path.rpartition("/")[2]
        self.is_open = path in OPEN_METHODS
        self.slow_seconds = SLOW_SECONDS.get(self.name, math.inf)
        self.calls = metrics.calls(self.name)
        self.handler: Any = None


class Endings:
    """Records how calls end."""

    def __init__(self, outage_log: OutageLog) -> None:
        self._outage_log = outage_log
        self._pace = RefusalPace()
        self._log = SparseLog()

    def flush(self) -> None:
        """Write the counts of suppressed log lines that are due."""
        self._log.flush()

    def succeed(self, method: Method, seconds: float) -> None:
        """Count a call that succeeded, and log it if it was slow."""
        method.calls.succeeded(seconds)
        if seconds > method.slow_seconds:
            self._log.write(
                logging.WARNING, "slow call", {"method": method.name}, seconds=round(seconds, 3)
            )

    async def delay(self, call: Call, refusal: ServiceError) -> None:
        """Wait before the response if the caller's calls are refused again and again."""
        if refusal.code in DELAYED:
            await self._pace.hold(call.caller)

    def fail(
        self, method: Method, call: Call, error: BaseException, seconds: float
    ) -> ServiceError | None:
        """Count and log what ended a call; return the error for its caller, None if it has one."""
        if isinstance(error, asyncio.CancelledError) and call.end_error is not None:
            error = call.end_error
        if isinstance(error, grpc.aio.AbortError):  # the handler has set the status itself
            method.calls.failed(call.context.code().name, seconds)  # type: ignore[union-attr]
            _forget_frames(error)
            return None
        if not isinstance(error, Exception):
            method.calls.failed(grpc.StatusCode.CANCELLED.name, seconds)
            return None
        refusal = self._service_error(error, method.name)
        _forget_frames(error)
        method.calls.failed(refusal.code.name, seconds)
        self._log.write(
            _log_level(refusal),
            "call refused",
            {"caller": call.caller, "reason": refusal.reason},
            method=method.name,
            message=refusal.message,
            **refusal.metadata,
        )
        return refusal

    def _service_error(self, error: Exception, method: str) -> ServiceError:
        """Turn an exception into the error for the caller."""
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, StorageUnavailableError):
            self._outage_log.failed("storage unavailable, calls fail", error)
            return ServiceError(
                "STORAGE_UNAVAILABLE",
                "the database is unavailable; retry",
                retry_seconds=self._outage_log.retry_seconds(),
            )
        error_id = uuid.uuid4().hex[:12]
        log.error("unhandled exception", method=method, error_id=error_id, exc_info=error)
        return ServiceError("INTERNAL", f"an internal error, logged under {error_id}")


def _forget_frames(error: BaseException) -> None:
    """Drop the frames of an error, and with them the messages that the caller sent."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


def _log_level(error: ServiceError) -> int:
    """Return debug for planned ends, info for callers' errors, and warning for all others."""
    if error.reason in PLANNED:
        return logging.DEBUG
    return logging.INFO if error.code in CALLERS_ERRORS else logging.WARNING
