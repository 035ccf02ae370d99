"""Tasks and stores as the tests of the storage want them."""

import asyncio
import random
import threading
import types
import typing
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from storage.claims import Quota, Sending, Waiting
from storage.creation import Created, CreateLimits
from storage.store import Store
from storage.task import Artifact, Failure, Lane, Stage, Status, Task

NOW = 1_800_000_000.0
NO_LIMIT = CreateLimits(1_000_000)
MODELS = frozenset({"imagen4", "midjourney", "veo3", "sora2"})


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
    return task._replace(**changes)


STORED_AT_ONCE = 16
LANES = {
    Lane.SUBMIT: new("submit"),
    Lane.POLL: new("poll", stage=Stage.QUEUED),
    Lane.STORE: new("store", stage=Stage.STORING),
    Lane.LATE: new("late", stage=None, status=Status.FAILED),
}


async def stored(store: Store, *tasks: Task) -> None:
    """Store tasks, a few at a time: on a busy machine, large ones would wait for too long."""
    for start in range(0, len(tasks), STORED_AT_ONCE):
        few = tasks[start : start + STORED_AT_ONCE]
        answers = await asyncio.gather(*(store.create(task, NO_LIMIT) for task in few))
        assert answers == [Created(task) for task in few]


async def saved(store: Store, before: Task, after: Task) -> Task:
    task = await store.save(before, after)
    assert task is not None
    return task


async def read(store: Store, task_id: str) -> Task | None:
    """Return a task as it is in the database, whatever the store remembers."""
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
    sending = Sending(room=100, depth=depth, pick=pick, move=send, quota=NO_QUOTA)
    return (await store.claim_in_turns(NOW, sending)).tasks


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


TEXTS = [
    "",
    "a",
    "Größe 猫 חתול 👨\u200d👩\u200d👧 𐍈 \u202f \uffff",
    "'; DROP TABLE tasks; --",
    '{"resultUrls": ["https://x.example/?a=1&b=%00"]}',
    "\r\n\t \\ \" '",
    "[]",
    "x" * 3_000_000,
]
FLOATS = [0.0, -1.5, 5e-324, 1e300, 1_800_000_000.123456, 0.1 + 0.2]
INTEGERS = [0, 1, -1, 2**31 - 1]
LARGE_INTEGERS = [*INTEGERS, 2**31, 2**53 + 1, 2**63 - 2]
LARGE = {"revision", "version"}
INDEXED = {"id", "caller", "request_id", "prompt_id", "model"}  # of limited length
HINTS = typing.get_type_hints(Task)


def any_value(kind: Any, rng: random.Random) -> Any:
    """Return a value that a field of this type may have."""
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:
        return any_value(rng.choice(typing.get_args(kind)), rng)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return rng.choice(list(kind))
    if kind == tuple[Artifact, ...]:
        return tuple(
            Artifact(rng.choice(TEXTS), rng.choice(TEXTS)) for _ in range(rng.choice([0, 1, 9]))
        )
    choices: dict[Any, Callable[[], Any]] = {
        str: lambda: rng.choice(TEXTS),
        bytes: lambda: rng.choice([b"", bytes(range(256)), rng.randbytes(100_000)]),
        float: lambda: rng.choice(FLOATS),
        int: lambda: rng.choice(INTEGERS),
        types.NoneType: lambda: None,
        bool: lambda: False,  # the tasks are of this version
        Failure: lambda: Failure("GENERATION_FAILED", rng.choice(TEXTS), rng.choice(TEXTS)),
    }
    return choices[kind]()


def any_task(seed: int) -> Task:
    """A task with any values, the odd ones too, always the same for a seed."""
    rng = random.Random(seed)
    values = {name: any_value(kind, rng) for name, kind in HINTS.items()}
    values |= {name: rng.choice(LARGE_INTEGERS) for name in LARGE}
    return Task(**values | {name: values[name][:255] for name in INDEXED})


class Gate:
    """Keeps the writer busy, so that what is written meanwhile comes into one batch."""

    def __init__(self, store: Store) -> None:
        self._open = threading.Event()
        self._reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(_: object) -> list[None]:
            loop.call_soon_threadsafe(self._reached.set)
            self._open.wait(10)
            return [None]

        self._waiting = asyncio.create_task(store._write("test", wait))

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
