"""The one interceptor: who calls, what the bytes say, and which status an exception is.

It takes every call as raw bytes and parses them itself, as grpc.aio answers UNKNOWN to bytes that
do not parse before any handler sees them. Streams are written from a coroutine, so that a cancelled
one is cleaned up at once and not when its generator is collected.
"""

import asyncio
import inspect
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from service.callers import Callers, current_caller
from service.errors import ServiceError
from service.metrics import Metrics
from storage.errors import StorageUnavailableError

SERVICE_PREFIX = "/generation.v1."  # health and reflection need no token
SLOW_SECONDS = {"CreateTask": 15.0, "QueryTask": 1.0, "ListTasks": 1.0, "CancelTask": 1.0}
AUTHORIZATION = "authorization"

# What the call under way brought along: the interceptor has it already, where asking for it again
# costs as much as the rest of the boundary.
_metadata: ContextVar[Iterable[tuple[str, str | bytes]]] = ContextVar("_metadata")

log = structlog.get_logger()


class Boundary(grpc.aio.ServerInterceptor):
    """Stands around every call."""

    def __init__(self, callers: Callers, metrics: Metrics) -> None:
        self._callers = callers
        self._metrics = metrics
        self._wrapped: dict[str, Any] = {}
        self._open_calls = 0
        self._idle: asyncio.Event | None = None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler with everything around it; None for a method that is not there."""
        _metadata.set(handler_call_details.invocation_metadata)
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                self._metrics.unknown_method()
                return None
            self._wrapped[method] = self._wrap(_Method(method, self._metrics), handler)
        return self._wrapped[method]

    async def idle(self) -> None:
        """Wait until no call is under way: a stopped server returns before its handlers have."""
        if self._open_calls:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def _wrap(self, method: "_Method", handler: Any) -> Any:
        parse = _parser(handler.request_deserializer)
        if handler.request_streaming:
            read: Callable[[Any], Any] = lambda requests: _parsed(parse, requests)  # noqa: E731
        else:
            read = parse
        if handler.response_streaming:
            behaviour = self._streaming(method, handler.stream_stream or handler.unary_stream, read)
        else:
            behaviour = self._single(method, handler.stream_unary or handler.unary_unary, read)
        return _KINDS[handler.request_streaming, handler.response_streaming](
            behaviour, response_serializer=_serializer(handler.response_serializer)
        )

    def _single(self, method: "_Method", inner: Any, read: Callable[[Any], Any]) -> Any:
        async def call(request: Any, context: Any) -> Any:
            started = self._enter()
            try:
                self._identify(method)
                answer = await inner(read(request), context)
            except BaseException as error:
                await self._fail(method, context, started, error)
                raise
            self._succeed(method, started)
            return answer

        return call

    def _streaming(self, method: "_Method", inner: Any, read: Callable[[Any], Any]) -> Any:
        async def call(request: Any, context: Any) -> None:
            started = self._enter()
            try:
                self._identify(method)
                responses = inner(read(request), context)
                with _over_is_cancelled():
                    if inspect.isawaitable(responses):  # a handler that writes by itself
                        await responses
                    else:
                        await _write_all(responses, context)
            except BaseException as error:
                await self._fail(method, context, started, error)
                raise
            self._succeed(method, started)

        return call

    # --- from the entry of a call to its status ---

    def _enter(self) -> float:
        self._open_calls += 1
        return time.monotonic()

    def _identify(self, method: "_Method") -> None:
        if method.needs_caller:
            current_caller.set(self._callers.authenticate(_authorization(_metadata.get())))

    def _leave(self) -> None:
        self._open_calls -= 1
        if self._idle and not self._open_calls:
            self._idle.set()

    def _succeed(self, method: "_Method", started: float) -> None:
        self._leave()
        seconds = time.monotonic() - started
        method.calls.succeeded(seconds)
        if seconds > method.slow_seconds:
            log.warning("slow call", method=method.name, seconds=round(seconds, 3))

    async def _fail(
        self, method: "_Method", context: Any, started: float, error: BaseException
    ) -> None:
        self._leave()
        seconds = time.monotonic() - started
        if isinstance(error, grpc.aio.AbortError):  # a handler of grpc's own has refused it
            method.calls.failed(context.code().name, seconds)
        elif isinstance(error, Exception):
            refusal = _service_error(error, method.name)
            method.calls.failed(refusal.code.name, seconds)
            _log_refusal(refusal, method.name)
            with _over_is_cancelled():
                await context.abort_with_status(refusal.status())
        else:
            method.calls.failed(grpc.StatusCode.CANCELLED.name, seconds)


class _Method:
    """What is known of a method before its calls, so that they need not look it up."""

    __slots__ = ("calls", "name", "needs_caller", "slow_seconds")

    def __init__(self, path: str, metrics: Metrics) -> None:
        self.name = path.rpartition("/")[2]
        self.needs_caller = path.startswith(SERVICE_PREFIX)
        self.slow_seconds = SLOW_SECONDS.get(self.name, math.inf)
        self.calls = metrics.calls(self.name)


@contextmanager
def _over_is_cancelled() -> Iterator[None]:
    """Take a call that ended while something waited to be written for what it is.

    C-core fails the write, mostly before anybody is told that the call is over.
    """
    try:
        yield
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error


async def _write_all(responses: Any, context: Any) -> None:
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


_CALLERS_OWN = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
_PLANNED = frozenset({"STREAM_EXPIRED", "SHUTTING_DOWN"})
_KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _log_refusal(error: ServiceError, method: str) -> None:
    log.log(
        _log_level(error),
        "call refused",
        method=method,
        reason=error.reason,
        message=error.message,
        **error.metadata,
    )


def _log_level(error: ServiceError) -> int:
    """Planned ends are for debugging, callers' mistakes for information, the rest for a person."""
    if error.reason in _PLANNED:
        return logging.DEBUG
    return logging.INFO if error.code in _CALLERS_OWN else logging.WARNING


def _service_error(error: Exception, method: str) -> ServiceError:
    """Say what an exception is to the caller."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, StorageUnavailableError):
        log.error("storage unavailable", method=method, error=str(error))
        return ServiceError("STORAGE_UNAVAILABLE", "the database is away: retry")
    error_id = uuid.uuid4().hex[:12]
    log.error("a bug", method=method, error_id=error_id, exc_info=error)
    return ServiceError("INTERNAL", f"an internal error, logged under {error_id}")


def _serializer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Let answers pass that are bytes already."""
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


def _parser(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise ServiceError("INVALID_PARAMS", "the bytes are no such message") from None

    return parse


async def _parsed(parse: Callable[[bytes], Any], requests: AsyncIterator[bytes]) -> Any:
    async for data in requests:
        yield parse(data)


def _authorization(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return what the caller says of itself; None if it says nothing, or two things."""
    match [value for key, value in metadata if key == AUTHORIZATION]:
        case [bytes(value)]:
            return value.decode(errors="replace")
        case [str(value)]:
            return value
        case _:
            return None
