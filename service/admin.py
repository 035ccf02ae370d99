"""For whoever runs the service: /healthz, /readyz and /metrics over HTTP."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from service.metrics import Metrics, ReadQueues
from storage.errors import StorageUnavailableError
from storage.store import Store

QUEUES_SECONDS = 2.0  # less than a scraper waits: without the queues it still gets the rest


def admin_app(
    store: Store, metrics: Metrics, read_queues: ReadQueues, draining: Callable[[], bool]
) -> web.Application:
    """Return the application.

    /healthz says that the process lives, /readyz that it can serve, /metrics what it measured.
    """
    render = make_aiohttp_handler(metrics.registry, disable_compression=True)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if draining():
            return web.Response(status=503, text="shutting down\n")
        try:
            await store.ping()
        except StorageUnavailableError:
            return web.Response(status=503, text="the database is away\n")
        return web.Response(text="ok\n")

    async def show(request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(QUEUES_SECONDS):
                queues = await read_queues()
        except (StorageUnavailableError, TimeoutError):
            queues = ()
        metrics.show_queues(queues)
        return await render(request)

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", show),
        ]
    )
    return app
