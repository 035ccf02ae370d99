"""A thread that talks to the database.

What waits for it is done together: a flush to the disk, or a round trip, costs more than the rest.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from peewee import Database

from storage.errors import StorageUnavailableError, is_unavailable

BATCH_MAX_JOBS = 256
LISTS_MAX_JOBS = 4  # for reads of many rows
WAITING_MAX_JOBS = 50_000

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Job:
    kind: Callable[[Sequence[Any]], Sequence[Any]]
    argument: Any
    done: "asyncio.Future[Any]"
    note: Callable[[Any], None]
    since: float = field(default_factory=time.monotonic)


Answers = list[tuple[_Job, Any]]


class Worker:
    """Runs jobs against a database in its own thread, with a connection of its own.

    Jobs of one kind that wait together are done by one call of their kind, with all of their
    arguments. A job is acknowledged after the commit that holds it. A job that raises fails alone;
    its neighbours are run again without it.
    """

    def __init__(
        self,
        name: str,
        db: Database,
        transaction: Callable[[], AbstractContextManager[object]],
        *,
        one_commit: bool = False,
        batch_max_jobs: int = BATCH_MAX_JOBS,
        recover: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            name: The thread's.
            db: Connected in the thread when a job comes.
            transaction: What is done runs inside of it.
            one_commit: Whether all that waits shares a transaction, or each kind has its own.
            batch_max_jobs: How many jobs are done together at the most: all of their results are
                in memory at once.
            recover: Called in the thread once the database was away.
        """
        self._db = db
        self._transaction = transaction
        self._one_commit = one_commit
        self._batch_max_jobs = batch_max_jobs
        self._recover = recover
        self.busy_since = math.inf  # by the monotonic clock; infinity while nothing is done
        # Why nobody could connect, and until when: who waited for that need not wait once more.
        self._away: Exception | None = None
        self._away_time = 0.0
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def run(
        self,
        kind: Callable[[Sequence[Argument]], Sequence[Result]],
        argument: Argument,
        note: Callable[[Result | Exception], None] = lambda _: None,
    ) -> Result:
        """Have a job done, and return its result once it is committed.

        `note` is told of the result or the error first, even if nobody waits for it any more.
        """
        if self._jobs.qsize() >= WAITING_MAX_JOBS:
            raise StorageUnavailableError("too much waits for the database")
        done: asyncio.Future[Result] = self._loop.create_future()
        self._jobs.put(_Job(kind, argument, done, note))
        return await done

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        while batch := self._next_batch():
            for unit in [batch] if self._one_commit else _by_kind(batch):
                self._loop.call_soon_threadsafe(_deliver, self._perform(unit))
        self._db.close()

    def _next_batch(self) -> list[_Job]:
        """Wait for a job and take those behind it. An empty batch is the end."""
        batch: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == self._batch_max_jobs:
                return batch
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return batch
        if batch:
            self._jobs.put(None)  # the end comes after this batch
        return batch

    def _perform(self, unit: list[_Job]) -> Answers:
        if self._away and unit[0].since < self._away_time:
            return [(job, self._away) for job in unit]
        self.busy_since = time.monotonic()
        try:
            self._db.connect(reuse_if_open=True)
            with self._transaction():
                return [answer for jobs in _by_kind(unit) for answer in _done(jobs)]
        except Exception as error:  # noqa: BLE001 - it is the caller's, and goes there
            if is_unavailable(error):
                if self._db.is_closed():
                    self._away, self._away_time = error, time.monotonic()
                self._recover()
                return [(job, error) for job in unit]
            if len(unit) == 1:
                return [(unit[0], error)]
            return [answer for job in unit for answer in self._perform([job])]
        finally:
            self.busy_since = math.inf


def _by_kind(jobs: list[_Job]) -> Iterator[list[_Job]]:
    kinds: dict[object, list[_Job]] = {}
    for job in jobs:
        kinds.setdefault(job.kind, []).append(job)
    yield from kinds.values()


def _done(jobs: list[_Job]) -> Iterator[tuple[_Job, Any]]:
    return zip(jobs, jobs[0].kind([job.argument for job in jobs]), strict=True)


def _deliver(answers: Answers) -> None:
    for job, answer in answers:
        job.note(answer)
        if job.done.done():  # nobody waits any more
            continue
        if isinstance(answer, Exception):
            job.done.set_exception(answer)
        else:
            job.done.set_result(answer)
