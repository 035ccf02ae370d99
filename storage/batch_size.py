"""How many operations are done together: as many as pay, and no more.

Everybody waits for the whole batch. On a healthy database its price is the round trip and the flush
to disk, so a large batch costs no more than a small one. On a slow one every row has a price, so a
large batch only makes callers wait, until it exceeds the statement timeout and fails as a whole.
"""

from dataclasses import dataclass

FIRST_JOBS = 32
QUICK_SECONDS = 0.25  # a batch that takes no longer may grow
SLOW_SECONDS = 1.0  # a large batch that takes longer has to shrink
GAIN = 1.3  # by which factor a larger batch must do more jobs a second
SETTLED_SECONDS = 30.0  # until a change that did not pay is tried again


@dataclass(frozen=True, slots=True)
class _Trial:
    """What was measured before the size was changed."""

    jobs: int
    rate: float


class BatchSize:
    """The size of the next batch, by the time that full batches take. Times are monotonic.

    A quick batch is doubled. Otherwise a change of the size is a trial: a larger batch must do more
    jobs a second, a smaller one not many fewer, or the change is undone.

    Attributes:
        jobs: How many jobs the next batch may have.
    """

    def __init__(self, max_jobs: int) -> None:
        self._max = max_jobs
        self._first = min(FIRST_JOBS, max_jobs)
        self._trial: _Trial | None = None
        self._grows_after = 0.0
        self._shrinks_after = 0.0
        self.jobs = self._first

    def timed_out(self, now: float) -> None:
        """Halve the size: the database gave up a batch."""
        self._trial = None
        self._grows_after = now + SETTLED_SECONDS
        self.jobs = max(1, self.jobs // 2)

    def done(self, jobs: int, seconds: float, now: float) -> None:
        """Learn from a batch.

        Args:
            jobs: How many it had.
            seconds: How long it took.
            now: When it ended.
        """
        if jobs < self.jobs:
            self._rest(jobs)
            return
        rate = jobs / max(seconds, 1e-6)
        trial, self._trial = self._trial, None
        grew = trial is not None and self.jobs > trial.jobs
        if seconds <= QUICK_SECONDS:
            self.jobs = min(self._max, self.jobs * 2)
        elif trial is not None and not self._paid(trial, rate):
            self._undo(trial, now)
        elif seconds > SLOW_SECONDS and self.jobs > self._first and not grew:
            self._try(self.jobs // 2, rate, now)
        else:
            self._try(self.jobs * 2, rate, now)

    def _rest(self, jobs: int) -> None:
        """Return to a small size while there is little to do: the database may be slower later."""
        if jobs * 8 < self.jobs:
            self.jobs = max(min(self._first, self.jobs), self.jobs // 2)

    def _paid(self, trial: _Trial, rate: float) -> bool:
        grew = self.jobs > trial.jobs
        return rate > trial.rate * GAIN if grew else rate * GAIN > trial.rate

    def _undo(self, trial: _Trial, now: float) -> None:
        """Return to the size before. If less was worse, more may be better."""
        shrank = self.jobs < trial.jobs
        self.jobs = trial.jobs
        if shrank:
            self._shrinks_after = now + SETTLED_SECONDS
            self._try(trial.jobs * 2, trial.rate, now)
        else:
            self._grows_after = now + SETTLED_SECONDS

    def _try(self, jobs: int, rate: float, now: float) -> None:
        allowed_after = self._grows_after if jobs > self.jobs else self._shrinks_after
        if now >= allowed_after and jobs <= self._max:
            self._trial = _Trial(self.jobs, rate)
            self.jobs = jobs
