"""The composition root: everything is seen to start here, in order, and to stop in reverse."""

import asyncio
import hmac
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import structlog
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from generated.generation.v1 import generation_pb2
from generated.generation.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from providers.kie.client import KieProvider
from service import descriptors
from service.admin import admin_handler
from service.admission import Admission
from service.callbacks import BODY_MAX_BYTES, Callbacks, CallbackUrls
from service.caller_limits import CallerLimits, Limits
from service.callers import Callers
from service.follow import Follower
from service.health import Health
from service.http import HttpLimits, HttpServer
from service.interceptor import Boundary
from service.messages import Answers
from service.metrics import Metrics, Queue, measure_loop_lag
from service.open_calls import LimitedCalls, OpenCalls
from service.outage_log import OutageLog
from service.poller import AccountLimits, Poller
from service.purge import Purger
from service.reach import Reach
from service.schedule import Schedule
from service.servicer import Servicer
from service.setting_types import split_address
from service.settings import Settings
from service.uploads import UploadPace, Uploads
from service.verdicts import Verdicts
from service.watch import Hub, Watcher
from storage.errors import StorageUnavailableError
from storage.sqlite import sqlite_path
from storage.store import Store, open_store

# Together under the 10 s that orchestrators give by default.
CALLS_GRACE_SECONDS = 3.0
CANCELLED_CALLS_SECONDS = 1.0
POLLS_GRACE_SECONDS = 5.0

C_INT_MAX = 2**31 - 1
PENDING_HARD = 3  # between the limit and this many times it, C-core drops calls at random
AGE_GRACE_SECONDS = 60.0  # beyond WATCH_MAX_AGE_SECONDS: the age of a stream has a jitter
CALLER_LISTS = 8  # that a caller may ask for at a time, if nothing else is said

REMEMBERED_TASKS = 7_200  # an hour's at the account's own limit: 0.15 s of work, and 8 MiB
REMEMBERED_AT_ONCE = 100  # some 2 ms of the event loop

CALLBACK_PURPOSE = b"generation.v1 callback URLs"
SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
CHANNEL_OPTIONS = (
    ("grpc.so_reuseport", 0),  # fail if the port is already in use
    # How much of an upload waits here for a slow provider: fixed, or it would grow with the
    # connection's bandwidth. 64 KiB would be slower, 1 MiB is not faster.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 << 10),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
)

log = structlog.get_logger()


class StartError(Exception):
    """The server cannot start; the message says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves: its bound addresses, as `host:port`; "" for what is off."""

    address: str
    admin_address: str
    http_address: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits that no setting changes; tests shorten them."""

    handshake_seconds: float = 10.0
    http: HttpLimits = field(default_factory=HttpLimits)
    uploads: UploadPace = field(default_factory=UploadPace)


BOUNDS = Bounds()


@asynccontextmanager
async def running(settings: Settings, bounds: Bounds = BOUNDS) -> AsyncIterator[Running]:
    """Serve for as long as the context lasts.

    Raises:
        StartError: An address is taken, or a certificate is unusable.
        StorageError: The database cannot be opened.
    """
    async with AsyncExitStack() as stack:
        callers = Callers(settings.auth_tokens_file)
        metrics = Metrics(
            KieProvider.models, (lambda: callers.names) if settings.metrics_per_caller else None
        )
        limits = CallerLimits(
            settings.caller_limits_file, _service_limits(settings), callers, metrics
        )
        limited_calls = _limited_calls(settings, limits, metrics)
        _run_beside(measure_loop_lag(metrics), stack)
        store = open_store(
            settings.database_url.get_secret_value(),
            hints=settings.database_hints,
            observe=metrics.database,
        )
        stack.push_async_callback(store.close)
        provider = await _provider(settings, metrics, stack)
        stack.push_async_callback(provider.close)
        hub = Hub()
        outage_log = OutageLog()
        answers = Answers(settings.task_retention_seconds or math.inf)
        urls = await _callback_urls(settings, store)
        poller = Poller(
            store=store,
            provider=provider,
            hub=hub,
            verdicts=_verdicts(settings, provider, hub),
            limits=_limits(settings),
            caller_limits=limits,
            metrics=metrics,
            outage_log=outage_log,
            disabled_models=settings.disabled_models,
            callback_url=urls.url if urls else None,
        )
        metrics.show_missing_descriptors(_missing_descriptors(settings))
        boundary = Boundary(callers, limits, limited_calls.watches, metrics)
        _run_beside(boundary.tend(), stack)
        servicer = _servicer(
            settings,
            store=store,
            provider=provider,
            poller=poller,
            hub=hub,
            limits=limits,
            limited_calls=limited_calls,
            answers=answers,
            metrics=metrics,
            upload_pace=bounds.uploads,
        )
        server, health = _grpc_server(boundary, servicer, settings, bounds.handshake_seconds)
        address = _bind(server, settings)
        admin_address = await _start_admin(
            settings, bounds.http, stack, store=store, metrics=metrics, hub=hub
        )
        http_address = await _start_callbacks(
            settings, bounds.http, urls, stack, store=store, poller=poller, metrics=metrics
        )
        # From here on it spends money: nothing above may still fail.
        polling = asyncio.create_task(poller.run())
        stack.push_async_callback(_stop_polling, poller, polling)
        if store.shared:
            _run_beside(Follower(store, hub, outage_log).run(), stack)
        _run_beside(Purger(store, settings.task_retention_seconds).run(), stack)
        await server.start()
        stack.push_async_callback(_drain, server, health, hub, boundary)
        log.info(
            "serving",
            address=address,
            admin_address=admin_address or "off",
            http_address=http_address or "off",
        )
        _run_beside(_remember_ended(store, answers), stack)
        yield Running(address, admin_address, http_address)


def _run_beside(duty: Coroutine[None, None, None], stack: AsyncExitStack) -> None:
    """Run a duty until everything that was started after it has stopped."""
    running_duty = asyncio.create_task(duty)

    async def end() -> None:
        running_duty.cancel()
        await asyncio.gather(running_duty, return_exceptions=True)

    stack.push_async_callback(end)


async def _remember_ended(store: Store, answers: Answers) -> None:
    """Have the answers ready that were asked for before the restart: the newest results."""
    before = math.inf
    try:
        for _ in range(0, REMEMBERED_TASKS, REMEMBERED_AT_ONCE):
            tasks = await store.newest_ended(before, REMEMBERED_AT_ONCE)
            for task in tasks:
                answers.of(task)
            if len(tasks) < REMEMBERED_AT_ONCE:
                return
            before = tasks[-1].complete_time or 0
    except StorageUnavailableError as error:
        log.warning("storage unavailable, nothing is remembered", error=str(error))


async def _provider(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> KieProvider:
    if settings.kie_api_key is not None:
        key = settings.kie_api_key.get_secret_value()
        return KieProvider(
            settings.kie_api_url, settings.kie_upload_url, key, metrics.provider_called
        )
    # Imported only where it is used: production never pays for it.
    from providers.kie.simulator import Simulator, SimulatorSettings  # noqa: PLC0415

    database = sqlite_path(settings.database_url.get_secret_value()) or Path("generation")
    simulator = Simulator(SimulatorSettings(state_file=Path(f"{database}.simulator")))
    await stack.enter_async_context(simulator)
    log.warning(
        "KIE_API_KEY IS NOT SET: tasks go to the bundled simulator, and their results are samples",
        simulator=simulator.url,
    )
    return KieProvider(simulator.url, simulator.url, "simulator", metrics.provider_called)


async def _callback_urls(settings: Settings, store: Store) -> CallbackUrls | None:
    """Make callback URLs with CALLBACK_SECRET, or with a secret that the database keeps.

    Earlier versions derive the secret from KIE_API_KEY. If there is a key at the first start, the
    database therefore keeps the derived secret: during an upgrade replicas of both versions verify
    each other's URLs, and a later key changes nothing.
    """
    if settings.public_url is None:
        return None
    if settings.callback_secrets:
        return CallbackUrls(settings.public_url, *settings.callback_secrets)
    if settings.kie_api_key is None:
        kept = await store.callback_secrets(secrets.token_bytes())
        return CallbackUrls(settings.public_url, *kept)
    key = settings.kie_api_key.get_secret_value().encode()
    derived = hmac.digest(key, CALLBACK_PURPOSE, "sha256")
    return CallbackUrls(settings.public_url, *await store.callback_secrets(derived), derived)


def _limits(settings: Settings) -> AccountLimits:
    return AccountLimits(
        creates_per_10_seconds=settings.kie_creates_per_10_seconds,
        status_per_second=settings.kie_status_per_second,
        running_max=settings.kie_running_max,
        creates_in_flight_max=settings.kie_creates_in_flight_max,
    )


def _service_limits(settings: Settings) -> Limits:
    """Return the limits of a caller that is the only one."""
    return Limits(
        queue=settings.queue_max_tasks,
        running=settings.kie_running_max or math.inf,
        watches=settings.watch_max_streams,
        uploads=settings.uploads_max,
        lists=CALLER_LISTS,
        creates_per_minute=math.inf,
        models=("*",),
    )


def _limited_calls(settings: Settings, limits: CallerLimits, metrics: Metrics) -> LimitedCalls:
    return LimitedCalls(
        watches=OpenCalls(
            "watches",
            service_max=settings.watch_max_streams,
            caller_max=lambda caller: limits.of(caller).watches,
            on_refusal=metrics.caller_refused,
            on_change=metrics.watches_open,
        ),
        uploads=OpenCalls(
            "uploads",
            service_max=settings.uploads_max,
            caller_max=lambda caller: limits.of(caller).uploads,
            on_refusal=metrics.caller_refused,
        ),
        lists=OpenCalls(
            "lists",
            service_max=math.inf,
            caller_max=lambda caller: limits.of(caller).lists,
            on_refusal=metrics.caller_refused,
        ),
    )


def _verdicts(settings: Settings, provider: KieProvider, hub: Hub) -> Verdicts:
    callbacks = settings.public_url is not None
    return Verdicts(
        schedule=Schedule(settings.poll_interval_seconds, provider.usual_seconds),
        reach=Reach(settings.poll_interval_seconds),
        task_max_age_seconds=settings.task_max_age_seconds,
        unknown_wait_seconds=settings.effective_unknown_wait_seconds,
        left_to_callback=lambda task_id: callbacks and not hub.is_watched(task_id),
    )


def _servicer(
    settings: Settings,
    *,
    store: Store,
    provider: KieProvider,
    poller: Poller,
    hub: Hub,
    limits: CallerLimits,
    limited_calls: LimitedCalls,
    answers: Answers,
    metrics: Metrics,
    upload_pace: UploadPace,
) -> Servicer:
    watcher = Watcher(
        store,
        hub,
        metrics,
        poller,
        heartbeat_seconds=settings.watch_heartbeat_seconds,
        max_age_seconds=settings.watch_max_age_seconds,
        open_streams=limited_calls.watches,
    )
    uploads = Uploads(
        provider, settings.upload_max_bytes, settings.upload_retention_seconds, upload_pace
    )
    admission = Admission(
        queue_max_tasks=settings.queue_max_tasks,
        disabled_models=settings.disabled_models,
        limits=limits,
        metrics=metrics,
    )
    return Servicer(
        store=store,
        provider=provider,
        poller=poller,
        hub=hub,
        watcher=watcher,
        uploads=uploads,
        admission=admission,
        limited_calls=limited_calls,
        create_wait_seconds=settings.create_wait_seconds,
        answers=answers,
        metrics=metrics,
    )


def _missing_descriptors(settings: Settings) -> int:
    missing = descriptors.missing(settings.watch_max_streams, descriptors.limit())
    if missing:
        log.warning(
            "the limit of file descriptors is too low for WATCH_MAX_STREAMS",
            limit=descriptors.limit(),
            missing=missing,
        )
    return missing


def _grpc_server(
    boundary: Boundary, servicer: Servicer, settings: Settings, handshake_seconds: float
) -> tuple[grpc.aio.Server, Health]:
    options = (
        *CHANNEL_OPTIONS,
        *_connection_options(settings),
        ("grpc.server_handshake_timeout_ms", _milliseconds(handshake_seconds)),
    )
    server = grpc.aio.server(interceptors=(boundary,), options=options)
    add_GenerationServiceServicer_to_server(servicer, server)
    health = Health(("", SERVICE_NAME))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    return server, health


def _connection_options(settings: Settings) -> Iterator[tuple[str, int]]:
    """Yield what one connection may do, and how many there may be."""
    connections = descriptors.connections_max(settings.max_connections, descriptors.limit())
    yield "grpc.max_allowed_incoming_connections", connections
    yield "grpc.max_concurrent_streams", settings.max_streams_per_connection
    # Calls of all connections that wait until Python accepts them. Each of them delays those behind
    # it: a flood of streams that are reset at once would fill any queue.
    yield "grpc.server.max_pending_requests", settings.max_pending_calls
    yield "grpc.server.max_pending_requests_hard_limit", PENDING_HARD * settings.max_pending_calls
    yield "grpc.max_connection_idle_ms", _milliseconds(settings.connection_idle_seconds)
    yield "grpc.max_connection_age_ms", _milliseconds(settings.connection_age_seconds)
    grace = settings.watch_max_age_seconds + AGE_GRACE_SECONDS
    yield "grpc.max_connection_age_grace_ms", _milliseconds(grace)


def _milliseconds(seconds: float) -> int:
    """Return a time for C-core, where the largest number means no limit."""
    return min(round(seconds * 1_000), C_INT_MAX) or C_INT_MAX


def _bind(server: grpc.aio.Server, settings: Settings) -> str:
    host, _ = split_address(settings.listen_address)
    try:
        if settings.tls_cert_file is None:
            port = server.add_insecure_port(settings.listen_address)
        else:
            port = server.add_secure_port(settings.listen_address, _credentials(settings))
    except RuntimeError as error:
        raise StartError(
            f"LISTEN_ADDRESS: cannot listen on {settings.listen_address}:"
            f" {_why_not_bound(settings.listen_address)}"
        ) from error
    return f"{_bracketed(host)}:{port}"


def _why_not_bound(address: str) -> str:
    """Find out why gRPC cannot listen on an address: it does not say."""
    host, port = split_address(address)
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
                probe.listen()
    except OSError as error:
        return _words(error)
    return "GRPC_VERBOSITY=error shows why"


def _words(error: OSError) -> str:
    """Return the system's words for an error, without those of the library that met it."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno).lower()


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    assert settings.tls_cert_file is not None
    assert settings.tls_key_file is not None
    ca = settings.tls_client_ca_file
    pair = (settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())
    return grpc.ssl_server_credentials(
        [pair],
        root_certificates=ca.read_bytes() if ca else None,
        require_client_auth=ca is not None,
    )


async def _start_admin(
    settings: Settings,
    http_limits: HttpLimits,
    stack: AsyncExitStack,
    *,
    store: Store,
    metrics: Metrics,
    hub: Hub,
) -> str:
    if not settings.admin_address:
        return ""
    handler = admin_handler(store, metrics, lambda: _queues(store), lambda: hub.draining)
    server = HttpServer(handler, http_limits)
    return await _start_http(server, "ADMIN_ADDRESS", settings.admin_address, stack)


async def _queues(store: Store) -> list[Queue]:
    now = store.now()
    waiting = await store.queues()
    return [Queue(lane, count, max(0.0, now - first)) for lane, (count, first) in waiting.items()]


async def _start_callbacks(
    settings: Settings,
    http_limits: HttpLimits,
    urls: CallbackUrls | None,
    stack: AsyncExitStack,
    *,
    store: Store,
    poller: Poller,
    metrics: Metrics,
) -> str:
    if urls is None:
        return ""
    key = settings.kie_webhook_key
    webhook_key = key.get_secret_value().encode() if key else None
    callbacks = Callbacks(urls, webhook_key, poller, metrics, store.now)
    server = HttpServer(callbacks.answer, replace(http_limits, body_bytes=BODY_MAX_BYTES))
    return await _start_http(server, "HTTP_ADDRESS", settings.http_address, stack)


async def _start_http(server: HttpServer, setting: str, address: str, stack: AsyncExitStack) -> str:
    host, port = split_address(address)
    runner = web.ServerRunner(server, shutdown_timeout=1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise StartError(f"{setting}: cannot listen on {address}: {_words(error)}") from error
    bound_host, bound_port = runner.addresses[0][:2]
    return f"{_bracketed(bound_host)}:{bound_port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _drain(server: grpc.aio.Server, health: Health, hub: Hub, boundary: Boundary) -> None:
    """End the calls: watches are told to reconnect, the others get a moment to finish.

    No client can delay this: a call that does not end in time is cancelled, and one that does not
    end even then is abandoned.
    """
    log.info("shutting down")
    hub.drain()
    health.shut_down()
    await server.stop(CALLS_GRACE_SECONDS)
    try:
        async with asyncio.timeout(CANCELLED_CALLS_SECONDS):
            await boundary.idle()
    except TimeoutError:
        log.warning("calls abandoned, as they did not end")


async def _stop_polling(poller: Poller, polling: asyncio.Task[None]) -> None:
    poller.stop()
    await polling
    await poller.finish(POLLS_GRACE_SECONDS)
