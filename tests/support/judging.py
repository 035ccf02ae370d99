"""Verdicts, and tasks in every stage to judge."""

from service.reach import Reach
from service.schedule import Schedule
from service.timeouts import TaskTimeouts
from service.verdicts import Verdicts
from storage.task import Failure, Task

NOW = 10_000.0
KEPT_SECONDS = 1_000_000.0


def verdicts(*, left_to_callback: bool = False) -> Verdicts:
    schedule, reach = Schedule(2.0, lambda _: 100.0), Reach(2.0)
    return Verdicts(
        schedule=schedule,
        reach=reach,
        timeouts=TaskTimeouts(schedule, reach, 3_600.0),
        task_max_age_seconds=3_600.0,
        unknown_wait_seconds=900.0,
        delivery_seconds=KEPT_SECONDS,
        left_to_callback=lambda _: left_to_callback,
    )


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
