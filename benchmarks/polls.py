"""The poller's promptness: from the provider's end to the watcher, and from due to sent."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.databases import Kind, due_times, pending
from benchmarks.measure import percentile, settle
from benchmarks.report import Line, Target, a_second, milliseconds
from benchmarks.servers import TOKEN

CALLBACK_TASKS = 1_000
ENDS_A_SECOND = 50.0  # at random moments; the account's own limit is two
CALLBACK_TARGET_SECONDS = 0.050
LAG_TASKS = 2_000
LAG_SECONDS = 15.0
WARM_SECONDS = 8.0
IMAGES_TAKE_SECONDS = 112.0  # the longest recorded (kie-api.md 7)
SAMPLE_SECONDS = 0.25
LEASE_SECONDS = 30.0  # what is due later than any poll is being polled just now
LAG_TARGET_SECONDS = 0.100
WAIT_SECONDS = 120.0
DEFAULT_INTERVAL = {"POLL_INTERVAL_SECONDS": "2"}


def measure(bench: Bench) -> Iterator[Line]:
    """Measure both on each kind of database."""
    for kind in bench.databases:
        yield _callbacks(bench, kind)
        yield from _lag(bench, kind)


def _callbacks(bench: Bench, kind: Kind) -> Line:
    """End tasks one by one while the others go on being polled, each watched by one stream."""
    count = bench.count(CALLBACK_TASKS)
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
        ended = bench.provider.ask(
            "finish", ids=[theirs for _, theirs in created], per_second=ENDS_A_SECOND
        )
        seen = dict(bench.load.ask("ends", group="watchers", count=count, seconds=WAIT_SECONDS))
        bench.load.ask("close", group="watchers")
        bench.provider.ask("polls")
    delays = [seen[index] - at for index, at in enumerate(ended)]
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
        time.sleep(WARM_SECONDS * bench.scale)  # at start everything is due at once
        bench.provider.ask("polls")
        due: dict[tuple[str, float], None] = {}
        started = time.time()
        while (now := time.time()) < started + max(LAG_SECONDS * bench.scale, 3):
            for provider_id, due_time in due_times(service.database_url):
                if now < due_time < now + LEASE_SECONDS:
                    due[provider_id, due_time] = None
            time.sleep(SAMPLE_SECONDS)
        polls = bench.provider.ask("polls")
    settle(bench.provider.pid)
    lags = _lags(due, polls)
    worst = percentile(lags, 0.99)
    rate = len(polls) / (now - started)
    yield Line(
        f"poll lag, 2,000 in flight, {kind.name}: p99",
        f"{milliseconds(worst)} (p50 {milliseconds(percentile(lags, 0.5))}, {len(lags):,} polls)",
        value=worst,
        target=Target(LAG_TARGET_SECONDS, "≤ 100 ms"),
    )
    yield Line(f"polls meanwhile, {kind.name}", a_second(rate))


def _lags(due: dict[tuple[str, float], None], polls: list[tuple[str, float]]) -> list[float]:
    """Return how long after its due time each task was asked for."""
    asked: dict[str, list[float]] = {}
    for provider_id, at in polls:
        asked.setdefault(provider_id, []).append(at)
    lags = []
    for provider_id, due_time in due:
        after = [at for at in asked.get(provider_id, ()) if at >= due_time]
        if after:
            lags.append(min(after) - due_time)
    return lags
