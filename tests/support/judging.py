"""Verdicts, and tasks in every stage to judge."""

from providers.base import Poll
from service.reach import Reach
from service.schedule import Schedule
from service.timeouts import TaskTimeouts
from service.verdicts import Verdicts
from storage.task import Failure, Task

NOW = 10_000.0
KEPT_SECONDS = 1_000_000.0
INTERVAL_SECONDS = 2.0


def verdicts(*, left_to_callback: bool = False) -> Verdicts:
    schedule, reach = Schedule(INTERVAL_SECONDS, lambda _: 100.0), Reach(INTERVAL_SECONDS)
    return Verdicts(
        schedule=schedule,
        reach=reach,
        timeouts=TaskTimeouts(schedule, reach, 3_600.0),
        task_max_age_seconds=3_600.0,
        unknown_wait_seconds=900.0,
        delivery_seconds=KEPT_SECONDS,
        left_to_callback=lambda _: left_to_callback,
    )


def polled_twice(known: Verdicts, task: Task, outcome: Poll, now: float) -> Task:
    """Poll a task an interval before `now` and then: return the last snapshot."""
    before = known.after_poll(task, outcome, now - INTERVAL_SECONDS)
    assert before is not None
    assert not before.ended, "one poll is not enough"
    after = known.after_poll(before, outcome, now)
    assert after is not None
    return after


VERDICTS = verdicts()
UNWATCHED = verdicts(left_to_callback=True)
SUBMITTING = Task(
    id="t",
    caller="c",
    request_id="",
    prompt_id="p",
    model="imagen4",
    params=b"",
    create_time=NOW - 10,
    update_time=NOW - 10,
    due_time=NOW - 10,
).submitting(NOW - 5, NOW + 100)
UNKNOWN = SUBMITTING.unknown(NOW, NOW + 900)
CANDIDATE = UNKNOWN.with_candidate("k", NOW)
QUEUED = SUBMITTING.queued("k", NOW, NOW + 2)
GIVEN_UP = SUBMITTING.failed(Failure("SUBMISSION_UNKNOWN", ""), NOW)
