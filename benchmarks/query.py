"""QueryTask against a bare handler."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

from benchmarks.bench import Bench, Slice, baseline_server, closed_loop, slices_in_turns
from benchmarks.child import Child
from benchmarks.databases import Kind, ended, pending
from benchmarks.measure import settle
from benchmarks.servers import TOKEN, Service
from benchmarks.table import Result, at_most, microseconds, milliseconds, per_second, versus
from benchmarks.tasks import task_id

TASKS = 100_000
PENDING = 1_000
SLICE_SECONDS = 0.25
OUTSTANDING = 8  # calls on each of four connections
ENDED_TARGET = 1.25
PENDING_TARGETS = {"SQLite": 1.5, "PostgreSQL": 2.5}
BASELINE = "baseline"


def measure(bench: Bench) -> Iterator[Result]:
    """Query ended tasks and pending tasks, on each kind of database."""
    with ExitStack() as stack:
        baseline = stack.enter_context(baseline_server())
        services = {kind.name: _start(bench, kind, stack) for kind in bench.databases}
        for service in services.values():
            settle(service.pid)
            task = _fetch(bench, service)
        baseline.ask("answer", task=task)
        found = {BASELINE: _baseline_side(bench, baseline)}
        for name, service in services.items():
            found |= sides(bench, name, service)
        slices = slices_in_turns(bench.rounds, found)
    for name in services:
        yield from _results(name, slices)


def _start(bench: Bench, kind: Kind, stack: ExitStack) -> Service:
    now = time.time()
    newest = bench.count(PENDING)
    rows = chain(pending(range(newest), now), ended(range(newest, bench.count(TASKS)), now))
    return stack.enter_context(bench.seeded(kind, rows).running())


def _fetch(bench: Bench, service: Service) -> str:
    newest_ended = task_id(bench.count(PENDING))
    task: str = bench.load.ask(
        "fetch", address=service.address, token=service.token, task_id=newest_ended
    )
    return task


def _baseline_side(bench: Bench, baseline: Child) -> Callable[[], Slice]:
    draw = {"pattern": "uniform", "first": 0, "count": bench.count(TASKS)}
    return _side(bench, baseline.pid, baseline.address, TOKEN, **draw)


def sides(bench: Bench, name: str, service: Service) -> dict[str, Callable[[], Slice]]:
    """Return the measurements of a service, by the database's name and the state of the tasks."""
    newest = bench.count(PENDING)
    others = bench.count(TASKS) - newest
    side = partial(_side, bench, service.pid, service.address, service.token)
    return {
        f"{name} ended": side(pattern="recent", first=newest, count=others),
        f"{name} ended, uniform": side(pattern="uniform", first=newest, count=others),
        f"{name} pending": side(pattern="uniform", first=0, count=newest),
    }


def _side(bench: Bench, pid: int, address: str, token: str, **draw: Any) -> Callable[[], Slice]:
    return lambda: closed_loop(
        bench.load,
        "query",
        pid,
        address=address,
        token=token,
        outstanding=OUTSTANDING,
        seconds=SLICE_SECONDS,
        **draw,
    )


def _results(name: str, slices: dict[str, list[Slice]]) -> Iterator[Result]:
    targets = {
        "ended": at_most(ENDED_TARGET),
        "ended, uniform": None,
        "pending": at_most(PENDING_TARGETS[name]),
    }
    for state, target in targets.items():
        what, sides = f"QueryTask {state}, {name}", (slices[f"{name} {state}"], slices[BASELINE])
        costs = ([s.cpu_per_call for s in side] for side in sides)
        yield versus(f"{what}: server CPU per call", costs, microseconds, target)
        rates = ([s.calls_per_second for s in side] for side in sides)
        yield versus(f"{what}: calls answered", rates, per_second)
        for share in ("p50", "p99"):
            times = ([getattr(s, share) for s in side] for side in sides)
            yield versus(f"{what}: latency {share}, 32 callers", times, milliseconds)
