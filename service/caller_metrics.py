"""Counters by caller, if METRICS_PER_CALLER is set; docs/metrics.md describes them."""

from collections.abc import Callable, Container

from prometheus_client import CollectorRegistry, Counter


class CallerMetrics:
    """Count by caller, for the callers that the tokens file names."""

    def __init__(self, registry: CollectorRegistry, names: Callable[[], Container[str]]) -> None:
        self._names = names
        self._creates = Counter(
            "generation_caller_creates", "Tasks created, by caller", ["caller"], registry=registry
        )
        self._refusals = Counter(
            "generation_caller_refusals",
            "Calls refused by a limit, by caller",
            ["caller", "limit"],
            registry=registry,
        )
        self._ends = Counter(
            "generation_caller_ends",
            "Tasks that ended, by caller",
            ["caller", "status"],
            registry=registry,
        )

    def created(self, caller: str) -> None:
        """Count a new task."""
        if caller in self._names():
            self._creates.labels(caller).inc()

    def refused(self, caller: str, limit: str) -> None:
        """Count a call that a limit refused."""
        if caller in self._names():
            self._refusals.labels(caller, limit).inc()

    def ended(self, caller: str, status: str) -> None:
        """Count a task that ended."""
        if caller in self._names():
            self._ends.labels(caller, status).inc()
