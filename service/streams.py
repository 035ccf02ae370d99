"""Read and write the messages of a call, without keeping any of them."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from service.errors import ServiceError

# No message of this service can begin with these bytes: they mean field 15 or 11, as a group.
JSON_STARTS = (b"{", b"[")
NOT_PARSED = "could not be parsed: it is damaged, or nested too deeply"
AGE_JITTER = 0.1  # a share of the age, so that streams opened together do not end together

Handler = Callable[[Any, Any], Awaitable[Any]]


def writing(inner: Any) -> Handler:
    """Return a streaming handler as a coroutine that writes its responses.

    A stream may stay open for long, so nothing here keeps its request: only the handler may.
    """

    async def write(request: Any, context: Any) -> None:
        with ClosedIsCancelled():
            if asyncio.iscoroutinefunction(inner):
                stream = inner(request, context)
                del request
                await stream
                return
            async with aclosing(inner(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

    return write


class ClosedIsCancelled:
    """Turn the failed write to a call that has ended into a cancellation.

    C-core fails the write, mostly before it reports that the call is over. No generator: each open
    stream would hold one.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, grpc.aio.InternalError):
            raise asyncio.CancelledError from error


class LimitedAge:
    """Ends a stream with STREAM_EXPIRED near its maximum age. No generator, for the same reason.

    It covers the writes: one to a client that has stopped reading may never return.
    """

    __slots__ = ("_timeout",)

    def __init__(self, max_age_seconds: float) -> None:
        self._timeout = asyncio.timeout(max_age_seconds * random.uniform(1 - AGE_JITTER, 1))

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            words = "the stream reached its maximum age; reconnect"
            raise ServiceError("STREAM_EXPIRED", words) from None


def serializer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a function that serializes responses, unless they are bytes already."""
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


def parser(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a function that parses requests, or raises INVALID_PARAMS."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            is_json = data.startswith(JSON_STARTS)
            words = "is JSON; this port takes protobuf" if is_json else NOT_PARSED
            raise ServiceError("INVALID_PARAMS", f"the request {words}") from None

    return parse


class ReceivedMessages:
    """The raw messages of a stream. No generator: its frame would keep each message."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __aiter__(self) -> "ReceivedMessages":
        return self

    async def __anext__(self) -> bytes:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return bytes(message)  # not a copy: it is bytes already


class ParsedMessages:
    """The messages of a stream, parsed. No generator, for the same reason."""

    def __init__(self, parse: Callable[[bytes], Any], messages: AsyncIterator[bytes]) -> None:
        self._parse = parse
        self._messages = messages

    def __aiter__(self) -> "ParsedMessages":
        return self

    async def __anext__(self) -> Any:
        return self._parse(await anext(self._messages))
