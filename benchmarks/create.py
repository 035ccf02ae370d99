"""CreateTask with a provider that responds at once, against handler, POST and commits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.bench import Bench, Slice, baseline_server, closed_loop, slices_in_turns
from benchmarks.child import Child
from benchmarks.databases import Kind, database_of_baseline
from benchmarks.measure import spread
from benchmarks.servers import TOKEN, Service
from benchmarks.table import (
    Result,
    Target,
    at_most,
    microseconds,
    milliseconds,
    per_second,
    versus,
)

SLICE_SECONDS = 0.5
OUTSTANDING = 16  # calls on each of four connections
COST_TARGET = 1.5
MARKET_TARGET = 1.15
PER_SECOND_TARGETS = {"SQLite": 300.0, "PostgreSQL": 250.0}


def measure(bench: Bench) -> Iterator[Result]:
    """Create tasks on each kind of database."""
    for kind in bench.databases:
        yield from _results(kind.name, **_slices(bench, kind))


def _slices(bench: Bench, kind: Kind) -> dict[str, list[Slice]]:
    with ExitStack() as stack:
        baseline = stack.enter_context(baseline_server())
        tuned = stack.enter_context(baseline_server(service_gc=True))
        service = stack.enter_context(bench.service(kind.new_url()).running())
        (created, _), *_ = bench.load.ask(
            "create_tasks", address=service.address, token=TOKEN, count=1, characters=200
        )
        task = bench.load.ask("fetch", address=service.address, token=TOKEN, task_id=created)
        for bare in (baseline, tuned):
            bare.ask("answer", task=task)
            database = database_of_baseline(kind.new_url())
            bare.ask("use", provider_url=bench.provider_url, database=database)
        sides: dict[str, Service | Child] = {
            "service": service,
            "baseline": baseline,
            "tuned": tuned,
        }
        measured = {name: side(bench, server) for name, server in sides.items()}
        measured["market"] = side(bench, service, of_market=True)
        return slices_in_turns(bench.rounds, measured)


def side(bench: Bench, server: Service | Child, *, of_market: bool = False) -> Callable[[], Slice]:
    """Return the measurement of a server, for imagen4 or for a model of the catalogue."""
    return lambda: closed_loop(
        bench.load,
        "create",
        server.pid,
        address=server.address,
        token=TOKEN,
        outstanding=OUTSTANDING,
        seconds=SLICE_SECONDS,
        of_market=of_market,
    )


def _results(
    name: str,
    service: list[Slice],
    baseline: list[Slice],
    tuned: list[Slice],
    market: list[Slice],
) -> Iterator[Result]:
    costs, baseline_costs, tuned_costs, market_costs = (
        [s.cpu_per_call for s in side] for side in (service, baseline, tuned, market)
    )
    yield versus(
        f"CreateTask, {name}: server CPU per call",
        (costs, baseline_costs),
        microseconds,
        at_most(COST_TARGET),
    )
    yield versus(
        f"the same, {name}, baseline with the service's GC settings",
        (costs, tuned_costs),
        microseconds,
    )
    yield versus(
        f"CreateTask of a market model with ten fields, {name}, against imagen4",
        (market_costs, costs),
        microseconds,
        at_most(MARKET_TARGET),
    )
    rates = [[s.calls_per_second for s in side] for side in (service, baseline)]
    minimum = PER_SECOND_TARGETS[name]
    yield replace(
        versus(f"CreateTask, {name}: calls answered", rates, per_second),
        value=spread(rates[0]).median,
        target=Target(minimum, f"≥ {minimum:g}/s", at_least=True),
    )
    for share in ("p50", "p99"):
        times = ([getattr(s, share) for s in side] for side in (service, baseline))
        yield versus(f"CreateTask, {name}: latency {share}, 64 callers", times, milliseconds)
