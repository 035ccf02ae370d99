"""Puts the gRPC server together: the calls, and what surrounds each of them."""

import math
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from generated.generation.v1 import generation_pb2
from generated.generation.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from service import descriptors
from service.admission import Admission
from service.artifacts import Artifacts
from service.callers import Callers
from service.creating import Creator
from service.events import TaskEvents
from service.feed import Feed
from service.files import RECHECK_SECONDS
from service.forever import forever
from service.health import Health
from service.interceptor import Boundary
from service.listen import bind, channel_options
from service.measurements import Measurements
from service.messages import Answers
from service.model_lists import ModelLists
from service.open_calls import LimitedCalls, OpenCalls
from service.outbox import StreamOutbox
from service.own_tasks import OwnTasks
from service.pages import Pages
from service.parts import Parts, start_background
from service.reflection import add_reflection
from service.servicer import Servicer
from service.settings import Settings
from service.tls import server_tls
from service.uploads import Uploads
from service.watch import Watcher
from service.watch_all import ChangeWatcher

if TYPE_CHECKING:  # imported only where traces are exported
    from service.tracing import Tracing

SERVICE_NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

log = structlog.get_logger()


def limited_calls(parts: Parts) -> LimitedCalls:
    """Return what counts the calls whose number is limited."""
    settings, limits, metrics = parts.settings, parts.caller_limits, parts.metrics
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


def start_boundary(
    parts: Parts,
    callers: Callers,
    watches: OpenCalls,
    tracing: "Tracing | None",
    stack: AsyncExitStack,
) -> Boundary:
    """Return what surrounds every call, and start its checks."""
    boundary = Boundary(
        callers,
        parts.caller_limits,
        watches,
        parts.metrics,
        outage_log=parts.outage_log,
        tracing=tracing,
    )
    start_background(boundary.tend(parts.outage_log), stack)
    return boundary


def create_servicer(
    parts: Parts,
    events: TaskEvents,
    feed: Feed,
    answers: Answers,
    *,
    calls: LimitedCalls,
    artifacts: Artifacts,
    tracing: "Tracing | None",
) -> Servicer:
    """Return the methods of the service."""
    settings, store = parts.settings, parts.store
    outbox = StreamOutbox(on_refusal=parts.metrics.caller_refused)
    return Servicer(
        tasks=OwnTasks(store, events),
        creator=_creator(parts, events, tracing),
        watcher=Watcher(
            store,
            parts.hub,
            parts.metrics,
            events,
            heartbeat_seconds=settings.watch_heartbeat_seconds,
            max_age_seconds=settings.watch_max_age_seconds,
            open_streams=calls.watches,
            outbox=outbox,
        ),
        change_watcher=ChangeWatcher(
            store,
            feed,
            open_streams=calls.watches,
            outbox=outbox,
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
        limited_calls=calls,
        answers=answers,
    )


def _creator(parts: Parts, events: TaskEvents, tracing: "Tracing | None") -> Creator:
    settings = parts.settings
    admission = Admission(
        queue_max_tasks=settings.queue_max_tasks,
        provider=parts.provider,
        catalogue=parts.catalogue,
        limits=parts.caller_limits,
        metrics=parts.metrics,
    )
    return Creator(
        store=parts.store,
        provider=parts.provider,
        events=events,
        hub=parts.hub,
        admission=admission,
        metrics=parts.metrics,
        wait_seconds=settings.create_wait_seconds,
        traceparent=tracing.traceparent if tracing else None,
    )


def _missing_descriptors(settings: Settings) -> int:
    missing = descriptors.missing(settings.watch_max_streams, descriptors.limit())
    if missing:
        log.warning(
            "the limit of file descriptors (nofile) is too low for WATCH_MAX_STREAMS: raise it",
            limit=descriptors.limit(),
            missing=missing,
        )
    return missing


def create_server(
    parts: Parts, boundary: Boundary, servicer: Servicer, health: Health
) -> grpc.aio.Server:
    """Return the server, without ports."""
    parts.metrics.show_missing_descriptors(_missing_descriptors(parts.settings))
    options = channel_options(parts.settings, parts.bounds.handshake_seconds)
    server = grpc.aio.server(interceptors=(boundary,), options=options)
    add_GenerationServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    add_reflection(server, names)
    return server


def bind_server(server: grpc.aio.Server, parts: Parts, stack: AsyncExitStack) -> str:
    """Bind the server to LISTEN_ADDRESS, with TLS if it is set, and return the bound address.

    Raises:
        StartError: The address is in use, or a certificate is invalid.
    """
    if (tls := server_tls(parts.settings, parts.metrics)) is None:
        return bind(server, parts.settings, None)
    check = forever(tls.run_once, "check of certificates", RECHECK_SECONDS, parts.outage_log)
    start_background(check, stack)
    return bind(server, parts.settings, tls.credentials())
