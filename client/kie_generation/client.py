"""The async client: one method for each RPC, with retries and reconnects."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from kie_generation.channel import authorization, open_channel
from kie_generation.errors import (
    GenerationError,
    UnauthenticatedError,
    UnavailableError,
)
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STATUS_UNSPECIFIED,
    CancelTaskRequest,
    CreateTaskRequest,
    GenerationTask,
    ListTasksRequest,
    QueryTaskRequest,
    TaskStatus,
    UploadedFile,
    UploadMetadata,
    WatchTaskRequest,
)
from kie_generation.generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from kie_generation.params import provider_params
from kie_generation.retry import OnRetry, Retry, retrying
from kie_generation.tls import Tls, find_problem
from kie_generation.upload import fingerprint, in_thread, read_chunks, send
from kie_generation.watch import OnConnection, WatchCall, WatchPolicy, ended, watch_until_ended

# More than CREATE_WAIT_SECONDS of the service, so that a create can return the provider's answer.
CALL_TIMEOUT_SECONDS = 30.0
UPLOAD_TIMEOUT_SECONDS = 600.0
UPLOAD_ATTEMPTS = 8  # unless Retry.attempts is set; each attempt sends the whole file
HEARTBEAT_TIMEOUT_SECONDS = 60.0  # three of the server's heartbeats

Q = TypeVar("Q")
A = TypeVar("A")


class GenerationClient:
    """An async client of the generation service.

    Use it with `async with`, in a single event loop, where any number of tasks can share it.

    Every method raises GenerationError or a subclass of it; see `kie_generation.errors`. Calls that
    fail with UnavailableError are retried within their timeout.
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
        """Configure the client; it connects after the context is entered.

        Args:
            address: host:port, or any target that gRPC resolves. Except for loopback, gRPC connects
                through the proxy that the environment names (`https_proxy`, `no_proxy`).
            token: the caller's token, if the service requires one.
            tls: the certificates; None disables TLS.
            retry: how calls are retried; None uses the defaults of Retry.
            heartbeat_timeout: seconds of silence after which a watch reconnects.
            give_up_after_seconds: how long a watch tries to reconnect before it raises; None means
                without limit.
            on_retry: called with the error before each retry of a call. Watches call on_connection.

        Raises:
            TokenError: the token contains characters that cannot be sent.
        """
        self._address = address
        self._metadata = authorization(token) if token else ()
        self._tls = tls
        self._retry = retry or Retry()
        self._on_retry = on_retry or _ignore
        self._watch_policy = WatchPolicy(
            self._retry, heartbeat_timeout, give_up_after_seconds, self._diagnose
        )

    async def __aenter__(self) -> Self:
        self._channel = open_channel(self._address, self._tls)
        self._stub = GenerationServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def create(
        self,
        params: Message,
        *,
        prompt_id: str,
        request_id: str | None = None,
        timeout: float = CALL_TIMEOUT_SECONDS,
    ) -> GenerationTask:
        """Create a task and return it, usually PENDING.

        Args:
            params: a model's message: Imagen4Params, MidjourneyParams, Veo3Params, Sora2Params or a
                later one.
            prompt_id: your reference, 1-255 characters.
            request_id: makes the create idempotent; None generates a random one, so that retries
                never pay twice.
            timeout: seconds for all attempts. If it is shorter than the service's
                CREATE_WAIT_SECONDS, the call may return a task that the provider refuses later.

        Raises:
            RefusedError: the provider refused; `task_id` is the id of the FAILED task.
            GenerationError: `request_id` is set; repeat the create with it after UnavailableError.
            TypeError: `params` is not a model's message.
        """
        request = CreateTaskRequest(
            prompt_id=prompt_id,
            provider_params=provider_params(params),
            request_id=request_id or uuid.uuid4().hex,
        )
        try:
            return (await self._call(self._stub.CreateTask, request, timeout)).task
        except GenerationError as error:
            error.request_id = request.request_id
            raise

    async def get(self, task_id: str, *, timeout: float = CALL_TIMEOUT_SECONDS) -> GenerationTask:
        """Return the newest snapshot. Raises TaskNotFoundError."""
        request = QueryTaskRequest(task_id=task_id)
        return (await self._call(self._stub.QueryTask, request, timeout)).task

    async def list(
        self,
        *,
        prompt_id: str = "",
        status: TaskStatus.ValueType = TASK_STATUS_UNSPECIFIED,
        page_size: int = 0,
        timeout: float = CALL_TIMEOUT_SECONDS,
    ) -> AsyncGenerator[GenerationTask, None]:
        """Yield the caller's tasks, newest first; pages are fetched as they are needed.

        Args:
            prompt_id: only tasks with this prompt_id; "" for all.
            status: only tasks with this status; TASK_STATUS_UNSPECIFIED for all.
            page_size: tasks per page, at most 200; 0 for the service's default.
            timeout: seconds for each page.
        """
        request = ListTasksRequest(prompt_id=prompt_id, status=status, page_size=page_size)
        while True:
            page = await self._call(self._stub.ListTasks, request, timeout)
            for task in page.tasks:
                yield task
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(
        self, task_id: str, *, timeout: float = CALL_TIMEOUT_SECONDS
    ) -> GenerationTask:
        """Cancel a task that has not been sent to the provider, and return it as FAILED.

        Raises:
            GenerationError: with the reason ALREADY_SUBMITTED if it is too late.
        """
        request = CancelTaskRequest(task_id=task_id)
        return (await self._call(self._stub.CancelTask, request, timeout)).task

    def watch(
        self, task_id: str, after_revision: int = 0, *, on_connection: OnConnection | None = None
    ) -> AsyncGenerator[GenerationTask, None]:
        """Yield the current snapshot and each newer one, the terminal one last.

        A lost stream is reopened automatically. Revisions only increase; intermediate snapshots may
        be skipped.

        Args:
            task_id: the task.
            after_revision: the last revision received; 0 for none.
            on_connection: called with the error whenever the stream is lost, and with None when it
                works again.

        Raises:
            GenerationError: an error that a retry cannot fix, at once; UnavailableError only after
                give_up_after_seconds.
        """

        def open_stream(seen: int) -> WatchCall:
            request = WatchTaskRequest(task_id=task_id, after_revision=seen)
            return self._stub.WatchTask(request, metadata=self._metadata)

        return watch_until_ended(
            open_stream, after_revision, self._watch_policy, on_connection or _ignore
        )

    async def wait(self, task_id: str, timeout: float | None = None) -> GenerationTask:
        """Return the terminal snapshot.

        Raises:
            TimeoutError: the task has not ended within `timeout` seconds; it is not affected.
        """
        async with asyncio.timeout(timeout), aclosing(self.watch(task_id)) as snapshots:
            async for task in snapshots:
                if ended(task):
                    return task
        raise AssertionError("a watch ends with a terminal snapshot")

    async def upload(
        self,
        source: str | Path | AsyncIterable[bytes] | Iterable[bytes],
        *,
        file_name: str | None = None,
        content_type: str | None = None,
        upload_path: str | None = None,
        timeout: float = UPLOAD_TIMEOUT_SECONDS,
    ) -> UploadedFile:
        """Upload a file, and return where the provider stores it.

        Use its `download_url` in `file_urls` and `image_urls`. A file on disk is read twice: first
        for its size and SHA-256, which the service verifies. It is sent again after
        UnavailableError. An iterator can only be read once, so neither applies to it.

        Args:
            source: a path, or the content in chunks of any size.
            file_name: 1-255 bytes in UTF-8; defaults to the path's. Required with an iterator.
            content_type: the media type; defaults to that of the file name's extension.
            upload_path: the folder at the provider; defaults to the service's default.
            timeout: seconds for all attempts.

        Raises:
            ValueError: an iterator was given without a file_name.
            OSError: the file cannot be read.
        """
        metadata = UploadMetadata(
            file_name=file_name or "",
            content_type=content_type or "",
            upload_path=upload_path or "",
        )
        if not isinstance(source, str | Path):
            if not file_name:
                raise ValueError("an upload from an iterator needs a file_name")
            chunks = source if isinstance(source, AsyncIterable) else in_thread(source)
            return await self._send(metadata, lambda: chunks, timeout, Retry(attempts=1))
        path = Path(source)
        metadata.file_name = _as_unicode(file_name or path.name)
        metadata.size_bytes, metadata.sha256 = await asyncio.to_thread(fingerprint, path)
        retry = replace(self._retry, attempts=self._retry.attempts or UPLOAD_ATTEMPTS)
        return await self._send(metadata, lambda: read_chunks(path), timeout, retry)

    async def _send(
        self,
        metadata: UploadMetadata,
        content: Callable[[], AsyncIterable[bytes]],
        timeout: float,
        retry: Retry,
    ) -> UploadedFile:
        async def attempt(seconds: float) -> UploadedFile:
            call = self._stub.UploadFile(timeout=seconds, metadata=self._metadata)
            return (await send(call, metadata, content())).file

        return await self._retrying(attempt, timeout, retry)

    async def _call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Q, A], request: Q, timeout: float
    ) -> A:
        async def attempt(seconds: float) -> A:
            return await method(request, timeout=seconds, metadata=self._metadata)

        return await self._retrying(attempt, timeout, self._retry)

    async def _retrying(
        self, attempt: Callable[[float], Awaitable[A]], timeout: float, retry: Retry
    ) -> A:
        return await retrying(
            attempt,
            timeout=timeout,
            retry=retry,
            diagnose=self._diagnose,
            on_retry=self._on_retry,
        )

    async def _diagnose(self, error: UnavailableError) -> GenerationError:
        """Return an UnauthenticatedError if TLS cannot work with this server, else the error."""
        closed = any(text in error.message for text in ("Socket closed", "reset", "Broken pipe"))
        if error.reason or "failed to connect" not in error.message or not closed:
            return error
        problem = await find_problem(self._address, self._tls)
        return UnauthenticatedError(error.code, problem) if problem else error


def _as_unicode(file_name: str) -> str:
    """Return a file name that can be sent, even if its bytes on disk are not valid UTF-8."""
    return file_name.encode(errors="surrogateescape").decode(errors="replace")


def _ignore(_: object) -> None:
    pass
