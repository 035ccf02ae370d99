"""The delays of the poller: from the provider's result to the watcher, and from due to sent."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.databases import Kind, due_times, pending
from benchmarks.measure import percentile, settle
from benchmarks.servers import TOKEN
from benchmarks.table import Result, Target, milliseconds, per_second

CALLBACK_TASKS = 1_500
CALLBACK_ENDS = 1_000  # of those tasks, so that 1,000 are in flight on average
ENDS_PER_SECOND = 50.0  # at random moments; the account's limit is two
CALLBACK_TARGET_SECONDS = 0.050
LAG_TASKS = 2_000
LAG_SECONDS = 15.0
WARM_SECONDS = 8.0
IMAGES_TAKE_SECONDS = 112.0  # the longest recorded
SAMPLE_SECONDS = 0.25
SAMPLES_MIN = 2  # with the same due time: the lease of a poll is in one sample at most
LATE_SECONDS = 1.0  # a task that is due later than this before the end may be polled after it
LAG_TARGET_SECONDS = 0.100
WAIT_SECONDS = 120.0
DEFAULT_INTERVAL = {"POLL_INTERVAL_SECONDS": "2"}

Due = tuple[str, float]  # the provider's id of a task, and when its poll is due


def measure(bench: Bench) -> Iterator[Result]:
    """Measure both on each kind of database."""
    for kind in bench.databases:
        yield _callbacks(bench, kind)
        yield from _lag(bench, kind)


def _callbacks(bench: Bench, kind: Kind) -> Result:
    """End tasks one by one, each watched by one stream, while the others are polled."""
    count, ends = bench.count(CALLBACK_TASKS), bench.count(CALLBACK_ENDS)
    ending = random.sample(range(count), ends)
    with ExitStack() as stack:
        service = stack.enter_context(bench.service(kind.new_url(), **DEFAULT_INTERVAL).running())
        created = bench.load.ask(
            "create_tasks", address=service.address, token=TOKEN, count=count, characters=200
        )
        bench.load.ask(
            "open",
            group="watchers",
            address=service.address,
            token=TOKEN,
            task_ids=[task_id for task_id, _ in created],
            streams=count,
        )
        time.sleep(WARM_SECONDS * bench.scale)  # the first polls come all at once
        ended = bench.provider.ask(
            "finish", ids=[created[index][1] for index in ending], per_second=ENDS_PER_SECOND
        )
        seen = dict(bench.load.ask("ends", group="watchers", count=ends, seconds=WAIT_SECONDS))
        bench.load.ask("close", group="watchers")
        bench.provider.ask("polls")
    delays = [seen[index] - at for index, at in zip(ending, ended, strict=True)]
    worst = percentile(delays, 0.99)
    return Result(
        f"provider done to watcher, 1,000 in flight, {kind.name}: p99",
        f"{milliseconds(worst)} (p50 {milliseconds(percentile(delays, 0.5))})",
        value=worst,
        target=Target(CALLBACK_TARGET_SECONDS, "≤ 50 ms"),
    )


def _lag(bench: Bench, kind: Kind) -> Iterator[Result]:
    """Compare the due times in the database with the times of the polls at the provider.

    The time of the request to the provider is therefore included.
    """
    numbers = range(bench.count(LAG_TASKS))
    rows = pending(numbers, time.time(), IMAGES_TAKE_SECONDS)
    # Without callbacks: with them, a task that nobody watches is hardly polled.
    service = bench.seeded(kind, rows, **DEFAULT_INTERVAL, PUBLIC_URL="")
    with service.running():
        time.sleep(WARM_SECONDS * bench.scale)  # at start everything is due
        bench.provider.ask("polls")
        started = time.time()
        due = _due(service.database_url, max(LAG_SECONDS * bench.scale, 3))
        polls, now = bench.provider.ask("polls"), time.time()
    settle(bench.provider.pid)
    lags, missed = _lags(due, polls, now)
    worst = percentile(lags, 0.99)
    counts = f"{len(lags):,} polls" + (f", {missed:,} of them missing" if missed else "")
    yield Result(
        f"poll lag, 2,000 in flight, {kind.name}: p99",
        f"{milliseconds(worst)} (p50 {milliseconds(percentile(lags, 0.5))}, {counts})",
        value=worst,
        target=Target(LAG_TARGET_SECONDS, "≤ 100 ms"),
    )
    yield Result(f"polls in that time, {kind.name}", per_second(len(polls) / (now - started)))


def _due(database_url: str, seconds: float) -> list[Due]:
    """Return the due times that the database shows in the next seconds."""
    samples: Counter[Due] = Counter()
    end = time.time() + seconds
    while (now := time.time()) < end:
        samples.update(due for due in due_times(database_url) if due[1] > now)
        time.sleep(SAMPLE_SECONDS)
    return [due for due, count in samples.items() if count >= SAMPLES_MIN]


def _lags(due: Sequence[Due], polls: Sequence[Due], now: float) -> tuple[list[float], int]:
    """Return how long after its due time each task was polled, and how many never were.

    The lag of a task that was not polled lasts until now.
    """
    polled: dict[str, list[float]] = {}
    for provider_id, at in polls:
        polled.setdefault(provider_id, []).append(at)
    lags, missed = [], 0
    for provider_id, due_time in due:
        if due_time <= now - LATE_SECONDS:
            after = [at for at in polled.get(provider_id, ()) if at >= due_time]
            missed += not after
            lags.append(min(after, default=now) - due_time)
    return lags, missed
