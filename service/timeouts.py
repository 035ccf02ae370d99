"""Failed polls: which of them count against their task, and when the task times out."""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from providers.base import Poll, Progress, Unavailable, UnknownState, Unreadable
from service.reach import Reach
from service.schedule import Schedule
from storage.task import Failure, Task

OVERDUE_MAX = 10_000  # tasks that are remembered as overdue

log = structlog.get_logger()

Unfinished = Progress | UnknownState | Unreadable | Unavailable


@dataclass(frozen=True, slots=True)
class TimeoutBounds:
    """How many failed polls it takes, where no setting says so.

    Attributes:
        failing_setbacks: How many polls in a row must fail before a task may time out.
        given_up_setbacks: The same if the last one says that the provider gave the task up.
        outage_max_seconds: While the provider answers no poll, no task times out before this age.
    """

    failing_setbacks: int = 3
    given_up_setbacks: int = 5
    outage_max_seconds: float = 86_400.0


BOUNDS = TimeoutBounds()


def _by_the_clock(since: float, now: float) -> float:
    return max(0.0, now - since)


@dataclass(frozen=True, slots=True)
class TaskTimeouts:
    """Decides when a task has timed out. Times are unix seconds.

    A task that is overdue at one poll is polled once more, an interval later: its age may be wrong
    at the first one, if the clock has jumped since an earlier process accepted it.

    Attributes:
        schedule: When polls are made.
        reach: Whether the provider answers any request.
        task_max_age_seconds: From a task's acceptance by the provider to its timeout.
        bounds: How many failed polls it takes.
        elapsed_seconds: Returns how long ago a time was, without jumps of the clock.
        overdue_since: The tasks that were overdue at their last poll, and since which poll.
    """

    schedule: Schedule
    reach: Reach
    task_max_age_seconds: float
    bounds: TimeoutBounds = BOUNDS
    elapsed_seconds: Callable[[float, float], float] = _by_the_clock
    overdue_since: dict[str, float] = field(default_factory=dict)

    def age_of(self, task: Task, now: float) -> float:
        """Return the seconds since the provider accepted a task."""
        return 0.0 if task.accept_time is None else self.elapsed_seconds(task.accept_time, now)

    def setbacks(self, task: Task, outcome: Poll, now: float) -> int:
        """Count a failed poll, but not if polls of other tasks are not answered either."""
        match outcome:
            case Progress():
                return 0
            case Unavailable() if not self._others_answered(task, now):
                return max(task.setbacks, 1)
            case _:
                return task.setbacks + 1

    def _others_answered(self, task: Task, now: float) -> bool:
        """Return whether polls of other tasks were answered since the last poll of this one."""
        since = self.schedule.nominal_wait(task.model, self.age_of(task, now), task.setbacks)
        return self.reach.answered_since(now - since, now)

    def is_timed_out(self, task: Task, outcome: Unfinished, setbacks: int, now: float) -> bool:
        """Return whether a task has timed out, after a poll that made its setbacks `setbacks`."""
        given_up = isinstance(outcome, Unreadable) and outcome.given_up
        if given_up and setbacks >= self.bounds.given_up_setbacks:
            return True
        age = self.age_of(task, now)
        if age < self.task_max_age_seconds:
            self.overdue_since.pop(task.id, None)
            return False
        is_answered = isinstance(outcome, Progress | UnknownState)
        is_failing = setbacks > task.setbacks and setbacks >= self.bounds.failing_setbacks
        is_overdue = is_answered or is_failing or age >= self.bounds.outage_max_seconds
        return is_overdue and self._is_confirmed(task.id, now)

    def _is_confirmed(self, task_id: str, now: float) -> bool:
        """Return whether an overdue task was already overdue at a poll an interval earlier."""
        since = self.overdue_since.setdefault(task_id, now)
        if since > now:  # the clock was set back
            self.overdue_since[task_id] = now
        elif self.elapsed_seconds(since, now) >= self.schedule.interval_seconds:
            del self.overdue_since[task_id]
            return True
        if len(self.overdue_since) > OVERDUE_MAX:  # of tasks that ended in another way
            del self.overdue_since[next(iter(self.overdue_since))]
        return False

    def failure(self, outcome: Unfinished) -> Failure:
        """Return the failure of a task that has timed out, with what the last poll said."""
        words = f"not finished within {self.task_max_age_seconds:g} s of its acceptance"
        if isinstance(outcome, Unreadable | Unavailable):
            words = f"{words}; the last poll: {outcome.detail}"
        if not isinstance(outcome, Unreadable):
            return Failure("TASK_TIMEOUT", words)
        log.warning("task timed out", detail=outcome.detail, answer=outcome.answer)
        if outcome.given_up:
            words = f"the provider has given it up: {outcome.detail}"
        return Failure("TASK_TIMEOUT", words, outcome.provider_code)
