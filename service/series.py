"""How metrics are created: their series are looked up once, and limited in number."""

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

SERIES_MAX = 200  # for each metric; more are counted as "other"
SERIES_BY_MODEL_MAX = 4_000  # for a metric by model: the catalogue lists some 200 models
OTHER = "other"

M = TypeVar("M", bound=MetricWrapperBase)
Buckets = tuple[float, ...]


class Series(dict[tuple[str, ...], M]):
    """The children of a metric by their label values: looked up once, and limited in number."""

    def __init__(self, metric: M, series_max: int = SERIES_MAX) -> None:
        super().__init__()
        self._metric = metric
        self._series_max = series_max

    def __missing__(self, values: tuple[str, ...]) -> M:
        if len(self) >= self._series_max:
            return self._metric.labels(*[OTHER] * len(values))
        child = self[values] = self._metric.labels(*values)
        return child


class MetricFactory:
    """Creates metrics in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def histogram(self, name: str, words: str, buckets: Buckets) -> Histogram:
        return Histogram(name, words, buckets=buckets, registry=self._registry)

    def histograms(
        self, name: str, words: str, buckets: Buckets, *labels: str
    ) -> Series[Histogram]:
        return Series(Histogram(name, words, labels, buckets=buckets, registry=self._registry))

    def counters(self, name: str, words: str, *labels: str) -> Series[Counter]:
        series_max = SERIES_BY_MODEL_MAX if "model" in labels else SERIES_MAX
        return Series(Counter(name, words, labels, registry=self._registry), series_max)

    def counter(self, name: str, words: str) -> Counter:
        return Counter(name, words, registry=self._registry)

    def gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(name, words, labels, registry=self._registry)
