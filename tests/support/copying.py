"""A copier between a host of results and a place for copies."""

import hashlib
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from service.copy_metrics import CopyMetrics
from service.results.copier import Copier, CopyLimits
from service.results.hosts import FetchRules
from service.results.objects import open_objects
from service.results.origin import Origin
from service.results.places import place_of
from service.results.source import Source, SourceTimes
from service.series import MetricFactory
from storage.task import Artifact
from tests.support.kept_places import KeptPlace
from tests.support.media_host import MIB, MediaHost
from tests.support.storing import new

TASK = new("task", create_time=1_800_000_000.0)  # on the 15th of January 2027
DAY = "2027/01/15"


@dataclass
class Copying:
    """A copier, the host of results and the place of copies."""

    host: MediaHost
    place: KeptPlace
    copier: Copier
    registry: CollectorRegistry

    async def copy(self, *urls: str, times: int = 1) -> tuple[Artifact, ...]:
        """Try to copy results, several times."""
        artifacts = tuple(Artifact(url, "application/octet-stream") for url in urls)
        for _ in range(times):
            artifacts = await self.copier.copy_all(TASK, artifacts, _is_ours)
        return artifacts

    def outcomes(self) -> dict[str, float]:
        samples = next(
            metric.samples for metric in self.registry.collect() if metric.name.endswith("copies")
        )
        totals = (each for each in samples if each.name.endswith("_total") and each.value)
        return {each.labels["outcome"]: each.value for each in totals}

    def check(self, artifact: Artifact, content: bytes) -> None:
        """Check that a copy is the content."""
        assert artifact.copy, artifact.storage_error
        assert artifact.copy.size_bytes == len(content)
        assert artifact.copy.sha256 == hashlib.sha256(content).hexdigest()
        assert self.place.content(artifact.copy.uri) == content


async def _is_ours() -> bool:
    return True


async def copying(
    host: MediaHost,
    place: KeptPlace,
    stack: AsyncExitStack,
    times: SourceTimes | None = None,
    *,
    max_bytes: int = 64 * MIB,
    allowed_hosts: Iterable[str] = (),
) -> Copying:
    source = Source(FetchRules(allowed_hosts, own_urls=[host.base]), times or SourceTimes())
    stack.push_async_callback(source.close)
    objects = await open_objects(place_of(place.url))

    async def fresh_url(url: str) -> str | None:
        host.asked[f"fresh {url}"] += 1
        return host.fresh.get(url)

    registry = CollectorRegistry()
    metrics = CopyMetrics(MetricFactory(registry))
    limits = CopyLimits(max_bytes, copies_max=4)
    return Copying(
        host, place, Copier(objects, Origin(source, fresh_url), limits, metrics), registry
    )
