"""When a copy is tried again, and when a task ends without it."""

from dataclasses import replace

import pytest

from providers.base import Succeeded
from service.callback_polls import after_callback
from service.copy_verdicts import CopyVerdicts, not_kept
from storage.task import Artifact, Copy, Failure, Lane, Stage, Status, Task
from tests.support.storing import NOW, new

DAY = 86_400.0
FAILED = Artifact("https://x.example/1.mp4", "video/mp4", storage_error="no")
COPIED = Artifact(
    "https://x.example/0.mp4", "video/mp4", Copy("file:///r/0.mp4", 9, "ab", "video/mp4")
)
URLS = (replace(COPIED, copy=None), replace(FAILED, storage_error=""))
STORING = new("t", stage=Stage.GENERATING).storing(URLS, "{}", 1.0, NOW, NOW - 5)
LATE = new("t", stage=Stage.GENERATING).failed(Failure("TASK_TIMEOUT", "late"), NOW - 9)
OUTCOME = Succeeded(tuple(each.url for each in URLS), ("video/mp4",) * 2, "{}", 2.0)


def verdicts(jumped_seconds: float = 0.0) -> CopyVerdicts:
    return CopyVerdicts(DAY, lambda since, now: now - since - jumped_seconds)


def after(task: Task, *artifacts: Artifact, now: float = NOW, jumped: float = 0.0) -> Task:
    result = verdicts(jumped).after_copies(task, artifacts, now)
    assert result is not None
    return result


def after_late(task: Task, *artifacts: Artifact, now: float = NOW) -> Task:
    result = verdicts().after_late_copies(task, OUTCOME, artifacts, now)
    assert result is not None
    return result


def test_a_task_with_all_copies_is_success_now() -> None:
    end = after(STORING, COPIED, COPIED, now=NOW + 7)
    assert (end.status, end.stage, end.lane) == (Status.SUCCESS, None, None)
    assert (end.generated_time, end.complete_time) == (NOW - 5, NOW + 7)
    assert end.provider_end_time == NOW - 5


def test_attempts_back_off_from_5_seconds_to_an_hour() -> None:
    task, waits = STORING, []
    for _ in range(14):
        task = after(task, COPIED, FAILED)
        assert task.due_time is not None
        waits.append(task.due_time - NOW)
    assert waits == [5.0 * 2**n for n in range(10)] + [3_600.0] * 4
    assert (task.stage, task.lane, task.revision) == (Stage.STORING, Lane.STORE, STORING.revision)
    assert task.artifacts == (COPIED, FAILED)


def test_an_attempt_ends_soon_after_copies_are_given_up() -> None:
    def seconds(give_up_seconds: float, now: float, task: Task = STORING) -> float:
        verdicts = CopyVerdicts(give_up_seconds, lambda since, now: now - since)
        return verdicts.attempt_seconds(task, now)

    assert seconds(DAY, NOW) == DAY + 600
    assert seconds(DAY, NOW + DAY - 5) == 605
    assert seconds(DAY, NOW + 9 * DAY) == 600
    assert (seconds(99, NOW), seconds(99, NOW + 98), seconds(99, NOW + 99)) == (198, 100, 99)
    assert (seconds(0.1, NOW + 1), seconds(5, NOW)) == (10, 15)
    assert seconds(DAY, NOW + 5, LATE) == DAY + 600
    seen = LATE.uncopied_late(NOW, NOW + 9)
    assert seconds(DAY, NOW + DAY, seen) == 600


def test_the_last_attempt_is_at_the_end_and_then_the_task_is_success_without_the_copy() -> None:
    late = after(STORING, COPIED, FAILED, now=NOW + DAY - 2)
    assert late.due_time == NOW + DAY
    end = after(late, COPIED, FAILED, now=NOW + DAY)
    assert (end.status, end.artifacts) == (Status.SUCCESS, (COPIED, FAILED))


def test_a_clock_that_jumps_gives_nothing_up() -> None:
    task = after(STORING, COPIED, FAILED, now=NOW + 2 * DAY, jumped=2 * DAY)
    assert task.stage is Stage.STORING


@pytest.mark.parametrize("stage", [Stage.ACCEPTED, Stage.GENERATING, None])
def test_a_task_that_is_not_storing_any_longer_is_left_alone(stage: Stage | None) -> None:
    moved = STORING._replace(
        stage=stage, status=Status.SUCCESS if stage is None else STORING.status
    )
    assert verdicts().after_copies(moved, (COPIED, COPIED), NOW) is None
    assert not_kept(moved, NOW) is None


def test_a_late_delivery_is_added_when_all_copies_are_complete() -> None:
    added = after_late(LATE, COPIED, COPIED)
    assert (added.status, added.artifacts) == (Status.FAILED, (COPIED, COPIED))
    assert added.due_time is None


def test_a_late_delivery_that_cannot_be_copied_is_tried_for_as_long_as_other_results() -> None:
    task = after_late(LATE, COPIED, FAILED)
    assert (task.artifacts, task.due_time, task.revision) == ((), NOW + 5, LATE.revision)
    assert after_late(task, COPIED, FAILED, now=NOW + 100).due_time == NOW + 110
    added = after_late(task, COPIED, FAILED, now=NOW + DAY)
    assert added.artifacts == (COPIED, FAILED)


def test_a_late_delivery_that_was_added_meanwhile_is_left_alone() -> None:
    added = LATE.delivered_late((COPIED,), "{}", None, NOW)
    assert verdicts().after_late_copies(added, OUTCOME, (COPIED, COPIED), NOW) is None


def test_a_process_without_a_storage_keeps_the_copies_that_exist() -> None:
    partly = STORING.partly_stored((COPIED, FAILED), NOW)
    end = not_kept(partly, NOW)
    assert end is not None
    assert end.artifacts[0] == COPIED
    assert end.artifacts[1].storage_error.startswith("results are no longer copied")


def test_a_callback_does_not_disturb_a_copy() -> None:
    assert after_callback(STORING._replace(provider_task_id="k"), "k", NOW) is None


def test_a_task_in_storing_can_neither_fail_nor_time_out() -> None:
    with pytest.raises(AssertionError):
        STORING.failed(Failure("TASK_TIMEOUT", "late"), NOW)
