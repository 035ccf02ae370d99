"""WatchTask: 10,000 streams opened at once and pushed to; and a client that stops reading."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks.bench import Bench, baseline_server, in_turns
from benchmarks.child import Child
from benchmarks.measure import cpu_seconds, memory_bytes, percentile, settle, spread
from benchmarks.servers import TOKEN, Service
from benchmarks.table import Result, Target, at_most, kib, microseconds, milliseconds, versus
from service.callback_pace import CALLBACK_SECONDS

STREAMS = 10_000
WATCHED_TASKS = 10
MEMORY_TARGET = 1.3
PUSH_TARGET = 1.3
OPEN_TARGET = 2.0
WAIT_SECONDS = 60.0
CALLBACK_MARGIN_SECONDS = 0.05
READERS = 1_000
LONG_PROMPT_CHARACTERS = 4_000  # so that the stopped reader is outdated soon
STOPPED_TARGET = 1.1


@dataclass(frozen=True, slots=True)
class Opened:
    """The result of one round: open all streams, push once, close them."""

    seconds: float
    lost: int
    reopened: int
    memory_per_stream: float
    cpu_per_push: float


class Watched:
    """The service and its watched tasks; a callback of the provider pushes."""

    def __init__(
        self, bench: Bench, service: Service, tasks: int = WATCHED_TASKS, characters: int = 200
    ) -> None:
        self._bench = bench
        self._percent = 0
        self._next_push = 0.0
        self.server: Service | Child = service
        created = bench.load.ask(
            "create_tasks",
            address=service.address,
            token=TOKEN,
            count=tasks,
            characters=characters,
        )
        self.task_ids = [task_id for task_id, _ in created]
        self.provider_ids = [provider_id for _, provider_id in created]

    def wait_until_ready(self) -> None:
        """Wait until the service does not treat the next callbacks as repeated ones."""
        time.sleep(max(0.0, self._next_push - time.monotonic()))

    def push(self) -> float:
        """Increase the progress of every task by a percent; return the time."""
        self._percent += 1
        pushed: float = self._bench.provider.ask(
            "advance", ids=self.provider_ids, percent=self._percent
        )
        self._next_push = time.monotonic() + CALLBACK_SECONDS + CALLBACK_MARGIN_SECONDS
        return pushed


class Bare:
    """The baseline; a push reaches all of its streams."""

    def __init__(self, baseline: Child) -> None:
        self.server: Service | Child = baseline
        self.task_ids = ["any"]

    def wait_until_ready(self) -> None:
        """Return: the baseline can always push."""

    def push(self) -> float:
        """Push to every stream; return the time."""
        pushed = time.monotonic()
        assert isinstance(self.server, Child)
        self.server.ask("push")
        return pushed


def measure(bench: Bench) -> Iterator[Result]:
    """Open all streams once per round; then stop one reader among many."""
    kind = bench.databases[0]  # a push does not read the database
    with ExitStack() as stack:
        baseline = stack.enter_context(baseline_server())
        tuned = stack.enter_context(baseline_server(service_gc=True))
        service = stack.enter_context(bench.service(kind.new_url()).running())
        watched = Watched(bench, service)
        task = bench.load.ask(
            "fetch", address=service.address, token=TOKEN, task_id=watched.task_ids[0]
        )
        for bare in (baseline, tuned):
            bare.ask("answer", task=task)
        sides: dict[str, Watched | Bare] = {
            "service": watched,
            "baseline": Bare(baseline),
            "tuned": Bare(tuned),
        }
        rounds = in_turns(bench.rounds, {name: _side(bench, side) for name, side in sides.items()})
    yield from _results(**rounds)
    with bench.service(kind.new_url()).running() as service:
        yield _stopped_reader(bench, service)


def _side(bench: Bench, side: Watched | Bare) -> Callable[[], Opened]:
    pid = side.server.pid
    settle(pid)
    idle_bytes = memory_bytes(pid)
    streams = bench.count(STREAMS)

    def once() -> Opened:
        settle(pid)
        opened = bench.load.ask(
            "open",
            group="watches",
            address=side.server.address,
            token=TOKEN,
            task_ids=side.task_ids,
            streams=streams,
        )
        settle(pid)
        memory = (memory_bytes(pid) - idle_bytes) / streams
        cost = cpu_per_push(bench, side, opened["opened"])
        bench.load.ask("close", group="watches")
        return Opened(opened["seconds"], opened["lost"], opened["reopened"], memory, cost)

    return once


def cpu_per_push(bench: Bench, side: Watched | Bare, streams: int, group: str = "watches") -> float:
    """Push to a group of streams, and return the server's CPU time per message."""
    side.wait_until_ready()
    before = cpu_seconds(side.server.pid)
    side.push()
    bench.load.ask("take", group=group, count=streams, seconds=WAIT_SECONDS)
    settle(side.server.pid)
    return (cpu_seconds(side.server.pid) - before) / streams


def _results(
    service: Sequence[Opened], baseline: Sequence[Opened], tuned: Sequence[Opened]
) -> Iterator[Result]:
    sides = (service, baseline)
    yield versus(
        "10,000 open watches: memory per watch",
        ([opened.memory_per_stream for opened in side] for side in sides),
        kib,
        at_most(MEMORY_TARGET),
    )
    pushes, baseline_pushes, tuned_pushes = (
        [opened.cpu_per_push for opened in side] for side in (*sides, tuned)
    )
    yield versus(
        "10,000 open watches: server CPU per pushed snapshot",
        (pushes, baseline_pushes),
        microseconds,
        at_most(PUSH_TARGET),
    )
    yield versus(
        "the same, baseline with the service's GC settings", (pushes, tuned_pushes), microseconds
    )
    yield versus(
        "10,000 watches opened at once: time",
        ([opened.seconds for opened in side] for side in sides),
        milliseconds,
        at_most(OPEN_TARGET),
    )
    lost, baseline_lost = (sum(opened.lost for opened in side) for side in sides)
    yield Result(
        "10,000 watches opened at once: lost",
        str(lost),
        str(baseline_lost),
        value=lost,
        target=Target(0.5, "none"),
    )
    retried, baseline_retried = (
        spread([opened.reopened for opened in side]).median for side in sides
    )
    yield Result(
        "10,000 watches opened at once: dropped by gRPC and retried",
        f"{retried:,.0f}",
        f"{baseline_retried:,.0f}",
    )


# --- a client that stops reading ---


def _stopped_reader(bench: Bench, service: Service) -> Result:
    """Compare the readers of two tasks; one of the tasks also has a client that stopped reading."""
    readers = bench.count(READERS)
    sides = {
        name: Watched(bench, service, 1, LONG_PROMPT_CHARACTERS) for name in ("stopped", "normal")
    }
    for group, side in sides.items():
        bench.load.ask(
            "open",
            group=group,
            address=service.address,
            token=TOKEN,
            task_ids=side.task_ids,
            streams=readers,
        )
    bench.load.ask(
        "open_stopped",
        group="silent",
        address=service.address,
        token=TOKEN,
        task_id=sides["stopped"].task_ids[0],
    )
    delay = {name: partial(_delay, bench, side, name, readers) for name, side in sides.items()}
    for _ in range(20):  # until 64 KiB wait for the client that stopped, and its stream is blocked
        delay["stopped"]()
    delays = in_turns(bench.rounds * 2, delay)
    for group in (*sides, "silent"):
        bench.load.ask("close", group=group)
    return versus(
        "one reader stops among 1,000: p99 of the others",
        (delays["stopped"], delays["normal"]),
        milliseconds,
        Target(STOPPED_TARGET, f"unchanged (≤ {STOPPED_TARGET} x)"),
    )


def _delay(bench: Bench, side: Watched, group: str, readers: int) -> float:
    """Push once; return the 99th percentile of the readers' delays."""
    side.wait_until_ready()
    pushed = side.push()
    arrived = bench.load.ask("take", group=group, count=readers, seconds=WAIT_SECONDS)
    return percentile([at - pushed for at in arrived], 0.99)
