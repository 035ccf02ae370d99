"""Streams that are reopened when they are lost.

A stream may break (the server restarts, the connection is lost, the stream reaches its maximum
age), fall silent on a half-open connection, or be ended with OK by a broken proxy. gRPC libraries
and proxies do not agree on the status of a lost stream. So a stream was lost if it ended without
the service's ErrorInfo, whatever its status, except for those that a new stream would get again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from kie_generation.errors import (
    GenerationError,
    UnauthenticatedError,
    UnavailableError,
    from_rpc,
)
from kie_generation.retry import Backoff, Diagnose, Retry

R = TypeVar("R")
OnConnection: TypeAlias = Callable[[UnavailableError | None], None]


@dataclass(frozen=True)
class StreamPolicy:
    """When a stream is reopened, and when it is given up.

    Attributes:
        retry: The delays before reconnecting; `attempts` does not apply.
        heartbeat_timeout_seconds: A stream that is silent for longer is closed and reopened.
        give_up_after_seconds: How long to reconnect without success; None means without limit.
        diagnose: Returns the permanent error behind a lost stream, or the error itself.
    """

    retry: Retry
    heartbeat_timeout_seconds: float
    give_up_after_seconds: float | None
    diagnose: Diagnose


async def read_stream(
    call: grpc.aio.UnaryStreamCall[Any, R], silence_seconds: float, *, may_end: bool = False
) -> AsyncGenerator[R, None]:
    """Yield the messages of one stream, including heartbeats, until it ends.

    Args:
        call: The stream.
        silence_seconds: The longest time between two messages.
        may_end: Whether it may end with OK.

    Raises:
        UnavailableError: The stream was lost: it broke, fell silent, or ended too early.
        GenerationError: An error that a new stream would get again.
    """
    try:
        while True:
            async with asyncio.timeout(silence_seconds):
                message = await call.read()
            if message is grpc.aio.EOF:
                if may_end:
                    return
                raise ended_too_early()
            yield cast("R", message)
    except TimeoutError:
        missing = "content" if may_end else "heartbeat"
        raise _lost(f"no {missing} for {silence_seconds:g} s") from None
    except grpc.aio.AioRpcError as error:
        raise of_stream(error) from error
    finally:
        call.cancel()


def ended_too_early() -> UnavailableError:
    """Return the error for a stream that a broken proxy has ended with OK."""
    return _lost("the stream ended too early")


def _lost(message: str) -> UnavailableError:
    return UnavailableError(grpc.StatusCode.UNAVAILABLE, message)


def of_stream(rpc_error: grpc.aio.AioRpcError) -> GenerationError:
    """Return an UnavailableError if the stream was lost, else the error that ended it."""
    error = from_rpc(rpc_error)
    final = isinstance(error, UnauthenticatedError) or error.code is grpc.StatusCode.UNIMPLEMENTED
    if error.reason or final:
        return error
    return UnavailableError(error.code, error.message, retry_after=error.retry_after)


class Reconnecting:
    """Tracks how long a stream has been lost, and delays the reconnects."""

    def __init__(self, policy: StreamPolicy, on_connection: OnConnection) -> None:
        self._policy = policy
        self._on_connection = on_connection
        self._backoff = Backoff(policy.retry)
        self._lost_at: float | None = None

    def received(self, *, progress: bool) -> None:
        """Note that the stream works. Heartbeats do not count as progress.

        A stream that breaks again and again without progress is reopened with growing delays.
        """
        if self._lost_at is not None:
            self._lost_at = None
            self._on_connection(None)
        if progress:
            self._backoff.reset()

    async def lost(self, lost: UnavailableError) -> None:
        """Wait until the stream may be reopened.

        Raises:
            GenerationError: The permanent error behind this one; or this one, to give up.
        """
        error = await self._policy.diagnose(lost)
        if not isinstance(error, UnavailableError):
            raise error from lost
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        delay = self._backoff.next_delay(error)
        limit = self._policy.give_up_after_seconds
        if limit is not None:
            seconds_left = self._lost_at + limit - now
            if seconds_left <= 0:
                raise error
            delay = min(delay, seconds_left)
        self._on_connection(error)
        await asyncio.sleep(delay)
