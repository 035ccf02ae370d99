"""What becomes of a task by each outcome, where no whole flow shows it."""

from dataclasses import replace

from providers.base import Accepted, Failed, Poll, Progress, Succeeded, Unknown, Weather
from service.schedule import Schedule
from service.verdicts import Verdicts, after_callback
from storage.task import Failure, Stage, Status, Task

NOW = 10_000.0


def verdicts(*, left_to_callback: bool = False) -> Verdicts:
    return Verdicts(
        schedule=Schedule(2.0, lambda _: 100.0),
        task_max_age_seconds=3_600.0,
        unknown_wait_seconds=900.0,
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
HINTED = UNKNOWN.hinted("k", NOW)
QUEUED = SUBMITTING.queued("k", NOW, NOW + 2)
GIVEN_UP = SUBMITTING.failed(Failure("SUBMISSION_UNKNOWN", ""), NOW)
UNDER_WAY = Progress(generating=True)
SUCCESS = Succeeded(("http://x/1.png",), ("image/png",), "{}", complete_time=NOW + 1)


def test_a_lost_answer_waits_for_its_callback_and_is_then_given_up() -> None:
    waiting = VERDICTS.after_submission(SUBMITTING, Unknown("reset"), NOW, 0)
    assert waiting is not None
    assert (waiting.stage, waiting.due_time) == (Stage.SUBMITTING, NOW + 900)
    assert waiting.revision == SUBMITTING.revision, "callers see no change"
    ended = VERDICTS.without_answer(waiting, NOW + 900)
    assert ended is not None
    assert ended.failure is not None
    assert ended.failure.reason == "SUBMISSION_UNKNOWN"
    assert "1970-01-01 02:46:35 UTC" in ended.failure.message, "when to look for it by hand"


def test_a_sign_that_came_before_the_answer_was_lost_is_looked_into_at_once() -> None:
    told = SUBMITTING.hinted("k", SUBMITTING.due_time)
    waiting = VERDICTS.after_submission(told, Unknown("reset"), NOW, 0)
    assert waiting is not None
    assert (waiting.due_time, waiting.hinted_id) == (NOW, "k")


def test_a_sign_that_came_just_before_the_wait_was_over_is_not_given_up() -> None:
    assert VERDICTS.without_answer(HINTED, NOW + 900) is None


def test_a_sign_before_the_answer_makes_the_first_poll_due_at_once() -> None:
    told = SUBMITTING.hinted("k", SUBMITTING.due_time)
    queued = VERDICTS.after_submission(told, Accepted("k"), NOW, 0)
    assert queued is not None
    assert queued.due_time == NOW


def test_an_orphan_whose_record_agrees_is_polled_and_one_that_does_not_waits_on() -> None:
    home = VERDICTS.after_recognition(HINTED, True, NOW + 5)
    assert home is not None
    assert (home.stage, home.provider_task_id, home.due_time) == (Stage.QUEUED, "k", NOW + 5)
    strange = VERDICTS.after_recognition(HINTED, False, NOW + 5)
    assert strange is not None
    assert (strange.hinted_id, strange.due_time) == ("", NOW + 900)


def test_a_record_that_never_tells_is_not_waited_for_beyond_a_tasks_age() -> None:
    again = VERDICTS.after_recognition(HINTED, None, NOW + 3_599)
    assert again is not None
    assert again.hinted_id == "k"
    dropped = VERDICTS.after_recognition(HINTED, None, NOW + 3_601)
    assert dropped is not None
    assert (dropped.hinted_id, dropped.due_time) == ("", NOW + 3_601)


def test_an_answer_for_a_task_that_was_given_up_is_adopted_and_anything_else_is_not() -> None:
    late = VERDICTS.after_submission(GIVEN_UP, Accepted("k"), NOW + 1, 0)
    assert late is not None
    assert (late.status, late.provider_task_id, late.due_time) == (Status.FAILED, "k", NOW + 1)
    assert VERDICTS.after_submission(GIVEN_UP, Unknown(""), NOW + 1, 0) is None
    assert VERDICTS.after_submission(late, Accepted("other"), NOW + 2, 0) is None
    assert VERDICTS.after_submission(QUEUED, Accepted("other"), NOW + 2, 0) is None


def test_only_an_answered_poll_ends_a_task_by_its_age() -> None:
    late = NOW + 3_601
    for outcome, ends in (
        (Progress(generating=True), True),
        (Weather("422", answered=True), True),
        (Weather("502"), False),
    ):
        after = VERDICTS.after_poll(QUEUED, outcome, late)
        assert after is not None
        assert after.ended is ends
        if ends:
            assert after.due_time == late + 3_600, "still asked for, hourly"


def test_a_time_of_the_provider_that_cannot_be_is_replaced_by_ours() -> None:
    for told, taken in ((NOW + 1, NOW + 1), (NOW + 99, NOW + 2), (1.0, NOW + 2), (None, NOW + 2)):
        after = VERDICTS.after_poll(QUEUED, replace(SUCCESS, complete_time=told), NOW + 2)
        assert after is not None
        assert after.complete_time == taken


def test_a_poll_that_ran_beside_the_one_that_ended_a_task_changes_nothing() -> None:
    ended = VERDICTS.after_poll(QUEUED, SUCCESS, NOW + 2)
    assert ended is not None
    assert VERDICTS.after_poll(ended, Failed("no", "500"), NOW + 3) is None


def test_a_late_poll_is_soon_for_an_orphan_hourly_for_the_rest_and_ends_with_a_failure() -> None:
    orphan = GIVEN_UP.adopted_late("k", NOW, NOW)
    soon = VERDICTS.after_late_poll(orphan, Progress(generating=True), NOW)
    assert soon is not None
    assert soon.due_time is not None
    assert 2.0 <= soon.due_time - NOW <= 2.2
    timed_out = VERDICTS.after_poll(QUEUED, Progress(generating=True), NOW + 3_601)
    assert timed_out is not None
    hourly = VERDICTS.after_late_poll(timed_out, Weather("502"), NOW + 7_201)
    assert hourly is not None
    assert hourly.due_time == NOW + 7_201 + 3_600
    over = VERDICTS.after_late_poll(timed_out, Failed("no", "500"), NOW + 7_201)
    assert over is not None
    assert over.due_time is None


def test_a_callback_makes_due_what_can_still_change_and_nothing_else() -> None:
    ended = VERDICTS.after_poll(QUEUED, SUCCESS, NOW + 2)
    assert ended is not None
    assert after_callback(ended, "k", NOW) is None
    due = after_callback(QUEUED, "", NOW)
    assert due is not None
    assert due.due_time == NOW
    assert after_callback(UNKNOWN, "", NOW) is None, "nothing to look into"
    hinted = after_callback(UNKNOWN, "k", NOW)
    assert hinted is not None
    assert (hinted.hinted_id, hinted.due_time) == ("k", NOW)
    assert after_callback(hinted, "other", NOW) is None, "the first sign is looked into first"


# --- a task that is left to its callback ---


def due_after(seconds: float, outcome: Poll, task: Task = QUEUED) -> float:
    """Poll a task that nobody watches; return how much later it is due again."""
    after = UNWATCHED.after_poll(task, outcome, NOW + seconds)
    assert after is not None
    assert after.due_time is not None
    return after.due_time - NOW - seconds


def test_a_task_that_nobody_watches_is_asked_for_once_its_callback_is_overdue() -> None:
    queued = UNWATCHED.after_submission(SUBMITTING, Accepted("k"), NOW, 0)
    assert queued is not None
    assert queued.due_time == NOW + 200
    assert due_after(10, UNDER_WAY) == 190, "after a watcher has left"


def test_and_then_not_before_its_time_out() -> None:
    assert due_after(200, UNDER_WAY) == 3_400
    slower = verdicts(left_to_callback=True)
    for _ in range(100):
        slower.schedule.learn("imagen4", 190.0)
    after = slower.after_poll(QUEUED, UNDER_WAY, NOW + 200)
    assert after is not None
    assert after.due_time == NOW + 3_600, "once is enough, though overdue is later by now"


def test_a_poll_without_a_verdict_is_repeated_soon_though_nobody_watches() -> None:
    assert due_after(200, Weather("502")) <= 17.6


def test_once_its_callback_has_come_a_task_is_polled_until_its_record_says_so() -> None:
    told = after_callback(QUEUED, "", NOW + 5)
    assert told is not None
    assert due_after(5, UNDER_WAY, told) <= 2.2
    home = UNWATCHED.after_recognition(HINTED, True, NOW)
    assert home is not None
    assert due_after(1, UNDER_WAY, home) <= 2.2
    assert UNWATCHED.after_recognition(home, True, NOW) is None, "it came home already"


def test_a_watch_brings_the_next_poll_nearer_and_never_puts_one_off() -> None:
    left = QUEUED.scheduled(NOW + 200, 0)
    watched = VERDICTS.after_watch(left, NOW + 40)
    assert watched is not None
    assert watched.due_time is not None
    assert 6.0 <= watched.due_time - NOW - 40 <= 6.6
    assert VERDICTS.after_watch(QUEUED.scheduled(NOW + 41, 0), NOW + 40) is None
    assert VERDICTS.after_watch(UNKNOWN, NOW + 40) is None


# --- what is learned ---


def learned_from(complete_time: float | None, now: float) -> list[tuple[str, float]]:
    """End a task that was accepted at NOW; return what the schedule was told."""
    told: list[tuple[str, float]] = []

    class Learner(Schedule):
        def learn(self, model: str, seconds: float) -> None:
            told.append((model, seconds))

    learner = replace(VERDICTS, schedule=Learner(2.0, lambda _: 100.0))
    ended = learner.after_poll(QUEUED, replace(SUCCESS, complete_time=complete_time), now)
    assert ended is not None
    learner.learn(ended)
    return told


def test_a_duration_is_learned_only_where_the_provider_told_it() -> None:
    assert learned_from(NOW + 30, now=NOW + 35) == [("imagen4", 30.0)]
    assert learned_from(None, now=NOW + 35) == []
    assert learned_from(NOW + 99, now=NOW + 35) == [], "a time that cannot be"


def test_an_orphan_that_came_home_after_its_end_teaches_nothing() -> None:
    assert learned_from(NOW - 1, now=NOW + 35) == []
