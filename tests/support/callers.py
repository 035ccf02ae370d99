"""Callers with tokens and limits."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from generated.generation.v1 import generation_pb2 as pb
from service.agenda import AgendaTimes
from service.bounds import Bounds
from service.limits import LimitBounds
from tests.support.harness import Service, poller_bounds
from tests.support.prompts import STUCK
from tests.support.refusals import Refusal, refused
from tests.support.waiting import DEADLINE_SECONDS

LATER_SECONDS = 60.0  # how long the poller waits if nothing wakes it


@dataclass(frozen=True)
class Caller:
    """A caller of a service."""

    name: str
    service: Service

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.name}"),)

    async def create(
        self, params: dict[str, Any] | None = None, **fields: Any
    ) -> pb.GenerationTask:
        return await self.service.create(params, metadata=self.metadata, **fields)

    async def create_refused(self, **fields: Any) -> Refusal:
        return await refused(self.create(STUCK, **fields))

    async def query(self, task_id: str) -> pb.GenerationTask:
        request = pb.QueryTaskRequest(task_id=task_id)
        answer = await self.service.stub.QueryTask(request, metadata=self.metadata, timeout=5)
        return answer.task

    async def cancel(self, task_id: str) -> None:
        request = pb.CancelTaskRequest(task_id=task_id)
        await self.service.stub.CancelTask(request, metadata=self.metadata, timeout=5)

    async def list(self) -> pb.ListTasksResponse:
        request = pb.ListTasksRequest()
        return await self.service.stub.ListTasks(request, metadata=self.metadata, timeout=5)

    def watch(self, task_id: str) -> Any:
        request = pb.WatchTaskRequest(task_id=task_id)
        return self.service.stub.WatchTask(request, metadata=self.metadata)

    def upload(self, messages: Any) -> Any:
        return self.service.stub.UploadFile(messages, metadata=self.metadata)

    async def is_sent(self, task_id: str, seconds: float = DEADLINE_SECONDS) -> bool:
        """Whether the provider gets a task within a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (await self.query(task_id)).provider_task_id:
                    pass
                return True
        return False


@dataclass(frozen=True)
class Files:
    """The files of tokens and of limits."""

    tokens: Path
    limits: Path

    def name(self, *names: str) -> None:
        lines = (f"{name} {sha256(name.encode()).hexdigest()}\n" for name in names)
        _replace(self.tokens, "".join(lines))

    def limit(self, text: str) -> None:
        _replace(self.limits, text)


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def bounds(**limits: Any) -> Bounds:
    """Return bounds with which the poller does nothing before it is woken."""
    return replace(
        poller_bounds(
            agenda=AgendaTimes(idle_seconds=LATER_SECONDS),
            limits=LimitBounds(
                recheck_seconds=LATER_SECONDS, passed_over_seconds=LATER_SECONDS, **limits
            ),
        ),
        recheck_seconds=0,  # both files are checked at every call
    )


Serving = Callable[..., AbstractAsyncContextManager[tuple[Caller, Caller]]]


async def all_waiting(caller: Caller, count: int) -> list[pb.GenerationTask]:
    """Create a task that runs, and others that wait for it to end: the caller may run one."""
    running = await caller.create(STUCK)
    assert await caller.is_sent(running.id)
    return [running, *[await caller.create(STUCK) for _ in range(count)]]


ONE_RUNS = "[callers.alice]\nrunning = 1\n"
