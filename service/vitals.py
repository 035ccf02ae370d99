"""Whether this process is ready, and whether it is alive: all that health checks report.

*Ready* is what load balancers ask: may calls be sent here? *Alive* is what decides on a restart, so
it does not depend on the database: a restart would not bring that back.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge

from service.poller import Poller
from storage.errors import StorageUnavailableError
from storage.store import Store

POLLER = "poller"


@dataclass(frozen=True, slots=True)
class VitalTimes:
    """How long something may last before it is reported.

    Attributes:
        check_seconds: Between two checks.
        idle_seconds: Since the last write to the database until one is tried.
        outage_seconds: How long the database may be unavailable.
        stuck_seconds: How long a thread or the poller may make no progress.
    """

    check_seconds: float = 1.0
    idle_seconds: float = 2.0
    outage_seconds: float = 3.0
    stuck_seconds: float = 60.0


class ThreadsAlive:
    """The metric of what must run."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(
            "generation_threads_alive",
            "1 if a thread that must run is neither dead nor stuck",
            ["thread"],
            registry=registry,
        )

    def show(self, thread: str, *, alive: bool) -> None:
        """Show whether a thread runs and makes progress."""
        self._gauge.labels(thread).set(alive)


def hints_missed(registry: CollectorRegistry) -> Gauge:
    """Create the metric of hints that do not arrive."""
    return Gauge(
        "generation_hints_missed",
        "1 while hints of other replicas are expected, but do not arrive",
        registry=registry,
    )


class Vitals:
    """What is known about the health of this process.

    Attributes:
        draining: Whether the process is shutting down.
    """

    def __init__(
        self, store: Store, poller: Poller, registry: CollectorRegistry, times: VitalTimes
    ) -> None:
        self._store = store
        self._poller = poller
        self._times = times
        self._is_available = True
        # While the database is unavailable, the poller waits for it.
        self._outage_time = time.monotonic()
        self._metric = ThreadsAlive(registry)
        self._hints_metric = hints_missed(registry)
        self.draining = False
        self._show()

    async def check(self) -> None:
        """Find out whether the database can be written to, unless a write shows it."""
        if time.monotonic() - self._store.written_time < self._times.idle_seconds:
            self._is_available = True
        else:
            try:
                await self._store.ping()
                self._is_available = True
            except StorageUnavailableError:
                self._is_available = False
        waits = any(
            thread.busy_seconds > self._times.outage_seconds for thread in self._store.threads()
        )
        if waits or not self._is_available:
            self._outage_time = time.monotonic()
        self._show()

    def why_not_ready(self) -> str:
        """Return why no calls should be sent here; "" if they should."""
        if self.draining:
            return "shutting down"
        unwritten_seconds = time.monotonic() - self._store.written_time
        if not self._is_available and unwritten_seconds > self._times.outage_seconds:
            return "the database is unavailable"
        return self.why_not_alive()

    def why_not_alive(self) -> str:
        """Return what only a restart repairs; "" if there is nothing."""
        return next((f"{name}: {why}" for name, why in self._troubles() if why), "")

    def _show(self) -> None:
        for name, why in self._troubles():
            self._metric.show(name, alive=not why)
        self._hints_metric.set(self._store.misses_hints)

    def _troubles(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each thread that must run, and what is wrong with it, if anything."""
        for thread in self._store.threads():
            yield thread.name, self._trouble(thread.alive, thread.stalled_seconds)
        idle_since = max(self._poller.progress_time, self._outage_time)
        runs = not self._poller.ended or self.draining
        yield POLLER, self._trouble(runs, 0 if self.draining else time.monotonic() - idle_since)

    def _trouble(self, alive: bool, stalled_seconds: float) -> str:
        if not alive:
            return "it is dead"
        if stalled_seconds > self._times.stuck_seconds:
            return f"no progress for {stalled_seconds:.0f} s"
        return ""
