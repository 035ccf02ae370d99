"""The composition root: where everything starts, in order, and stops in reverse order."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc
import structlog

from service.artifacts import Artifacts
from service.bounds import BOUNDS, Bounds
from service.callers import Callers
from service.catalogue_refresh import CatalogueRefresh
from service.feed import Feed
from service.feed_metrics import FeedMetrics
from service.follow import Follower
from service.forever import forever
from service.health import Health
from service.http_ports import start_admin, start_callbacks
from service.kept import KeptResults, links, make_reader, open_origin, open_results
from service.messages import Answers
from service.parts import Parts, create_parts, start_background, start_catalogue
from service.polling import Polling, make_polling
from service.purge import Purger
from service.results.origin import Origin
from service.rpc import (
    SERVICE_NAME,
    bind_server,
    create_server,
    create_servicer,
    limited_calls,
    start_boundary,
)
from service.series import MetricFactory
from service.settings import Settings
from service.shutdown import Shutdown, ShutdownTimes
from service.vitals import Vitals
from service.warm_up import warm_answers

if TYPE_CHECKING:  # imported only where traces are exported
    from service.tracing import Tracing

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Addresses:
    """The bound addresses of a server, as `host:port`; "" for a port that is off."""

    address: str
    admin_address: str
    http_address: str


@asynccontextmanager
async def serving(
    settings: Settings, bounds: Bounds = BOUNDS, tracing: "Tracing | None" = None
) -> AsyncIterator[Addresses]:
    """Serve for as long as the context lasts; `tracing` is closed at its end.

    Raises:
        StartError: An address is in use, or a certificate is invalid.
        StorageError: The database cannot be opened.
        ResultsConfigError: Results cannot be kept where RESULTS_URL says.
    """
    async with AsyncExitStack() as stack:
        callers = _callers(settings, bounds)
        parts = await create_parts(settings, bounds, callers, stack, tracing)
        origin = open_origin(parts, stack)
        results = await open_results(parts, origin, stack)
        polling = make_polling(parts, results, tracing)
        answers = _answers(parts)
        refresh = await start_catalogue(parts)
        calls = limited_calls(parts)
        boundary = start_boundary(parts, callers, calls.watches, tracing, stack)
        vitals = Vitals(parts.store, polling.poller, parts.metrics.registry, bounds.upkeep.vitals)
        health = Health(("", SERVICE_NAME), vitals)
        feed = _start_feed(parts, stack)
        artifacts = _artifacts(parts, results, origin)
        servicer = create_servicer(
            parts, polling.events, feed, answers, calls=calls, artifacts=artifacts, tracing=tracing
        )
        server = create_server(parts, boundary, servicer, health)
        addresses = Addresses(
            bind_server(server, parts, stack),
            await start_admin(parts, vitals, polling.account, stack),
            await start_callbacks(parts, polling.callbacks, stack),
        )
        # From here on the service spends money, so all that may fail comes before.
        _start_upkeep(parts, health, feed, results, stack)
        start_background(_refreshing(parts, refresh), stack)
        shutdown = Shutdown(
            server,
            boundary,
            parts.hub,
            feed,
            health,
            poller=polling.poller,
            polling=_start_polling(parts, polling, stack),
            times=_shutdown_times(parts, is_traced=tracing is not None),
        )
        stack.push_async_callback(shutdown.run)
        await _start(server, addresses)
        start_background(warm_answers(parts.store, answers), stack)
        yield addresses


async def _start(server: grpc.aio.Server, addresses: Addresses) -> None:
    await server.start()
    log.info(
        "serving",
        address=addresses.address,
        admin_address=addresses.admin_address or "off",
        http_address=addresses.http_address or "off",
    )


def _callers(settings: Settings, bounds: Bounds) -> Callers:
    return Callers(
        settings.auth_tokens_file,
        bounds.recheck_seconds,
        client_certificates=settings.tls_client_ca_file is not None,
    )


def _answers(parts: Parts) -> Answers:
    """Return what makes the messages of tasks."""
    kept_seconds = parts.settings.task_retention_seconds or math.inf
    return Answers(links(parts.settings, parts.provider.result_seconds), kept_seconds)


def _artifacts(parts: Parts, results: KeptResults | None, origin: Origin) -> Artifacts:
    """Return what callers can do with results."""
    reader = make_reader(parts, results, origin)
    return Artifacts(reader, parts.bounds.uploads, lambda: parts.hub.draining)


# --- polling ---


def _start_polling(parts: Parts, polling: Polling, stack: AsyncExitStack) -> asyncio.Task[None]:
    """Start the poller, and return its loop."""
    renew_seconds = parts.bounds.poller.leases.renew_seconds
    renewal = forever(polling.leases.renew_once, "lease renewal", renew_seconds, parts.outage_log)
    start_background(renewal, stack)
    return asyncio.create_task(polling.poller.run())


def _shutdown_times(parts: Parts, *, is_traced: bool) -> ShutdownTimes:
    settings, grace = parts.settings, parts.bounds.grace
    if is_traced:
        grace = replace(grace, closing_seconds=grace.closing_seconds + grace.traces_seconds)
    return ShutdownTimes(settings.drain_delay_seconds, settings.shutdown_seconds, grace)


# --- upkeep ---


def _start_upkeep(
    parts: Parts,
    health: Health,
    feed: Feed,
    results: KeptResults | None,
    stack: AsyncExitStack,
) -> None:
    """Start what watches this process, what follows others, and what deletes old tasks."""
    bounds = parts.bounds.upkeep
    check_seconds = bounds.vitals.check_seconds
    checks = forever(health.run_once, "health check", check_seconds, parts.outage_log)
    start_background(checks, stack)
    if parts.store.shared:
        follower = Follower(parts.store, parts.hub, feed, bounds.follow)
        start_background(forever(follower.run_once, "follower", 0, parts.outage_log), stack)
    deleted = results.objects if results and parts.settings.results_delete_on_purge else None
    purger = Purger(parts.store, parts.settings.task_retention_seconds, bounds.purge, deleted)
    pause_seconds = bounds.purge.pause_seconds
    start_background(forever(purger.run_once, "purge", pause_seconds, parts.outage_log), stack)


async def _refreshing(parts: Parts, refresh: CatalogueRefresh) -> None:
    """Keep the catalogue up to date."""
    check_seconds = parts.bounds.upkeep.catalogue.check_seconds
    await forever(refresh.run_once, "catalogue", check_seconds, parts.outage_log)


def _start_feed(parts: Parts, stack: AsyncExitStack) -> Feed:
    """Start reading the changes for the streams that have all of them."""
    metrics = FeedMetrics(MetricFactory(parts.metrics.registry))
    feed = Feed(parts.store, metrics, parts.bounds.upkeep.feed)
    start_background(forever(feed.run_once, "feed", 0, parts.outage_log), stack)
    return feed
