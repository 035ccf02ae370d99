"""What every measurement is given, and how two sides take turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.child import Child
from benchmarks.databases import Kind, Row, insert
from benchmarks.measure import cpu_seconds, settle
from benchmarks.servers import Service

MAX_ERROR_SHARE = 0.001

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """The settings of a run, and its long-lived processes.

    Attributes:
        rounds: How often each side is measured, in turns.
        scale: What sizes and durations are multiplied with: 1, or less for a smoke test.
    """

    folder: Path
    databases: Sequence[Kind]
    rounds: int
    scale: float
    load: Child
    provider: Child

    @property
    def provider_url(self) -> str:
        """Where the provider's stub serves."""
        return str(self.provider.hello["url"])

    def count(self, full: int) -> int:
        """Return a size, scaled."""
        return max(int(full * self.scale), 1)

    def service(self, database_url: str, **settings: str) -> Service:
        """Return a service that is not started."""
        return Service(self.folder, database_url, self.provider_url, **settings)

    def seeded(self, kind: Kind, rows: Iterator[Row], **settings: str) -> Service:
        """Return a service that is not started, on a database with these tasks."""
        service = self.service(kind.new_url(), **settings)
        with service.running():
            pass  # it makes its own tables
        insert(service.database_url, rows)
        return service


@contextmanager
def child(module: str) -> Iterator[Child]:
    """Run a process that takes commands for as long as the context lasts."""
    process = Child(module)
    try:
        yield process
    finally:
        process.close()


def in_turns(rounds: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measure each side once a round, forwards and backwards, so that a drift hits all alike."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(sides[name]())
    return found


@dataclass(frozen=True, slots=True)
class Slice:
    """What a closed loop on one server came to. Times are seconds."""

    cpu_a_call: float
    calls_a_second: float
    p50: float
    p99: float


def closed_loop(load: Child, command: str, pid: int, **arguments: Any) -> Slice:
    """Run a closed loop, and read the server's CPU time before and after."""
    settle(pid)
    before = cpu_seconds(pid)
    seen = load.ask(command, **arguments)
    spent = cpu_seconds(pid) - before
    calls, errors = seen["calls"], seen["errors"]
    assert errors <= calls * MAX_ERROR_SHARE, f"{errors} of {calls + errors} calls failed"
    return Slice(spent / calls, calls / seen["seconds"], seen["p50"], seen["p99"])
