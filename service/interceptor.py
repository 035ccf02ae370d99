"""The one interceptor: authenticates callers, parses requests, turns exceptions into statuses.

The caller is authenticated before a byte of the message is received, so that a caller without a
token cannot make the service hold anything. For grpc, every method takes a stream of raw bytes: the
inbox decides when a message is received, and it is parsed here, as grpc.aio answers UNKNOWN to
bytes that do not parse before any handler sees them. Streams are written from a coroutine, so that
a cancelled one is cleaned up at once and not when its generator is collected.

grpc keeps the exception that ended a call until the garbage collector finds it. It must not refer
to a message: errors lose their tracebacks, and calls fail outside the frames that read messages.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from service.caller_limits import CallerLimits
from service.callers import Callers, current_caller
from service.calls import Call, current_call, one_value
from service.errors import ServiceError
from service.inbox import Inbox
from service.metrics import Metrics
from service.open_calls import OpenCalls
from service.outbox import Outbox
from service.refusals import RefusalPace
from service.sparse import SparseLog
from storage.errors import StorageUnavailableError

OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})  # no token is needed
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
UPLOAD_METHOD = "/generation.v1.GenerationService/UploadFile"
SLOW_SECONDS = {"CreateTask": 15.0, "QueryTask": 1.0, "ListTasks": 1.0, "CancelTask": 1.0}
AUTHORIZATION = "authorization"

log = structlog.get_logger()

Handler = Callable[[Any, Any], Awaitable[Any]]
Work = Callable[[Call, Any, Any], Awaitable[Any]]


class Boundary(grpc.aio.ServerInterceptor):
    """Stands around every call."""

    def __init__(
        self, callers: Callers, limits: CallerLimits, watches: OpenCalls, metrics: Metrics
    ) -> None:
        self._callers = callers
        self._limits = limits
        self._watches = watches
        self._metrics = metrics
        self._inbox = Inbox()
        self._outbox = Outbox()
        self._pace = RefusalPace()
        self._log = SparseLog()
        self._methods: dict[str, _Method] = {}
        self._open_calls: set[Call] = set()
        self._idle: asyncio.Event | None = None
        self._tokens_version = callers.version

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler with everything around it; None for a method that is not there."""
        method = self._methods.get(handler_call_details.method)
        if method is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                self._metrics.unknown_method()
                return None
            method = self._add_method(handler_call_details.method, handler)
        call = Call(handler_call_details.invocation_metadata)
        current_call.set(call)
        if method.is_open:
            return method.handler
        try:
            credential = self._callers.authenticate(one_value(call.metadata, AUTHORIZATION))
        except ServiceError as error:
            return self._refusing(method, call, error)
        call.caller = credential.caller
        call.token_digest = credential.digest
        current_caller.set(credential.caller)
        return method.handler

    async def idle(self) -> None:
        """Wait until no call is under way: a stopped server returns before its handlers have."""
        if self._open_calls:
            self._idle = asyncio.Event()
            await self._idle.wait()

    async def tend(self) -> None:
        """End calls whose request does not arrive or whose token was revoked, until cancelled."""
        while True:
            await asyncio.sleep(self._inbox.check_seconds)
            try:
                self._inbox.check()
                self._limits.table()  # noticed also while nobody calls
                self._end_revoked()
                self._log.flush()
            except Exception:
                log.exception("calls could not be checked; trying again")

    def _end_revoked(self) -> None:
        self._callers.reread_if_changed()
        self._metrics.show_config_problems("tokens", len(self._callers.problems))
        if self._tokens_version == self._callers.version:
            return
        self._tokens_version = self._callers.version
        for call in self._open_calls:
            if call.caller and not self._callers.is_valid(call.token_digest):
                call.end(ServiceError("UNAUTHENTICATED", "the token is no longer valid"))

    # --- the methods ---

    def _add_method(self, path: str, handler: Any) -> "_Method":
        method = self._methods[path] = _Method(path, self._metrics)
        serialize = _serializer(handler.response_serializer)
        behaviour = self._around(method, self._work(path, handler, serialize))
        if handler.response_streaming:
            method.handler = grpc.stream_stream_rpc_method_handler(
                behaviour, response_serializer=serialize
            )
        else:
            method.handler = grpc.stream_unary_rpc_method_handler(behaviour)
        return method

    def _work(self, path: str, handler: Any, serialize: Callable[[Any], bytes]) -> Work:
        """Return what a call does between its entry and its end."""
        parse = _parser(handler.request_deserializer)
        inbox = self._inbox
        receive = inbox.receive_open if path in OPEN_METHODS else inbox.receive
        if handler.response_streaming:
            inner = _writing(handler.stream_stream or handler.unary_stream)
            if path == HEALTH_WATCH:
                inner = self._counted(inner)
        else:
            inner = handler.stream_unary or handler.unary_unary
        finish = self._outbox.finisher(serialize)

        async def single(call: Call, requests: Any, context: Any) -> Any:
            del requests
            request = parse(await receive(call, context))
            return finish(call, await inner(request, context), context)

        async def streaming(call: Call, requests: Any, context: Any) -> Any:
            del requests  # this iterator of grpc keeps each message until the next one is there
            if path == UPLOAD_METHOD:
                messages: Any = _Received(context)
            else:
                messages = inbox.receive_stream(call, context)
            return finish(call, await inner(_Parsed(parse, messages), context), context)

        return streaming if handler.request_streaming else single

    def _counted(self, inner: Handler) -> Handler:
        """Count the streams of a handler among the caller's watches."""

        async def count(request: Any, context: Any) -> None:
            with self._watches.counted(current_caller.get()):
                await inner(request, context)

        return count

    def _around(self, method: "_Method", work: Work) -> Handler:
        async def behaviour(requests: Any, context: Any) -> Any:
            call = current_call.get()
            assert call is not None
            call.begin(context)
            self._open_calls.add(call)
            started = time.monotonic()
            try:
                answer = await work(call, requests, context)
            except BaseException as error:
                refusal = self._refusal(method, call, error, time.monotonic() - started)
                if refusal is None:
                    raise
            else:
                self._succeed(method, time.monotonic() - started)
                return answer
            finally:
                self._leave(call)
            if refusal.code in _SLOWED:
                await self._pace.hold(call.caller)
            abort = context.abort_with_status(refusal.status())
            # The exception leads to this frame. Were there a way back from here to the call, only
            # the collector could free both, thousands at a time.
            del call, context, requests, refusal
            with _over_is_cancelled():
                await abort
            return None

        return behaviour

    def _refusing(self, method: "_Method", call: Call, error: ServiceError) -> Any:
        """Return a handler that refuses a call without receiving anything of it."""

        async def refuse(requests: Any, context: Any) -> None:
            del requests
            call.context = context
            refusal = self._refusal(method, call, error, 0.0)
            assert refusal is not None
            await self._pace.hold(call.caller)
            status = refusal.status()
            # Not by an exception, which would hold the call until it is collected.
            context.set_code(status.code)
            context.set_details(status.details)
            context.set_trailing_metadata(status.trailing_metadata)

        return grpc.stream_stream_rpc_method_handler(refuse)

    # --- from the end of the work to the status of the call ---

    def _leave(self, call: Call) -> None:
        call.over()
        self._open_calls.discard(call)
        if self._idle and not self._open_calls:
            self._idle.set()

    def _succeed(self, method: "_Method", seconds: float) -> None:
        method.calls.succeeded(seconds)
        if seconds > method.slow_seconds:
            self._log.write(
                logging.WARNING, "slow call", {"method": method.name}, seconds=round(seconds, 3)
            )

    def _refusal(
        self, method: "_Method", call: Call, error: BaseException, seconds: float
    ) -> ServiceError | None:
        """Count and log what ended a call; return what its caller is told, None for nothing."""
        if isinstance(error, asyncio.CancelledError) and call.end_error is not None:
            error = call.end_error
        if isinstance(error, grpc.aio.AbortError):  # the handler has told the caller by itself
            method.calls.failed(call.context.code().name, seconds)  # type: ignore[union-attr]
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
            self._log.write(
                logging.ERROR, "storage unavailable", {"method": method}, error=str(error)
            )
            return ServiceError("STORAGE_UNAVAILABLE", "the database is unavailable; retry")
        error_id = uuid.uuid4().hex[:12]
        log.error("unhandled exception", method=method, error_id=error_id, exc_info=error)
        return ServiceError("INTERNAL", f"an internal error, logged under {error_id}")


class _Method:
    """What is known of a method before its calls, so that they need not look it up."""

    __slots__ = ("calls", "handler", "is_open", "name", "slow_seconds")

    def __init__(self, path: str, metrics: Metrics) -> None:
        self.name = path.rpartition("/")[2]
        self.is_open = path in OPEN_METHODS
        self.slow_seconds = SLOW_SECONDS.get(self.name, math.inf)
        self.calls = metrics.calls(self.name)
        self.handler: Any = None


def _writing(inner: Any) -> Handler:
    """Return a streaming handler as a coroutine that writes its responses."""

    async def write(request: Any, context: Any) -> None:
        with _over_is_cancelled():
            if asyncio.iscoroutinefunction(inner):
                await inner(request, context)
                return
            async with aclosing(inner(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

    return write


@contextmanager
def _over_is_cancelled() -> Iterator[None]:
    """Take a call that ended while something waited to be written for what it is.

    C-core fails the write, mostly before anybody is told that the call is over.
    """
    try:
        yield
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error


def _forget_frames(error: BaseException) -> None:
    """Drop the frames of an error, and with them the messages that the caller sent."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


_CALLERS_OWN = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
_SLOWED = _CALLERS_OWN | {grpc.StatusCode.RESOURCE_EXHAUSTED}
_PLANNED = frozenset({"STREAM_EXPIRED", "SHUTTING_DOWN"})


def _log_level(error: ServiceError) -> int:
    """Return debug for planned ends, info for callers' mistakes, and warning for all others."""
    if error.reason in _PLANNED:
        return logging.DEBUG
    return logging.INFO if error.code in _CALLERS_OWN else logging.WARNING


def _serializer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Let answers pass that are bytes already."""
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


def _parser(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise ServiceError("INVALID_PARAMS", "the request could not be parsed") from None

    return parse


class _Received:
    """The messages of a stream as they are received; it keeps none of them."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __aiter__(self) -> "_Received":
        return self

    async def __anext__(self) -> bytes:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return bytes(message)  # as it is: bytes are not copied


class _Parsed:
    """The messages of a stream, parsed. No generator: its frame would keep each message."""

    def __init__(self, parse: Callable[[bytes], Any], messages: AsyncIterator[bytes]) -> None:
        self._parse = parse
        self._messages = messages

    def __aiter__(self) -> "_Parsed":
        return self

    async def __anext__(self) -> Any:
        return self._parse(await anext(self._messages))
