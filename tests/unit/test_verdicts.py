"""How each outcome changes a task, where no complete flow shows it."""

from dataclasses import replace

import pytest

from providers.base import (
    Accepted,
    Failed,
    Poll,
    Postponed,
    Progress,
    Recognition,
    Refused,
    Succeeded,
    Unavailable,
    Unknown,
    UnknownState,
    Unreadable,
)
from service.callback_polls import after_callback
from service.schedule import Schedule
from service.verdicts import Verdicts
from storage.task import Failure, Stage, Status, Task
from tests.support.judging import (
    CANDIDATE,
    GIVEN_UP,
    KEPT_SECONDS,
    NOW,
    QUEUED,
    SUBMITTING,
    UNKNOWN,
    UNWATCHED,
    VERDICTS,
    polled_twice,
    verdicts,
)

IN_PROGRESS = Progress(generating=True)
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


def test_a_callback_before_the_response_is_lost_is_checked_at_once() -> None:
    called_back = SUBMITTING.with_candidate("k", SUBMITTING.due_time)
    waiting = VERDICTS.after_submission(called_back, Unknown("reset"), NOW, 0)
    assert waiting is not None
    assert (waiting.due_time, waiting.candidate_id) == (NOW, "k")


def test_a_callback_at_the_end_of_the_wait_is_still_checked() -> None:
    assert VERDICTS.without_answer(CANDIDATE, NOW + 900) is None


def test_a_callback_before_the_response_makes_the_first_poll_due_at_once() -> None:
    called_back = SUBMITTING.with_candidate("k", SUBMITTING.due_time)
    queued = VERDICTS.after_submission(called_back, Accepted("k"), NOW, 0)
    assert queued is not None
    assert queued.due_time == NOW


def test_an_orphan_whose_record_agrees_is_polled_and_any_other_keeps_waiting() -> None:
    adopted = VERDICTS.after_recognition(CANDIDATE, Recognition.AGREES, NOW + 5)
    assert adopted is not None
    assert (adopted.stage, adopted.provider_task_id, adopted.due_time) == (
        Stage.QUEUED,
        "k",
        NOW + 5,
    )
    strange = VERDICTS.after_recognition(CANDIDATE, Recognition.DIFFERS, NOW + 5)
    assert strange is not None
    assert (strange.candidate_id, strange.due_time) == ("", NOW + 900)


def test_an_unreadable_record_is_not_waited_for_beyond_a_tasks_age() -> None:
    again = VERDICTS.after_recognition(CANDIDATE, Recognition.UNREADABLE, NOW + 3_599)
    assert again is not None
    assert again.candidate_id == "k"
    dropped = VERDICTS.after_recognition(CANDIDATE, Recognition.UNREADABLE, NOW + 3_601)
    assert dropped is not None
    assert (dropped.candidate_id, dropped.due_time) == ("", NOW + 3_601)


def test_an_answer_for_a_task_that_was_given_up_is_adopted_and_anything_else_is_not() -> None:
    late = VERDICTS.after_submission(GIVEN_UP, Accepted("k"), NOW + 1, 0)
    assert late is not None
    assert (late.status, late.provider_task_id, late.due_time) == (Status.FAILED, "k", NOW + 1)
    assert VERDICTS.after_submission(GIVEN_UP, Unknown(""), NOW + 1, 0) is None
    assert VERDICTS.after_submission(late, Accepted("other"), NOW + 2, 0) is None
    assert VERDICTS.after_submission(QUEUED, Accepted("other"), NOW + 2, 0) is None


FAILING = QUEUED.scheduled(NOW, 2)  # two polls in a row have failed


def reached(answered_time: float) -> Verdicts:
    """Verdicts of a service for which another task was answered at a time."""
    known = verdicts()
    known.reach.learn(IN_PROGRESS, 0, answered_time)
    return known


def ends_by_its_age(known: Verdicts, outcome: Poll, task: Task = FAILING) -> bool:
    late = NOW + 3_602
    after = polled_twice(known, task, outcome, late)
    if after.ended:
        assert after.failure is not None
        assert after.failure.reason == "TASK_TIMEOUT"
        assert after.due_time == late + 3_600, "still asked for, hourly"
    return after.ended


def test_a_task_past_its_age_ends_if_its_record_is_read_or_it_alone_is_unreadable() -> None:
    assert ends_by_its_age(verdicts(), IN_PROGRESS, QUEUED)
    assert ends_by_its_age(verdicts(), UnknownState("archived"), QUEUED)
    assert ends_by_its_age(verdicts(), Unreadable("code 500"))
    assert not ends_by_its_age(verdicts(), Unreadable("code 500"), QUEUED), "two polls may fail"


def test_a_poll_that_fails_counts_against_its_task_only_while_others_are_answered() -> None:
    assert ends_by_its_age(reached(NOW + 3_600), Unavailable("401"))
    assert not ends_by_its_age(reached(NOW + 3_000), Unavailable("401"))
    assert not ends_by_its_age(verdicts(), Unavailable("502"))


# --- clocks ---


def test_a_task_that_seems_overdue_ends_only_at_a_second_poll_an_interval_later() -> None:
    known, late = verdicts(), NOW + 7_200
    for seconds in (0, 0.1, 1.9):
        after = known.after_poll(QUEUED, IN_PROGRESS, late + seconds)
        assert after is not None
        assert not after.ended, seconds
    after = known.after_poll(QUEUED, IN_PROGRESS, late + 2)
    assert after is not None
    assert after.ended


def test_failed_polls_in_between_do_not_keep_an_overdue_task_from_ending() -> None:
    known, late = verdicts(), NOW + 7_200
    outcomes: tuple[Poll, ...] = (IN_PROGRESS, Unavailable("502"), Unreadable("code 500"))
    for seconds, outcome in enumerate(outcomes):
        known.after_poll(QUEUED, outcome, late + seconds)
    after = known.after_poll(QUEUED, IN_PROGRESS, late + 3)
    assert after is not None
    assert after.ended


def test_a_task_that_is_no_longer_overdue_needs_two_more_polls() -> None:
    known, late = verdicts(), NOW + 7_200
    known.after_poll(QUEUED, IN_PROGRESS, late)
    known.after_poll(QUEUED, IN_PROGRESS, NOW + 10)  # the clock was set back
    assert polled_twice(known, QUEUED, IN_PROGRESS, late + 10).ended


def test_a_clock_that_is_set_back_between_two_polls_confirms_nothing() -> None:
    known, late = verdicts(), NOW + 14_400
    known.after_poll(QUEUED, IN_PROGRESS, late)
    assert polled_twice(known, QUEUED, IN_PROGRESS, late - 7_200).ended


def jumped(seconds: float) -> Verdicts:
    """Verdicts by a clock that jumped after `NOW`."""

    def elapsed_seconds(since: float, now: float) -> float:
        return max(0.0, now - since - (seconds if since == NOW else 0))

    known = verdicts()
    return replace(known, timeouts=replace(known.timeouts, elapsed_seconds=elapsed_seconds))


@pytest.mark.parametrize("seconds", [7_200, -7_200])
def test_a_jump_of_the_clock_makes_no_task_older(seconds: float) -> None:
    known = jumped(seconds)
    young = polled_twice(known, QUEUED, IN_PROGRESS, NOW + seconds + 60)
    assert not young.ended
    assert young.due_time is not None
    assert young.due_time - NOW - seconds - 60 < 20
    assert polled_twice(known, QUEUED, IN_PROGRESS, NOW + seconds + 3_610).ended


def test_a_jump_of_the_clock_does_not_end_the_wait_for_a_lost_answer() -> None:
    waiting = jumped(7_200).without_answer(UNKNOWN, NOW + 7_200 + 10)
    assert waiting is not None
    assert not waiting.ended
    assert waiting.due_time == NOW + 7_200 + 900


def test_a_lost_answer_from_the_future_is_waited_for_no_longer_than_any_other() -> None:
    waiting = VERDICTS.without_answer(UNKNOWN, NOW - 7_200)
    assert waiting is not None
    assert (waiting.unknown_time, waiting.due_time) == (NOW - 7_200, NOW - 6_300)


def test_an_answer_from_the_future_says_nothing_of_the_present() -> None:
    assert not ends_by_its_age(reached(NOW + 14_400), Unavailable("401"))


def test_a_task_from_the_future_is_polled_as_a_new_one() -> None:
    for known in (VERDICTS, UNWATCHED):
        after = known.after_poll(QUEUED, IN_PROGRESS, NOW - 7_200)
        assert after is not None
        assert after.due_time is not None
        assert after.due_time - (NOW - 7_200) <= 220


def test_during_an_outage_no_task_ends_before_a_day() -> None:
    known = verdicts()
    assert not polled_twice(known, FAILING, Unavailable("502"), NOW + 86_399).ended
    ended = polled_twice(known, FAILING, Unavailable("502"), NOW + 86_402)
    assert ended.failure is not None
    assert ended.failure.reason == "TASK_TIMEOUT"


def test_an_outage_counts_as_one_setback_and_a_task_that_cannot_be_read_counts_each() -> None:
    task = QUEUED
    for _ in range(5):
        after = VERDICTS.after_poll(task, Unavailable("502"), NOW + 1)
        assert after is not None
        assert after.setbacks == 1
        task = after
    for expected in (2, 3, 4):
        after = VERDICTS.after_poll(task, Unreadable("code 500"), NOW + 1)
        assert after is not None
        assert after.setbacks == expected
        task = after


def test_a_task_that_its_provider_has_given_up_ends_after_a_few_such_answers_in_a_row() -> None:
    given_up = Unreadable("code 408: No result", given_up=True, provider_code="408")
    task, polls = QUEUED, 0
    while not task.ended:
        after = VERDICTS.after_poll(task, given_up, NOW + 700 + polls)
        assert after is not None
        task, polls = after, polls + 1
    assert polls == 5
    assert task.failure is not None
    assert (task.failure.reason, task.failure.provider_code) == ("TASK_TIMEOUT", "408")
    assert task.due_time is not None, "it is still asked for"


def test_a_timed_out_task_keeps_the_providers_last_response() -> None:
    for outcome in (
        Progress(generating=True, record='{"a":1}'),
        UnknownState("archived", '{"a":1}'),
        Unreadable("no state", record='{"a":1}'),
    ):
        ended = polled_twice(verdicts(), FAILING, outcome, NOW + 3_602)
        assert ended.result_json == '{"a":1}'


def test_a_failing_task_is_polled_rarely_but_at_its_maximum_age() -> None:
    near_its_end = VERDICTS.after_poll(FAILING, Unreadable("code 500"), NOW + 3_595)
    assert near_its_end is not None
    assert near_its_end.due_time == NOW + 3_600
    before = VERDICTS.after_poll(FAILING, Unreadable("code 500"), NOW + 1_000)
    assert before is not None
    assert before.due_time is not None
    assert 16 <= before.due_time - NOW - 1_000 <= 17.6


def test_credits_that_are_known_while_generating_are_shown_at_once_and_stay() -> None:
    known = VERDICTS.after_poll(QUEUED, Progress(generating=True, credits_consumed=4.5), NOW + 1)
    assert known is not None
    assert (known.credits_consumed, known.revision) == (4.5, QUEUED.revision + 1)
    same = VERDICTS.after_poll(known, Progress(generating=True, credits_consumed=4.5), NOW + 2)
    assert same is not None
    assert same.revision == known.revision
    ended = VERDICTS.after_poll(known, SUCCESS, NOW + 3)
    assert ended is not None
    assert ended.credits_consumed == 4.5


# --- signs of a purchase without an acceptance ---


def test_the_id_of_a_callback_before_a_refusal_is_checked_before_sending_again() -> None:
    called_back = SUBMITTING.with_candidate("k", SUBMITTING.due_time)
    looked_up = VERDICTS.after_submission(called_back, Postponed("429"), NOW, NOW)
    assert looked_up is not None
    assert (looked_up.stage, looked_up.due_time) == (Stage.SUBMITTING, NOW)
    adopted = VERDICTS.after_recognition(looked_up, Recognition.AGREES, NOW + 1)
    assert adopted is not None
    assert (adopted.stage, adopted.provider_task_id) == (Stage.QUEUED, "k")
    anew = VERDICTS.after_recognition(looked_up, Recognition.DIFFERS, NOW + 1)
    assert anew is not None
    assert (anew.stage, anew.candidate_id, anew.due_time) == (Stage.ACCEPTED, "", NOW + 1)


def test_a_callback_for_a_task_that_waits_to_be_sent_again_keeps_it_from_being_sent() -> None:
    waiting = SUBMITTING.postponed(NOW, NOW + 30)
    called_back = after_callback(waiting, "k", NOW + 1)
    assert called_back is not None
    assert (called_back.stage, called_back.candidate_id, called_back.due_time) == (
        Stage.SUBMITTING,
        "k",
        NOW + 1,
    )
    given_up = VERDICTS.after_recognition(called_back, Recognition.UNREADABLE, NOW + 3_700)
    assert given_up is not None
    assert given_up.stage is Stage.SUBMITTING, "not sent again, as nobody can tell"


def test_a_callback_without_an_id_keeps_its_task_from_being_sent_again_too() -> None:
    waiting = SUBMITTING.postponed(NOW, NOW + 30)
    called_back = after_callback(waiting, "", NOW + 1)
    assert called_back is not None
    assert called_back.stage is Stage.SUBMITTING
    sending = after_callback(SUBMITTING, "", NOW)
    assert sending is not None
    held = VERDICTS.after_submission(sending, Postponed("429"), NOW + 1, NOW)
    assert held is not None
    assert (held.stage, held.due_time) == (Stage.SUBMITTING, NOW + 900)


def test_an_id_that_arrives_after_a_refusal_is_checked() -> None:
    refused = VERDICTS.after_submission(SUBMITTING, Refused("PROVIDER_ERROR", "no", "500"), NOW, 0)
    assert refused is not None
    assert (refused.status, refused.due_time) == (Status.FAILED, None)
    called_back = after_callback(refused, "k", NOW + 3)
    assert called_back is not None
    adopted = VERDICTS.after_recognition(called_back, Recognition.SILENT, NOW + 4)
    assert adopted is not None
    assert (adopted.status, adopted.provider_task_id, adopted.due_time) == (
        Status.FAILED,
        "k",
        NOW + 4,
    )
    late = VERDICTS.after_late_poll(adopted, SUCCESS, NOW + 5)
    assert late is not None
    assert late.artifacts
    assert late.failure == refused.failure


def test_an_id_in_a_refusal_is_looked_up() -> None:
    refusal = Refused("PROVIDER_ERROR", "no", "500", "k")
    refused = VERDICTS.after_submission(SUBMITTING, refusal, NOW, 0)
    assert refused is not None
    assert (refused.status, refused.candidate_id, refused.due_time) == (Status.FAILED, "k", NOW)


def test_a_failure_is_looked_up_once_more_and_by_its_callback() -> None:
    failed = VERDICTS.after_poll(QUEUED, Failed("no", "500"), NOW + 1)
    assert failed is not None
    assert failed.due_time == NOW + 1 + 3_600
    over = VERDICTS.after_late_poll(failed, Failed("no", "500"), NOW + 3_601)
    assert over is not None
    assert over.due_time is None
    called_back = after_callback(over, "k", NOW + 4_000)
    assert called_back is not None
    assert called_back.due_time == NOW + 4_000
    late = VERDICTS.after_late_poll(called_back, SUCCESS, NOW + 4_001)
    assert late is not None
    assert (late.status, len(late.artifacts)) == (Status.FAILED, 1)


def test_an_object_without_urls_is_a_success_and_a_late_one_is_kept() -> None:
    lyrics = Succeeded((), (), '{"resultObject": {}, "resultUrls": []}', object_only=True)
    ended = VERDICTS.after_poll(QUEUED, lyrics, NOW + 1)
    assert ended is not None
    assert (ended.status, ended.artifacts) == (Status.SUCCESS, ())
    assert ended.result_json == lyrics.result_json
    failed = VERDICTS.after_poll(QUEUED, Failed("no", "500"), NOW + 1)
    assert failed is not None
    late = VERDICTS.after_late_poll(failed, lyrics, NOW + 2)
    assert late is not None
    assert (late.status, late.result_json, late.due_time) == (
        Status.FAILED,
        lyrics.result_json,
        None,
    )


def test_an_impossible_time_of_the_provider_is_replaced_by_ours() -> None:
    for reported, taken in (
        (NOW + 1, NOW + 1),
        (NOW + 99, NOW + 2),
        (1.0, NOW + 2),
        (None, NOW + 2),
    ):
        after = VERDICTS.after_poll(QUEUED, replace(SUCCESS, complete_time=reported), NOW + 2)
        assert after is not None
        assert after.complete_time == taken


def test_a_poll_concurrent_with_the_one_that_ended_a_task_changes_nothing() -> None:
    ended = VERDICTS.after_poll(QUEUED, SUCCESS, NOW + 2)
    assert ended is not None
    assert VERDICTS.after_poll(ended, Failed("no", "500"), NOW + 3) is None


@pytest.mark.parametrize("accept_time", [NOW, None])
def test_a_late_result_is_polled_for_only_while_the_provider_keeps_results(
    accept_time: float | None,
) -> None:
    timed_out = QUEUED.failed(Failure("TASK_TIMEOUT", ""), NOW, late_poll_time=NOW + 3_600)
    task = timed_out._replace(accept_time=accept_time)
    kept_until = (task.accept_time or task.create_time) + KEPT_SECONDS
    again = VERDICTS.after_late_poll(task, Unavailable("502"), kept_until - 3_601)
    assert again is not None
    assert again.due_time == kept_until - 1
    over = VERDICTS.after_late_poll(task, Unavailable("502"), kept_until - 3_600)
    assert over is not None
    assert over.due_time is None


def test_a_late_poll_is_soon_for_an_orphan_hourly_for_the_rest_and_ends_with_a_failure() -> None:
    orphan = GIVEN_UP.adopted_late("k", NOW, NOW)
    soon = VERDICTS.after_late_poll(orphan, Progress(generating=True), NOW)
    assert soon is not None
    assert soon.due_time is not None
    assert 2.0 <= soon.due_time - NOW <= 2.2
    timed_out = polled_twice(verdicts(), QUEUED, Progress(generating=True), NOW + 3_602)
    hourly = VERDICTS.after_late_poll(timed_out, Unavailable("502"), NOW + 7_201)
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
    after = after_callback(UNKNOWN, "k", NOW)
    assert after is not None
    assert (after.candidate_id, after.due_time) == ("k", NOW)
    assert after_callback(after, "other", NOW) is None, "the first sign is looked into first"


# --- a task that is left to its callback ---


def due_after(seconds: float, outcome: Poll, task: Task = QUEUED) -> float:
    """Poll a task that nobody watches; return how much later it is due again."""
    after = UNWATCHED.after_poll(task, outcome, NOW + seconds)
    assert after is not None
    assert after.due_time is not None
    return after.due_time - NOW - seconds


def test_a_task_that_nobody_watches_is_polled_once_its_callback_is_overdue() -> None:
    queued = UNWATCHED.after_submission(SUBMITTING, Accepted("k"), NOW, 0)
    assert queued is not None
    assert queued.due_time == NOW + 200
    assert due_after(10, IN_PROGRESS) == 190, "after a watcher has left"


def test_after_the_overdue_poll_the_next_one_is_at_the_timeout() -> None:
    assert due_after(200, IN_PROGRESS) == 3_400
    slower = verdicts(left_to_callback=True)
    for _ in range(100):
        slower.schedule.learn("imagen4", 190.0)
    after = slower.after_poll(QUEUED, IN_PROGRESS, NOW + 200)
    assert after is not None
    assert after.due_time == NOW + 3_600, "once is enough, though overdue is later by now"


def test_a_poll_without_a_verdict_is_repeated_soon_though_nobody_watches() -> None:
    assert due_after(200, Unavailable("502")) <= 17.6


def test_after_its_callback_a_task_is_polled_until_its_record_agrees() -> None:
    called_back = after_callback(QUEUED, "", NOW + 5)
    assert called_back is not None
    assert due_after(5, IN_PROGRESS, called_back) <= 2.2
    adopted = UNWATCHED.after_recognition(CANDIDATE, Recognition.AGREES, NOW)
    assert adopted is not None
    assert due_after(1, IN_PROGRESS, adopted) <= 2.2
    assert UNWATCHED.after_recognition(adopted, Recognition.AGREES, NOW) is None, (
        "it has arrived already"
    )


def test_a_watch_makes_the_next_poll_earlier_and_never_later() -> None:
    left = QUEUED.scheduled(NOW + 200, 0)
    watched = VERDICTS.after_watch(left, NOW + 40)
    assert watched is not None
    assert watched.due_time is not None
    assert 6.0 <= watched.due_time - NOW - 40 <= 6.6
    assert VERDICTS.after_watch(QUEUED.scheduled(NOW + 41, 0), NOW + 40) is None
    assert VERDICTS.after_watch(UNKNOWN, NOW + 40) is None


# --- what is learned ---


def learned_from(complete_time: float | None, now: float) -> list[tuple[str, float]]:
    """End a task that was accepted at NOW; return the duration that the schedule learned."""
    learned: list[tuple[str, float]] = []

    class Learner(Schedule):
        def learn(self, model: str, seconds: float) -> None:
            learned.append((model, seconds))

    learner = replace(VERDICTS, schedule=Learner(2.0, lambda _: 100.0))
    ended = learner.after_poll(QUEUED, replace(SUCCESS, complete_time=complete_time), now)
    assert ended is not None
    learner.learn(ended)
    return learned


def test_a_duration_is_learned_only_if_the_provider_reported_it() -> None:
    assert learned_from(NOW + 30, now=NOW + 35) == [("imagen4", 30.0)]
    assert learned_from(None, now=NOW + 35) == []
    assert learned_from(NOW + 99, now=NOW + 35) == [], "a time that cannot be"


def test_the_duration_of_an_adopted_orphan_is_not_learned() -> None:
    assert learned_from(NOW - 1, now=NOW + 35) == []
