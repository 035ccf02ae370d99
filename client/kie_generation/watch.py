"""A watch that outlives its streams.

A stream may break (the server restarts, the connection is lost, the stream expires), fall silent on
a half-dead connection, or be ended OK by a broken proxy. The terminal snapshot is the only true
end; after anything else the stream is opened again with the last revision seen, so nothing is
missed and nothing is seen twice.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from client.errors import UnavailableError, from_rpc
from client.retry import Backoff, Diagnose, Retry
from generated.generation.v1.generation_pb2 import (
    TASK_STATUS_FAILED,
    TASK_STATUS_SUCCESS,
    GenerationTask,
    WatchTaskRequest,
    WatchTaskResponse,
)

WatchCall: TypeAlias = grpc.aio.UnaryStreamCall[WatchTaskRequest, WatchTaskResponse]
OnConnection: TypeAlias = Callable[[UnavailableError | None], None]


@dataclass(frozen=True)
class WatchPolicy:
    """How patient a watch is.

    Attributes:
        retry: the delays between streams; `attempts` does not apply.
        heartbeat_timeout_seconds: a stream that is silent for longer is given up and opened again.
        give_up_after_seconds: how long reconnecting may go on without a snapshot; None is forever.
        diagnose: returns the error that lost a stream, or the lasting one behind it.
    """

    retry: Retry
    heartbeat_timeout_seconds: float
    give_up_after_seconds: float | None
    diagnose: Diagnose


def ended(task: GenerationTask) -> bool:
    """Returns whether the task's status is final: SUCCESS or FAILED."""
    return task.status in (TASK_STATUS_SUCCESS, TASK_STATUS_FAILED)


async def watch_until_ended(
    open_stream: Callable[[int], WatchCall],
    after_revision: int,
    policy: WatchPolicy,
    on_connection: OnConnection,
) -> AsyncGenerator[GenerationTask, None]:
    """Yields each newer snapshot, the terminal one last.

    Args:
        open_stream: calls WatchTask with the revision to start after.
        after_revision: the last revision that the caller has seen.
        policy: how patient to be.
        on_connection: told the error whenever a stream is lost, and None when the next one spoke.

    Raises:
        GenerationError: what another try cannot mend, at once; UnavailableError only after giving
            up.
    """
    seen = after_revision
    connection = _Connection(policy, on_connection)
    while True:
        try:
            stream = _snapshots(open_stream(seen), policy.heartbeat_timeout_seconds)
            async with aclosing(stream) as snapshots:
                async for task in snapshots:
                    connection.spoke(progress=task.revision > seen)
                    # A resumed watch may find the task ended at the very revision it had seen.
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
    """Yields what one stream brings, heartbeats too. It never ends but by raising."""
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
    """Counts how long the watch has been without a stream, and paces the tries."""

    def __init__(self, policy: WatchPolicy, on_connection: OnConnection) -> None:
        self._policy = policy
        self._on_connection = on_connection
        self._backoff = Backoff(policy.retry)
        self._lost_at: float | None = None

    def spoke(self, *, progress: bool) -> None:
        if self._lost_at is not None:
            self._lost_at = None
            self._on_connection(None)
        if (
            progress
        ):  # not for a heartbeat: a stream that only repeats itself and breaks must not be hammered
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
