"""A watch that reconnects until the task has ended.

A stream may break (the server restarts, the connection is lost, the stream reaches its maximum
age), fall silent on a half-open connection, or be ended with OK by a broken proxy. Only the
terminal snapshot ends a watch. After anything else the stream is reopened with the last revision
received, so that no change is missed and no snapshot is yielded twice.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from kie_generation.errors import UnavailableError, from_rpc
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STATUS_FAILED,
    TASK_STATUS_SUCCESS,
    GenerationTask,
    WatchTaskRequest,
    WatchTaskResponse,
)
from kie_generation.retry import Backoff, Diagnose, Retry

WatchCall: TypeAlias = grpc.aio.UnaryStreamCall[WatchTaskRequest, WatchTaskResponse]
OnConnection: TypeAlias = Callable[[UnavailableError | None], None]


@dataclass(frozen=True)
class WatchPolicy:
    """When a watch reconnects, and when it gives up.

    Attributes:
        retry: the delays before reconnecting; `attempts` does not apply.
        heartbeat_timeout_seconds: a stream that is silent for longer is closed and reopened.
        give_up_after_seconds: how long to reconnect without success; None means without limit.
        diagnose: returns the permanent error behind a lost stream, or the error itself.
    """

    retry: Retry
    heartbeat_timeout_seconds: float
    give_up_after_seconds: float | None
    diagnose: Diagnose


def ended(task: GenerationTask) -> bool:
    """Return whether the task's status is final: SUCCESS or FAILED."""
    return task.status in (TASK_STATUS_SUCCESS, TASK_STATUS_FAILED)


async def watch_until_ended(
    open_stream: Callable[[int], WatchCall],
    after_revision: int,
    policy: WatchPolicy,
    on_connection: OnConnection,
) -> AsyncGenerator[GenerationTask, None]:
    """Yield each newer snapshot, the terminal one last.

    Args:
        open_stream: calls WatchTask with the last revision received.
        after_revision: the last revision that the caller has received.
        policy: when to reconnect and when to give up.
        on_connection: called with the error whenever a stream is lost, and with None when the next
            one delivers.

    Raises:
        GenerationError: an error that a retry cannot fix, at once; UnavailableError only after
            giving up.
    """
    seen = after_revision
    connection = _Connection(policy, on_connection)
    while True:
        try:
            stream = _snapshots(open_stream(seen), policy.heartbeat_timeout_seconds)
            async with aclosing(stream) as snapshots:
                async for task in snapshots:
                    connection.spoke(progress=task.revision > seen)
                    # After a reconnect the terminal snapshot may have a revision already received.
                    done = ended(task) and task.revision >= seen
                    if done or task.revision > seen:
                        seen = task.revision
                        yield task
                    if done:
                        return
        except UnavailableError as lost:
            error = await policy.diagnose(lost)
            if not isinstance(error, UnavailableError):
                raise error from lost
            await connection.lost(error)


async def _snapshots(
    call: WatchCall, heartbeat_timeout_seconds: float
) -> AsyncGenerator[GenerationTask, None]:
    """Yield the messages of one stream, including heartbeats, until it fails."""
    try:
        while True:
            async with asyncio.timeout(heartbeat_timeout_seconds):
                response = await call.read()
            if not isinstance(response, WatchTaskResponse):
                raise _unavailable("the stream ended before the task did")
            yield response.task
    except TimeoutError:
        raise _unavailable(f"no heartbeat for {heartbeat_timeout_seconds:g} s") from None
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    finally:
        call.cancel()


def _unavailable(message: str) -> UnavailableError:
    return UnavailableError(grpc.StatusCode.UNAVAILABLE, message)


class _Connection:
    """Tracks how long the stream has been lost, and delays the reconnects."""

    def __init__(self, policy: WatchPolicy, on_connection: OnConnection) -> None:
        self._policy = policy
        self._on_connection = on_connection
        self._backoff = Backoff(policy.retry)
        self._lost_at: float | None = None

    def spoke(self, *, progress: bool) -> None:
        if self._lost_at is not None:
            self._lost_at = None
            self._on_connection(None)
        # Not after a heartbeat: a stream that breaks again and again without progress is retried
        # with growing delays.
        if progress:
            self._backoff.reset()

    async def lost(self, error: UnavailableError) -> None:
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
