"""The client for programs without asyncio: Django, Flask, scripts.

    with GenerationClient("127.0.0.1:50051") as client:
        task = client.create(Imagen4Params(prompt="a lighthouse"), prompt_id="p-1")
        for task in client.watch(task.id):
            print(state(task))
        save_artifacts(task, "results")

Methods, parameters and exceptions are those of the async client, which runs on an event loop in a
daemon thread. All blocking clients of a process share this thread.
"""

import asyncio
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from kie_generation import client, saving
from kie_generation.connection import HEARTBEAT_TIMEOUT_SECONDS
from kie_generation.retry import OnRetry, Retry
from kie_generation.tls import Tls

P = ParamSpec("P")
T = TypeVar("T")

_CLOSED = "the client is closed"


class _EventLoopThread:
    """An event loop in a daemon thread, started by the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process_id: int | None = None

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a coroutine on the event loop.

        Raises:
            RuntimeError: This process was forked from one that has used the event loop. The thread
                does not exist here, and gRPC does not support it.
        """
        if self._process_id not in (None, os.getpid()):
            raise RuntimeError("a client was used before this process was forked")
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._process_id = os.getpid()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name=__name__, daemon=True
                )
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the event loop, and return its result.

        Raises:
            RuntimeError: As `start` does, or this is the thread of the event loop.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback of the client must not call the client")
        future = self.start(work)
        try:
            return future.result()
        finally:
            future.cancel()  # has an effect only if the wait was interrupted, as by Ctrl-C


_event_loop = _EventLoopThread()


def _blocking(
    method: Callable[Concatenate[client.GenerationClient, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[GenerationClient, P], T]":
    """Turn a method of the async client into a blocking one."""

    @functools.wraps(method)
    def call(self: "GenerationClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def work() -> T:
            return await method(await self._connected(), *args, **kwargs)

        return self._run(work)

    return call


def _iterating(
    method: Callable[Concatenate[client.GenerationClient, P], AsyncGenerator[T, None]],
) -> "Callable[Concatenate[GenerationClient, P], Generator[T, None, None]]":
    """Turn a method of the async client that yields into a generator."""

    @functools.wraps(method)
    def iterate(
        self: "GenerationClient", /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[T, None, None]:
        items: AsyncGenerator[T, None] | None = None

        async def following() -> T | None:
            nonlocal items
            if items is None:
                items = method(await self._connected(), *args, **kwargs)
            return await anext(items, None)

        async def close() -> None:
            if items is not None:
                await items.aclose()

        try:
            while (item := self._run(following)) is not None:
                yield item
        finally:
            # Without waiting: the garbage collector may close the generator in any thread.
            _event_loop.start(close)

    return iterate


class GenerationClient:
    """A blocking client of the generation service.

    Any number of threads can share it. It connects with the first call; close it with `close`, or
    use it in a `with` block. It may be created before a fork, but not used before it. Callbacks
    (`on_retry`, `on_connection`) run in the thread of the event loop, and must not call the client.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        retry: Retry | None = None,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT_SECONDS,
        give_up_after_seconds: float | None = None,
        on_retry: OnRetry | None = None,
    ) -> None:
        """Configure the client; the arguments are those of `kie_generation.GenerationClient`."""
        self._client = client.GenerationClient(
            address,
            token=token,
            tls=tls,
            retry=retry,
            heartbeat_timeout=heartbeat_timeout,
            give_up_after_seconds=give_up_after_seconds,
            on_retry=on_retry,
        )
        self._is_open = False
        self._is_closed = False

    create = _blocking(client.GenerationClient.create)
    get = _blocking(client.GenerationClient.get)
    list = _iterating(client.GenerationClient.list)
    list_models = _iterating(client.GenerationClient.list_models)
    get_model = _blocking(client.GenerationClient.get_model)
    cancel = _blocking(client.GenerationClient.cancel)
    watch = _iterating(client.GenerationClient.watch)
    watch_tasks = _iterating(client.GenerationClient.watch_tasks)
    wait = _blocking(client.GenerationClient.wait)
    upload = _blocking(client.GenerationClient.upload)
    download_artifact = _iterating(client.GenerationClient.download_artifact)
    save_artifact = _blocking(client.GenerationClient.save_artifact)
    sign_artifact = _blocking(client.GenerationClient.sign_artifact)
    save_artifacts = _blocking(client.GenerationClient.save_artifacts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls of other threads fail, and so do later ones."""
        _event_loop.run(self._close)

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return _event_loop.run(work)
        except (CancelledError, grpc.aio.UsageError):
            if not self._is_closed:
                raise
            raise RuntimeError(_CLOSED) from None  # by another thread, during the call

    async def _connected(self) -> client.GenerationClient:
        # This and _close run on one event loop, so they need no lock.
        if self._is_closed:
            raise RuntimeError(_CLOSED)
        if not self._is_open:
            self._is_open = True
            await self._client.__aenter__()
        return self._client

    async def _close(self) -> None:
        was_closed, self._is_closed = self._is_closed, True
        if self._is_open and not was_closed:
            await self._client.__aexit__()


def _blocking_function(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return _event_loop.run(lambda: function(*args, **kwargs))

    return call


save_artifacts = _blocking_function(saving.save_artifacts)
