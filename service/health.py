"""grpc.health.v1: report to load balancers whether calls are served.

The library's servicer holds a lock while it writes, so one watcher that does not read would delay
every change of the status, and with it the shutdown. This one writes without a lock.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # the library has no types
    """The status of each service: SERVING from the start to `shut_down`.

    Attributes:
        draining: Whether the process is shutting down.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._statuses = dict.fromkeys(names, Status.SERVING)
        self._changed = asyncio.Event()
        self._closed = False
        self.draining = False

    def shut_down(self) -> None:
        """Report NOT_SERVING from now on, to watchers as well."""
        self.draining = True
        self._statuses = dict.fromkeys(self._statuses, Status.NOT_SERVING)
        self._notify()

    def close(self) -> None:
        """End the streams of watchers, once they have the last status."""
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the proto's name
        """Return the status of a service; NOT_FOUND if there is no such service."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return Status(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Write the status of a service, and each change until the server shuts down."""
        written = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, Status.SERVICE_UNKNOWN)
            if status != written:
                await context.write(Status(status=status))
                written = status
            elif self._closed:
                return
            else:
                await changed.wait()
