"""A reader of WatchTasks that checks what every stream promises."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from generated.generation.v1 import generation_pb2 as pb
from tests.support.harness import Service
from tests.support.waiting import DEADLINE_SECONDS


class Follower:
    """One stream, and what arrived on it.

    Attributes:
        tasks: The newest snapshot of each task, in the order of their last change.
        token: That of the last message.
        bookmarks: Every bookmark.
    """

    def __init__(
        self, service: Service, metadata: Any = None, timeout: float = 60, **request: Any
    ) -> None:
        self.tasks: dict[str, pb.GenerationTask] = {}
        self.messages: list[pb.WatchTasksResponse] = []
        self.bookmarks: list[pb.Bookmark] = []
        self.token = request.get("resume_token", "")
        self._call = service.stub.WatchTasks(
            pb.WatchTasksRequest(**request), metadata=metadata, timeout=timeout
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call.cancel()

    def has(self, task: pb.GenerationTask) -> bool:
        """Whether this snapshot arrived, or a newer one."""
        return task.id in self.tasks and self.tasks[task.id].revision >= task.revision

    def repeats(self, earlier: "Follower") -> bool:
        """Whether a snapshot arrived that an earlier stream already had."""
        return any(map(earlier.has, self.tasks.values()))

    async def next(self) -> pb.WatchTasksResponse:
        """Read a message."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            message: pb.WatchTasksResponse = await self._call.read()  # type: ignore[assignment]
        assert message.resume_token, "every message has a token"
        self.token = message.resume_token
        self.messages.append(message)
        if message.HasField("task"):
            known = self.tasks.pop(message.task.id, None)
            assert known is None or known.revision <= message.task.revision, "revisions never fall"
            self.tasks[message.task.id] = message.task
        else:
            assert message.HasField("bookmark")
            self.bookmarks.append(message.bookmark)
        return message

    async def until(self, holds: Callable[["Follower"], object]) -> Self:
        """Read until a condition holds after a message."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                await self.next()
                if holds(self):
                    return self

    async def initial(self) -> Self:
        """Read until everything stored has arrived."""
        return await self.until(lambda seen: any(b.initial_done for b in seen.bookmarks))
