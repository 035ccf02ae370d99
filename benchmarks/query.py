"""QueryTask against the bare handler: server CPU a call first, as it holds on a shared machine."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

from benchmarks.bench import Bench, Slice, closed_loop, floor_server, slices_in_turns
from benchmarks.child import Child
from benchmarks.databases import Kind, ended, pending
from benchmarks.measure import ratios, settle, spread
from benchmarks.results import Line, a_second, at_most, microseconds, milliseconds, versus
from benchmarks.servers import TOKEN, Service
from benchmarks.tasks import task_id

TASKS = 100_000
PENDING = 1_000
SLICE_SECONDS = 0.25
OUTSTANDING = 8  # on each of four connections
ENDED_TARGET = 1.25
PENDING_TARGETS = {"SQLite": 1.5, "PostgreSQL": 2.5}
FLOOR = "floor"


def measure(bench: Bench) -> Iterator[Line]:
    """Ask for tasks that have ended and for tasks under way, on each kind of database."""
    with ExitStack() as stack:
        floor = stack.enter_context(floor_server())
        services = {kind.name: _start(bench, kind, stack) for kind in bench.databases}
        for service in services.values():
            settle(service.pid)
            answer = _fetch(bench, service)
        floor.ask("answer", task=answer)
        found = {FLOOR: _floor_side(bench, floor)}
        for name, service in services.items():
            found |= sides(bench, name, service)
        slices = slices_in_turns(bench.rounds, found)
    for name in services:
        yield from _lines(name, slices)


def _start(bench: Bench, kind: Kind, stack: ExitStack) -> Service:
    now = time.time()
    under_way = bench.count(PENDING)
    rows = chain(pending(range(under_way), now), ended(range(under_way, bench.count(TASKS)), now))
    return stack.enter_context(bench.seeded(kind, rows).running())


def _fetch(bench: Bench, service: Service) -> str:
    task = task_id(bench.count(PENDING))
    answer: str = bench.load.ask(
        "fetch", address=service.address, token=service.token, task_id=task
    )
    return answer


def _floor_side(bench: Bench, floor: Child) -> Callable[[], Slice]:
    draw = {"pattern": "uniform", "first": 0, "count": bench.count(TASKS)}
    return _side(bench, floor.pid, floor.address, TOKEN, **draw)


def sides(bench: Bench, name: str, service: Service) -> dict[str, Callable[[], Slice]]:
    """Return the measurements of a service, by the database's name and the state of the tasks."""
    under_way = bench.count(PENDING)
    over = bench.count(TASKS) - under_way
    side = partial(_side, bench, service.pid, service.address, service.token)
    return {
        f"{name} ended": side(pattern="recent", first=under_way, count=over),
        f"{name} ended, uniform": side(pattern="uniform", first=under_way, count=over),
        f"{name} pending": side(pattern="uniform", first=0, count=under_way),
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


def _lines(name: str, slices: dict[str, list[Slice]]) -> Iterator[Line]:
    floor = slices[FLOOR]
    targets = {
        "ended": at_most(ENDED_TARGET),
        "ended, uniform": None,
        "pending": at_most(PENDING_TARGETS[name]),
    }
    for state, target in targets.items():
        ours = slices[f"{name} {state}"]
        yield versus(
            f"QueryTask {state}, {name}: server CPU a call",
            microseconds(spread([s.cpu_a_call for s in ours]).median),
            microseconds(spread([s.cpu_a_call for s in floor]).median),
            ratios([s.cpu_a_call for s in ours], [s.cpu_a_call for s in floor]),
            target,
        )
        yield versus(
            f"QueryTask {state}, {name}: calls answered",
            a_second(spread([s.calls_a_second for s in ours]).median),
            a_second(spread([s.calls_a_second for s in floor]).median),
            ratios([s.calls_a_second for s in ours], [s.calls_a_second for s in floor]),
        )
        for share in ("p50", "p99"):
            times = [getattr(s, share) for s in ours], [getattr(s, share) for s in floor]
            yield versus(
                f"QueryTask {state}, {name}: latency {share}, 32 callers",
                milliseconds(spread(times[0]).median),
                milliseconds(spread(times[1]).median),
                ratios(*times),
            )
