"""The parts that the whole service shares, created in order."""

import asyncio
import math
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pydantic import SecretStr

from providers.kie.client import KieProvider
from providers.kie.http import Timeouts
from providers.urls import without_userinfo
from service.bounds import Bounds
from service.callbacks import CallbackUrls, callback_urls
from service.caller_limits import CallerLimits, LimitSet
from service.callers import Callers
from service.catalogue import TYPED_MEMBERS, Catalogue
from service.catalogue_refresh import CatalogueRefresh
from service.hub import Hub
from service.loop_lag import measure_loop_lag
from service.metrics import Metrics
from service.outage_log import OutageLog
from service.setting_types import api_key_in
from service.settings import Settings
from service.watched_secret import current_secret
from storage.opening import open_store
from storage.sqlite import sqlite_path
from storage.store import Store

if TYPE_CHECKING:  # imported only where traces are exported
    from service.tracing import Tracing

SIMULATOR_KEY = "simulator"  # a simulator takes any key
CALLER_LISTS = 8  # lists at a time for each caller, unless the limits file says otherwise

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What most of the service uses."""

    settings: Settings
    bounds: Bounds
    metrics: Metrics
    catalogue: Catalogue
    caller_limits: CallerLimits
    store: Store
    provider: KieProvider
    hub: Hub
    outage_log: OutageLog
    callback_urls: CallbackUrls | None


async def create_parts(
    settings: Settings,
    bounds: Bounds,
    callers: Callers,
    stack: AsyncExitStack,
    tracing: "Tracing | None" = None,
) -> Parts:
    """Create the parts; the stack stops them, and closes `tracing` last.

    Raises:
        StorageError: The database cannot be opened.
    """
    if tracing:
        stack.push_async_callback(tracing.close, bounds.grace.traces_seconds)
    catalogue = Catalogue(
        settings.disabled_models,
        unlisted=settings.kie_market_unlisted,
        checks_schemas=settings.kie_market_validation == "schema",
    )
    names = (lambda: callers.names) if settings.metrics_per_caller else None
    metrics = Metrics(TYPED_MEMBERS, names, catalogue.label)
    limits = _caller_limits(settings, bounds, callers, catalogue, metrics)
    start_background(measure_loop_lag(metrics), stack)
    store = open_store(
        settings.database_url.get_secret_value(),
        hints=settings.database_hints,
        observe=tracing.observing(metrics.database) if tracing else metrics.database,
        timeouts=bounds.database,
        needs=KieProvider.models,
    )
    stack.push_async_callback(_close, store, bounds.grace.database_seconds)
    provider = await start_provider(
        settings, bounds.kie, metrics, catalogue, stack, tracing=tracing
    )
    return Parts(
        settings=settings,
        bounds=bounds,
        metrics=metrics,
        catalogue=catalogue,
        caller_limits=limits,
        store=store,
        provider=provider,
        hub=Hub(),
        outage_log=OutageLog(),
        callback_urls=await callback_urls(settings, store),
    )


async def start_provider(
    settings: Settings,
    timeouts: Timeouts,
    metrics: Metrics,
    catalogue: Catalogue,
    stack: AsyncExitStack,
    *,
    tracing: "Tracing | None" = None,
) -> KieProvider:
    """Return the provider, or its simulator; the stack closes it."""
    metrics.show_simulated(settings.simulated)
    api_url, upload_url = settings.kie_api_url, settings.kie_upload_url
    if settings.uses_bundled_simulator:
        api_url = upload_url = await _start_simulator(settings, stack)
    if settings.simulated:
        _warn_of_samples(settings, api_url)
    key = current_secret(
        "kie_api_key",
        settings.kie_api_key or SecretStr(SIMULATOR_KEY),
        settings.kie_api_key_file,
        api_key_in,
        metrics,
    )
    arguments = (api_url, upload_url, key, metrics.provider_called, timeouts)
    if tracing is None:
        provider = KieProvider(*arguments, known=catalogue)
    else:
        # Imported only where it is used: without traces, OpenTelemetry is not loaded.
        from service.traced_provider import TracedProvider  # noqa: PLC0415

        provider = TracedProvider(tracing, *arguments, known=catalogue)
    stack.push_async_callback(provider.close)
    return provider


async def _start_simulator(settings: Settings, stack: AsyncExitStack) -> str:
    """Start the bundled simulator, and return its URL."""
    # Imported only where it is used, so that production does not load it.
    from providers.kie.simulator import Simulator, SimulatorSettings  # noqa: PLC0415

    database = sqlite_path(settings.database_url.get_secret_value()) or Path("generation")
    simulator = Simulator(SimulatorSettings(state_file=Path(f"{database}.simulator")))
    await stack.enter_async_context(simulator)
    return simulator.url


def _warn_of_samples(settings: Settings, api_url: str) -> None:
    url = without_userinfo(api_url)
    if settings.kie_simulator:
        log.warning(
            "KIE_SIMULATOR IS TRUE: tasks go to a simulator, and their results are samples",
            simulator=url,
        )
    elif settings.kie_api_key is None:
        log.warning(
            "KIE_API_KEY IS NOT SET: tasks go to the bundled simulator, and their results are"
            " samples",
            simulator=url,
        )
    else:
        log.warning(
            "KIE_API_URL IS NOT PUBLIC: results count as simulated (docs/settings.md)", url=url
        )


async def start_catalogue(parts: Parts) -> CatalogueRefresh:
    """Fill the catalogue from the database, and return what keeps it up to date."""
    refresh = CatalogueRefresh(
        parts.store,
        parts.provider.catalogue,
        parts.catalogue,
        parts.metrics,
        refresh_seconds=parts.settings.kie_catalogue_refresh_seconds,
        times=parts.bounds.upkeep.catalogue,
    )
    await refresh.start()
    if unknown := parts.catalogue.unknown_disabled_models():
        log.warning("DISABLED_MODELS names unknown models", models=", ".join(unknown))
    return refresh


def _caller_limits(
    settings: Settings, bounds: Bounds, callers: Callers, catalogue: Catalogue, metrics: Metrics
) -> CallerLimits:
    return CallerLimits(
        settings.caller_limits_file,
        _service_limits(settings),
        callers,
        metrics,
        models=lambda: catalogue.names,
        recheck_seconds=bounds.recheck_seconds,
    )


def _service_limits(settings: Settings) -> LimitSet:
    """Return the limits of a caller that is the only one."""
    return LimitSet(
        queue=settings.queue_max_tasks,
        running=settings.kie_running_max or math.inf,
        watches=settings.watch_max_streams,
        uploads=settings.uploads_max,
        lists=CALLER_LISTS,
        creates_per_minute=math.inf,
        models=("*",),
    )


async def _close(store: Store, seconds: float) -> None:
    """Finish the writes that wait, unless the database takes too long."""
    try:
        async with asyncio.timeout(seconds):
            await store.close()
    except TimeoutError:
        log.warning("connections to the database abandoned, as it does not answer")


def start_background(duty: Coroutine[None, None, None], stack: AsyncExitStack) -> None:
    """Run a duty until everything that was started after it has stopped."""
    task = asyncio.create_task(duty)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)
