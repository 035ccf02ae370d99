"""A thread that talks to the database, and combines the jobs that wait for it.

A flush to the disk, or a round trip, costs more than everything else, so jobs share it.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from peewee import Database

from storage.batch_size import BatchSize
from storage.errors import (
    CommitUnknownError,
    StorageUnavailableError,
    is_statement_timeout,
    is_unavailable,
)

BATCH_MAX_JOBS = 256
LISTS_MAX_JOBS = 4  # for reads of many rows
WAITING_SECONDS = 5.0
REPEATED_MAX_SECONDS = 10.0  # a job that was queued longer ago is not repeated after a timeout

logger = logging.getLogger(__name__)

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Batch = Callable[[Sequence[Argument]], Sequence[Result]]


@dataclass(slots=True)
class _Job:
    batch: Batch[Any, Any]
    argument: Any
    done: "asyncio.Future[Any]"
    on_result: Callable[[Any], None]
    on_failure: Callable[[], None]
    disposable: bool
    since: float = field(default_factory=time.monotonic)
    started: bool = False

    def start(self) -> bool:
        """Start the job, in the thread; return False if nobody wants its result any more."""
        self.started = not (self.disposable and self.done.done())
        return self.started

    def expire(self) -> None:
        """Give up waiting, in the event loop, unless the job has started."""
        if not self.started and not self.done.done():
            self.done.set_exception(StorageUnavailableError("the database is too slow"))


Answers = list[tuple[_Job, Any]]


@dataclass(frozen=True, slots=True)
class _Outage:
    """The last connection failure, and when it happened."""

    error: Exception
    time: float


class Worker:
    """Runs jobs against a database in its own thread, with its own connection.

    A job is one operation of the store. Jobs that wait together and have the same batch function
    are done by one call of it, with all of their arguments. A job is acknowledged after the commit
    that holds it. A job that raises fails alone; the others of its batch are run again without it.
    A batch that the database gives up because it takes too long is repeated in smaller ones.

    Attributes:
        name: What logs and metrics call the thread.
        busy_since: Since when it works, by the monotonic clock; infinity while it waits for jobs.
    """

    def __init__(
        self,
        name: str,
        db: Database,
        transaction: Callable[[], AbstractContextManager[object]],
        *,
        one_commit: bool = False,
        batch_max_jobs: int = BATCH_MAX_JOBS,
        waiting_seconds: float = WAITING_SECONDS,
        recover: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread, inside the event loop that waits for it.

        Args:
            name: The thread's, without `store-`.
            db: Connected in the thread when a job comes.
            transaction: Surrounds all that is done together.
            one_commit: Whether all waiting jobs share a transaction, or each batch has its own.
            batch_max_jobs: How many jobs are done together at most: all of their results are in
                memory at once.
            waiting_seconds: How long a disposable job waits until it is started.
            recover: Called in the thread after a failure of the database.
        """
        self.name = name
        self._db = db
        self._transaction = transaction
        self._one_commit = one_commit
        self._waiting_seconds = waiting_seconds
        self._recover = recover
        # Jobs that waited during it fail at once, instead of each waiting for its own timeout.
        self._outage: _Outage | None = None
        self.busy_since = math.inf
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._repeated: list[_Job] = []  # they come before those that wait
        self._disposable: deque[_Job] = deque()  # the oldest first; some are done already
        self._expiry: asyncio.TimerHandle | None = None
        self._size = BatchSize(batch_max_jobs)
        self._thread = threading.Thread(target=self._serve, name=f"store-{name}", daemon=True)
        self._thread.start()

    async def run(
        self,
        batch: Batch[Argument, Result],
        argument: Argument,
        on_result: Callable[[Result], None] = lambda _: None,
        on_failure: Callable[[], None] = lambda: None,
        *,
        disposable: bool = False,
    ) -> Result:
        """Run a job, and return its result once it is committed.

        Args:
            batch: Called in the thread with the arguments of all waiting jobs that share it;
                returns a result for each.
            argument: The job's.
            on_result: Called in the event loop with the committed result, even if the caller of
                `run` is gone, and before any caller learns of a result of the same commit.
            on_failure: The same, if there is no result.
            disposable: Whether nobody but the caller of `run` needs the result. Such a job is
                dropped if its caller leaves before it starts, or if it waits for too long.

        Raises:
            CommitUnknownError: The database failed while it committed the result.
        """
        done: asyncio.Future[Result] = self._loop.create_future()
        job = _Job(batch, argument, done, on_result, on_failure, disposable)
        if not disposable:
            self._jobs.put(job)
            return await done
        if job.since - self.busy_since > self._waiting_seconds:
            raise StorageUnavailableError("the database is too slow")
        self._jobs.put(job)
        self._expire_in_time(job)
        return await done

    def _expire_in_time(self, job: _Job) -> None:
        """Expire a job that waits for too long, by one timer for all."""
        waiting = self._disposable
        while waiting and waiting[0].done.done():
            waiting.popleft()
        waiting.append(job)
        if self._expiry is None:
            self._expiry = self._loop.call_later(self._waiting_seconds, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        waiting, oldest = self._disposable, time.monotonic() - self._waiting_seconds
        while waiting and (waiting[0].done.done() or waiting[0].since <= oldest):
            waiting.popleft().expire()
        if waiting:
            seconds = waiting[0].since - oldest
            self._expiry = self._loop.call_later(seconds, self._expire)

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    async def close(self) -> None:
        """Finish the waiting jobs, and end the thread."""
        self._jobs.put(None)
        await self._ended.wait()
        if self._expiry is not None:
            self._expiry.cancel()

    # --- in the thread ---

    def _serve(self) -> None:
        try:
            while jobs := self._next_jobs():
                started = time.monotonic()
                units = [jobs] if self._one_commit else _by_batch(jobs)
                succeeded = [self._work(unit) for unit in units]
                if all(succeeded):
                    ended = time.monotonic()
                    self._size.done(len(jobs), ended - started, ended)
        finally:
            with suppress(Exception):  # the connection may be dead
                self._db.close()
            self._loop.call_soon_threadsafe(self._ended.set)

    def _next_jobs(self) -> list[_Job]:
        """Wait for a job, and take those behind it; return no job at the end."""
        room = self._size.jobs
        repeated = [job for job in self._repeated if job.start()]
        jobs, self._repeated = repeated[:room], repeated[room:]
        while len(jobs) < room:
            try:
                job = self._jobs.get(block=not jobs)
            except Empty:
                break
            if job is None:
                if jobs:
                    self._jobs.put(None)  # the end comes after these jobs
                break
            if job.start():
                jobs.append(job)
        return jobs

    def _work(self, unit: list[_Job]) -> bool:
        """Do jobs and deliver their results; return whether all succeeded.

        No exception may end the thread.
        """
        try:
            answers = self._perform(unit)
        except Exception as error:
            logger.exception("the database thread cannot recover its connection")
            answers = [(job, error) for job in unit]
        self._loop.call_soon_threadsafe(_deliver, answers)
        return bool(answers) and not any(isinstance(answer, Exception) for _, answer in answers)

    def _perform(self, unit: list[_Job]) -> Answers:
        """Do jobs in one transaction; return the result or the error of each."""
        if self._outage and unit[0].since < self._outage.time:
            return [(job, self._outage.error) for job in unit]
        answers: Answers = []
        self.busy_since = time.monotonic()
        try:
            self._db.connect(reuse_if_open=True)
            with self._transaction():
                answers = [
                    answer
                    for jobs in _by_batch(unit)
                    for answer in zip(jobs, jobs[0].batch([j.argument for j in jobs]), strict=True)
                ]
        except Exception as error:  # noqa: BLE001 - it is the caller's, and goes there
            if is_unavailable(error):
                if self._db.is_closed():
                    self._outage = _Outage(error, time.monotonic())
                self._recover()
                if answers:  # all jobs were done, so it was their commit that failed
                    return [(job, CommitUnknownError(error, result)) for job, result in answers]
                if len(unit) > 1 and is_statement_timeout(error):
                    return self._repeat_smaller(unit, error)
                return [(job, error) for job in unit]
            if len(unit) == 1:
                return [(unit[0], error)]
            return [answer for job in unit for answer in self._perform([job])]
        else:
            return answers
        finally:
            self.busy_since = math.inf

    def _repeat_smaller(self, unit: list[_Job], error: Exception) -> Answers:
        """Have jobs done again in smaller batches; return the error for those that are too old."""
        now = time.monotonic()
        self._size.timed_out(now)
        oldest = now - REPEATED_MAX_SECONDS
        self._repeated += [job for job in unit if job.since >= oldest]
        return [(job, error) for job in unit if job.since < oldest]


def _by_batch(jobs: list[_Job]) -> Iterable[list[_Job]]:
    batches: dict[Batch[Any, Any], list[_Job]] = {}
    for job in jobs:
        batches.setdefault(job.batch, []).append(job)
    return batches.values()


def _deliver(answers: Answers) -> None:
    for job, answer in answers:
        failed = isinstance(answer, Exception)
        try:
            if failed:
                job.on_failure()
            else:
                job.on_result(answer)
        except Exception:  # the other jobs still get their results
            logger.exception("handling the result of a database operation failed")
        if job.done.done():  # the caller is gone
            continue
        if failed:
            job.done.set_exception(answer)
        else:
            job.done.set_result(answer)
