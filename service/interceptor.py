"""The interceptor: authenticate callers, parse requests, turn exceptions into statuses.

The caller is authenticated before any part of the message is received, so a caller without a token
or a certificate cannot occupy memory of the service. For grpc, every method takes a stream of raw
bytes: the inbox decides when a message is received. It is parsed here, as grpc.aio answers UNKNOWN
to bytes that it cannot parse before any handler sees them. Streams are written from a coroutine, so
that a cancelled one is cleaned up at once, and not when its generator is garbage-collected.

grpc keeps the exception that ended a call until the garbage collector finds it. The exception must
not refer to a message: errors lose their tracebacks, and calls fail outside the frames that read
messages.
"""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from service.caller_limits import CallerLimits
from service.callers import SAN, Callers, Credential, current_caller
from service.calls import Call, CallsInProgress, CallWork, current_call, has_key, one_value
from service.endings import OPEN_METHODS, Endings, Method
from service.errors import ServiceError
from service.forever import forever
from service.inbox import Inbox
from service.metrics import Metrics
from service.open_calls import OpenCalls
from service.outage_log import OutageLog
from service.outbox import Outbox
from service.streams import (
    ClosedIsCancelled,
    Handler,
    ParsedMessages,
    ReceivedMessages,
    parser,
    serializer,
    writing,
)

if TYPE_CHECKING:  # imported only where traces are exported
    from service.tracing import Tracing

HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
CREATE_METHOD = "/generation.v1.GenerationService/CreateTask"
UPLOAD_METHOD = "/generation.v1.GenerationService/UploadFile"
AUTHORIZATION = "authorization"
ALTERNATIVE_NAMES = "x509_subject_alternative_name"


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every call."""

    def __init__(
        self,
        callers: Callers,
        limits: CallerLimits,
        watches: OpenCalls,
        metrics: Metrics,
        *,
        outage_log: OutageLog,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._callers = callers
        self._tracing = tracing
        self._watches = watches
        self._metrics = metrics
        self._inbox = Inbox(on_refusal=metrics.caller_refused)
        self._outbox = Outbox(on_refusal=metrics.caller_refused)
        self._endings = Endings(outage_log)
        self._methods: dict[str, Method] = {}
        self._calls = CallsInProgress()
        self._checks = _Checks(callers, limits, metrics, self._calls)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler; None for a method that does not exist."""
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
        if self._callers.named_by_certificates and not has_key(call.metadata, AUTHORIZATION):
            return method.handler  # which knows the certificate
        try:
            credential = self._callers.authenticate(one_value(call.metadata, AUTHORIZATION))
        except ServiceError as error:
            return self._refusing(method, call, error)
        _identify(call, credential)
        return method.handler

    async def idle(self) -> None:
        """Wait until no call is in progress: a server stops before its handlers have returned."""
        await self._calls.idle()

    async def tend(self, outage_log: OutageLog) -> None:
        """End calls whose request does not arrive or whose token was revoked, until cancelled."""
        await forever(self._check, "check of calls", self._inbox.check_seconds, outage_log)

    async def _check(self) -> None:
        self._inbox.check()
        self._checks.run_once()
        self._endings.flush()

    # --- the methods ---

    def _add_method(self, path: str, handler: Any) -> Method:
        method = self._methods[path] = Method(path, self._metrics)
        serialize = serializer(handler.response_serializer)
        work = self._work(path, handler, serialize)
        if self._tracing:
            work = self._tracing.call(path, work, streams=handler.response_streaming)
        behaviour = self._around(method, work)
        if handler.response_streaming:
            method.handler = grpc.stream_stream_rpc_method_handler(
                behaviour, response_serializer=serialize
            )
        else:
            method.handler = grpc.stream_unary_rpc_method_handler(behaviour)
        return method

    def _work(self, path: str, handler: Any, serialize: Callable[[Any], bytes]) -> CallWork:
        """Return what a call does between its start and its end."""
        parse = parser(handler.request_deserializer)
        inbox = self._inbox
        receive = inbox.receive_open if path in OPEN_METHODS else inbox.receive
        if handler.response_streaming:
            inner = writing(handler.stream_stream or handler.unary_stream)
            if path == HEALTH_WATCH:
                inner = self._counted(inner)
        else:
            inner = handler.stream_unary or handler.unary_unary
        finish = self._outbox.finisher(serialize, may_refuse=path != CREATE_METHOD)
        if path == CREATE_METHOD:
            inner = self._with_room(inner)

        async def single(call: Call, requests: Any, context: Any) -> Any:
            del requests
            # No variable has the request: a stream would keep it for as long as it is open.
            answer = inner(parse(await receive(call, context)), context)
            return finish(call, await answer, context)

        async def streaming(call: Call, requests: Any, context: Any) -> Any:
            del requests  # this iterator of grpc keeps each message until the next one arrives
            if path == UPLOAD_METHOD:
                messages: Any = ReceivedMessages(context)
            else:
                messages = inbox.receive_stream(call, context)
            return finish(call, await inner(ParsedMessages(parse, messages), context), context)

        return streaming if handler.request_streaming else single

    def _counted(self, inner: Handler) -> Handler:
        """Count the streams of a handler as watches of their callers."""

        async def count(request: Any, context: Any) -> None:
            with self._watches.counted(current_caller.get()):
                stream = inner(request, context)
                del request
                await stream

        return count

    def _with_room(self, inner: Handler) -> Handler:
        """Refuse a create before it has an effect, if too many responses are unread."""

        def create(request: Any, context: Any) -> Awaitable[Any]:
            self._outbox.check(current_caller.get())
            return inner(request, context)

        return create

    def _around(self, method: Method, work: CallWork) -> Handler:
        calls, endings = self._calls, self._endings

        async def behaviour(requests: Any, context: Any) -> Any:
            call = current_call.get()
            assert call is not None
            call.begin(context)
            calls.add(call)
            started = time.monotonic()
            try:
                if not (call.caller or method.is_open):
                    names = context.auth_context().get(ALTERNATIVE_NAMES, ())
                    _identify(call, self._callers.of_certificate(names))
                answer = await work(call, requests, context)
            except BaseException as error:
                refusal = endings.fail(method, call, error, time.monotonic() - started)
                if refusal is None:
                    raise
            else:
                endings.succeed(method, time.monotonic() - started)
                return answer
            finally:
                call.finish()
                calls.discard(call)
            await endings.delay(call, refusal)
            abort = context.abort_with_status(refusal.status())
            # The exception refers to this frame. If the frame referred to the call, only the
            # garbage collector could free both, thousands at a time.
            del call, context, requests, refusal
            with ClosedIsCancelled():
                await abort
            return None

        return behaviour

    def _refusing(self, method: Method, call: Call, error: ServiceError) -> Any:
        """Return a handler that refuses a call without receiving any of it."""
        endings = self._endings

        async def refuse(requests: Any, context: Any) -> None:
            del requests
            call.context = context
            refusal = endings.fail(method, call, error, 0.0)
            assert refusal is not None
            await endings.delay(call, refusal)
            status = refusal.status()
            # Not by an exception, which would refer to the call until it is garbage-collected.
            context.set_code(status.code)
            context.set_details(status.details)
            context.set_trailing_metadata(status.trailing_metadata)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _identify(call: Call, credential: Credential) -> None:
    call.identify(credential.caller, credential.key)
    current_caller.set(credential.caller)


class _Checks:
    """Rereads the files of tokens and limits, and ends the calls of revoked tokens."""

    def __init__(
        self, callers: Callers, limits: CallerLimits, metrics: Metrics, calls: CallsInProgress
    ) -> None:
        self._callers = callers
        self._limits = limits
        self._metrics = metrics
        self._calls = calls
        self._tokens_version = callers.version

    def run_once(self) -> None:
        self._limits.table()  # so that changes are noticed without calls, too
        self._callers.reread_if_changed()
        self._metrics.show_config_problems("tokens", len(self._callers.problems))
        if self._tokens_version == self._callers.version:
            return
        self._tokens_version = self._callers.version
        for call in self._calls:
            if call.caller and not self._callers.is_valid(call.credential_key):
                what = "certificate" if call.credential_key.startswith(SAN) else "token"
                call.end(ServiceError("UNAUTHENTICATED", f"the {what} is no longer valid"))
