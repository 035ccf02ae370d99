"""How fast a commit of one replica is shown by another, and what its hints cost."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from operator import truediv
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from storage.opening import open_store
from storage.store import Store
from storage.task import Task
from tests.support.killing import Victim, replicas
from tests.support.postgres import Cluster
from tests.support.storing import new, stored
from tests.support.waiting import eventually

pytestmark = pytest.mark.torture

CHANGES_PER_SECOND = 100
TASKS = 100
SECONDS = 10
MEDIAN_SECONDS = 0.030
PERCENTILE_99_SECONDS = 0.150
ROUNDS = 40
SAVES = 3_000
WRITERS = 64
HINTS_COST = 1.10


@pytest.fixture
def durable_url() -> Iterator[str]:
    """A database that flushes its commits to disk, as in production."""
    with Cluster(fsync=True) as cluster:
        yield cluster.url


@pytest.fixture
async def watching_replica(
    tmp_path: Path, kie: Simulator, durable_url: str, unused_tcp_port_factory: Any
) -> AsyncIterator[Victim]:
    """A replica in another process, which has to learn of commits here."""
    settings = {"DATABASE_URL": durable_url, "PUBLIC_URL": ""}
    async with replicas(1, tmp_path, kie, unused_tcp_port_factory, **settings) as (victim,):
        yield victim


async def some_tasks(store: Store) -> list[Task]:
    """Store tasks that no poller finds due."""
    later = store.now() + 3_600
    tasks = [
        new(str(n), caller="default", create_time=store.now(), due_time=later).submitting(
            store.now(), later
        )
        for n in range(TASKS)
    ]
    tasks = [task.queued("k", store.now(), later) for task in tasks]
    await stored(store, *tasks)
    return tasks


async def changed(store: Store, task: Task) -> Task:
    """Commit the next snapshot of a task."""
    after = task.progressed(True, (task.progress_percent or 0) + 1, store.now())
    saved = await store.save(task, after)
    assert saved is not None
    return saved


async def test_a_commit_is_shown_by_another_replica_within_milliseconds(
    watching_replica: Victim, durable_url: str
) -> None:
    store = open_store(durable_url)
    committed: dict[tuple[str, int], float] = {}
    latencies: list[float] = []
    tasks = await some_tasks(store)

    async def watch(stub: Any, task: Task, opened: asyncio.Event) -> None:
        async for answer in stub.WatchTask(pb.WatchTaskRequest(task_id=task.id)):
            shown = time.monotonic()
            opened.set()
            if at := committed.pop((task.id, answer.task.revision), None):
                latencies.append(shown - at)

    async with grpc.aio.insecure_channel(watching_replica.address) as channel:
        stub = GenerationServiceStub(channel)
        opened = [asyncio.Event() for _ in tasks]
        watching = [
            asyncio.ensure_future(watch(stub, task, event))
            for task, event in zip(tasks, opened, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in opened))
        started = time.monotonic()

        async def change(number: int) -> None:
            await asyncio.sleep(started + number / CHANGES_PER_SECOND - time.monotonic())
            turn = number % TASKS
            tasks[turn] = await changed(store, tasks[turn])
            committed[tasks[turn].id, tasks[turn].revision] = time.monotonic()

        await asyncio.gather(*(change(n) for n in range(CHANGES_PER_SECOND * SECONDS)))
        await eventually(lambda: not committed)
        for stream in watching:
            stream.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    await store.close()
    median = statistics.median(latencies)
    percentile_99 = statistics.quantiles(latencies, n=100)[98]
    print(  # noqa: T201
        f"commit to watcher on another replica, {len(latencies)} changes,"
        f" {CHANGES_PER_SECOND} a second: median {median * 1e3:.1f} ms,"
        f" 99 % {percentile_99 * 1e3:.1f} ms, most {max(latencies) * 1e3:.1f} ms"
    )
    assert len(latencies) >= 0.9 * CHANGES_PER_SECOND * SECONDS
    assert median < MEDIAN_SECONDS
    assert percentile_99 < PERCENTILE_99_SECONDS


@pytest.mark.usefixtures("watching_replica")
async def test_hints_cost_the_writers_little(durable_url: str) -> None:
    stores = {hints: open_store(durable_url, hints=hints) for hints in (True, False)}
    tasks = await some_tasks(stores[True])
    seconds: dict[bool, list[float]] = {True: [], False: []}  # of each round

    async def writer(store: Store, place: int) -> None:
        for _ in range(SAVES // WRITERS):
            tasks[place] = await changed(store, tasks[place])

    for number in range(2 * ROUNDS):
        hints = number % 4 in {0, 3}  # on, off, off, on: neither is always the first
        started = time.perf_counter()
        await asyncio.gather(*(writer(stores[hints], place) for place in range(WRITERS)))
        seconds[hints].append(time.perf_counter() - started)
    for store in stores.values():
        await store.close()
    on, off = (statistics.median(seconds[hints]) for hints in (True, False))
    ratio = statistics.median(map(truediv, seconds[True], seconds[False]))  # of neighbours
    print(  # noqa: T201
        f"{SAVES / on:.0f} saves a second with hints, {SAVES / off:.0f} without:"
        f" {ratio - 1:+.1%} time"
    )
    assert ratio < HINTS_COST
