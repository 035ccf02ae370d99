"""Threads for calls to a file system, which may hang for as long as a server does not answer.

They are daemons: unlike the threads of an executor, they cannot keep the process from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """Threads that are started when they are needed, up to a number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._started = 0
        self._unfinished = 0  # calls, including those that hang

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """Call in a thread, and return the result or raise the error.

        A call that has begun continues if its caller is cancelled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put(_Call(loop, future, call, arguments, self._finished))
        self._unfinished += 1
        if self._started < min(self._unfinished, self._most):
            self._started += 1
            threading.Thread(target=self._work, name="files", daemon=True).start()
        return await future

    def _finished(self) -> None:
        self._unfinished -= 1

    def _work(self) -> None:
        while True:
            self._calls.get().run()


class _Call:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        call: Callable[..., Any],
        arguments: tuple[object, ...],
        on_finish: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._future = future
        self._call = call
        self._arguments = arguments
        self._on_finish = on_finish

    def run(self) -> None:
        """Call, in a thread, unless nobody waits for it any more."""
        result: Any = None
        failure: Exception | None = None
        if not self._future.cancelled():
            try:
                result = self._call(*self._arguments)
            except Exception as error:  # noqa: BLE001 - the caller gets it
                failure = error
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._settle, result, failure)

    def _settle(self, result: Any, failure: Exception | None) -> None:
        self._on_finish()
        if self._future.done():
            return
        if failure is None:
            self._future.set_result(result)
        else:
            self._future.set_exception(failure)
