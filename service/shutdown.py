"""The end of the process: it loses nothing that is paid for, and takes a bounded time.

A load balancer learns first that this process will stop, and calls are still served meanwhile.
Then calls and polls get a moment: they can be repeated. Paid requests cannot, so they get all the
time that is left.
"""

import asyncio
from dataclasses import dataclass

import grpc
import structlog

from service.bounds import Grace
from service.feed import Feed
from service.health import Health
from service.hub import Hub
from service.interceptor import Boundary
from service.poller import Poller

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ShutdownTimes:
    """How long each part of a shutdown may take.

    Attributes:
        drain_delay_seconds: From the signal until calls are refused.
        shutdown_seconds: From there to the end of the process.
        grace: How much of it each step may take.
    """

    drain_delay_seconds: float
    shutdown_seconds: float
    grace: Grace

    @property
    def calls_seconds(self) -> float:
        """How long calls and polls may take: at most a third of the whole."""
        return min(self.grace.calls_seconds, self.shutdown_seconds / 3)

    @property
    def cancelled_calls_seconds(self) -> float:
        """How long calls may take that were cancelled: at most a ninth of the whole."""
        return min(self.grace.cancelled_calls_seconds, self.shutdown_seconds / 9)

    @property
    def paid_seconds(self) -> float:
        """How long paid requests may take: all but what closing the database takes."""
        return max(0.0, self.shutdown_seconds - self.grace.closing_seconds)


class Shutdown:
    """Ends what the process does for callers, and what it does at the provider."""

    def __init__(
        self,
        server: grpc.aio.Server,
        boundary: Boundary,
        hub: Hub,
        feed: Feed,
        health: Health,
        *,
        poller: Poller,
        polling: asyncio.Task[None],
        times: ShutdownTimes,
    ) -> None:
        """Prepare the shutdown.

        Args:
            server: Refuses calls after the drain delay.
            boundary: Knows the calls in progress.
            hub: Ends watches of tasks, and the waits of CreateTask.
            feed: Ends streams of all changes.
            health: Reports first that calls will be refused soon.
            poller: Starts no requests after the drain delay.
            polling: Its loop.
            times: How long each part may take.
        """
        self._server = server
        self._boundary = boundary
        self._hub = hub
        self._feed = feed
        self._health = health
        self._poller = poller
        self._polling = polling
        self._times = times

    async def run(self) -> None:
        """Shut down; no client, provider or database can delay this."""
        times = self._times
        log.info("shutting down", calls_refused_in_seconds=times.drain_delay_seconds)
        self._health.shut_down()
        await asyncio.sleep(times.drain_delay_seconds)
        self._health.close()
        self._hub.drain()
        self._feed.drain()
        self._poller.stop()
        await asyncio.gather(self._end_calls(), self._end_polling())

    async def _end_calls(self) -> None:
        """End the calls: watchers are asked to reconnect, other calls get a moment to finish.

        A call that does not end in time is cancelled, and one that does not end even then is
        abandoned.
        """
        await self._server.stop(self._times.calls_seconds)
        try:
            async with asyncio.timeout(self._times.cancelled_calls_seconds):
                await self._boundary.idle()
        except TimeoutError:
            log.warning("calls abandoned, as they did not end")

    async def _end_polling(self) -> None:
        """Let the poller finish; jobs in progress continue while its last claim is awaited."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await asyncio.wait([self._polling], timeout=self._times.paid_seconds)
        self._polling.cancel()
        waited = clock() - began
        await self._poller.finish(
            self._times.calls_seconds - waited, self._times.paid_seconds - waited
        )
