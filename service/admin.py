"""For whoever runs the service: /healthz and /readyz over HTTP."""

from collections.abc import Callable

from aiohttp import web

from storage.errors import StorageUnavailableError
from storage.store import Store


def admin_app(store: Store, draining: Callable[[], bool]) -> web.Application:
    """Return the application: /healthz says that the process lives, /readyz that it can serve."""

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

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return app
