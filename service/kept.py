"""Opens the storage of results, the downloads from URLs, and the copier between the two."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from service.forever import forever
from service.fresh_links import FreshLinks
from service.messages import Links
from service.parts import Parts, start_background
from service.results.copier import Copier, CopyLimits
from service.results.hosts import FetchRules
from service.results.objects import Objects, open_objects
from service.results.origin import Origin
from service.results.places import place_of
from service.results.reader import Reader
from service.results.source import Source
from service.settings import Settings

TIDY_SECONDS = 3_600.0


@dataclass(frozen=True, slots=True)
class KeptResults:
    """What keeps results.

    Attributes:
        objects: Where copies are.
        copier: Copies results.
    """

    objects: Objects
    copier: Copier


def open_origin(parts: Parts, stack: AsyncExitStack) -> Origin:
    """Return what opens results at the provider; the stack closes it."""
    settings = parts.settings
    own_urls = parts.provider.base_urls if settings.simulated else ()
    rules = FetchRules(settings.results_allow_hosts, own_urls)
    source = Source(rules, parts.bounds.source)
    stack.push_async_callback(source.close)
    return Origin(source, parts.provider.fresh_url)


async def open_results(parts: Parts, origin: Origin, stack: AsyncExitStack) -> KeptResults | None:
    """Open the storage of RESULTS_URL; None if results are not kept.

    Raises:
        ResultsConfigError: It cannot be used.
    """
    settings = parts.settings
    if settings.results_url is None:
        return None
    objects = await open_objects(place_of(settings.results_url))
    tidying = forever(objects.tidy, "removal of abandoned copies", TIDY_SECONDS, parts.outage_log)
    start_background(tidying, stack)
    limits = CopyLimits(settings.results_max_bytes, settings.results_parallel)
    copier = Copier(objects, origin, limits, parts.metrics.copies)
    return KeptResults(objects, copier)


def make_reader(parts: Parts, results: KeptResults | None, origin: Origin) -> Reader:
    """Return what reads results for callers."""
    fresh_links = FreshLinks(parts.provider.fresh_url)
    return Reader(results.objects if results else None, origin.asking(fresh_links.of))


def links(settings: Settings, provider_seconds: float) -> Links:
    """Return how long the URLs of results work, and which other URLs they get."""
    if settings.results_url is None:
        return Links(provider_seconds)
    if settings.results_public_url is None:
        return Links(provider_seconds, copies_may_follow=True)
    public_url = _public_urls(settings.results_url, settings.results_public_url)
    return Links(provider_seconds, public_url, copies_may_follow=True)


def _public_urls(results_url: str, base: str) -> Callable[[str], str]:
    place = place_of(results_url)

    def public_url(uri: str) -> str:
        key = place.key_of(uri)
        return f"{base}/{key}" if key else ""

    return public_url
