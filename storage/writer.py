"""One thread that writes.

All jobs that wait share one transaction, and so one flush to the disk.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from peewee import Database, InterfaceError, OperationalError

BATCH_MAX_JOBS = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[], Any]
    done: "asyncio.Future[Any]"


class GroupWriter:
    """Runs jobs against a database, in their order, in its own thread.

    A job is acknowledged after the commit that holds it. A job that raises fails alone; its
    neighbours are run again without it.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread and return its result once it is committed."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, done))
        return await done

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        while batch := self._next_batch():
            answers = self._commit(batch)
            self._loop.call_soon_threadsafe(_deliver, answers)
        self._db.close()

    def _next_batch(self) -> list[_Job]:
        """Wait for a job and take those behind it. An empty batch is the end."""
        batch: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == BATCH_MAX_JOBS:
                return batch
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return batch
        if batch:
            self._jobs.put(None)  # the end comes after this batch
        return batch

    def _commit(self, batch: list[_Job]) -> list[tuple[_Job, Any]]:
        try:
            self._db.connect(reuse_if_open=True)
            with self._db.atomic("IMMEDIATE"):
                results = [job.work() for job in batch]
        except (OperationalError, InterfaceError) as error:  # the database's trouble, not the jobs'
            return [(job, error) for job in batch]
        except Exception as error:  # noqa: BLE001 - it is the caller's, and goes there
            if len(batch) == 1:
                return [(batch[0], error)]
            return [answer for job in batch for answer in self._commit([job])]
        return list(zip(batch, results, strict=True))


def _deliver(answers: list[tuple[_Job, Any]]) -> None:
    for job, answer in answers:
        if job.done.done():  # nobody waits any more
            continue
        if isinstance(answer, Exception):
            job.done.set_exception(answer)
        else:
            job.done.set_result(answer)
