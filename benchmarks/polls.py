"""The poller's promptness: from the provider's end to the watcher, and from due to sent."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.databases import Kind, due_times, pending
from benchmarks.measure import percentile, settle
from benchmarks.results import Line, Target, a_second, milliseconds
from benchmarks.servers import TOKEN

CALLBACK_TASKS = 1_500
CALLBACK_ENDS = 1_000  # of them, so that 1,000 are in flight on average
ENDS_A_SECOND = 50.0  # at random moments; the account's own limit is two
CALLBACK_TARGET_SECONDS = 0.050
LAG_TASKS = 2_000
LAG_SECONDS = 15.0
WARM_SECONDS = 8.0
IMAGES_TAKE_SECONDS = 112.0  # the longest recorded
SAMPLE_SECONDS = 0.25
SAMPLES_LEAST = 2  # that saw a due time: the lease of a poll is seen by one at most
LATE_SECONDS = 1.0  # what falls due that shortly before the end may be asked for after it
LAG_TARGET_SECONDS = 0.100
WAIT_SECONDS = 120.0
DEFAULT_INTERVAL = {"POLL_INTERVAL_SECONDS": "2"}

Due = tuple[str, float]  # the provider's id of a task, and when it is to be asked for


def measure(bench: Bench) -> Iterator[Line]:
    """Measure both on each kind of database."""
    for kind in bench.databases:
        yield _callbacks(bench, kind)
        yield from _lag(bench, kind)


def _callbacks(bench: Bench, kind: Kind) -> Line:
    """End tasks one by one while the others go on being polled, each watched by one stream."""
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
            task_ids=[ours for ours, _ in created],
            streams=count,
        )
        time.sleep(WARM_SECONDS * bench.scale)  # all were created at once, and so are polled
        ended = bench.provider.ask(
            "finish", ids=[created[index][1] for index in ending], per_second=ENDS_A_SECOND
        )
        seen = dict(bench.load.ask("ends", group="watchers", count=ends, seconds=WAIT_SECONDS))
        bench.load.ask("close", group="watchers")
        bench.provider.ask("polls")
    delays = [seen[index] - at for index, at in zip(ending, ended, strict=True)]
    worst = percentile(delays, 0.99)
    return Line(
        f"provider done to watcher, 1,000 in flight, {kind.name}: p99",
        f"{milliseconds(worst)} (p50 {milliseconds(percentile(delays, 0.5))})",
        value=worst,
        target=Target(CALLBACK_TARGET_SECONDS, "≤ 50 ms"),
    )


def _lag(bench: Bench, kind: Kind) -> Iterator[Line]:
    """Compare what the database says is due with when the provider was asked.

    Seen from outside, so the way to the provider is in it.
    """
    numbers = range(bench.count(LAG_TASKS))
    rows = pending(numbers, time.time(), IMAGES_TAKE_SECONDS)
    # Without callbacks: with them, what nobody watches is hardly asked for.
    service = bench.seeded(kind, rows, **DEFAULT_INTERVAL, PUBLIC_URL="")
    with service.running():
        time.sleep(WARM_SECONDS * bench.scale)  # likewise: at start everything is due
        bench.provider.ask("polls")
        started = time.time()
        due = _due(service.database_url, max(LAG_SECONDS * bench.scale, 3))
        polls, now = bench.provider.ask("polls"), time.time()
    settle(bench.provider.pid)
    lags, missed = _lags(due, polls, now)
    worst = percentile(lags, 0.99)
    counts = f"{len(lags):,} polls" + (f", {missed:,} of them not made" if missed else "")
    yield Line(
        f"poll lag, 2,000 in flight, {kind.name}: p99",
        f"{milliseconds(worst)} (p50 {milliseconds(percentile(lags, 0.5))}, {counts})",
        value=worst,
        target=Target(LAG_TARGET_SECONDS, "≤ 100 ms"),
    )
    yield Line(f"polls meanwhile, {kind.name}", a_second(len(polls) / (now - started)))


def _due(database_url: str, seconds: float) -> list[Due]:
    """Return the due times that the database holds in the next seconds."""
    samples: Counter[Due] = Counter()
    end = time.time() + seconds
    while (now := time.time()) < end:
        samples.update(due for due in due_times(database_url) if due[1] > now)
        time.sleep(SAMPLE_SECONDS)
    return [due for due, count in samples.items() if count >= SAMPLES_LEAST]


def _lags(due: Sequence[Due], polls: Sequence[Due], now: float) -> tuple[list[float], int]:
    """Return how long after its due time each task was asked for, and how many never were.

    Those are as late as can be said now.
    """
    asked: dict[str, list[float]] = {}
    for provider_id, at in polls:
        asked.setdefault(provider_id, []).append(at)
    lags, missed = [], 0
    for provider_id, due_time in due:
        if due_time <= now - LATE_SECONDS:
            after = [at for at in asked.get(provider_id, ()) if at >= due_time]
            missed += not after
            lags.append(min(after, default=now) - due_time)
    return lags, missed
