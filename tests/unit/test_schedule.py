"""When to poll again: by age at first, then by learned durations."""

import itertools
import random
from collections.abc import Iterable

import pytest

from service.schedule import DURATIONS_MAX, Schedule
from tests.support.polling import Comparison, compare, unwatched

INTERVAL = 2.0
USUAL = 313.0


def schedule(durations: Iterable[float] = (), interval: float = INTERVAL) -> Schedule:
    made = Schedule(interval, lambda _: USUAL)
    for seconds in durations:
        made.learn("m", seconds)
    return made


def waits(made: Schedule, age: float, setbacks: int = 0, model: str = "m") -> tuple[float, float]:
    """Return the shortest and the longest of many waits, without the jitter of up to a tenth."""
    drawn = [made.wait(model, age, setbacks) for _ in range(100)]
    shortest, longest = min(drawn), max(drawn)
    assert longest <= shortest * 1.1
    return shortest / 1.1, longest


def polls(made: Schedule, until: float) -> list[float]:
    """Return the ages at which a task is polled."""
    ages = [made.wait("m", 0, 0)]
    while ages[-1] < until:
        ages.append(ages[-1] + made.wait("m", ages[-1], 0))
    return ages


def gaps(ages: list[float], start: float, end: float) -> list[float]:
    return [b - a for a, b in itertools.pairwise(ages) if start <= a < end]


LIKE_IMAGES = [12 + 100 * (number / 100) ** 2 for number in range(100)]  # most of them early


# --- before durations are learned ---


@pytest.mark.parametrize(
    ("age", "setbacks", "least", "most"),
    [
        (0, 0, 2.0, 2.2),
        (29, 0, 2.0, 2.2),
        (31, 0, 6.0, 6.6),
        (121, 0, 10.0, 11.0),
        (400, 0, 16.0, 17.6),
        (0, 1, 4.0, 4.4),
        (0, 50, 16.0, 17.6),
        (400, 50, 16.0, 17.6),
    ],
)
@pytest.mark.parametrize("known", [0, 7])
def test_polls_start_early_and_back_off_by_age_and_setbacks(
    age: float, setbacks: int, least: float, most: float, known: int
) -> None:
    made = schedule([40.0] * known)
    for _ in range(100):
        assert least <= made.wait("m", age, setbacks) <= most


# --- after durations are learned ---


def test_a_wait_is_never_shorter_than_the_interval_nor_longer_than_eight() -> None:
    for seed in range(20):
        random.seed(seed)
        made = schedule(random.lognormvariate(seed / 3, 1) for _ in range(seed * 20))
        for age in (0, 0.1, 1, 5, 29, 31, 80, 119, 121, 300, 4_000):
            assert INTERVAL <= made.wait("m", age, 0) <= 8 * INTERVAL * 1.1


def test_no_poll_happens_before_the_shortest_known_duration() -> None:
    first, second = polls(schedule(LIKE_IMAGES), until=14)[:2]
    assert 12 <= first < 15
    assert second - first < 2.3


def test_the_first_wait_is_at_most_eight_intervals() -> None:
    _, longest = waits(schedule([200.0 + number for number in range(100)]), age=0)
    assert longest <= 8 * INTERVAL * 1.1


def test_polls_are_dense_where_tasks_end_and_sparse_where_few_do() -> None:
    durations = [*(50 + number / 10 for number in range(100)), 200, 300, 400, 500]
    ages = polls(schedule(durations), until=500)
    assert max(gaps(ages, 50, 57)) < 1.2 * INTERVAL
    assert min(gaps(ages, 150, 400)) > 3 * INTERVAL


def test_tasks_of_constant_duration_need_one_poll_or_two() -> None:
    ages = polls(schedule([10.0] * 50), until=10)
    assert len(ages) <= 2
    assert ages[-1] < 13


@pytest.mark.parametrize(("age", "intervals"), [(5, 1), (29, 1), (31, 3), (119, 3), (121, 8)])
def test_a_task_older_than_any_known_one_waits_as_long_as_its_age_allows(
    age: float, intervals: int
) -> None:
    shortest, longest = waits(schedule([1.0] * 100), age)
    assert shortest <= intervals * INTERVAL <= longest


def test_one_short_task_is_enough_to_poll_early_again() -> None:
    made = schedule([60.0 + number for number in range(100)], interval=8)
    assert waits(made, age=0)[0] > 55
    made.learn("m", 5.0)
    assert waits(made, age=6)[1] < 9


def test_setbacks_double_what_was_learned_within_its_bounds() -> None:
    made = schedule(LIKE_IMAGES)
    usual, doubled, most = (waits(made, age=20, setbacks=setbacks)[1] for setbacks in (0, 1, 50))
    assert usual < 2.3 < doubled < 4.5 < most <= 17.6


def test_each_model_is_learned_separately() -> None:
    made = schedule(LIKE_IMAGES)
    assert waits(made, age=0, model="another")[1] <= 2.2


def test_only_the_last_durations_are_remembered() -> None:
    made = schedule([500.0] * 10_000)
    assert made.overdue_age("m") == 1_000
    for _ in range(DURATIONS_MAX):
        made.learn("m", 100.0)
    assert made.overdue_age("m") == 200
    assert len(made._durations["m"]._ascending) == DURATIONS_MAX


def test_a_callback_is_overdue_when_nearly_every_task_would_have_ended_long_ago() -> None:
    assert schedule().overdue_age("m") == 2 * USUAL, "by what was known beforehand"
    assert 180 < schedule(LIKE_IMAGES).overdue_age("m") < 224
    assert schedule([0.01] * 100).overdue_age("m") == 60, "its repetitions take that long"


# --- against fixed schedules, on durations like the recorded ones ---


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    return compare(tasks=1_000)


def test_our_schedule_finds_ends_earlier_than_fixed_ones_with_no_more_requests(
    comparisons: list[Comparison],
) -> None:
    assert len(comparisons) == 6
    for found in comparisons:
        assert found.adaptive.requests_mean <= found.fixed.requests_mean, found
        assert found.adaptive.delay_mean < found.fixed.delay_mean, found
        assert found.adaptive.delay_median < found.fixed.delay_median, found


@pytest.mark.parametrize("kind", ["images", "videos"])
@pytest.mark.parametrize("callbacks_come", [True, False])
def test_with_callbacks_on_a_task_that_nobody_watches_costs_at_most_two_requests(
    kind: str, callbacks_come: bool
) -> None:
    cost = unwatched(kind, callbacks_come=callbacks_come, tasks=500)
    assert cost.requests_max <= 2
