"""A watch of one task, which reconnects until the task has ended.

Only the terminal snapshot ends a watch. After anything else the stream is reopened with the last
revision received, so that no change is missed and no snapshot is yielded twice.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeAlias

import grpc

from kie_generation.errors import UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STATUS_FAILED,
    TASK_STATUS_SUCCESS,
    GenerationTask,
    WatchTaskRequest,
    WatchTaskResponse,
)
from kie_generation.streams import OnConnection, Reconnecting, StreamPolicy, read_stream

WatchCall: TypeAlias = grpc.aio.UnaryStreamCall[WatchTaskRequest, WatchTaskResponse]


def ended(task: GenerationTask) -> bool:
    """Return whether the task's status is final: SUCCESS or FAILED."""
    return task.status in (TASK_STATUS_SUCCESS, TASK_STATUS_FAILED)


async def watch_until_ended(
    open_stream: Callable[[int], WatchCall],
    after_revision: int,
    policy: StreamPolicy,
    on_connection: OnConnection,
) -> AsyncGenerator[GenerationTask, None]:
    """Yield each newer snapshot, the terminal one last.

    Args:
        open_stream: Calls WatchTask with the last revision received.
        after_revision: The last revision that the caller has received.
        policy: When to reconnect and when to give up.
        on_connection: Called with the error whenever a stream is lost, and with None when the next
            one delivers.

    Raises:
        GenerationError: An error that a retry cannot fix, at once; UnavailableError only after
            giving up.
    """
    seen = after_revision
    connection = Reconnecting(policy, on_connection)
    while True:
        try:
            stream = read_stream(open_stream(seen), policy.heartbeat_timeout_seconds)
            async with aclosing(stream) as messages:
                async for message in messages:
                    task = message.task
                    connection.received(progress=task.revision > seen)
                    # After a reconnect the terminal snapshot may have a revision already received.
                    done = ended(task) and task.revision >= seen
                    if done or task.revision > seen:
                        seen = task.revision
                        yield task
                    if done:
                        return
        except UnavailableError as lost:
            await connection.lost(lost)
