"""The size of a batch, on databases whose batches and rows have a price."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from storage.batch_size import FIRST_JOBS, BatchSize

MAX_JOBS = 256
TIMEOUT_SECONDS = 5.0


@dataclass
class Busy:
    """A database with more jobs waiting than fit a batch, and its clock."""

    batch_seconds: float = 0.0
    job_seconds: float = 0.0
    now: float = 0.0
    done: int = 0

    def serve(self, size: BatchSize, batches: int) -> list[int]:
        """Do full batches; return their sizes."""
        sizes = []
        for _ in range(batches):
            jobs = size.jobs
            sizes.append(jobs)
            seconds = self.batch_seconds + jobs * self.job_seconds
            self.now += min(seconds, TIMEOUT_SECONDS)
            if seconds > TIMEOUT_SECONDS:
                size.timed_out(self.now)
            else:
                self.done += jobs
                size.done(jobs, seconds, self.now)
        return sizes


def grown() -> BatchSize:
    size = BatchSize(MAX_JOBS)
    Busy(batch_seconds=0.001).serve(size, 10)
    assert size.jobs == MAX_JOBS
    return size


def test_a_batch_grows_while_it_is_quick() -> None:
    sizes = Busy(batch_seconds=0.002).serve(BatchSize(MAX_JOBS), 5)
    assert sizes == [32, 64, 128, 256, 256]


def test_the_size_is_never_more_than_the_maximum_and_never_less_than_one() -> None:
    assert Busy(batch_seconds=0.002).serve(BatchSize(4), 3) == [4, 4, 4]
    size = BatchSize(4)
    Busy(job_seconds=100).serve(size, 20)
    assert size.jobs == 1


def test_a_batch_that_times_out_is_halved() -> None:
    size = grown()
    assert Busy(job_seconds=1).serve(size, 7) == [256, 128, 64, 32, 16, 8, 4]


@pytest.mark.parametrize("start", [lambda: BatchSize(MAX_JOBS), grown])
def test_where_each_row_is_slow_batches_become_short(start: Callable[[], BatchSize]) -> None:
    size = start()
    slow = Busy(job_seconds=0.02)
    slow.serve(size, 8)
    slow.done, began = 0, slow.now
    sizes = slow.serve(size, 100)
    assert max(sizes) * slow.job_seconds <= 1.3, "nobody waits long for the batch in progress"
    assert slow.done / (slow.now - began) == pytest.approx(1 / slow.job_seconds)


@pytest.mark.parametrize("batch_seconds", [0.3, 1.5, 3.0])
@pytest.mark.parametrize("start", [lambda: BatchSize(MAX_JOBS), grown])
def test_where_each_batch_is_slow_batches_become_large(
    start: Callable[[], BatchSize], batch_seconds: float
) -> None:
    size = start()
    slow = Busy(batch_seconds=batch_seconds, job_seconds=0.0001)
    slow.serve(size, 15)
    slow.done, began = 0, slow.now
    slow.serve(size, 100)
    best = MAX_JOBS / (batch_seconds + MAX_JOBS * slow.job_seconds)
    assert slow.done / (slow.now - began) > best * 0.85


def test_the_batch_grows_again_when_the_database_has_recovered() -> None:
    size = grown()
    Busy(job_seconds=0.02).serve(size, 50)
    assert size.jobs <= 64
    Busy(batch_seconds=0.002).serve(size, 5)
    assert size.jobs == MAX_JOBS


def test_batches_that_are_not_full_make_the_size_small_again() -> None:
    size = grown()
    for _ in range(10):
        size.done(1, 0.001, now=0)
    assert size.jobs == FIRST_JOBS


def test_batches_that_are_nearly_full_leave_it_as_it_is() -> None:
    size = grown()
    for _ in range(10):
        size.done(200, 0.001, now=0)
    assert size.jobs == MAX_JOBS
