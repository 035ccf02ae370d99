"""For operators: /healthz, /readyz and /metrics over HTTP."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import hdrs, web
from prometheus_client.aiohttp import make_aiohttp_handler

from service.http import Handler
from service.metrics import Metrics, ReadQueues
from storage.errors import StorageUnavailableError
from storage.store import Store

QUEUES_SECONDS = 2.0  # less than a scraper waits: without the queues it still gets the rest
INDEX = """<!DOCTYPE html>
<title>generation service</title>
<ul>
<li><a href="/healthz">/healthz</a>: the process is alive
<li><a href="/readyz">/readyz</a>: it can serve
<li><a href="/metrics">/metrics</a>: for Prometheus
</ul>
"""


def admin_handler(
    store: Store,
    metrics: Metrics,
    read_queues: ReadQueues,
    draining: Callable[[], bool],
    queues_seconds: float = QUEUES_SECONDS,
) -> Handler:
    """Return the handler of the admin port.

    Args:
        store: /readyz pings it.
        metrics: /metrics shows them.
        read_queues: Reads the queues for /metrics.
        draining: Whether the server is shutting down.
        queues_seconds: How long the queues may take to read.
    """
    render = make_aiohttp_handler(metrics.registry, disable_compression=True)

    async def index(_: web.BaseRequest) -> web.Response:
        return web.Response(text=INDEX, content_type="text/html")

    async def healthz(_: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.BaseRequest) -> web.Response:
        if draining():
            return web.Response(status=503, text="shutting down\n")
        try:
            await store.ping()
        except StorageUnavailableError:
            return web.Response(status=503, text="the database is unavailable\n")
        return web.Response(text="ok\n")

    async def show(request: web.BaseRequest) -> web.StreamResponse:
        try:
            async with asyncio.timeout(queues_seconds):
                queues = await read_queues()
        except (StorageUnavailableError, TimeoutError):
            queues = ()
        metrics.show_queues(queues)
        try:
            return await render(request)  # type: ignore[arg-type] # both types have what it reads
        except (TypeError, ValueError):  # a version in Accept that is not a number
            return web.Response(status=HTTPStatus.NOT_ACCEPTABLE)

    pages: dict[str, Handler] = {
        "/": index,
        "/healthz": healthz,
        "/readyz": readyz,
        "/metrics": show,
    }

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if (page := pages.get(request.path)) is None:
            return web.Response(status=HTTPStatus.NOT_FOUND, text="see /\n")
        if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD}:
            return web.Response(
                status=HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"}
            )
        return await page(request)

    return answer
