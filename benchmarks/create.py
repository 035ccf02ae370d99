"""CreateTask to a provider without delay, against handler, POST and commits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.baseline import COLLECT_RARELY
from benchmarks.bench import Bench, Slice, closed_loop, floor_server, slices_in_turns
from benchmarks.child import Child
from benchmarks.databases import Kind, database_of_floor
from benchmarks.measure import ratios, spread
from benchmarks.results import Line, Target, a_second, at_most, microseconds, milliseconds, versus
from benchmarks.servers import TOKEN, Service

SLICE_SECONDS = 0.5
OUTSTANDING = 16  # on each of four connections
COST_TARGET = 1.5
A_SECOND_TARGETS = {"SQLite": 300.0, "PostgreSQL": 250.0}


def measure(bench: Bench) -> Iterator[Line]:
    """Create tasks on each kind of database."""
    for kind in bench.databases:
        yield from _lines(kind.name, **_slices(bench, kind))


def _slices(bench: Bench, kind: Kind) -> dict[str, list[Slice]]:
    with ExitStack() as stack:
        floor = stack.enter_context(floor_server())
        tuned = stack.enter_context(floor_server(COLLECT_RARELY))
        service = stack.enter_context(bench.service(kind.new_url()).running())
        (created, _), *_ = bench.load.ask(
            "create_tasks", address=service.address, token=TOKEN, count=1, characters=200
        )
        task = bench.load.ask("fetch", address=service.address, token=TOKEN, task_id=created)
        for bare in (floor, tuned):
            bare.ask("answer", task=task)
            database = database_of_floor(kind.new_url())
            bare.ask("use", provider_url=bench.provider_url, database=database)
        sides: dict[str, Service | Child] = {"ours": service, "floor": floor, "tuned": tuned}
        return slices_in_turns(
            bench.rounds, {name: side(bench, server) for name, server in sides.items()}
        )


def side(bench: Bench, server: Service | Child) -> Callable[[], Slice]:
    """Return the measurement of a server."""
    return lambda: closed_loop(
        bench.load,
        "create",
        server.pid,
        address=server.address,
        token=TOKEN,
        outstanding=OUTSTANDING,
        seconds=SLICE_SECONDS,
    )


def _lines(name: str, ours: list[Slice], floor: list[Slice], tuned: list[Slice]) -> Iterator[Line]:
    costs = [s.cpu_a_call for s in ours], [s.cpu_a_call for s in floor]
    yield versus(
        f"CreateTask, {name}: server CPU a call",
        microseconds(spread(costs[0]).median),
        microseconds(spread(costs[1]).median),
        ratios(*costs),
        at_most(COST_TARGET),
    )
    tuned_costs = [s.cpu_a_call for s in tuned]
    yield versus(
        f"the same, {name}, beside a floor that collects as rarely",
        microseconds(spread(costs[0]).median),
        microseconds(spread(tuned_costs).median),
        ratios(costs[0], tuned_costs),
    )
    rates = [s.calls_a_second for s in ours], [s.calls_a_second for s in floor]
    least = A_SECOND_TARGETS[name]
    yield Line(
        f"CreateTask, {name}: calls answered",
        a_second(spread(rates[0]).median),
        a_second(spread(rates[1]).median),
        ratios(*rates),
        spread(rates[0]).median,
        Target(least, f"≥ {least:g}/s", at_least=True),
    )
    for share in ("p50", "p99"):
        times = [getattr(s, share) for s in ours], [getattr(s, share) for s in floor]
        yield versus(
            f"CreateTask, {name}: latency {share}, 64 callers",
            milliseconds(spread(times[0]).median),
            milliseconds(spread(times[1]).median),
            ratios(*times),
        )
