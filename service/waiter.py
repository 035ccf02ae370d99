"""Wait for news until a deadline, as cheaply as ten thousand streams need it."""

import asyncio
import math


class Waiter:
    """One coroutine that waits, and is woken when there is news.

    A timer for an earlier deadline is kept, and started again when it fires: a new timer for every
    snapshot would cost a tenth of a push.
    """

    __slots__ = ("_deadline", "_future", "_timer", "_timer_time")

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_time = math.inf

    async def wait(self, deadline: float) -> None:
        """Return after `wake`, or at a time of the event loop's clock; possibly earlier."""
        loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._future = loop.create_future()
        if self._timer is None or deadline < self._timer_time:
            self._start_timer(loop)
        try:
            await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        """End the wait, if there is one."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def close(self) -> None:
        """Cancel the timer, so that nothing stays behind in the event loop."""
        if self._timer is not None:
            self._timer.cancel()

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer_time = self._deadline
        self._timer = loop.call_at(self._deadline, self._end_timer, loop)

    def _end_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if loop.time() >= self._deadline:
            self.wake()
        elif self._future is not None:
            self._start_timer(loop)
