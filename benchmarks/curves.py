"""How cost grows with stored tasks, tasks in flight, and watchers of one task."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.bench import Bench, Slice, closed_loop
from benchmarks.databases import Kind, ended, pending
from benchmarks.measure import MIB, cpu_seconds, memory_bytes, settle, spread
from benchmarks.servers import TOKEN, Service
from benchmarks.table import Curve
from benchmarks.watches import Watched, cpu_per_push

ROWS = (1_000, 10_000, 100_000, 1_000_000)
IN_FLIGHT = (10, 100, 1_000, 10_000)
WATCHERS = (1, 10, 100, 1_000)
SLICES = 5
PUSHES = 5
MEMORY_MIN_BYTES = 1024  # used instead of less memory above idle, which has no logarithm
OLDER_THAN_SECONDS = 130.0  # such tasks are polled at the longest interval, eight times two seconds
CYCLE_SECONDS = 16.8  # the mean of that interval, with its jitter
IDLE_SECONDS = 10.0
WARM_SECONDS = 16.0  # at start everything is due


def measure(bench: Bench) -> Iterator[Curve]:
    """Measure the curves: stored tasks with each kind of database, the others with the first."""
    for kind in bench.databases:
        yield from _rows(bench, kind)
    yield from _in_flight(bench, bench.databases[0])
    yield from _watchers(bench, bench.databases[0])


def _sizes(bench: Bench, sizes: Sequence[int]) -> Sequence[int]:
    return sizes if bench.scale == 1 else sizes[:2]


# --- stored tasks ---


def _rows(bench: Bench, kind: Kind) -> Iterator[Curve]:
    found = {rows: _with_rows(bench, kind, rows) for rows in _sizes(bench, ROWS)}
    for index, (title, y) in enumerate(
        (
            ("QueryTask, recent", "us of CPU per call"),
            ("QueryTask, uniform", "us of CPU per call"),
            ("CreateTask", "us of CPU per call"),
            ("process start", "ms to SERVING"),
            ("idle memory", "MiB"),
        )
    ):
        points = [(float(rows), values[index]) for rows, values in found.items()]
        yield Curve(f"{title}, {kind.name}", "tasks stored", y, "flat", points)


def _with_rows(bench: Bench, kind: Kind, rows: int) -> Sequence[float]:
    with bench.seeded(kind, ended(range(rows), time.time())).running() as service:
        settle(service.pid)
        memory = memory_bytes(service.pid)
        costs = (
            _cost(bench, service, "query", pattern="recent", first=0, count=rows),
            _cost(bench, service, "query", pattern="uniform", first=0, count=rows),
            _cost(bench, service, "create"),
        )
    return *costs, service.start_seconds * 1e3, memory / MIB


def _cost(bench: Bench, service: Service, command: str, **arguments: Any) -> float:
    slices = [_slice(bench, service, command, **arguments) for _ in range(SLICES)]
    return spread([s.cpu_per_call for s in slices[1:]]).median * 1e6


def _slice(bench: Bench, service: Service, command: str, **arguments: Any) -> Slice:
    return closed_loop(
        bench.load,
        command,
        service.pid,
        address=service.address,
        token=TOKEN,
        outstanding=8,
        seconds=0.5,
        **arguments,
    )


# --- tasks in flight ---


def _in_flight(bench: Bench, kind: Kind) -> Iterator[Curve]:
    with bench.service(kind.new_url()).running() as service:
        settle(service.pid)
        idle = _share(service, IDLE_SECONDS), memory_bytes(service.pid)
    found = {
        count: _with_in_flight(bench, kind, count, *idle) for count in _sizes(bench, IN_FLIGHT)
    }
    for index, (title, y, should) in enumerate(
        (
            ("a poll", "us of CPU above idle", "flat or falling"),
            ("all polls", "% of a core above idle", "linear"),
            ("memory while polling", "MiB above idle", "linear"),
        )
    ):
        points = [(float(count), values[index]) for count, values in found.items()]
        yield Curve(title, "tasks in flight", y, should, points)


def _with_in_flight(
    bench: Bench, kind: Kind, count: int, idle_share: float, idle_bytes: int
) -> Sequence[float]:
    rows = pending(range(count), time.time() - OLDER_THAN_SECONDS)
    # Without callbacks: with them, a task that nobody watches is hardly polled.
    service = bench.seeded(kind, rows, POLL_INTERVAL_SECONDS="2", PUBLIC_URL="")
    with service.running():
        time.sleep(WARM_SECONDS)
        bench.provider.ask("polls")
        share = max(_share(service, CYCLE_SECONDS) - idle_share, 1e-6)
        polls = len(bench.provider.ask("polls"))
        memory = max(memory_bytes(service.pid) - idle_bytes, MEMORY_MIN_BYTES)
    return share * CYCLE_SECONDS / polls * 1e6, share * 100, memory / MIB


def _share(service: Service, seconds: float) -> float:
    """Return the share of a core that a service uses in the next seconds."""
    before = cpu_seconds(service.pid)
    time.sleep(seconds)
    return (cpu_seconds(service.pid) - before) / seconds


# --- watchers ---


def _watchers(bench: Bench, kind: Kind) -> Iterator[Curve]:
    with bench.service(kind.new_url()).running() as service:
        watched = Watched(bench, service, 1)
        settle(service.pid)
        idle_bytes = memory_bytes(service.pid)
        found = {n: _with_watchers(bench, watched, n, idle_bytes) for n in _sizes(bench, WATCHERS)}
    changes = [(float(n), ms) for n, (ms, _) in found.items()]
    each = [(n, ms * 1e3 / n) for n, ms in changes]
    memory = [(float(n), mib) for n, (_, mib) in found.items()]
    yield Curve("a change of a task", "watchers of it", "ms of CPU per change", "linear", changes)
    yield Curve("the same, per watcher", "watchers of it", "us of CPU per watcher", "falling", each)
    yield Curve("memory of its watchers", "watchers of it", "MiB above idle", "linear", memory)


def _with_watchers(
    bench: Bench, watched: Watched, watchers: int, idle_bytes: int
) -> tuple[float, float]:
    """Return the milliseconds of CPU for a change of the watched task, and the watchers' MiB."""
    bench.load.ask(
        "open",
        group="watches",
        address=watched.server.address,
        token=TOKEN,
        task_ids=watched.task_ids,
        streams=watchers,
        connections=min(watchers, 100),
    )
    settle(watched.server.pid)
    memory = max(memory_bytes(watched.server.pid) - idle_bytes, MEMORY_MIN_BYTES)
    costs = [cpu_per_push(bench, watched, watchers) * watchers for _ in range(PUSHES)]
    bench.load.ask("close", group="watches")
    return spread(costs).median * 1e3, memory / MIB
