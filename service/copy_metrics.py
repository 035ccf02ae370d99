"""What is measured of copies of results."""

from service.results.errors import OUTCOMES
from service.series import MetricFactory


class CopyMetrics:
    """The metrics of copies."""

    def __init__(self, make: MetricFactory) -> None:
        self._copies = make.counters(
            "generation_copies", "Attempts to copy a result, by outcome", "outcome"
        )
        self._bytes = make.counter("generation_copied_bytes", "Bytes of results that were copied")
        self._age = make.gauge(
            "generation_copy_age_seconds", "How long the oldest task has waited for its copies"
        )
        for outcome in OUTCOMES:  # created at 0, for alerts
            self._copies[(outcome,)].inc(0)

    def ended(self, outcome: str) -> None:
        """Count an attempt to copy a result."""
        self._copies[(outcome,)].inc()

    def copied(self, size_bytes: int) -> None:
        """Count the bytes of a copied result."""
        self._bytes.inc(size_bytes)

    def show_age(self, seconds: float) -> None:
        """Show how long the oldest task has waited for its copies; 0 if none waits."""
        self._age.set(seconds)
