"""Traces by OpenTelemetry: the spans of calls, and of what the service does with their tasks.

Nothing imports this module unless OTEL_EXPORTER_OTLP_ENDPOINT is set; without it the service does
not run, or even load, any of this.

    generation.v1.GenerationService/*   a call; a stream until its first message
    kie.create                          from the paid request until its verdict is stored
    kie.poll                            the same for a poll; only the first, last and failed ones
    kie.upload                          the request of an upload, within its call

The span of CreateTask is stored with the task. Whatever any process does with the task later has a
span in the same trace, and links to it. No attribute contains a prompt, a URL or a token.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import VERSION
from service.calls import Call, CallWork, one_value
from service.errors import ServiceError
from service.jobs import LaneWork
from storage.errors import StorageUnavailableError
from storage.observed import Observe
from storage.task import Task

SERVICE = "/generation.v1.GenerationService/"
# How many spans calls that come without a trace have at most. A span costs about half of what a
# read does. Those of a create and of its task cost a third of it; Kie takes two tasks a second.
READS_PER_SECOND = 50
CREATES_PER_SECOND = 100
FAULTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE})
IDS = RandomIdGenerator()
W3C = TraceContextTextMapPropagator()

log = structlog.get_logger()


class Operation:
    """A call, or the work on a task.

    Attributes:
        context: What its log lines and its spans belong to; None if it is in no trace.
        span: The span that is recorded now; None before, afterwards, and if it is not sampled.
        task: The task that is worked on; None for a call.
    """

    __slots__ = ("context", "span", "task")

    def __init__(self, context: SpanContext | None, task: Task | None = None) -> None:
        self.context = context
        self.span: Span | None = None
        self.task = task

    @property
    def task_attributes(self) -> dict[str, str]:
        """What a span says about the task."""
        if self.task is None:
            return {}
        return {"generation.task_id": self.task.id, "generation.model": self.task.model}

    def begin(self, span: Span) -> None:
        """Record a span from now on."""
        self.context = span.get_span_context()
        self.span = span if span.is_recording() else None

    def end(self, attributes: Mapping[str, str] | None = None, *, failed: bool = False) -> None:
        """End the span, if there is one.

        It is released at once: the timers of a stream refer to this operation for as long as it is
        open.
        """
        span, self.span = self.span, None
        if span is None:
            return
        if attributes:
            span.set_attributes(attributes)
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end()


current_operation: ContextVar[Operation | None] = ContextVar("current_operation", default=None)


class Tracing:
    """Makes the spans of one process."""

    def __init__(
        self, processor: SpanProcessor, creates_per_second: int = CREATES_PER_SECOND
    ) -> None:
        """Pass the spans to a processor.

        Args:
            processor: Where they go.
            creates_per_second: How many creates without a trace have spans.
        """
        ours = Resource.create({"service.name": "generation", "service.version": VERSION})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("generation", VERSION)
        reads, creates = _PerSecond(READS_PER_SECOND), _PerSecond(creates_per_second)
        self._limits = {"QueryTask": reads, "ListTasks": reads, "CreateTask": creates}

    async def close(self, seconds: float) -> None:
        """Send the remaining spans, unless that takes too long."""
        closed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(closed.set)

        # A thread that does not keep the process alive: the collector may not answer.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await closed.wait()
        except TimeoutError:
            log.warning("the last traces are lost, as the collector does not answer")

    # --- spans ---

    def start(
        self,
        name: str,
        kind: SpanKind,
        operation: Operation,
        attributes: Mapping[str, str],
        start_time_ns: int | None = None,
    ) -> Span:
        """Start a span in the trace of an operation; one without a trace begins one.

        Args:
            name: Its name.
            kind: Whether it serves a request or sends one.
            operation: What it belongs to. The work on a task also links to the call that created
                the task: that has often ended long ago, in another process.
            attributes: Its attributes.
            start_time_ns: When it started, in unix nanoseconds; None is now.
        """
        parent = operation.context
        links = [Link(parent)] if parent and operation.task else ()
        context = set_span_in_context(NonRecordingSpan(parent), Context()) if parent else None
        return self._tracer.start_span(name, context, kind, attributes, links, start_time_ns)

    # --- calls ---

    def call(self, path: str, work: CallWork, *, streams: bool) -> CallWork:
        """Return the work of a method, with a span around each call.

        Args:
            path: The method's.
            work: What a call does.
            streams: Whether its response is a stream.
        """
        if not path.startswith(SERVICE):
            return work  # health checks and reflection
        name = path[1:]
        limit = self._limits.get(path.removeprefix(SERVICE))
        shared = {"rpc.system.name": "grpc", "rpc.method": name}

        async def traced(call: Call, requests: Any, context: Any) -> Any:
            parent = _sent_with(call)
            if limit and parent is None and not limit.take():
                return await work(call, requests, context)
            operation = Operation(parent)
            current_operation.set(operation)  # of this call: it has its own asyncio task
            attributes = {**shared, "generation.caller": call.caller}
            operation.begin(self.start(name, SpanKind.SERVER, operation, attributes))
            if streams:
                context = _UntilFirstMessage(context, operation)
            try:
                answer = await work(call, requests, context)
            except BaseException as error:
                _fail(operation, call, error)
                raise
            _succeed(operation)
            return answer

        return traced

    @staticmethod
    def traceparent() -> str:
        """Return the current call's span in the format of W3C Trace Context.

        A call without a span begins a trace that is not sampled, so that the later work on its task
        has no spans either.
        """
        operation = current_operation.get()
        if operation is None or operation.context is None:
            trace_id, span_id = IDS.generate_trace_id(), IDS.generate_span_id()
            return f"00-{trace_id:032x}-{span_id:016x}-00"
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(NonRecordingSpan(operation.context), Context()))
        return carrier["traceparent"]

    # --- the work on tasks ---

    @staticmethod
    def job(work: LaneWork) -> LaneWork:
        """Return the work of a lane, in the traces of its tasks."""

        async def traced(task: Task) -> None:
            operation = Operation(_context_of({"traceparent": task.traceparent}), task)
            current_operation.set(operation)  # of this job: it has its own asyncio task
            try:
                await work(task)
            finally:
                operation.end()

        return traced

    @staticmethod
    def observing(observe: Observe) -> Observe:
        """Return an observer of the database that also adds an event to the current span."""

        def observed(operation: str, seconds: float) -> None:
            observe(operation, seconds)
            current = current_operation.get()
            if current is not None and current.span is not None:
                current.span.add_event(
                    "database", {"db.operation.name": operation, "seconds": seconds}
                )

        return observed


def add_trace(logger: object, method: str, line: Any) -> Any:
    """Add the trace to a log line: a structlog processor."""
    del logger, method
    operation = current_operation.get()
    if operation is not None and operation.context is not None:
        line.setdefault("trace_id", format_trace_id(operation.context.trace_id))
    return line


class _PerSecond:
    """Allows at most `most` in each second."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = 0
        self._taken = 0

    def take(self) -> bool:
        """Return whether one more is allowed."""
        if (second := int(time.monotonic())) != self._second:
            self._second, self._taken = second, 0
        self._taken += 1
        return self._taken <= self._most


class _UntilFirstMessage:
    """The context of a stream, whose span ends once the first message is written."""

    def __init__(self, context: Any, operation: Operation) -> None:
        self._context = context
        self._operation = operation
        self.write = self._write_first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def _write_first(self, message: Any) -> None:
        await self._context.write(message)
        self.write = self._context.write
        _succeed(self._operation)


def _succeed(operation: Operation) -> None:
    operation.end({"rpc.response.status_code": grpc.StatusCode.OK.name})


def _fail(operation: Operation, call: Call, error: BaseException) -> None:
    if isinstance(error, asyncio.CancelledError) and call.end_error is not None:
        error = call.end_error
    code, reason = _status(error)
    attributes = {"rpc.response.status_code": code.name, "error.type": reason}
    operation.end(attributes, failed=code in FAULTS)


def _status(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Return the code and the reason with which the call will end."""
    match error:
        case ServiceError():
            return error.code, error.reason
        case StorageUnavailableError():
            return grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"
        case Exception():
            return grpc.StatusCode.INTERNAL, "INTERNAL"
        case _:
            return grpc.StatusCode.CANCELLED, "CANCELLED"


def _sent_with(call: Call) -> SpanContext | None:
    """Return the span that the caller sent with a call."""
    carrier = {name: one_value(call.metadata, name) for name in ("traceparent", "tracestate")}
    return _context_of({name: value for name, value in carrier.items() if value})


def _context_of(carrier: dict[str, str]) -> SpanContext | None:
    context = get_current_span(W3C.extract(carrier, Context())).get_span_context()
    return context if context.is_valid else None
