"""From an outcome to the next snapshot: every decision about a task that was sent, without I/O.

Each method takes the current task, which may have changed since the outcome was asked for, and
returns the snapshot to store, or None to leave the task as it is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from providers.base import (
    Accepted,
    Failed,
    Poll,
    Postponed,
    Progress,
    Recognition,
    Refused,
    Submission,
    Succeeded,
    Unavailable,
    Unknown,
    UnknownState,
    Unreadable,
)
from service.reach import Reach
from service.schedule import Schedule
from service.timeouts import TaskTimeouts, Unfinished
from storage.task import Artifact, Failure, Stage, Task

UNKNOWN = "SUBMISSION_UNKNOWN"
GENERATION_FAILED = "GENERATION_FAILED"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class VerdictBounds:
    """How long to keep trying, where no setting says so.

    Attributes:
        postpone_seconds: Doubled each time, the backoff of a task that was postponed repeatedly.
        postpone_max_seconds: Its longest backoff.
        late_poll_seconds: Between two polls for a late delivery.
    """

    postpone_seconds: float = 1.0
    postpone_max_seconds: float = 30.0
    late_poll_seconds: float = 3_600.0


BOUNDS = VerdictBounds()


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Decides what becomes of a task. Times are unix seconds.

    Attributes:
        schedule: When to poll again; it learns from every task that ends.
        reach: Whether the provider answers any request.
        timeouts: Which failed polls count, and when a task times out.
        task_max_age_seconds: From a task's acceptance by the provider to its timeout.
        unknown_wait_seconds: How long a submission without a response waits for its callback.
        delivery_seconds: How long the provider keeps a result, from its acceptance of the task.
        left_to_callback: Whether to wait for a task's callback instead of polling often: the
            provider was given a callback URL, and nobody watches the task.
        keeps_results: Whether results are copied before a task ends.
        bounds: How long to keep trying.
    """

    schedule: Schedule
    reach: Reach
    timeouts: TaskTimeouts
    task_max_age_seconds: float
    unknown_wait_seconds: float
    delivery_seconds: float
    left_to_callback: Callable[[str], bool]
    keeps_results: bool = False
    bounds: VerdictBounds = BOUNDS

    # --- a task was sent ---

    def after_submission(
        self, task: Task, outcome: Submission, now: float, hold_until: float
    ) -> Task | None:
        """Decide by the response to the paid request.

        Args:
            task: The current task.
            outcome: The response.
            now: The current time.
            hold_until: Until when tasks of its model are held, if the provider does not accept any.
        """
        if task.stage is not Stage.SUBMITTING:
            return _adopted(task, outcome, now)
        match outcome:
            case Accepted(provider_task_id):
                called_back = bool(task.candidate_id)
                due_time = now if called_back else self._next_time(task, now)
                return task.queued(provider_task_id, now, due_time)
            case Refused():
                return _refused(task, outcome, now)
            case Postponed():
                return self._postponed(task, outcome, now, hold_until)
            case Unknown():
                if outcome.provider_task_id and not task.candidate_id:
                    task = task.with_candidate(outcome.provider_task_id, task.due_time)
                return self.without_answer(task, now)

    def _postponed(
        self, task: Task, outcome: Postponed, now: float, hold_until: float
    ) -> Task | None:
        """Send it again later, unless something says that it was accepted after all."""
        if candidate := task.candidate_id or outcome.provider_task_id:
            return task.suspended(candidate, now)
        if task.unknown_time is not None:  # a callback came that named no task
            return self.without_answer(task, now)
        return task.postponed(now, max(hold_until, now + self._backoff(task)))

    def _backoff(self, task: Task) -> float:
        """Return the backoff of a task that was postponed more than once."""
        if not task.setbacks:
            return 0
        seconds = self.bounds.postpone_seconds * 2.0 ** min(task.setbacks, 8)
        return min(seconds, self.bounds.postpone_max_seconds)

    def without_answer(self, task: Task, now: float) -> Task | None:
        """Wait for a callback if one can come, or give the task up; it is never sent again.

        The request may have arrived.
        """
        if task.stage is not Stage.SUBMITTING:
            return None
        if task.candidate_id:  # a callback has come: its record is looked up
            return task.unknown(now, now) if task.unknown_time is None else None
        # Not later than now: the clock may have been set back since.
        unknown_time = now if task.unknown_time is None else min(task.unknown_time, now)
        left = self.unknown_wait_seconds - self.timeouts.elapsed_seconds(unknown_time, now)
        if left > 0:
            return task.unknown(unknown_time, now + left)
        sent_time = task.submit_time or task.update_time
        sent = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(sent_time))
        words = (
            f"the request of {sent} may or may not have reached the provider, and was not sent"
            f" again; check the provider's log for a task of {task.model} at that time"
        )
        return task.failed(Failure(UNKNOWN, words), now)

    def after_recognition(self, task: Task, found: Recognition, now: float) -> Task | None:
        """Adopt the provider's task unless its record is that of another request.

        A record that does not repeat the request is accepted: its id came over a URL that only the
        provider knows. While there is no record, it is asked for until the task's maximum age.
        """
        if not task.candidate_id or task.provider_task_id:
            return None
        lost = task.unknown_time or task.submit_time or task.update_time
        lost_seconds = self.timeouts.elapsed_seconds(lost, now)
        if found is Recognition.UNREADABLE and lost_seconds < self.task_max_age_seconds:
            setbacks = task.setbacks + 1
            return task.scheduled(now + self._wait(task, setbacks, now), setbacks)
        if found in {Recognition.AGREES, Recognition.SILENT}:
            if task.ended:
                return task.adopted_late(task.candidate_id, now, now)
            return task.queued(task.candidate_id, now, now)
        if task.ended:
            return task.without_candidate(None)
        if found is Recognition.DIFFERS and task.unknown_time is task.submit_time is None:
            return task.postponed(now, now)  # as the response said, it was not accepted
        return task.without_candidate(now + max(0.0, self.unknown_wait_seconds - lost_seconds))

    # --- a task was polled ---

    def after_poll(self, task: Task, outcome: Poll, now: float) -> Task | None:
        """Decide by what the provider says of a task in progress."""
        if task.stage not in {Stage.QUEUED, Stage.GENERATING}:
            return None  # a concurrent poll has ended it
        match outcome:
            case Progress():
                after = task.progressed(
                    outcome.generating, outcome.percent, now, outcome.credits_consumed
                )
                return self._again(after, outcome, now)
            case UnknownState() | Unreadable() | Unavailable():
                return self._again(task, outcome, now)
            case Succeeded() if outcome.has_result:
                return self._succeeded(task, outcome, now)
            case Succeeded():
                words = "the provider reports success without a result"
                return self._failed(task, Failure("RESULT_MISSING", words), outcome, now)
            case Failed(message, code):
                return self._failed(task, Failure(GENERATION_FAILED, message, code), outcome, now)

    def _succeeded(self, task: Task, outcome: Succeeded, now: float) -> Task:
        end = task.storing if self.keeps_results and outcome.urls else task.succeeded
        return end(
            artifacts_of(outcome),
            outcome.result_json,
            outcome.credits_consumed,
            now,
            _plausible(outcome.complete_time, task, now),
        )

    def _failed(
        self, task: Task, failure: Failure, outcome: Succeeded | Failed, now: float
    ) -> Task:
        return task.failed(
            failure,
            now,
            credits_consumed=outcome.credits_consumed,
            complete_time=_plausible(outcome.complete_time, task, now),
            # A record may change from failure to success: look once more.
            late_poll_time=now + self.bounds.late_poll_seconds,
            result_json=outcome.result_json if isinstance(outcome, Succeeded) else "",
        )

    def _again(self, task: Task, outcome: Unfinished, now: float) -> Task:
        """Poll again later, unless the task has timed out."""
        setbacks = self.timeouts.setbacks(task, outcome, now)
        if self.timeouts.is_timed_out(task, outcome, setbacks, now):
            return self._timed_out(task, outcome, now)
        if isinstance(outcome, Progress):
            return task.scheduled(self._next_time(task, now), setbacks)
        silent_seconds = self.reach.silent_seconds(now)
        wait = self.schedule.wait(task.model, self._age(task, now), setbacks, silent_seconds)
        left = self.task_max_age_seconds - self._age(task, now)
        return task.scheduled(now + (min(wait, left) if left > 0 else wait), setbacks)

    def _timed_out(self, task: Task, outcome: Unfinished, now: float) -> Task:
        """Time a task out, and keep the provider's last response."""
        return task.failed(
            self.timeouts.failure(outcome),
            now,
            late_poll_time=now + self.bounds.late_poll_seconds,
            result_json="" if isinstance(outcome, Unavailable) else outcome.record,
        )

    def after_watch(self, task: Task, now: float) -> Task | None:
        """Poll a task by its age again, as it is watched; None if that is not sooner."""
        if task.stage not in {Stage.QUEUED, Stage.GENERATING}:
            return None
        due_time = now + self._wait(task, task.setbacks, now)
        sooner = task.due_time is None or due_time < task.due_time
        return task.scheduled(due_time, task.setbacks) if sooner else None

    def learn(self, task: Task) -> None:
        """Learn how long a model takes from a task that has just ended at the provider.

        Unless the provider reports the end, its time is when a poll noticed it, which says more
        about our polls. An orphan is accepted here only after its end, and is ignored.
        """
        end_time = task.provider_end_time
        if task.accept_time is None or end_time is None:
            return
        if task.accept_time < end_time < task.update_time:
            self.schedule.learn(task.model, self.timeouts.age_of(task, end_time))

    def after_late_poll(self, task: Task, outcome: Poll, now: float) -> Task | None:
        """Decide by what the provider says of a task that has ended without its paid result."""
        if not task.ended or task.artifacts:
            return None
        match outcome:
            case Succeeded() if outcome.has_result:
                log.info("late delivery", artifacts=len(outcome.urls))
                return task.delivered_late(
                    artifacts_of(outcome), outcome.result_json, outcome.credits_consumed, now
                )
            case Failed():
                return task.undeliverable()
            case Unavailable():
                return self._undelivered(task, now)
            case _ if _failed_by(task, GENERATION_FAILED):  # this was the one extra poll
                return task.undeliverable()
            case _:
                return self._undelivered(task, now)

    def _undelivered(self, task: Task, now: float) -> Task:
        """Poll again, for as long as the provider keeps results."""
        due_time = now + self._late_delay(task, now)
        kept_until = (task.accept_time or task.create_time) + self.delivery_seconds
        return task.still_undelivered(due_time) if due_time < kept_until else task.undeliverable()

    # --- when to poll again ---

    def _age(self, task: Task, now: float) -> float:
        return self.timeouts.age_of(task, now)

    def _late_delay(self, task: Task, now: float) -> float:
        """Return an hour, or less for an adopted orphan: it may still be in progress."""
        if _failed_by(task, UNKNOWN) and self._age(task, now) < self.task_max_age_seconds:
            return self._wait(task, 0, now)
        return self.bounds.late_poll_seconds

    def _next_time(self, task: Task, now: float) -> float:
        """Return when to poll a task in progress: rarely while its callback may still come."""
        if task.candidate_id or not self.left_to_callback(task.id):
            return now + self._wait(task, 0, now)
        age = self._age(task, now)
        overdue_age = self.schedule.overdue_age(task.model)
        # Once is enough until the hourly polls, even if `overdue_age` has changed since.
        was_polled = age >= overdue_age / 2
        next_age = age + self.bounds.late_poll_seconds if was_polled else overdue_age
        wait = min(next_age, self.task_max_age_seconds) - age
        return now + max(wait, self._wait(task, 0, now))

    def _wait(self, task: Task, setbacks: int, now: float) -> float:
        return self.schedule.wait(task.model, self._age(task, now), setbacks)


def after_hold(task: Task, refusal: Refused, now: float) -> Task | None:
    """End a task that was held for too long, for the reason that others were refused for."""
    return _refused(task, refusal, now) if task.stage is Stage.ACCEPTED else None


def _refused(task: Task, outcome: Refused, now: float) -> Task:
    """End a task as refused; if something says that it was accepted, look up its record."""
    failed = task.failed(Failure(outcome.reason, outcome.message, outcome.provider_code), now)
    candidate = task.candidate_id or outcome.provider_task_id
    return failed.with_candidate(candidate, now) if candidate else failed


def _adopted(task: Task, outcome: Submission, now: float) -> Task | None:
    """Keep a response that came after the task was given up: its result is paid for."""
    match outcome:
        case Accepted(provider_task_id) if task.ended and not task.provider_task_id:
            log.warning("late response adopted", provider_task_id=provider_task_id)
            return task.adopted_late(provider_task_id, now, now)
        case _:
            return None


def _failed_by(task: Task, reason: str) -> bool:
    return task.failure is not None and task.failure.reason == reason


def artifacts_of(outcome: Succeeded) -> tuple[Artifact, ...]:
    """Return the results of a success."""
    return tuple(map(Artifact, outcome.urls, outcome.mime_types))


def _plausible(complete_time: float | None, task: Task, now: float) -> float:
    """Return when the provider says a task ended, if that is possible by our clock."""
    if complete_time is None or not task.create_time <= complete_time <= now:
        return now
    return complete_time
