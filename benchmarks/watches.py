"""WatchTask: 10,000 streams opened at once, held, pushed to; and the reader that stops."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.baseline import COLLECT_RARELY
from benchmarks.bench import Bench, floor_server, in_turns
from benchmarks.child import Child
from benchmarks.measure import cpu_seconds, memory_bytes, percentile, ratios, settle, spread
from benchmarks.results import Line, Target, at_most, kib, microseconds, milliseconds, versus
from benchmarks.servers import TOKEN, Service
from service.callback_pace import CALLBACK_SECONDS

STREAMS = 10_000
WATCHED_TASKS = 10
MEMORY_TARGET = 1.3
PUSH_TARGET = 1.3
OPEN_TARGET = 2.0
WAIT_SECONDS = 60.0
CALLBACK_MARGIN_SECONDS = 0.05
READERS = 1_000
LONG_PROMPT_CHARACTERS = 4_000  # so that the reader that stops is soon behind
UNCHANGED = 1.1


@dataclass(frozen=True, slots=True)
class Opened:
    """What a round of opening, pushing and closing came to."""

    seconds: float
    lost: int
    reopened: int
    memory_a_stream: float
    cpu_a_push: float


class Ours:
    """The service, its watched tasks, and how they are moved: the provider calls back."""

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
        self.task_ids = [ours for ours, _ in created]
        self.provider_ids = [theirs for _, theirs in created]

    def wait_until_ready(self) -> None:
        """Wait until the service does not ignore the next callbacks as repeated ones."""
        time.sleep(max(0.0, self._next_push - time.monotonic()))

    def push(self) -> float:
        """Bring every task further by a percent; return when."""
        self._percent += 1
        pushed: float = self._bench.provider.ask(
            "advance", ids=self.provider_ids, percent=self._percent
        )
        self._next_push = time.monotonic() + CALLBACK_SECONDS + CALLBACK_MARGIN_SECONDS
        return pushed


class Bare:
    """The floor, whose streams all get what is pushed."""

    def __init__(self, floor: Child) -> None:
        self.server: Service | Child = floor
        self.task_ids = ["any"]

    def wait_until_ready(self) -> None:
        """Return: the floor can always push."""

    def push(self) -> float:
        """Push to every stream; return when."""
        pushed = time.monotonic()
        assert isinstance(self.server, Child)
        self.server.ask("push")
        return pushed


def measure(bench: Bench) -> Iterator[Line]:
    """Open streams again and again; then stop one reader among many."""
    kind = bench.databases[0]  # a push reads no database
    with ExitStack() as stack:
        floor = stack.enter_context(floor_server())
        tuned = stack.enter_context(floor_server(COLLECT_RARELY))
        service = stack.enter_context(bench.service(kind.new_url()).running())
        ours = Ours(bench, service)
        task = bench.load.ask(
            "fetch", address=service.address, token=TOKEN, task_id=ours.task_ids[0]
        )
        for bare in (floor, tuned):
            bare.ask("answer", task=task)
        sides: dict[str, Ours | Bare] = {"ours": ours, "floor": Bare(floor), "tuned": Bare(tuned)}
        rounds = in_turns(bench.rounds, {name: _side(bench, side) for name, side in sides.items()})
    yield from _lines(rounds["ours"], rounds["floor"], rounds["tuned"])
    with bench.service(kind.new_url()).running() as service:
        yield _stopped_reader(bench, service)


def _side(bench: Bench, side: Ours | Bare) -> Callable[[], Opened]:
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
        cost = cpu_a_push(bench, side, opened["opened"])
        bench.load.ask("close", group="watches")
        return Opened(opened["seconds"], opened["lost"], opened["reopened"], memory, cost)

    return once


def cpu_a_push(bench: Bench, side: Ours | Bare, streams: int, group: str = "watches") -> float:
    """Push to a group of streams, and return the server's CPU time for each message."""
    side.wait_until_ready()
    before = cpu_seconds(side.server.pid)
    side.push()
    bench.load.ask("take", group=group, count=streams, seconds=WAIT_SECONDS)
    settle(side.server.pid)
    return (cpu_seconds(side.server.pid) - before) / streams


def _lines(
    ours: Sequence[Opened], floor: Sequence[Opened], tuned: Sequence[Opened]
) -> Iterator[Line]:
    def both(name: str) -> tuple[list[float], list[float]]:
        return [getattr(o, name) for o in ours], [getattr(o, name) for o in floor]

    memory, pushes, opening = both("memory_a_stream"), both("cpu_a_push"), both("seconds")
    yield versus(
        "10,000 open watches: memory each",
        kib(spread(memory[0]).median),
        kib(spread(memory[1]).median),
        ratios(*memory),
        at_most(MEMORY_TARGET),
    )
    yield versus(
        "10,000 open watches: server CPU a pushed snapshot",
        microseconds(spread(pushes[0]).median),
        microseconds(spread(pushes[1]).median),
        ratios(*pushes),
        at_most(PUSH_TARGET),
    )
    tuned_pushes = [opened.cpu_a_push for opened in tuned]
    yield versus(
        "the same beside a floor that collects as rarely",
        microseconds(spread(pushes[0]).median),
        microseconds(spread(tuned_pushes).median),
        ratios(pushes[0], tuned_pushes),
    )
    yield versus(
        "10,000 watches opened at once: time",
        milliseconds(spread(opening[0]).median),
        milliseconds(spread(opening[1]).median),
        ratios(*opening),
        at_most(OPEN_TARGET),
    )
    lost = sum(o.lost for o in ours), sum(o.lost for o in floor)
    yield Line(
        "10,000 watches opened at once: lost",
        str(lost[0]),
        str(lost[1]),
        value=lost[0],
        target=Target(0.5, "none"),
    )
    reopened = [spread([o.reopened for o in side]).median for side in (ours, floor)]
    yield Line(
        "10,000 watches opened at once: dropped before they were accepted, and opened again",
        f"{reopened[0]:,.0f}",
        f"{reopened[1]:,.0f}",
    )


# --- the reader that stops ---


def _stopped_reader(bench: Bench, service: Service) -> Line:
    """Compare readers of one task with readers of another that one reader has stopped to read."""
    readers = bench.count(READERS)
    alone = Ours(bench, service, 1, LONG_PROMPT_CHARACTERS)
    beside = Ours(bench, service, 1, LONG_PROMPT_CHARACTERS)
    for group, side in (("alone", alone), ("beside", beside)):
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
        group="stopped",
        address=service.address,
        token=TOKEN,
        task_id=beside.task_ids[0],
    )
    for _ in range(20):  # until the one that stopped blocks its stream, 64 KiB behind
        _last_delays(bench, beside, "beside", readers)
    delays = in_turns(
        bench.rounds * 2,
        {
            "alone": lambda: _last_delays(bench, alone, "alone", readers),
            "beside": lambda: _last_delays(bench, beside, "beside", readers),
        },
    )
    for group in ("alone", "beside", "stopped"):
        bench.load.ask("close", group=group)
    return versus(
        "one reader stops among 1,000: p99 of the others",
        milliseconds(spread(delays["beside"]).median),
        milliseconds(spread(delays["alone"]).median),
        ratios(delays["beside"], delays["alone"]),
        Target(UNCHANGED, "unchanged (≤ 1.1 x)"),
    )


def _last_delays(bench: Bench, side: Ours, group: str, readers: int) -> float:
    """Push once; return the 99th percentile of how long the readers waited."""
    side.wait_until_ready()
    pushed = side.push()
    arrived = bench.load.ask("take", group=group, count=readers, seconds=WAIT_SECONDS)
    return percentile([at - pushed for at in arrived], 0.99)
