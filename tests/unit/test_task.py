"""The moves of a task: pure snapshots in, pure snapshots out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from storage.task import Artifact, Copy, Failure, Lane, Stage, Status, Task

CREATED, NOW, DUE = 1_000.0, 2_000.0, 2_030.0
ARTIFACTS = (Artifact("https://x.example/1.png", "image/png"),)
COPIED = (replace(ARTIFACTS[0], copy=Copy("file:///1.png", 9, "ab", "image/png")),)
NO = Failure("GENERATION_FAILED", "no", "501")

ACCEPTED = Task(
    id="t",
    caller="c",
    request_id="r",
    prompt_id="p",
    model="imagen4",
    params=b"\x01",
    create_time=CREATED,
    update_time=CREATED,
    due_time=CREATED,
)
SUBMITTING = ACCEPTED.submitting(1_001.0, 1_121.0)
UNKNOWN = SUBMITTING.unknown(1_002.0, 1_902.0)
QUEUED = SUBMITTING.queued("k", 1_002.0, 1_004.0)
GENERATING = QUEUED.progressed(True, 40, 1_005.0)
STORING = GENERATING.storing(ARTIFACTS, "{}", 3.5, 1_006.0, 1_005.5)
SUCCESS = GENERATING.succeeded(ARTIFACTS, "{}", 3.5, 1_006.0, 1_005.5)
FAILED = GENERATING.failed(NO, 1_006.0)
TIMED_OUT = GENERATING.failed(NO, 1_006.0, late_poll_time=4_606.0)
DELIVERED = TIMED_OUT.delivered_late(ARTIFACTS, "{}", 3.5, 1_007.0)
CANDIDATE = UNKNOWN.with_candidate("k", 1_003.0)
LOST = UNKNOWN.failed(NO, 1_006.0)
ADOPTED = LOST.adopted_late("k", 1_007.0, 1_009.0)

TASKS = {
    "ACCEPTED": ACCEPTED,
    "SUBMITTING": SUBMITTING,
    "UNKNOWN": UNKNOWN,
    "QUEUED": QUEUED,
    "GENERATING": GENERATING,
    "STORING": STORING,
    "SUCCESS": SUCCESS,
    "FAILED": FAILED,
    "TIMED_OUT": TIMED_OUT,
    "DELIVERED": DELIVERED,
    "CANDIDATE": CANDIDATE,
    "LOST": LOST,
    "ADOPTED": ADOPTED,
}
SENDING = {"SUBMITTING", "UNKNOWN", "CANDIDATE"}
PENDING = {"ACCEPTED", *SENDING, "QUEUED", "GENERATING"}
OWED = {"FAILED", "TIMED_OUT", "LOST", "ADOPTED"}  # failed, and nothing was delivered

Move = Callable[[Task], Task]
MOVES: dict[str, tuple[Move, set[str]]] = {  # each with the tasks that it is allowed for
    "submitting": (lambda t: t.submitting(NOW, DUE), {"ACCEPTED"}),
    "postponed": (lambda t: t.postponed(NOW, DUE), SENDING),
    "queued": (lambda t: t.queued("k-2", NOW, DUE), SENDING),
    "unknown": (lambda t: t.unknown(NOW, DUE), SENDING),
    "progressed": (lambda t: t.progressed(True, 90, NOW), {"QUEUED", "GENERATING"}),
    "scheduled": (lambda t: t.scheduled(DUE, 2), set(TASKS)),
    "succeeded": (
        lambda t: t.succeeded(ARTIFACTS, "{}", 4.5, NOW, 1_999.0),
        {"QUEUED", "GENERATING"},
    ),
    "storing": (
        lambda t: t.storing(ARTIFACTS, "{}", 4.5, NOW, 1_999.0),
        {"QUEUED", "GENERATING"},
    ),
    "partly_stored": (lambda t: t.partly_stored(COPIED, DUE), {"STORING"}),
    "stored": (lambda t: t.stored(COPIED, NOW), {"STORING"}),
    "uncopied_late": (lambda t: t.uncopied_late(NOW, DUE), OWED),
    "failed": (lambda t: t.failed(NO, NOW), PENDING),
    "delivered_late": (lambda t: t.delivered_late(ARTIFACTS, "{}", 4.5, NOW), OWED),
    "still_undelivered": (lambda t: t.still_undelivered(DUE), OWED),
    "undeliverable": (lambda t: t.undeliverable(), OWED),
    "with_candidate": (lambda t: t.with_candidate("k-2", DUE), {*SENDING, "LOST"}),
    "without_candidate": (lambda t: t.without_candidate(DUE), {"CANDIDATE"}),
    "called_back": (
        lambda t: t.called_back(NOW),
        {name for name, task in TASKS.items() if task.provider_task_id},
    ),
    "adopted_late": (lambda t: t.adopted_late("k-2", NOW, DUE), {"LOST"}),
    "copied": (lambda t: t.copied(COPIED, NOW), {*OWED, "SUCCESS", "DELIVERED"}),
}
INVISIBLE = {
    "unknown",
    "scheduled",
    "still_undelivered",
    "undeliverable",
    "with_candidate",
    "without_candidate",
    "called_back",
    "partly_stored",
    "uncopied_late",
}
PAIRS = [(move, task) for move in MOVES for task in TASKS]
ALLOWED = [(move, task) for move, task in PAIRS if task in MOVES[move][1]]
NOT_GUARDED = [
    ("still_undelivered", "DELIVERED"),
    ("undeliverable", "DELIVERED"),
    *(("without_candidate", task) for task in TASKS),
]
FORBIDDEN = [pair for pair in PAIRS if pair not in ALLOWED and pair not in NOT_GUARDED]


def changes(before: Task, after: Task) -> dict[str, Any]:
    """Return the fields that a move changed, with their new values."""
    earlier = before._asdict()
    return {name: value for name, value in after._asdict().items() if value != earlier[name]}


@pytest.mark.parametrize(("move", "task"), FORBIDDEN)
def test_a_move_from_a_stage_that_does_not_allow_it_is_a_bug(move: str, task: str) -> None:
    with pytest.raises(AssertionError):
        MOVES[move][0](TASKS[task])


@pytest.mark.parametrize(("move", "task"), ALLOWED)
def test_only_a_visible_move_increases_the_revision(move: str, task: str) -> None:
    before = TASKS[task]
    after = MOVES[move][0](before)
    if move in INVISIBLE:
        assert (after.revision, after.update_time) == (before.revision, before.update_time)
        assert set(changes(before, after)) <= {
            *("due_time", "setbacks", "unknown_time", "candidate_id", "generated_time", "artifacts")
        }
    else:
        assert (after.revision, after.update_time) == (before.revision + 1, NOW)


@pytest.mark.parametrize(("move", "task"), ALLOWED)
def test_a_move_keeps_what_the_caller_sent_and_leaves_the_earlier_snapshot_alone(
    move: str, task: str
) -> None:
    before = TASKS[task]
    copy = before._replace()
    after = MOVES[move][0](before)
    assert before == copy
    sent = {"id", "caller", "request_id", "prompt_id", "model", "params", "create_time"}
    assert not sent & set(changes(before, after))


@pytest.mark.parametrize(("move", "task"), ALLOWED)
def test_time_never_runs_backwards_in_a_task_when_the_clock_does(move: str, task: str) -> None:
    before = TASKS[task]._replace(update_time=NOW + 500)
    assert MOVES[move][0](before).update_time == NOW + 500


@pytest.mark.parametrize(("move", "task"), ALLOWED)
def test_a_stage_is_set_only_while_pending_and_an_end_is_final(move: str, task: str) -> None:
    before = TASKS[task]
    after = MOVES[move][0](before)
    assert (after.stage is None) == after.ended
    if before.ended:
        assert after.status is before.status


def test_a_snapshot_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        ACCEPTED.revision = 2  # type: ignore[misc]


# --- what each move changes ---


def test_submitting_stores_when_the_request_is_sent() -> None:
    after = ACCEPTED.submitting(NOW, DUE)
    assert changes(ACCEPTED, after) == {
        "stage": Stage.SUBMITTING,
        "submit_time": NOW,
        "due_time": DUE,
        "revision": 2,
        "update_time": NOW,
    }


def test_a_postponed_task_is_accepted_again_with_one_more_setback_and_was_never_sent() -> None:
    after = SUBMITTING.postponed(NOW, DUE)
    assert changes(SUBMITTING, after) == {
        "stage": Stage.ACCEPTED,
        "submit_time": None,
        "due_time": DUE,
        "setbacks": 1,
        "revision": 3,
        "update_time": NOW,
    }


def test_a_postponed_task_is_no_longer_unknown() -> None:
    assert UNKNOWN.postponed(NOW, DUE).unknown_time is None


def test_a_postponed_task_can_be_sent_and_accepted_which_clears_its_setbacks() -> None:
    again = SUBMITTING.postponed(NOW, DUE).submitting(DUE, DUE + 120)
    assert (again.stage, again.submit_time, again.setbacks) == (Stage.SUBMITTING, DUE, 1)
    assert again.queued("k", DUE, DUE).setbacks == 0


def test_a_queued_task_has_the_providers_id_and_its_age_begins() -> None:
    after = SUBMITTING.queued("k", NOW, DUE)
    assert changes(SUBMITTING, after) == {
        "stage": Stage.QUEUED,
        "provider_task_id": "k",
        "accept_time": NOW,
        "due_time": DUE,
        "revision": 3,
        "update_time": NOW,
    }


def test_a_task_that_was_called_back_is_due_and_not_unknown() -> None:
    queued = CANDIDATE.queued("k", NOW, DUE)
    assert (queued.provider_task_id, queued.unknown_time, queued.candidate_id) == ("k", None, "k")
    assert changes(QUEUED, QUEUED.called_back(NOW)) == {"candidate_id": "k", "due_time": NOW}


@pytest.mark.parametrize("task", ["SUBMITTING", "UNKNOWN", "LOST"])
def test_a_candidate_is_due_for_a_check_and_a_wrong_one_leaves_no_trace(task: str) -> None:
    before = TASKS[task]
    after = before.with_candidate("k", DUE)
    assert changes(before, after) == {"candidate_id": "k", "due_time": DUE}
    assert after.without_candidate(before.due_time) == before


def test_an_adopted_task_waits_in_the_late_lane() -> None:
    after = LOST.with_candidate("k", NOW).adopted_late("k", NOW, DUE)
    assert changes(LOST, after) == {
        "provider_task_id": "k",
        "accept_time": NOW,
        "due_time": DUE,
        "revision": LOST.revision + 1,
        "update_time": NOW,
    }
    assert after.lane is Lane.LATE


def test_an_unknown_task_stays_submitting_and_waits_for_its_callback() -> None:
    assert changes(SUBMITTING, SUBMITTING.unknown(NOW, DUE)) == {
        "unknown_time": NOW,
        "due_time": DUE,
    }


def test_a_success_has_its_results_and_waits_for_nothing() -> None:
    before = GENERATING._replace(setbacks=3)
    after = before.succeeded(ARTIFACTS, '{"resultUrls": []}', 3.5, NOW, 1_999.0)
    assert changes(before, after) == {
        "status": Status.SUCCESS,
        "stage": None,
        "artifacts": ARTIFACTS,
        "result_json": '{"resultUrls": []}',
        "credits_consumed": 3.5,
        "complete_time": 1_999.0,
        "due_time": None,
        "setbacks": 0,
        "revision": before.revision + 1,
        "update_time": NOW,
    }


def test_a_success_without_results_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        GENERATING.succeeded((), "", None, NOW, NOW)


def test_a_success_may_have_an_object_instead_of_artifacts() -> None:
    ended = GENERATING.succeeded((), '{"resultUrls": []}', None, NOW, NOW)
    assert (ended.status, ended.artifacts) == (Status.SUCCESS, ())


def test_a_failure_has_its_reason_and_waits_for_nothing() -> None:
    before = GENERATING._replace(setbacks=3)
    after = before.failed(NO, NOW, credits_consumed=1.5, complete_time=1_999.0)
    assert changes(before, after) == {
        "status": Status.FAILED,
        "stage": None,
        "failure": NO,
        "credits_consumed": 1.5,
        "complete_time": 1_999.0,
        "due_time": None,
        "setbacks": 0,
        "revision": before.revision + 1,
        "update_time": NOW,
    }


def test_a_failure_without_a_reported_time_completed_now() -> None:
    assert GENERATING.failed(NO, NOW).complete_time == NOW


@pytest.mark.parametrize("task", sorted(PENDING))
def test_a_failed_task_that_may_be_delivered_late_is_polled_for_it(task: str) -> None:
    after = TASKS[task].failed(NO, NOW, late_poll_time=NOW + 60)
    assert (after.due_time, after.lane) == (NOW + 60, Lane.LATE)


# --- progress ---


@pytest.mark.parametrize(
    ("task", "generating", "percent"),
    [
        (QUEUED, False, None),
        (GENERATING, True, None),
        (GENERATING, False, None),
        (GENERATING, True, 40),
        (GENERATING, True, 39),
        (GENERATING, False, 0),
    ],
)
def test_progress_with_nothing_new_is_the_same_snapshot(
    task: Task, generating: bool, percent: int | None
) -> None:
    assert task.progressed(generating, percent, NOW) is task


@pytest.mark.parametrize(
    ("task", "generating", "percent", "then"),
    [
        (QUEUED, False, 0, (Stage.QUEUED, 0)),
        (QUEUED, False, 7, (Stage.QUEUED, 7)),
        (QUEUED, True, None, (Stage.GENERATING, None)),
        (QUEUED, True, 0, (Stage.GENERATING, 0)),
        (GENERATING, True, 41, (Stage.GENERATING, 41)),
        (GENERATING, True, 100, (Stage.GENERATING, 100)),
        (GENERATING, False, 41, (Stage.GENERATING, 41)),
    ],
)
def test_progress_never_falls_and_the_stage_never_goes_back(
    task: Task, generating: bool, percent: int | None, then: tuple[Stage, int | None]
) -> None:
    after = task.progressed(generating, percent, NOW)
    assert (after.stage, after.progress_percent) == then
    assert (after.revision, after.due_time) == (task.revision + 1, task.due_time)


def test_progress_is_kept_at_the_end() -> None:
    assert SUCCESS.progress_percent == FAILED.progress_percent == 40


# --- after the end ---


def test_a_late_delivery_adds_artifacts_to_the_failure() -> None:
    after = TIMED_OUT.delivered_late(ARTIFACTS, '{"resultUrls": []}', 3.5, NOW)
    assert changes(TIMED_OUT, after) == {
        "artifacts": ARTIFACTS,
        "result_json": '{"resultUrls": []}',
        "credits_consumed": 3.5,
        "due_time": None,
        "revision": TIMED_OUT.revision + 1,
        "update_time": NOW,
    }


def test_a_task_is_delivered_late_at_most_once() -> None:
    with pytest.raises(AssertionError):
        DELIVERED.delivered_late(ARTIFACTS, "{}", None, NOW)


@pytest.mark.parametrize("before", [SUCCESS, DELIVERED], ids=["SUCCESS", "DELIVERED"])
def test_copies_that_are_made_later_change_no_time_of_a_task(before: Task) -> None:
    after = before.copied(COPIED, NOW)
    assert changes(before, after) == {
        "artifacts": COPIED,
        "revision": before.revision + 1,
        "update_time": NOW,
        "generated_time": before.delivery_time,
    }
    assert after.delivery_time == before.delivery_time


def test_a_task_without_its_result_is_due_again() -> None:
    asked = TIMED_OUT.still_undelivered(DUE)
    assert changes(TIMED_OUT, asked) == {"due_time": DUE}
    assert asked.lane is Lane.LATE


def test_an_undeliverable_task_is_never_polled_again() -> None:
    assert changes(TIMED_OUT, TIMED_OUT.undeliverable()) == {"due_time": None}


# --- lanes ---


@pytest.mark.parametrize(
    ("task", "lane"),
    [
        ("ACCEPTED", Lane.SUBMIT),
        ("SUBMITTING", Lane.POLL),
        ("UNKNOWN", Lane.POLL),
        ("QUEUED", Lane.POLL),
        ("GENERATING", Lane.POLL),
        ("SUCCESS", None),
        ("FAILED", None),
        ("TIMED_OUT", Lane.LATE),
        ("DELIVERED", None),
        ("CANDIDATE", Lane.POLL),
        ("LOST", None),
        ("ADOPTED", Lane.LATE),
    ],
)
def test_a_task_waits_in_the_lane_of_its_stage(task: str, lane: Lane | None) -> None:
    assert TASKS[task].lane is lane


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_is_never_due_waits_in_no_lane(task: str) -> None:
    assert TASKS[task]._replace(due_time=None).lane is None


def test_a_task_that_was_due_at_time_zero_waits_in_its_lane() -> None:
    assert ACCEPTED._replace(due_time=0.0).lane is Lane.SUBMIT
