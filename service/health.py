"""grpc.health.v1: report to load balancers whether calls are served.

The library's servicer holds a lock while it writes, so one watcher that does not read would delay
every change of the status, and with it the shutdown. This one writes without a lock.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.vitals import Vitals

LIVENESS = "liveness"  # the name under which an orchestrator asks whether to restart the process

Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # the library has no types
    """The status of each service, and of `liveness`."""

    def __init__(self, names: Iterable[str], vitals: Vitals) -> None:
        self._names = tuple(names)
        self._vitals = vitals
        self._statuses: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._refresh()

    async def run_once(self) -> None:
        """Check the vitals, and report what has changed."""
        await self._vitals.check()
        self._refresh()

    def shut_down(self) -> None:
        """Report NOT_SERVING from now on, to watchers as well."""
        self._vitals.draining = True
        self._refresh()

    def close(self) -> None:
        """End the streams of watchers, once they have the last status."""
        self._closed = True
        self._notify()

    def _refresh(self) -> None:
        ready = _status(self._vitals.why_not_ready())
        statuses = dict.fromkeys(self._names, ready)
        statuses[LIVENESS] = _status(self._vitals.why_not_alive())
        if statuses != self._statuses:
            self._statuses = statuses
            self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the proto's name
        """Return the status of a service; NOT_FOUND if there is no such service."""
        self._refresh()
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return Status(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Write the status of a service, and each change until the server shuts down."""
        name = request.service if request.service in self._statuses else None
        del request  # the name of a service that does not exist may be long
        written = None
        while True:
            changed = self._changed
            status = Status.SERVICE_UNKNOWN if name is None else self._statuses[name]
            if status != written:
                await context.write(Status(status=status))
                written = status
            elif self._closed:
                return
            else:
                await changed.wait()


def _status(trouble: str) -> Any:
    return Status.NOT_SERVING if trouble else Status.SERVING
