"""From an outcome to the next snapshot: every decision about a task that was sent, and no I/O.

Each method takes the task as it stands now, which may have moved since the outcome was asked for,
and returns the snapshot to store, or None to leave the task alone.
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
from storage.task import LATE_POLL_SECONDS, Artifact, Failure, Stage, Status, Task

PUT_OFF_SECONDS = 1.0
PUT_OFF_MAX_SECONDS = 30.0
UNKNOWN = "SUBMISSION_UNKNOWN"
GENERATION_FAILED = "GENERATION_FAILED"
FAILING_SETBACKS = 3  # failed polls in a row before a task may time out
GIVEN_UP_SETBACKS = 5  # failed polls in a row; the last says that the provider gave up
OUTAGE_MAX_SECONDS = 86_400.0  # in an outage no task times out before this age

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What becomes of a task, by the operator's patience. Times are unix seconds.

    Attributes:
        schedule: When to ask again; it learns from every end.
        reach: Whether the provider answers anybody.
        task_max_age_seconds: From a task's acceptance by the provider to its time-out.
        unknown_wait_seconds: How long a create without an answer waits for its callback.
        left_to_callback: Whether a task's callback may be waited for: one was asked for, and nobody
            watches the task.
    """

    schedule: Schedule
    reach: Reach
    task_max_age_seconds: float
    unknown_wait_seconds: float
    left_to_callback: Callable[[str], bool]

    # --- a task was sent ---

    def after_submission(
        self, task: Task, outcome: Submission, now: float, hold_until: float
    ) -> Task | None:
        """Decide by the answer to the paid request; `hold_until` is when to try again, if ever."""
        if task.stage is not Stage.SUBMITTING:
            return _adopted(task, outcome, now)
        match outcome:
            case Accepted(provider_task_id):
                called_back = bool(task.hinted_id)
                due_time = now if called_back else self._next_time(task, now)
                return task.queued(provider_task_id, now, due_time)
            case Refused():
                return _refused(task, outcome, now)
            case Postponed():
                return self._postponed(task, outcome, now, hold_until)
            case Unknown():
                if outcome.provider_task_id and not task.hinted_id:
                    task = task.hinted(outcome.provider_task_id, task.due_time)
                return self.without_answer(task, now)

    def _postponed(
        self, task: Task, outcome: Postponed, now: float, hold_until: float
    ) -> Task | None:
        """Send it again later, unless there is a sign that it was bought."""
        if candidate := task.hinted_id or outcome.provider_task_id:
            return task.suspended(candidate, now)
        if task.unknown_time is not None:  # a callback came that named no task
            return self.without_answer(task, now)
        return task.postponed(now, max(hold_until, now + _put_off(task)))

    def without_answer(self, task: Task, now: float) -> Task | None:
        """The request may have arrived: wait for a sign of it, if one can come, or give it up.

        It is never sent again.
        """
        if task.stage is not Stage.SUBMITTING:
            return None
        if task.hinted_id:  # the task is due for it
            return task.unknown(now, now) if task.unknown_time is None else None
        unknown_time = now if task.unknown_time is None else task.unknown_time
        if now < unknown_time + self.unknown_wait_seconds:
            return task.unknown(unknown_time, unknown_time + self.unknown_wait_seconds)
        sent_time = task.submit_time or task.update_time
        sent = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(sent_time))
        words = (
            f"the request of {sent} may or may not have reached the provider, and was not sent"
            f" again: look for a task of {task.model} of that time in the provider's log of the"
            " account"
        )
        return task.failed(Failure(UNKNOWN, words), now)

    def after_recognition(self, task: Task, found: Recognition, now: float) -> Task | None:
        """Adopt the provider's task unless its record is that of another request.

        A record that repeats no request denies nothing: its id came over a URL that only the
        provider knows. While there is no record it is asked for again, as long as for any task.
        """
        if not task.hinted_id or task.provider_task_id:
            return None
        lost = task.unknown_time or task.submit_time or task.update_time
        if found is Recognition.UNREADABLE and now < lost + self.task_max_age_seconds:
            setbacks = task.setbacks + 1
            return task.scheduled(now + self._wait(task, setbacks, now), setbacks)
        if found in {Recognition.AGREES, Recognition.SILENT}:
            if task.ended:
                return task.adopted_late(task.hinted_id, now, now)
            return task.queued(task.hinted_id, now, now)
        if task.ended:
            return task.unhinted(None)
        if found is Recognition.DIFFERS and task.unknown_time is task.submit_time is None:
            return task.postponed(now, now)  # as the answer said, it was not bought
        return task.unhinted(max(now, lost + self.unknown_wait_seconds))

    # --- a task was asked for ---

    def after_poll(self, task: Task, outcome: Poll, now: float) -> Task | None:
        """Decide by what the provider says of a task under way."""
        if task.stage not in {Stage.QUEUED, Stage.GENERATING}:
            return None  # a poll that ran beside this one has ended it
        match outcome:
            case Progress():
                after = task.progressed(
                    outcome.generating, outcome.percent, now, outcome.credits_consumed
                )
                return self._again(after, outcome, now)
            case UnknownState() | Unreadable() | Unavailable():
                return self._again(task, outcome, now)
            case Succeeded() if outcome.urls:
                return task.succeeded(
                    _artifacts(outcome),
                    outcome.result_json,
                    outcome.credits_consumed,
                    now,
                    _plausible(outcome.complete_time, task, now),
                )
            case Succeeded():
                words = "the provider says success and names no result"
                return _failed(task, Failure("RESULT_MISSING", words), outcome, now)
            case Failed(message, code):
                return _failed(task, Failure(GENERATION_FAILED, message, code), outcome, now)

    def _again(
        self, task: Task, outcome: Progress | UnknownState | Unreadable | Unavailable, now: float
    ) -> Task:
        """Ask again later, unless the task has come to its end by its age."""
        setbacks = self._setbacks(task, outcome, now)
        if self._is_timed_out(task, outcome, setbacks, now):
            return self._timed_out(task, outcome, now)
        if isinstance(outcome, Progress):
            return task.scheduled(self._next_time(task, now), setbacks)
        silent_seconds = self.reach.silent_seconds(now)
        wait = self.schedule.wait(task.model, _age(task, now), setbacks, silent_seconds)
        left = self.task_max_age_seconds - _age(task, now)
        return task.scheduled(now + (min(wait, left) if left > 0 else wait), setbacks)

    def _setbacks(self, task: Task, outcome: Poll, now: float) -> int:
        """Count a failed poll against its task, unless no other task was answered either."""
        match outcome:
            case Progress():
                return 0
            case Unavailable() if not self._others_answered(task, now):
                return max(task.setbacks, 1)
            case _:
                return task.setbacks + 1

    def _others_answered(self, task: Task, now: float) -> bool:
        """Whether the provider has answered for other tasks since the last poll of this one."""
        since = self.schedule.nominal_wait(task.model, _age(task, now), task.setbacks)
        return self.reach.answered_time > now - since

    def _is_timed_out(self, task: Task, outcome: Poll, setbacks: int, now: float) -> bool:
        age = _age(task, now)
        if isinstance(outcome, Unreadable) and outcome.given_up and setbacks >= GIVEN_UP_SETBACKS:
            return True
        if age < self.task_max_age_seconds:
            return False
        if isinstance(outcome, Progress | UnknownState) or age >= OUTAGE_MAX_SECONDS:
            return True
        return setbacks > task.setbacks and setbacks >= FAILING_SETBACKS

    def _timed_out(
        self, task: Task, outcome: Progress | UnknownState | Unreadable | Unavailable, now: float
    ) -> Task:
        """Time a task out, and keep what the provider said last."""
        words = f"no end within {self.task_max_age_seconds:g} s of its acceptance"
        code = record = ""
        if not isinstance(outcome, Unavailable):
            record = outcome.record
        if isinstance(outcome, Unreadable):
            code = outcome.provider_code
            log.warning("a task timed out", detail=outcome.detail, answer=outcome.answer)
        if isinstance(outcome, Unreadable | Unavailable):
            words = f"{words}; the last poll: {outcome.detail}"
        if isinstance(outcome, Unreadable) and outcome.given_up:
            words = f"the provider has given it up: {outcome.detail}"
        failure = Failure("TASK_TIMEOUT", words, code)
        return task.failed(failure, now, late_delivery=True, result_json=record)

    def after_watch(self, task: Task, now: float) -> Task | None:
        """Poll a task as its age deserves, as somebody watches it; None if that is not sooner."""
        if task.stage not in {Stage.QUEUED, Stage.GENERATING}:
            return None
        due_time = now + self._wait(task, task.setbacks, now)
        sooner = task.due_time is None or due_time < task.due_time
        return task.scheduled(due_time, task.setbacks) if sooner else None

    def learn(self, task: Task) -> None:
        """Learn from a task that has ended how long its model takes, if the provider told.

        Where it did not, `complete_time` is when we came to know, which says more of our polls. An
        orphan is accepted here only after its end, and says nothing.
        """
        if task.accept_time is None or task.complete_time is None:
            return
        if task.accept_time < task.complete_time < task.update_time:
            self.schedule.learn(task.model, task.complete_time - task.accept_time)

    def after_late_poll(self, task: Task, outcome: Poll, now: float) -> Task | None:
        """Decide by what the provider says of a task that ended without its paid result."""
        if not task.ended or task.artifacts:
            return None
        match outcome:
            case Succeeded() if outcome.urls:
                log.info("a late delivery", artifacts=len(outcome.urls))
                return task.delivered_late(
                    _artifacts(outcome), outcome.result_json, outcome.credits_consumed, now
                )
            case Failed():
                return task.undeliverable()
            case Unavailable():
                return task.still_undelivered(now + self._late_delay(task, now))
            case _ if _is_generation_failed(task):  # this was the one extra poll
                return task.undeliverable()
            case _:
                return task.still_undelivered(now + self._late_delay(task, now))

    # --- when to ask again ---

    def _late_delay(self, task: Task, now: float) -> float:
        """Hourly; but an adopted orphan may be under way just now, like any other task."""
        if _is_unknown(task) and _age(task, now) < self.task_max_age_seconds:
            return self._wait(task, 0, now)
        return LATE_POLL_SECONDS

    def _next_time(self, task: Task, now: float) -> float:
        """Return when to poll a task under way: rarely, while its callback is still to come."""
        if task.hinted_id or not self.left_to_callback(task.id):
            return now + self._wait(task, 0, now)
        age = _age(task, now)
        overdue_age = self.schedule.overdue_age(task.model)
        asked = age >= overdue_age / 2  # that often is often enough, however the schedule moved
        next_age = age + LATE_POLL_SECONDS if asked else overdue_age
        wait = min(next_age, self.task_max_age_seconds) - age
        return now + max(wait, self._wait(task, 0, now))

    def _wait(self, task: Task, setbacks: int, now: float) -> float:
        return self.schedule.wait(task.model, _age(task, now), setbacks)


def after_callback(task: Task, provider_task_id: str, now: float) -> Task | None:
    """Make a task due after a callback; None if that changes nothing.

    A callback shows that the task was bought. So before anything of it is sent again, and even if
    it was refused, the record of `provider_task_id` is looked at: what the callback said, or "".
    """
    if task.provider_task_id:
        delivered = task.status is Status.SUCCESS or task.artifacts
        return None if delivered else task.called_back(now)
    if task.hinted_id:
        return None  # the first sign is looked into first
    if task.stage is Stage.ACCEPTED:
        return task.suspended(provider_task_id, now)
    answer_may_come = task.stage is Stage.SUBMITTING and task.unknown_time is None
    if not provider_task_id:
        return task.unknown(now, task.due_time or now) if answer_may_come else None
    return task.hinted(provider_task_id, task.due_time if answer_may_come else now)


def _refused(task: Task, outcome: Refused, now: float) -> Task:
    """End a task as refused; if something says that it was bought, its record is looked at."""
    failed = task.failed(Failure(outcome.reason, outcome.message, outcome.provider_code), now)
    candidate = task.hinted_id or outcome.provider_task_id
    return failed.hinted(candidate, now) if candidate else failed


def _adopted(task: Task, outcome: Submission, now: float) -> Task | None:
    """Keep an answer that came after the task was given up: its result is paid for."""
    match outcome:
        case Accepted(provider_task_id) if task.ended and not task.provider_task_id:
            log.warning("a late answer is adopted", provider_task_id=provider_task_id)
            return task.adopted_late(provider_task_id, now, now)
        case _:
            return None


def _put_off(task: Task) -> float:
    """Return how long a task waits that was put back again: longer each time, unlike the first."""
    if not task.setbacks:
        return 0
    return min(PUT_OFF_SECONDS * 2.0 ** min(task.setbacks, 8), PUT_OFF_MAX_SECONDS)


def _failed(task: Task, failure: Failure, outcome: Succeeded | Failed, now: float) -> Task:
    return task.failed(
        failure,
        now,
        credits_consumed=outcome.credits_consumed,
        complete_time=_plausible(outcome.complete_time, task, now),
        # A record may say success after it said fail: that is looked up once.
        late_delivery=True,
        result_json=outcome.result_json if isinstance(outcome, Succeeded) else "",
    )


def _is_generation_failed(task: Task) -> bool:
    return task.failure is not None and task.failure.reason == GENERATION_FAILED


def _is_unknown(task: Task) -> bool:
    return task.failure is not None and task.failure.reason == UNKNOWN


def _age(task: Task, now: float) -> float:
    return now - (now if task.accept_time is None else task.accept_time)


def _artifacts(outcome: Succeeded) -> tuple[Artifact, ...]:
    return tuple(map(Artifact, outcome.urls, outcome.mime_types))


def _plausible(complete_time: float | None, task: Task, now: float) -> float:
    """Take the provider's word for when a task ended, if its clock and ours can both be right."""
    if complete_time is None or not task.create_time <= complete_time <= now:
        return now
    return complete_time
