"""Tasks and stores as the tests of the storage want them."""

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from storage.store import Created, Quota, Store, Waiting
from storage.task import Lane, Status, Task

NOW = 1_800_000_000.0
NO_LIMIT = 1_000_000


def new(task_id: str, **changes: Any) -> Task:
    """A task as CreateTask makes it, due since `NOW`."""
    task = Task(
        id=task_id,
        caller="c",
        request_id="",
        prompt_id="p",
        model="imagen4",
        params=b"\x0a\x00",
        create_time=NOW,
        update_time=NOW,
        due_time=NOW,
    )
    return replace(task, **changes)


async def stored(store: Store, *tasks: Task) -> None:
    answers = await asyncio.gather(*(store.create(task, NO_LIMIT) for task in tasks))
    assert answers == [Created(task) for task in tasks]


async def saved(store: Store, before: Task, after: Task) -> Task:
    task = await store.save(before, after)
    assert task is not None
    return task


async def read(store: Store, task_id: str) -> Task | None:
    """Return a task as it stands in the database, whatever the store remembers."""
    store._recent.forget_all()
    return await store.get(task_id)


NO_QUOTA = Quota("none", 0, 1.0)


async def claim(
    store: Store, lane: Lane, now: float, limit: int, move: Callable[[Task], Task]
) -> Sequence[Task]:
    """Claim without a quota."""
    return (await store.claim(lane, now, limit, move, NO_QUOTA)).tasks


async def claim_in_turns(
    store: Store, depth: int, pick: Callable[[Sequence[Waiting], int], Sequence[str]]
) -> Sequence[Task]:
    """Claim without a quota, as many as are picked."""
    claimed = await store.claim_in_turns(
        NOW, room=100, depth=depth, pick=pick, move=send, quota=NO_QUOTA
    )
    return claimed.tasks


def off(seconds: float) -> Callable[[Task], Task]:
    """A claim's move: put the task off."""
    return lambda task: task.scheduled(NOW + seconds, task.setbacks)


def send(task: Task) -> Task:
    """A claim's move: send the task."""
    return task.submitting(NOW, NOW + 120)


def some_tasks() -> list[Task]:
    """Many tasks, some of which were created at the same moment."""
    rng = random.Random(7)
    return [
        new(
            f"{rng.randrange(10**9):09}",
            caller=rng.choice("cd"),
            prompt_id=rng.choice("pq"),
            status=rng.choice(list(Status)),
            create_time=NOW + rng.randrange(20),
        )
        for _ in range(200)
    ]


class Gate:
    """Keeps the writer busy, so that what is written meanwhile comes into one batch."""

    def __init__(self, store: Store) -> None:
        self._open = threading.Event()
        self._reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            loop.call_soon_threadsafe(self._reached.set)
            self._open.wait(10)

        self._waiting = asyncio.create_task(store._write_alone("test", wait))

    async def reached(self) -> None:
        async with asyncio.timeout(10):
            await self._reached.wait()

    async def open(self) -> None:
        self._open.set()
        await self._waiting


async def enqueued(*jobs: Any) -> list[asyncio.Task[Any]]:
    """Start jobs up to where they wait for the writer."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    await asyncio.sleep(0)
    return tasks
