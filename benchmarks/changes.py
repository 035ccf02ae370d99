"""WatchTasks: how soon a change arrives, within a process and across replicas, and its memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.bench import Bench, in_turns
from benchmarks.databases import POSTGRES, Kind
from benchmarks.measure import memory_bytes, percentile, settle, spread
from benchmarks.servers import TOKEN, Service, other_tokens
from benchmarks.table import Result, Target, at_most, kib, milliseconds, versus
from benchmarks.watches import Watched

CHANGES_PER_CREATE = 3  # accepted here, about to be sent, accepted by the provider
CHANGES_PER_SECOND = 100
SECONDS = 2.0
REPLICAS = 3
STREAMS = 5_000  # for their memory
MEMORY_TARGET = 1.5
PROCESS_TARGET = Target(0.050, "≤ 50 ms")
REPLICAS_TARGET = Target(0.250, "≤ 250 ms")
WAIT_SECONDS = 20.0


def measure(bench: Bench) -> Iterator[Result]:
    """Measure delays on each kind of database, across replicas on PostgreSQL, and memory."""
    for kind in bench.databases:
        with bench.service(kind.new_url()).running() as service:
            yield _delay(
                bench, f"a change to its stream, {kind.name}: p99", service, service, PROCESS_TARGET
            )
        if kind.name == POSTGRES:
            yield _across_replicas(bench, kind)
    yield _memory(bench)


def _across_replicas(bench: Bench, kind: Kind) -> Result:
    url = kind.new_url()
    with ExitStack() as stack:
        replicas = [stack.enter_context(bench.service(url).running()) for _ in range(REPLICAS)]
        what = f"a change to its stream on another of {REPLICAS} replicas: p99"
        return _delay(bench, what, replicas[0], replicas[-1], REPLICAS_TARGET)


def _delay(
    bench: Bench, what: str, creating: Service, streaming: Service, target: Target
) -> Result:
    """Create tasks of many callers, each of which has a stream; return the delays' percentile."""
    tokens = other_tokens()[: bench.count(1_000)]
    streams = bench.load.ask(
        "open_changes",
        group=what,
        address=streaming.address,
        tokens=tokens,
        streams=len(tokens),
    )
    assert streams == len(tokens)
    delays = []
    for _ in range(bench.rounds):
        created = bench.load.ask(
            "trickle",
            address=creating.address,
            tokens=tokens,
            per_second=CHANGES_PER_SECOND / CHANGES_PER_CREATE,
            seconds=max(SECONDS * bench.scale, 0.2),
        )
        # A stream may skip what is not the newest any more, but never the last change.
        arrived = bench.load.ask("take", group=what, count=created, seconds=WAIT_SECONDS)
        time.sleep(0.1)  # so that late arrivals do not count for the next round
        delays.append(percentile(arrived, 0.99))
    bench.load.ask("close", group=what)
    median = spread(delays).median
    return Result(what, milliseconds(median), value=median, target=target)


def _memory(bench: Bench) -> Result:
    """Compare the memory of open streams with as many streams of WatchTask."""
    kind = bench.databases[0]
    with ExitStack() as stack:
        changes, watches = (
            stack.enter_context(bench.service(kind.new_url()).running()) for _ in range(2)
        )
        task_ids = Watched(bench, watches).task_ids
        sides = {
            "changes": _side(bench, changes, "open_changes", tokens=[TOKEN]),
            "watches": _side(bench, watches, "open", token=TOKEN, task_ids=task_ids),
        }
        found = in_turns(bench.rounds, sides)
    return versus(
        f"{STREAMS:,} open streams of all changes: memory per stream, against WatchTask",
        (found["changes"], found["watches"]),
        kib,
        at_most(MEMORY_TARGET),
    )


def _side(bench: Bench, service: Service, command: str, **arguments: Any) -> Callable[[], float]:
    settle(service.pid)
    idle_bytes = memory_bytes(service.pid)
    streams = bench.count(STREAMS)

    def once() -> float:
        bench.load.ask(
            command, group="memory", address=service.address, streams=streams, **arguments
        )
        settle(service.pid)
        taken = (memory_bytes(service.pid) - idle_bytes) / streams
        bench.load.ask("close", group="memory")
        return taken

    return once
