"""The jobs of a database thread: how long they wait, and how many are done together."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from storage.batch_size import BatchSize
from storage.errors import StorageUnavailableError

REPEATED_MAX_SECONDS = 10.0  # a job that was queued longer ago is not repeated after a timeout

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Batch = Callable[[Sequence[Argument]], Sequence[Result]]


@dataclass(slots=True)
class Job:
    """One operation, and who waits for its result.

    Attributes:
        batch: Does it together with others; see `Worker.run`, also for the callbacks.
        disposable: Whether it may be dropped before it starts.
        since: Since when it waits, by the monotonic clock.
        started: Whether the thread has taken it, and nothing can drop it any more.
    """

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


Answers = list[tuple[Job, Any]]  # results, or the errors instead


class WaitingLimit:
    """How long disposable jobs wait until they are started; in the event loop.

    One timer serves all of them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Job] = deque()  # the oldest first; some are done already
        self._timer: asyncio.TimerHandle | None = None

    def apply_to(self, job: Job, busy_since: float) -> None:
        """Have a job expire once it has waited for too long.

        Args:
            job: It came after all others.
            busy_since: Since when the thread works, by the monotonic clock.

        Raises:
            StorageUnavailableError: What the thread does takes too long already.
        """
        if job.since - busy_since > self._seconds:
            raise StorageUnavailableError("the database is too slow")
        while self._jobs and self._jobs[0].done.done():
            self._jobs.popleft()
        self._jobs.append(job)
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        waiting, oldest = self._jobs, time.monotonic() - self._seconds
        while waiting and (waiting[0].done.done() or waiting[0].since <= oldest):
            waiting.popleft().expire()
        if waiting:
            self._timer = self._loop.call_later(waiting[0].since - oldest, self._expire)

    def cancel(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()


class Batches:
    """Takes queued jobs, as many as are done together; in the thread.

    Attributes:
        size: How many they are; it learns from every batch.
    """

    def __init__(self, jobs: SimpleQueue[Job | None], max_jobs: int) -> None:
        self._jobs = jobs
        self._repeated: list[Job] = []  # they come before those that wait
        self.size = BatchSize(max_jobs)

    def next(self) -> list[Job]:
        """Wait for a job, and take those behind it; return no job at the end."""
        room = self.size.jobs
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

    def repeat_smaller(self, jobs: Sequence[Job], error: Exception) -> Answers:
        """Have jobs done again in smaller batches; return the error for those that are too old."""
        now = time.monotonic()
        self.size.timed_out(now)
        oldest = now - REPEATED_MAX_SECONDS
        self._repeated += [job for job in jobs if job.since >= oldest]
        return [(job, error) for job in jobs if job.since < oldest]
