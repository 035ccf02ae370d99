"""A stream of all changes of a caller's tasks, which is resumed by tokens and never ends."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from kie_generation.errors import GenerationError, InvalidRequestError, UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import (
    Bookmark,
    GenerationTask,
    WatchTasksRequest,
    WatchTasksResponse,
)
from kie_generation.state_file import StateFile, StateFileError
from kie_generation.streams import OnConnection, Reconnecting, StreamPolicy, read_stream

ChangesCall: TypeAlias = grpc.aio.UnaryStreamCall[WatchTasksRequest, WatchTasksResponse]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskChange:
    """One item of a stream of all changes: a task, a bookmark, or that the stream starts over.

    Attributes:
        task: The newest snapshot of a task that has changed; otherwise None.
        bookmark: Set if everything that happened before it was delivered. It has `initial_done` if
            it ends the initial part of the stream. Otherwise None.
        started_over: Whether the resume token had expired. Changes may be missing, so all existing
            tasks follow, up to a bookmark with `initial_done`. Those that do not come were deleted.
        resume_token: Where to resume after this item.
    """

    task: GenerationTask | None = None
    bookmark: Bookmark | None = None
    started_over: bool = False
    resume_token: str = ""


class ChangeStream:
    """Opens streams one after the other, each where the one before was lost."""

    def __init__(
        self,
        open_stream: Callable[[WatchTasksRequest], ChangesCall],
        request: WatchTasksRequest,
        state: StateFile | None,
        policy: StreamPolicy,
        on_connection: OnConnection,
    ) -> None:
        self._open_stream = open_stream
        self._request = request
        self._state = state
        self._policy = policy
        self._connection = Reconnecting(policy, on_connection)

    async def changes(self) -> AsyncGenerator[TaskChange, None]:
        """Yield each change. It counts as handled when the next one is requested.

        Raises:
            GenerationError: An error that a new stream would get again, at once; UnavailableError
                only after giving up.
            StateFileError: The state file is damaged, or belongs to another stream.
            OSError: The state file cannot be read or written.
        """
        if self._state is not None:
            await asyncio.to_thread(self._state.load, self._request)
        while True:
            async with aclosing(self._one_stream()) as items:
                async for change in items:
                    if _is_known(change):
                        yield change
                    await self._remember(change)

    async def _one_stream(self) -> AsyncGenerator[TaskChange, None]:
        """Yield what one stream delivers, until the next one may be opened."""
        call = self._open_stream(self._request)
        try:
            stream = read_stream(call, self._policy.heartbeat_timeout_seconds)
            async with aclosing(stream) as messages:
                async for message in messages:
                    self._connection.received(progress=message.HasField("task"))
                    yield TaskChange(
                        message.task if message.HasField("task") else None,
                        message.bookmark if message.HasField("bookmark") else None,
                        resume_token=message.resume_token,
                    )
        except UnavailableError as lost:
            await self._connection.lost(lost)
        except GenerationError as error:
            self._raise_unless_expired(error)
            log.warning("the resume token has expired: the stream of all changes starts over")
            yield TaskChange(started_over=True)

    def _raise_unless_expired(self, error: GenerationError) -> None:
        token = self._request.resume_token
        if token and error.reason == "RESUME_TOKEN_EXPIRED":
            return
        if self._state is not None and isinstance(error, InvalidRequestError):
            wrong = [each for each in error.violations if each.field == "resume_token"]
            if wrong:
                why = f"the service does not accept its resume_token: it {wrong[0].description}"
                raise StateFileError(self._state.path, why) from error
        raise error

    async def _remember(self, change: TaskChange) -> None:
        self._request.resume_token = change.resume_token
        if change.started_over:
            self._request.from_now = False  # what changed in the meantime must not be skipped
        if self._state is not None:
            await asyncio.to_thread(self._state.save, self._request)


def _is_known(change: TaskChange) -> bool:
    """Return whether this version of the client knows what the item is."""
    return change.started_over or change.task is not None or change.bookmark is not None
