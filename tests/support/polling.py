"""A simulation of polls: what they cost and how late they find results, compared with fixed waits.

`python -m tests.support.polling` prints the table.

A task is polled until the first poll after its end. *Requests* are the polls of a task. *Delay* is
the time from the end of a task to the poll that finds it; the time of the request itself is left
out. *Adaptive* is `service.schedule`, which has learned nothing at the start; the tasks come one
after another. For each fixed schedule there is a POLL_INTERVAL_SECONDS, the same for images and
videos, with which the adaptive schedule makes no more requests.

Durations are invented to resemble the recorded ones (images 12-112 s, videos 56-313 s, one of them
786 s; no more is known): lognormal, 2 % of them below the recorded range and 2 % above it,
and 3 % of all tasks take 2 to 6 times as long.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat

from providers.base import Accepted, Progress, Succeeded
from service.callback_polls import after_callback
from service.reach import Reach
from service.schedule import Schedule
from service.timeouts import TaskTimeouts
from service.verdicts import Verdicts
from storage.task import Task

RECORDED_SECONDS = {"images": (12.0, 112.0), "videos": (56.0, 313.0)}
DEVIATIONS = 2.054  # standard deviations with 2 % of a normal distribution beyond each side
SLOW_SHARE = 0.03
SLOW_FACTORS = (2.0, 6.0)

TASKS = 2_000
SEED = 1
INTERVAL_SECONDS = 2.0  # the default
TASK_MAX_AGE_SECONDS = 3_600.0  # the default
CALLBACK_SECONDS = 0.5  # from the end of a task to the poll that its callback causes


@dataclass(frozen=True, slots=True)
class FixedSchedule:
    """A schedule that learns nothing.

    Attributes:
        waits: The seconds before each poll.
        interval_seconds: The POLL_INTERVAL_SECONDS with which the adaptive schedule makes no more
            requests.
    """

    name: str
    waits: Callable[[], Iterator[float]]
    interval_seconds: float


FIXED_SCHEDULES = (
    FixedSchedule("every 5 s", lambda: repeat(5.0), 3.65),
    FixedSchedule(  # the client that this service replaces: at once, twice 2 s, 17 times 5 s
        "2, 5, then 10 s",
        lambda: chain([0.0], repeat(2.0, 2), repeat(5.0, 17), repeat(10.0)),
        3.8,
    ),
    FixedSchedule("every 30 s", lambda: repeat(30.0), 22.5),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """The polls of a task, and the delay in seconds until its end is known."""

    requests_mean: float
    requests_max: int
    delay_mean: float
    delay_median: float
    delay_p99: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A fixed schedule and the adaptive one, on the same tasks."""

    kind: str
    schedule: FixedSchedule
    fixed: Cost
    adaptive: Cost


def compare(tasks: int = TASKS, seed: int = SEED) -> list[Comparison]:
    """Return every comparison, for images and for videos."""
    random.seed(seed)
    durations = {kind: [_duration(kind) for _ in range(tasks)] for kind in RECORDED_SECONDS}
    return [
        Comparison(
            kind,
            fixed,
            _cost(_poll_fixed(seconds, fixed.waits()) for seconds in durations[kind]),
            _adaptive(kind, durations[kind], fixed.interval_seconds),
        )
        for kind in durations
        for fixed in FIXED_SCHEDULES
    ]


def _adaptive(kind: str, durations: Iterable[float], interval_seconds: float) -> Cost:
    schedule = Schedule(interval_seconds, _usual_seconds)
    return _cost(_poll_adaptive(kind, seconds, schedule) for seconds in durations)


def unwatched(kind: str, *, callbacks_come: bool, tasks: int = TASKS, seed: int = SEED) -> Cost:
    """Return the cost of tasks that nobody watches, with PUBLIC_URL set."""
    random.seed(seed)
    schedule, reach = Schedule(INTERVAL_SECONDS, _usual_seconds), Reach(INTERVAL_SECONDS)
    verdicts = Verdicts(
        schedule=schedule,
        reach=reach,
        timeouts=TaskTimeouts(schedule, reach, TASK_MAX_AGE_SECONDS),
        task_max_age_seconds=TASK_MAX_AGE_SECONDS,
        unknown_wait_seconds=0,
        delivery_seconds=math.inf,
        left_to_callback=lambda _: True,
    )
    durations = [_duration(kind) for _ in range(tasks)]
    return _cost(_call_back(kind, seconds, verdicts, callbacks_come) for seconds in durations)


# --- one task: its polls, and its delay ---


def _poll_fixed(seconds: float, waits: Iterator[float]) -> tuple[int, float]:
    age, polls = next(waits), 1
    while age < seconds:
        age += next(waits)
        polls += 1
    return polls, age - seconds


def _poll_adaptive(kind: str, seconds: float, schedule: Schedule) -> tuple[int, float]:
    age, polls = schedule.wait(kind, 0, 0), 1
    while age < seconds:
        age += schedule.wait(kind, age, 0)
        polls += 1
    schedule.learn(kind, seconds)
    return polls, age - seconds


def _call_back(
    kind: str, seconds: float, verdicts: Verdicts, callback_comes: bool
) -> tuple[int, float]:
    """Move a task through the verdicts of the service, from its acceptance at 0."""
    called_time = seconds + CALLBACK_SECONDS if callback_comes else math.inf
    success = Succeeded(("http://x/1",), ("image/png",), "{}", complete_time=seconds)
    task = verdicts.after_submission(_sent(kind), Accepted("k"), 0, 0)
    polls, now = 0, 0.0
    while task and task.due_time is not None and not task.ended:
        if now < called_time <= task.due_time:
            task = after_callback(task, "k", called_time) or task
        now = task.due_time or now
        outcome = success if now >= seconds else Progress(generating=True)
        task = verdicts.after_poll(task, outcome, now)
        polls += 1
    assert task is not None
    verdicts.learn(task)
    return polls, now - seconds


def _sent(kind: str) -> Task:
    task = Task("t", "c", "", "p", kind, b"", create_time=0, update_time=0, due_time=0)
    return task.submitting(0, 0)


def _duration(kind: str) -> float:
    shortest, longest = RECORDED_SECONDS[kind]
    spread = math.log(longest / shortest) / 2 / DEVIATIONS
    seconds = random.lognormvariate(math.log(shortest * longest) / 2, spread)
    return seconds * (random.uniform(*SLOW_FACTORS) if random.random() < SLOW_SHARE else 1)


def _usual_seconds(kind: str) -> float:
    return RECORDED_SECONDS[kind][1]


def _cost(tasks: Iterable[tuple[int, float]]) -> Cost:
    polls, delays = zip(*tasks, strict=True)
    return Cost(
        requests_mean=statistics.fmean(polls),
        requests_max=max(polls),
        delay_mean=statistics.fmean(delays),
        delay_median=statistics.median(delays),
        delay_p99=statistics.quantiles(delays, n=100)[-1],
    )


# --- the table ---


def table() -> str:
    """Return every comparison, and the cost with callbacks, as a Markdown table."""
    rows = [
        "| | schedule | requests: mean | max | delay: mean | median | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in compare():
        adaptive = f"adaptive, POLL_INTERVAL_SECONDS={found.schedule.interval_seconds:g}"
        rows.append(_row(found.kind, found.schedule.name, found.fixed))
        rows.append(_row("", adaptive, found.adaptive))
    for kind in RECORDED_SECONDS:
        for name, come in (("callbacks, nobody watches", True), ("the same, all lost", False)):
            rows.append(_row(kind, name, unwatched(kind, callbacks_come=come)))
    return "\n".join(rows)


def _row(kind: str, name: str, cost: Cost) -> str:
    delays = (cost.delay_mean, cost.delay_median, cost.delay_p99)
    requests = (f"{cost.requests_mean:.2f}", str(cost.requests_max))
    cells = (*requests, *(f"{seconds:.1f} s" for seconds in delays))
    return f"| {' | '.join((kind, name, *cells))} |"


if __name__ == "__main__":
    print(table())  # noqa: T201 - the table is what was asked for
