"""For operators: /healthz, /readyz and /metrics over HTTP."""

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus

from aiohttp import hdrs, web
from prometheus_client.aiohttp import make_aiohttp_handler

from service.http import Handler
from service.metrics import Metrics, ReadQueues
from service.vitals import Vitals
from storage.errors import StorageUnavailableError

INDEX = """<!DOCTYPE html>
<title>generation service</title>
<ul>
<li><a href="/healthz">/healthz</a>: the process is alive; otherwise it has to be restarted
<li><a href="/readyz">/readyz</a>: calls may be sent to it
<li><a href="/metrics">/metrics</a>: for Prometheus
</ul>
"""


class Admin:
    """Answers requests to the admin port."""

    def __init__(
        self,
        vitals: Vitals,
        metrics: Metrics,
        read_queues: ReadQueues,
        notes: Callable[[], Iterable[str]],
        *,
        queues_seconds: float,
    ) -> None:
        """Keep what the responses are read from.

        Args:
            vitals: /healthz and /readyz report them.
            metrics: /metrics shows them.
            read_queues: Reads the queues for /metrics.
            notes: Returns what /readyz reports of a service that is ready, a line for each.
            queues_seconds: How long the queues may take to read; without them, /metrics still has
                the rest.
        """
        self._vitals = vitals
        self._metrics = metrics
        self._read_queues = read_queues
        self._notes = notes
        self._queues_seconds = queues_seconds
        self._render = make_aiohttp_handler(metrics.registry, disable_compression=True)
        self._pages: dict[str, Handler] = {
            "/": self._index,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._show,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request by its path."""
        if (page := self._pages.get(request.path)) is None:
            return web.Response(status=HTTPStatus.NOT_FOUND, text="see /\n")
        if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD}:
            return web.Response(
                status=HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"}
            )
        return await page(request)

    async def _index(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text=INDEX, content_type="text/html")

    async def _healthz(self, _: web.BaseRequest) -> web.Response:
        return _report(self._vitals.why_not_alive(), ())

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        return _report(self._vitals.why_not_ready(), self._notes())

    async def _show(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            async with asyncio.timeout(self._queues_seconds):
                queues = await self._read_queues()
        except (StorageUnavailableError, TimeoutError):
            queues = ()
        self._metrics.show_queues(queues)
        try:
            return await self._render(request)  # type: ignore[arg-type] # it reads what both have
        except (TypeError, ValueError):  # a version in Accept that is not a number
            return web.Response(status=HTTPStatus.NOT_ACCEPTABLE)


def _report(trouble: str, notes: Iterable[str]) -> web.Response:
    """Answer 503 with what is wrong, or 200 with `ok` and a line for each note."""
    if trouble:
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=f"{trouble}\n")
    return web.Response(text="".join(f"{line}\n" for line in ("ok", *notes)))
