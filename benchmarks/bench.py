"""What every measurement gets, and how several sides are measured in turns."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.child import Child
from benchmarks.databases import Kind, Row, insert
from benchmarks.measure import cpu_seconds
from benchmarks.servers import ROOT, Service
from service.__main__ import COLLECTION_THRESHOLDS
from service.bounds import BOUNDS
from service.listen import channel_options
from service.settings import Settings

ERROR_SHARE_MAX = 0.001

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """The settings of a run, and its long-lived processes.

    Attributes:
        rounds: How often each side is measured.
        scale: The factor for sizes and durations: 1, or less for a smoke test.
        root: The checkout whose service is measured.
    """

    folder: Path
    databases: Sequence[Kind]
    rounds: int
    scale: float
    load: Child
    provider: Child
    root: Path = ROOT

    @property
    def provider_url(self) -> str:
        """The URL of the provider's stub."""
        return str(self.provider.hello["url"])

    def count(self, full: int) -> int:
        """Return a size, scaled."""
        return max(int(full * self.scale), 1)

    def service(self, database_url: str, **settings: str) -> Service:
        """Return a service that is not started."""
        return Service(self.folder, database_url, self.provider_url, self.root, **settings)

    def seeded(self, kind: Kind, rows: Iterator[Row], **settings: str) -> Service:
        """Return a service that is not started, with a database that has these tasks."""
        service = self.service(kind.new_url(), **settings)
        with service.running():
            pass  # it creates its tables
        insert(service.database_url, rows)
        return service


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """Run a process that answers commands for as long as the context lasts."""
    process = Child(module, *arguments)
    try:
        yield process
    except BaseException:
        process.kill()  # it may be executing a command
        raise
    finally:
        process.close()


def baseline_server(*, service_gc: bool = False) -> AbstractContextManager[Child]:
    """Return a baseline server that is not started.

    Its channel options are those of the service with default settings; with `service_gc` so are the
    settings of its garbage collector.
    """
    options = channel_options(Settings.model_construct(), BOUNDS.handshake_seconds)
    thresholds = COLLECTION_THRESHOLDS if service_gc else ()
    return child("benchmarks.baseline", json.dumps(options), json.dumps(thresholds))


def in_turns(rounds: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measure each side once per round, and reverse the order after each round."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(sides[name]())
    return found


@dataclass(frozen=True, slots=True)
class Slice:
    """The results of a closed loop on one server. Times are in seconds.

    Attributes:
        cpu: The server's CPU time.
        database_cpu: That of the database's processes; 0 if it has none, or if it is not known.
    """

    cpu: float
    calls: int
    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    database_cpu: float = 0.0

    @property
    def cpu_per_call(self) -> float:
        """The server's CPU time for a call."""
        return self.cpu / self.calls

    @property
    def total_cpu_per_call(self) -> float:
        """The CPU time of the server and of the database for a call."""
        return (self.cpu + self.database_cpu) / self.calls

    @property
    def calls_per_second(self) -> float:
        """The throughput."""
        return self.calls / self.seconds

    def __add__(self, other: "Slice") -> "Slice":
        """Combine two slices; percentiles are averaged."""
        return Slice(
            self.cpu + other.cpu,
            self.calls + other.calls,
            self.seconds + other.seconds,
            (self.p50 + other.p50) / 2,
            (self.p99 + other.p99) / 2,
            self.database_cpu + other.database_cpu,
        )


def slices_in_turns(
    rounds: int, sides: Mapping[str, Callable[[], Slice]]
) -> dict[str, list[Slice]]:
    """Measure each side twice per round, forwards and then backwards: A B C C B A.

    A drift during a round, such as the load of a shared machine, then affects all sides alike.
    """
    for side in sides.values():
        side()  # warm up
    halves = in_turns(2 * rounds, sides)
    return {
        name: [first + second for first, second in zip(found[::2], found[1::2], strict=True)]
        for name, found in halves.items()
    }


def closed_loop(load: Child, command: str, pid: int, **arguments: Any) -> Slice:
    """Run a closed loop, and read the server's CPU time before and after it."""
    before = cpu_seconds(pid)
    seen = load.ask(command, **arguments)
    spent = cpu_seconds(pid) - before
    calls, errors = seen["calls"], seen["errors"]
    assert errors <= calls * ERROR_SHARE_MAX, f"{errors} of {calls + errors} calls failed"
    return Slice(spent, calls, seen["seconds"], seen["p50"], seen["p99"])
