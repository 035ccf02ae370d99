"""A thread that talks to the database, and combines the jobs that wait for it.

A flush to the disk, or a round trip, costs more than everything else, so jobs share it.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from peewee import Database

from storage.batches import Answers, Argument, Batch, Batches, Job, Result, WaitingLimit
from storage.errors import CommitUnknownError, is_statement_timeout, is_unavailable
from storage.threads import LoopThread

BATCH_MAX_JOBS = 256
LISTS_MAX_JOBS = 4  # for reads of many rows
WAITING_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outage:
    """The last connection failure, and when it happened."""

    error: Exception
    time: float


class _Connection:
    """The connection of a worker, and how it recovers.

    Attributes:
        outage: Its last outage. Jobs that waited during it fail at once, instead of each waiting
            for its own timeout.
    """

    def __init__(
        self,
        db: Database,
        transaction: Callable[[], AbstractContextManager[object]],
        recover: Callable[[], None],
    ) -> None:
        self._db = db
        self._transaction = transaction
        self._recover = recover
        self.outage: _Outage | None = None

    def transaction(self) -> AbstractContextManager[object]:
        """Return a transaction, and open the connection for it if it is closed."""
        self._db.connect(reuse_if_open=True)
        return self._transaction()

    def recover(self, error: Exception) -> None:
        """Recover from a failure of the database; remember it if it ended the connection."""
        if self._db.is_closed():
            self.outage = _Outage(error, time.monotonic())
        self._recover()

    def close(self) -> None:
        with suppress(Exception):  # it may be dead
            self._db.close()


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
        self.busy_since = math.inf
        self._one_commit = one_commit
        self._connection = _Connection(db, transaction, recover)
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._batches = Batches(self._jobs, batch_max_jobs)
        self._waiting_limit = WaitingLimit(waiting_seconds)
        self._thread = LoopThread(name, self._serve)
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
        job = Job(batch, argument, done, on_result, on_failure, disposable)
        if disposable:
            self._waiting_limit.apply_to(job, self.busy_since)
        self._jobs.put(job)
        return await done

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    async def close(self) -> None:
        """Finish the waiting jobs, and end the thread."""
        self._jobs.put(None)
        await self._thread.ended()
        self._waiting_limit.cancel()

    # --- in the thread ---

    def _serve(self) -> None:
        try:
            while jobs := self._batches.next():
                started = time.monotonic()
                units = [jobs] if self._one_commit else _by_batch(jobs)
                succeeded = [self._work(unit) for unit in units]
                if all(succeeded):
                    ended = time.monotonic()
                    self._batches.size.done(len(jobs), ended - started, ended)
        finally:
            self._connection.close()

    def _work(self, unit: list[Job]) -> bool:
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

    def _perform(self, unit: list[Job]) -> Answers:
        """Do jobs in one transaction; return the result or the error of each."""
        outage = self._connection.outage
        if outage and unit[0].since < outage.time:
            return [(job, outage.error) for job in unit]
        answers: Answers = []
        self.busy_since = time.monotonic()
        try:
            with self._connection.transaction():
                answers = [
                    answer
                    for jobs in _by_batch(unit)
                    for answer in zip(jobs, jobs[0].batch([j.argument for j in jobs]), strict=True)
                ]
        except Exception as error:  # noqa: BLE001 - it is the caller's, and goes there
            if is_unavailable(error):
                self._connection.recover(error)
                if answers:  # all jobs were done, so it was their commit that failed
                    return [(job, CommitUnknownError(error, result)) for job, result in answers]
                if len(unit) > 1 and is_statement_timeout(error):
                    return self._batches.repeat_smaller(unit, error)
                return [(job, error) for job in unit]
            if len(unit) == 1:
                return [(unit[0], error)]
            return [answer for job in unit for answer in self._perform([job])]
        else:
            return answers
        finally:
            self.busy_since = math.inf


def _by_batch(jobs: list[Job]) -> Iterable[list[Job]]:
    batches: dict[Batch[Any, Any], list[Job]] = {}
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
