"""WatchTasks over replicas: however commits are ordered, readers miss no task's newest state."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psycopg2
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from storage.opening import open_store
from storage.postgresql.migrate import begin_history
from tests.support.databases import change, connect, rows
from tests.support.following import Follower
from tests.support.killing import replicas
from tests.support.postgres import Cluster
from tests.support.refusals import refused
from tests.support.storing import new, stored
from tests.support.waiting import eventually

CALLER = "default"
CATCH_UP_SECONDS = 60
HELD_SECONDS = 0.02  # the longest time from an UPDATE to its COMMIT
LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL}
NUMBERED = "CREATE TABLE IF NOT EXISTS numbered (number BIGSERIAL PRIMARY KEY, task_id TEXT)"


@dataclass
class Writers:
    """Threads that change tasks in transactions of their own, each committed at a random time.

    Every change is also numbered by a sequence, as a naive feed would number it.

    Attributes:
        written: The newest revision of each task that they committed.
        changes: How many changes were committed.
    """

    url: str
    ids: Sequence[str]
    changes_each: int
    count: int = 8
    written: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    def run(self) -> None:
        """Change tasks until each thread has made its changes."""
        threads = [
            threading.Thread(target=self._write, args=(self.ids[number :: self.count], number))
            for number in range(self.count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _write(self, ids: Sequence[str], seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(self.changes_each):
            task_id = chance.choice(ids)
            while (revision := self._change(task_id, chance)) is None:
                time.sleep(0.05)  # the server is restarting
            self.written[task_id] = revision
            self.changes += 1

    def _change(self, task_id: str, chance: random.Random) -> int | None:
        try:
            with closing(psycopg2.connect(self.url)) as connection:
                cursor = connection.cursor()
                for _ in range(20):
                    cursor.execute("INSERT INTO numbered (task_id) VALUES (%s)", (task_id,))
                    cursor.execute(
                        "UPDATE tasks SET revision = revision + 1 WHERE id = %s RETURNING revision",
                        (task_id,),
                    )
                    ((revision,),) = cursor.fetchall()
                    time.sleep(chance.uniform(0, HELD_SECONDS))
                    connection.commit()
                    return int(revision)
        except psycopg2.Error:
            return None
        return None


class Naive:
    """Reads changes by their sequence numbers, from the last one that it has seen."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen = 0
        self._last = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and end."""
        self._stopped.set()
        self._thread.join()

    def _read(self) -> None:
        while True:
            is_last_time = self._stopped.is_set()
            found = rows(self._url, "SELECT number FROM numbered WHERE number > ?", self._last)
            self.seen += len(found)
            self._last = max([self._last, *(number for (number,) in found)])
            if is_last_time:
                return


class Reader:
    """Follows all changes at random replicas, and reconnects at random moments.

    Attributes:
        seen: The newest revision of each task that arrived.
    """

    def __init__(self, addresses: Sequence[str], seed: int) -> None:
        self._addresses = addresses
        self._chance = random.Random(seed)
        self.seen: dict[str, int] = {}
        self._token = ""
        self.connections = 0

    async def follow(self) -> None:
        """Read until cancelled."""
        while True:
            self.connections += 1
            address = self._chance.choice(self._addresses)
            async with grpc.aio.insecure_channel(address) as channel:
                try:
                    await self._read(GenerationServiceStub(channel))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in LOST:
                        raise
                    await asyncio.sleep(0.05)

    async def _read(self, stub: Any) -> None:
        call = stub.WatchTasks(pb.WatchTasksRequest(resume_token=self._token))
        for _ in range(self._chance.randint(1, 200)):
            answer = await call.read()
            if answer.HasField("task"):
                task = answer.task
                self.seen[task.id] = max(task.revision, self.seen.get(task.id, 0))
            # Stored after the change was handled, as docs/feed.md says.
            self._token = answer.resume_token
        call.cancel()


def has_all(
    url: str, reader: Reader, written: dict[str, int], following: "asyncio.Task[None]"
) -> bool:
    """Return whether a reader has seen the newest revision of every task.

    The replicas may send the tasks, and change them after the writers.
    """
    if following.done():
        following.result()  # raises what ended it
    final = dict(rows(url, "SELECT id, revision FROM tasks"))
    assert all(final[task_id] >= revision for task_id, revision in written.items())
    return final == reader.seen


async def compared(
    url: str, addresses: Sequence[str], *, tasks: int, changes: int, disturb: Any = None
) -> None:
    """Let writers and readers work, then compare what every reader saw with the final state."""
    ids = [f"task-{number:05}" for number in range(tasks)]
    store = open_store(url)
    await stored(store, *(new(task_id, caller=CALLER) for task_id in ids))
    await store.close()
    change(url, NUMBERED)
    writers = Writers(url, ids, changes // 8)
    naive = Naive(url) if disturb is None else None
    readers = [Reader(addresses, seed) for seed in range(6)]
    following = [asyncio.create_task(reader.follow()) for reader in readers]
    writing = asyncio.create_task(asyncio.to_thread(writers.run))
    while disturb is not None and not writing.done():
        await disturb()
    await writing
    for reader, task in zip(readers, following, strict=True):
        await eventually(partial(has_all, url, reader, writers.written, task), CATCH_UP_SECONDS)
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    assert writers.changes == changes // 8 * 8
    if naive is not None:
        naive.stop()
        assert naive.seen < writers.changes, "these writers would not show a missed change"


async def test_readers_at_random_replicas_see_the_final_state_of_every_task(
    fleet: Any, postgresql_url: str
) -> None:
    async with fleet() as services:
        addresses = [service.address for service in services]
        await compared(postgresql_url, addresses, tasks=80, changes=800)


async def test_a_change_on_one_replica_arrives_on_the_streams_of_another(fleet: Any) -> None:
    async with fleet() as (first, second, _), Follower(second) as stream:
        await stream.initial()
        end = await first.end((await first.create()).id)
        await stream.until(lambda seen: seen.has(end))
        assert stream.tasks[end.id] == end


async def test_a_token_of_one_replica_resumes_on_another(fleet: Any) -> None:
    async with fleet() as (first, second, _):
        old = await first.end((await first.create()).id)
        async with Follower(first) as stream:
            await stream.until(lambda seen: seen.has(old))
        later = await first.end((await first.create()).id)
        async with Follower(second, resume_token=stream.token) as resumed:
            await resumed.until(lambda seen: seen.has(later))
            assert not resumed.repeats(stream)


async def test_an_open_transaction_delays_changes_and_loses_none(
    fleet: Any, postgresql_url: str
) -> None:
    async with fleet(1) as (service,), Follower(service) as stream:
        await stream.initial()
        with closing(connect(postgresql_url)) as slow:
            slow.cursor().execute("CREATE TABLE held (x INT)")
            end = await service.end((await service.create()).id)
            assert not stream.tasks
            slow.rollback()
        await stream.until(lambda seen: seen.has(end))


async def test_streams_start_over_when_the_database_holds_another_history(
    fleet: Any, postgresql_url: str
) -> None:
    async with fleet(1) as (service,), Follower(service) as stream:
        await stream.initial()
        begin_history(postgresql_url)
        await service.create()
        error = await refused(stream.until(lambda _: False))
        assert (error.code, error.reason) == (
            grpc.StatusCode.OUT_OF_RANGE,
            "RESUME_TOKEN_EXPIRED",
        )
        async with Follower(service) as again:
            await again.until(lambda seen: seen.tasks)
        async with Follower(service, resume_token=stream.token) as old:
            assert (await refused(old.next())).reason == "RESUME_TOKEN_EXPIRED"


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL that the test may restart."""
    with Cluster() as cluster:
        yield cluster


@pytest.mark.torture
async def test_a_hundred_thousand_changes_while_replicas_and_postgresql_are_killed(
    tmp_path: Path,
    kie: Simulator,
    own_cluster: Cluster,
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    settings = {"DATABASE_URL": own_cluster.url}
    async with replicas(3, tmp_path, kie, unused_tcp_port_factory, **settings) as victims:
        chance = random.Random(7)

        async def disturb() -> None:
            await asyncio.sleep(chance.uniform(2, 6))
            if chance.random() < 0.3:
                await asyncio.to_thread(own_cluster.restart)
            else:
                victim = chance.choice(victims)
                await victim.kill()
                await victim.start()

        addresses = [victim.address for victim in victims]
        await compared(own_cluster.url, addresses, tasks=1_000, changes=100_000, disturb=disturb)


@pytest.mark.torture
async def test_a_hundred_thousand_changes_that_a_sequence_number_would_miss(
    fleet: Any, postgresql_url: str
) -> None:
    async with fleet() as services:
        addresses = [service.address for service in services]
        await compared(postgresql_url, addresses, tasks=1_000, changes=100_000)
