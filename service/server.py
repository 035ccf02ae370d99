"""The composition root: where everything starts, in order, and stops in reverse order."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from generated.generation.v1 import generation_pb2
from generated.generation.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from providers.kie.callbacks import KieCallbacks
from service.account_hold import AccountHold
from service.admin import Admin
from service.admission import Admission
from service.artifacts import Artifacts
from service.bounds import BOUNDS, Bounds
from service.callback_polls import CallbackPolls
from service.callbacks import Callbacks
from service.callers import Callers
from service.creating import Creator
from service.events import TaskEvents
from service.feed import Feed
from service.feed_metrics import FeedMetrics
from service.files import RECHECK_SECONDS
from service.follow import Follower
from service.forever import forever
from service.health import Health
from service.http import HttpServer
from service.interceptor import Boundary
from service.kept import KeptResults, links, open_origin, open_results
from service.listen import bind, channel_options, start_http
from service.measurements import Measurements
from service.messages import Answers
from service.metrics import Queue
from service.model_lists import ModelLists
from service.pages import Pages
from service.parts import Parts, create_parts, start_background, start_catalogue
from service.polling import Polling, make_polling
from service.purge import Purger
from service.reflection import add_reflection
from service.results.reader import Reader
from service.series import MetricFactory
from service.servicer import Servicer
from service.setting_types import webhook_key_in
from service.settings import Settings
from service.shutdown import Shutdown, ShutdownTimes
from service.tls import server_tls
from service.uploads import Uploads
from service.vitals import Vitals
from service.warm_up import warm_answers
from service.watch import Watcher
from service.watch_all import ChangeWatcher
from service.watched_secret import current_secret
from storage.store import Store
from storage.task import Lane

if TYPE_CHECKING:  # imported only where traces are exported
    from service.tracing import Tracing

SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

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
    """Serve for as long as the context lasts.

    Args:
        settings: The environment.
        bounds: Limits that no setting changes.
        tracing: Traces calls and tasks; None if traces are not exported. It is closed at the end.

    Raises:
        StartError: An address is in use, or a certificate is invalid.
        StorageError: The database cannot be opened.
        ResultsConfigError: Results cannot be kept where RESULTS_URL says.
    """
    async with AsyncExitStack() as stack:
        if tracing:
            stack.push_async_callback(tracing.close, bounds.grace.traces_seconds)
        callers = Callers(
            settings.auth_tokens_file,
            bounds.recheck_seconds,
            client_certificates=settings.tls_client_ca_file is not None,
        )
        parts = await create_parts(settings, bounds, callers, stack, tracing)
        origin = open_origin(parts, stack)
        results = await open_results(parts, origin, stack)
        polling = make_polling(parts, results, tracing)
        kept_seconds = settings.task_retention_seconds or math.inf
        answers = Answers(links(settings, parts.provider.result_seconds), kept_seconds)
        refresh = await start_catalogue(parts)
        boundary = Boundary(
            callers,
            parts.caller_limits,
            parts.limited_calls.watches,
            parts.metrics,
            outage_log=parts.outage_log,
            tracing=tracing,
        )
        start_background(boundary.tend(parts.outage_log), stack)
        vitals = Vitals(parts.store, polling.poller, parts.metrics.registry, bounds.upkeep.vitals)
        health = Health(("", SERVICE_NAME), vitals)
        feed = _feed(parts, stack)
        reader = Reader(results.objects if results else None, origin)
        artifacts = Artifacts(reader, bounds.uploads, lambda: parts.hub.draining)
        servicer = _servicer(parts, polling.events, feed, artifacts, answers, tracing=tracing)
        server = _grpc_server(parts, boundary, servicer, health)
        addresses = Addresses(
            _bind(server, parts, stack),
            await _start_admin(parts, vitals, polling.account, stack),
            await _start_callbacks(parts, polling.callbacks, stack),
        )
        # From here on the service spends money, so all that may fail comes before.
        _start_upkeep(parts, health, feed, results, stack)
        check_seconds = bounds.upkeep.catalogue.check_seconds
        refreshing = forever(refresh.run_once, "catalogue", check_seconds, parts.outage_log)
        start_background(refreshing, stack)
        loop = _start_polling(parts, polling, stack)
        shutdown = Shutdown(
            server,
            boundary,
            parts.hub,
            feed,
            health,
            poller=polling.poller,
            polling=loop,
            times=_shutdown_times(parts, is_traced=tracing is not None),
        )
        stack.push_async_callback(shutdown.run)
        await server.start()
        log.info(
            "serving",
            address=addresses.address,
            admin_address=addresses.admin_address or "off",
            http_address=addresses.http_address or "off",
        )
        start_background(warm_answers(parts.store, answers), stack)
        yield addresses


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


# --- gRPC ---


def _feed(parts: Parts, stack: AsyncExitStack) -> Feed:
    """Start reading the changes for the streams that have all of them."""
    metrics = FeedMetrics(MetricFactory(parts.metrics.registry))
    feed = Feed(parts.store, metrics, parts.bounds.upkeep.feed)
    start_background(forever(feed.run_once, "feed", 0, parts.outage_log), stack)
    return feed


def _servicer(
    parts: Parts,
    events: TaskEvents,
    feed: Feed,
    artifacts: Artifacts,
    answers: Answers,
    *,
    tracing: "Tracing | None",
) -> Servicer:
    settings, store = parts.settings, parts.store
    return Servicer(
        store=store,
        events=events,
        creator=Creator(
            store=store,
            provider=parts.provider,
            events=events,
            hub=parts.hub,
            admission=Admission(
                queue_max_tasks=settings.queue_max_tasks,
                provider=parts.provider,
                catalogue=parts.catalogue,
                limits=parts.caller_limits,
                metrics=parts.metrics,
            ),
            metrics=parts.metrics,
            wait_seconds=settings.create_wait_seconds,
            traceparent=tracing.traceparent if tracing else None,
        ),
        watcher=Watcher(
            store,
            parts.hub,
            parts.metrics,
            events,
            heartbeat_seconds=settings.watch_heartbeat_seconds,
            max_age_seconds=settings.watch_max_age_seconds,
            open_streams=parts.limited_calls.watches,
        ),
        change_watcher=ChangeWatcher(
            store,
            feed,
            open_streams=parts.limited_calls.watches,
            heartbeat_seconds=settings.watch_heartbeat_seconds,
            max_age_seconds=settings.watch_max_age_seconds,
        ),
        uploads=Uploads(
            parts.provider,
            settings.upload_max_bytes,
            settings.upload_retention_seconds,
            parts.bounds.uploads,
        ),
        artifacts=artifacts,
        pages=Pages(store, answers),
        models=ModelLists(parts.catalogue, Measurements(store, parts.provider)),
        limited_calls=parts.limited_calls,
        answers=answers,
    )


def _grpc_server(
    parts: Parts, boundary: Boundary, servicer: Servicer, health: Health
) -> grpc.aio.Server:
    options = channel_options(parts.settings, parts.bounds.handshake_seconds)
    server = grpc.aio.server(interceptors=(boundary,), options=options)
    add_GenerationServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    add_reflection(server, names)
    return server


def _bind(server: grpc.aio.Server, parts: Parts, stack: AsyncExitStack) -> str:
    if (tls := server_tls(parts.settings, parts.metrics)) is None:
        return bind(server, parts.settings, None)
    check = forever(tls.run_once, "check of certificates", RECHECK_SECONDS, parts.outage_log)
    start_background(check, stack)
    return bind(server, parts.settings, tls.credentials())


# --- HTTP ---


async def _start_admin(
    parts: Parts, vitals: Vitals, account: AccountHold, stack: AsyncExitStack
) -> str:
    address = parts.settings.admin_address
    if not address:
        return ""
    admin = Admin(
        vitals,
        parts.metrics,
        lambda: _queues(parts.store),
        lambda: _notes(parts, account),
        queues_seconds=parts.bounds.database.queues_seconds,
    )
    return await start_http(
        HttpServer(admin.answer, parts.bounds.http), "ADMIN_ADDRESS", address, stack
    )


def _notes(parts: Parts, account: AccountHold) -> Iterator[str]:
    """Yield what an operator should know of a service that is ready."""
    if parts.settings.simulated:
        yield "simulated: results are samples"
    if account.note:
        yield account.note
    if parts.store.misses_hints:
        yield "no hints between replicas: changes by others are pushed up to a second late"


async def _queues(store: Store) -> list[Queue]:
    now = store.now()
    waiting = await store.queues()
    storing_since = await store.storing_since() if waiting[Lane.STORE][0] else math.inf
    return [
        Queue(
            lane,
            count,
            max(0.0, now - first),
            max(0.0, now - storing_since) if lane is Lane.STORE else 0.0,
        )
        for lane, (count, first) in waiting.items()
    ]


async def _start_callbacks(parts: Parts, polls: CallbackPolls, stack: AsyncExitStack) -> str:
    if parts.callback_urls is None:
        return ""
    callbacks = Callbacks(
        parts.callback_urls, _callback_reader(parts), polls, parts.metrics, parts.store.now
    )
    server = HttpServer(callbacks.answer, parts.bounds.http)
    return await start_http(server, "HTTP_ADDRESS", parts.settings.http_address, stack)


def _callback_reader(parts: Parts) -> KieCallbacks:
    key, file = parts.settings.kie_webhook_key, parts.settings.kie_webhook_key_file
    if key is None:
        return KieCallbacks(None)
    name = "kie_webhook_key"
    return KieCallbacks(current_secret(name, key, file, webhook_key_in, parts.metrics))
