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
    """The status of each service: SERVING from the start to `shut_down`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._statuses = dict.fromkeys(names, Status.SERVING)
        self._changed = asyncio.Event()

    def shut_down(self) -> None:
        """Report NOT_SERVING from now on, to watchers as well."""
        self._statuses = dict.fromkeys(self._statuses, Status.NOT_SERVING)
        self._changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the proto's name
        """Return the status of a service; NOT_FOUND if there is no such service."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return Status(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Write the status of a service, and the last one when the server shuts down."""
        if not self._changed.is_set():
            await context.write(self._status(request.service))
            await self._changed.wait()
        await context.write(self._status(request.service))

    def _status(self, service: str) -> Any:
        return Status(status=self._statuses.get(service, Status.SERVICE_UNKNOWN))
