"""The composition root: where everything starts, in order, and stops in reverse order."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from generated.generation.v1 import generation_pb2
from generated.generation.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from providers.kie.callbacks import KieCallbacks
from providers.kie.client import KieProvider
from service.admin import Admin
from service.admission import Admission
from service.bounds import BOUNDS, Bounds, Grace
from service.callbacks import BODY_MAX_BYTES, Callbacks
from service.callers import Callers
from service.creating import Creator
from service.follow import Follower
from service.health import Health
from service.http import HttpServer
from service.hub import Hub
from service.interceptor import Boundary
from service.listen import bind, channel_options, start_http
from service.messages import Answers
from service.metrics import Queue
from service.pages import Pages
from service.parts import Parts, create_parts, start_background
from service.poller import AccountLimits, Poller
from service.purge import Purger
from service.reach import Reach
from service.schedule import Schedule
from service.servicer import Servicer
from service.settings import Settings
from service.uploads import Uploads
from service.verdicts import Verdicts
from service.warm_up import warm_answers
from service.watch import Watcher
from storage.store import Store

SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Addresses:
    """The bound addresses of a server, as `host:port`; "" for a port that is off."""

    address: str
    admin_address: str
    http_address: str


@asynccontextmanager
async def serving(settings: Settings, bounds: Bounds = BOUNDS) -> AsyncIterator[Addresses]:
    """Serve for as long as the context lasts.

    Raises:
        StartError: An address is in use, or a certificate is invalid.
        StorageError: The database cannot be opened.
    """
    async with AsyncExitStack() as stack:
        callers = Callers(settings.auth_tokens_file, bounds.recheck_seconds)
        parts = await create_parts(settings, bounds, callers, stack)
        poller = _poller(parts)
        kept_seconds = settings.task_retention_seconds or math.inf
        answers = Answers(parts.provider.result_seconds, kept_seconds)
        boundary = Boundary(callers, parts.limits, parts.calls.watches, parts.metrics)
        start_background(boundary.tend(), stack)
        server, health = _grpc_server(parts, boundary, _servicer(parts, poller, answers))
        addresses = Addresses(
            bind(server, settings),
            await _start_admin(parts, stack),
            await _start_callbacks(parts, poller, stack),
        )
        # From here on it spends money: nothing above may still fail.
        polling = asyncio.create_task(poller.run())
        stack.push_async_callback(_stop_polling, poller, polling, bounds.grace)
        if parts.store.shared:
            start_background(Follower(parts.store, parts.hub, parts.outage_log).run(), stack)
        start_background(Purger(parts.store, settings.task_retention_seconds).run(), stack)
        await server.start()
        stack.push_async_callback(_drain, server, health, parts.hub, boundary, bounds.grace)
        log.info(
            "serving",
            address=addresses.address,
            admin_address=addresses.admin_address or "off",
            http_address=addresses.http_address or "off",
        )
        start_background(warm_answers(parts.store, answers), stack)
        yield addresses


# --- polling ---


def _poller(parts: Parts) -> Poller:
    settings = parts.settings
    return Poller(
        store=parts.store,
        provider=parts.provider,
        hub=parts.hub,
        verdicts=_verdicts(settings, parts.provider, parts.hub),
        limits=_account_limits(settings),
        caller_limits=parts.limits,
        metrics=parts.metrics,
        outage_log=parts.outage_log,
        disabled_models=settings.disabled_models,
        callback_url=parts.urls.url if parts.urls else None,
    )


def _account_limits(settings: Settings) -> AccountLimits:
    return AccountLimits(
        creates_per_10_seconds=settings.kie_creates_per_10_seconds,
        status_per_second=settings.kie_status_per_second,
        running_max=settings.kie_running_max,
        creates_in_flight_max=settings.kie_creates_in_flight_max,
    )


def _verdicts(settings: Settings, provider: KieProvider, hub: Hub) -> Verdicts:
    callbacks = settings.public_url is not None
    return Verdicts(
        schedule=Schedule(settings.poll_interval_seconds, provider.typical_max_seconds),
        reach=Reach(settings.poll_interval_seconds),
        task_max_age_seconds=settings.task_max_age_seconds,
        unknown_wait_seconds=settings.effective_unknown_wait_seconds,
        left_to_callback=lambda task_id: callbacks and not hub.is_watched(task_id),
    )


async def _stop_polling(poller: Poller, polling: asyncio.Task[None], grace: Grace) -> None:
    poller.stop()
    await polling
    await poller.finish(grace.polls_seconds)


# --- gRPC ---


def _servicer(parts: Parts, poller: Poller, answers: Answers) -> Servicer:
    settings, store = parts.settings, parts.store
    return Servicer(
        store=store,
        poller=poller,
        creator=Creator(
            store=store,
            provider=parts.provider,
            poller=poller,
            hub=parts.hub,
            admission=Admission(
                queue_max_tasks=settings.queue_max_tasks,
                disabled_models=settings.disabled_models,
                limits=parts.limits,
                metrics=parts.metrics,
            ),
            metrics=parts.metrics,
            wait_seconds=settings.create_wait_seconds,
        ),
        watcher=Watcher(
            store,
            parts.hub,
            parts.metrics,
            poller,
            heartbeat_seconds=settings.watch_heartbeat_seconds,
            max_age_seconds=settings.watch_max_age_seconds,
            open_streams=parts.calls.watches,
        ),
        uploads=Uploads(
            parts.provider,
            settings.upload_max_bytes,
            settings.upload_retention_seconds,
            parts.bounds.uploads,
        ),
        pages=Pages(store, answers),
        limited_calls=parts.calls,
        answers=answers,
    )


def _grpc_server(
    parts: Parts, boundary: Boundary, servicer: Servicer
) -> tuple[grpc.aio.Server, Health]:
    options = channel_options(parts.settings, parts.bounds.handshake_seconds)
    server = grpc.aio.server(interceptors=(boundary,), options=options)
    add_GenerationServiceServicer_to_server(servicer, server)
    health = Health(("", SERVICE_NAME))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    return server, health


async def _drain(
    server: grpc.aio.Server, health: Health, hub: Hub, boundary: Boundary, grace: Grace
) -> None:
    """End the calls: watchers are asked to reconnect, other calls get a moment to finish.

    No client can delay this: a call that does not end in time is cancelled, and one that does not
    end even then is abandoned.
    """
    log.info("shutting down")
    hub.drain()
    health.shut_down()
    await server.stop(grace.calls_seconds)
    try:
        async with asyncio.timeout(grace.cancelled_calls_seconds):
            await boundary.idle()
    except TimeoutError:
        log.warning("calls abandoned, as they did not end")


# --- HTTP ---


async def _start_admin(parts: Parts, stack: AsyncExitStack) -> str:
    address = parts.settings.admin_address
    if not address:
        return ""
    admin = Admin(
        parts.store,
        parts.metrics,
        lambda: _queues(parts.store),
        lambda: parts.hub.draining,
        parts.bounds.queues_seconds,
    )
    return await start_http(
        HttpServer(admin.answer, parts.bounds.http), "ADMIN_ADDRESS", address, stack
    )


async def _queues(store: Store) -> list[Queue]:
    now = store.now()
    waiting = await store.queues()
    return [Queue(lane, count, max(0.0, now - first)) for lane, (count, first) in waiting.items()]


async def _start_callbacks(parts: Parts, poller: Poller, stack: AsyncExitStack) -> str:
    if parts.urls is None:
        return ""
    key = parts.settings.kie_webhook_key
    reader = KieCallbacks(key.get_secret_value().encode() if key else None)
    callbacks = Callbacks(parts.urls, reader, poller, parts.metrics, parts.store.now)
    limits = replace(parts.bounds.http, body_bytes=BODY_MAX_BYTES)
    server = HttpServer(callbacks.answer, limits)
    return await start_http(server, "HTTP_ADDRESS", parts.settings.http_address, stack)
