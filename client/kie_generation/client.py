"""The client: a method per RPC, each safe to call on a bad day."""

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from client.channel import open_channel
from client.errors import GenerationError, TokenError, UnauthenticatedError, UnavailableError
from client.retry import OnRetry, Retry, retrying
from client.tls import Tls, find_problem
from client.upload import fingerprint, read_chunks, send
from client.watch import OnConnection, WatchCall, WatchPolicy, ended, watch_until_ended
from generated.generation.v1.generation_pb2 import (
    TASK_STATUS_UNSPECIFIED,
    CancelTaskRequest,
    CreateTaskRequest,
    GenerationTask,
    KieParams,
    ListTasksRequest,
    ProviderParams,
    QueryTaskRequest,
    TaskStatus,
    UploadedFile,
    UploadMetadata,
    WatchTaskRequest,
)
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub

CALL_TIMEOUT_SECONDS = (
    30.0  # above CREATE_WAIT_SECONDS, so that a create may hear the provider's verdict
)
UPLOAD_TIMEOUT_SECONDS = 600.0
TOKEN = re.compile(r"[\x20-\x7e]+")
UPLOAD_ATTEMPTS = 8  # unless Retry says otherwise; each sends the whole file
HEARTBEAT_TIMEOUT_SECONDS = 60.0  # three of the server's heartbeats

Q = TypeVar("Q")
A = TypeVar("A")


class GenerationClient:
    """An async client of the generation service.

    Use it as `async with`, in one event loop; it is safe to share there.

    Every method raises GenerationError or a subclass; see `client.errors`. What is UnavailableError
    is tried again by itself within the call's timeout.
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
        """Describes the connection; it is made on entering the context.

        Args:
            address: host:port, or any target that gRPC resolves. Except for loopback, gRPC connects
                through the proxy that the environment names (`https_proxy`, `no_proxy`).
            token: the caller's token, if the service asks for one; TokenError if it cannot be one.
            tls: None speaks plaintext.
            retry: how to try again; None takes the defaults of Retry.
            heartbeat_timeout: seconds of silence after which a watch opens its stream again.
            give_up_after_seconds: how long a watch may fail to reconnect before it raises; None is
                forever.
            on_retry: called with the error before a call is made again; watches have on_connection.
        """
        self._address = address
        self._metadata = (("authorization", f"Bearer {_bare(token)}"),) if token else ()
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
        """Creates a task and returns it, most often PENDING.

        Args:
            params: a model's message: Imagen4Params, MidjourneyParams, Veo3Params, Sora2Params or a
                later one.
            prompt_id: your reference, 1-255 characters.
            request_id: makes the create idempotent; None takes a random one, so that tries again
                buy nothing twice.
            timeout: seconds for all tries. Shorter than the service's CREATE_WAIT_SECONDS, a
                refusal of the provider may come as a FAILED task rather than as an error.

        Raises:
            RefusedError: the provider refused; `task_id` is the task.
            GenerationError: with `request_id`, to create again after an UnavailableError.
            TypeError: `params` is no model's message.
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
        """Returns the newest snapshot. Raises TaskNotFoundError."""
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
        """Yields the caller's tasks, newest first, page after page as they are read.

        Args:
            prompt_id: only tasks with this one; "" is any.
            status: only tasks with this one; unspecified is any.
            page_size: tasks a page, at most 200; 0 is the service's default.
            timeout: seconds a page.
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
        """Cancels a task that was not sent yet and returns it, FAILED with CANCELLED.

        Raises:
            GenerationError: with reason ALREADY_SUBMITTED when it is too late.
        """
        request = CancelTaskRequest(task_id=task_id)
        return (await self._call(self._stub.CancelTask, request, timeout)).task

    def watch(
        self, task_id: str, after_revision: int = 0, *, on_connection: OnConnection | None = None
    ) -> AsyncGenerator[GenerationTask, None]:
        """Yields the present snapshot and each newer one, and ends after the terminal one.

        It reconnects and resumes by itself. Revisions only grow; snapshots in between may be
        skipped.

        Args:
            task_id: the task.
            after_revision: the last revision seen; 0 for none.
            on_connection: called with the error when the stream is lost, and with None when it is
                back.

        Raises:
            GenerationError: what another try cannot mend, at once; UnavailableError only after
                give_up_after_seconds.
        """

        def open_stream(seen: int) -> WatchCall:
            request = WatchTaskRequest(task_id=task_id, after_revision=seen)
            return self._stub.WatchTask(request, metadata=self._metadata)

        return watch_until_ended(
            open_stream, after_revision, self._watch_policy, on_connection or _ignore
        )

    async def wait(self, task_id: str, timeout: float | None = None) -> GenerationTask:
        """Returns the terminal snapshot.

        Raises TimeoutError after `timeout` seconds; the task goes on.
        """
        async with asyncio.timeout(timeout), aclosing(self.watch(task_id)) as snapshots:
            async for task in snapshots:
                if ended(task):
                    return task
        raise AssertionError("a watch ends with a terminal snapshot")

    async def upload(
        self,
        source: str | Path | AsyncIterable[bytes],
        *,
        file_name: str | None = None,
        content_type: str | None = None,
        upload_path: str | None = None,
        timeout: float = UPLOAD_TIMEOUT_SECONDS,
    ) -> UploadedFile:
        """Uploads a file and returns it.

        Its `download_url` is what `file_urls` and `image_urls` take. A file on disk is read twice,
        first for its size and SHA-256, which the service checks; and it is sent again after an
        UnavailableError. An iterator can be read only once, so it is neither.

        Args:
            source: a path, or the bytes in pieces of any size.
            file_name: 1-255 characters; defaults to the path's. An iterator needs one.
            content_type: the media type; defaults by file_name's extension.
            upload_path: the provider's folder; defaults to the service's.
            timeout: seconds for all tries.

        Raises:
            ValueError: an iterator without a file_name.
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
            return await self._send(metadata, lambda: source, timeout, Retry(attempts=1))
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
        """Returns why TLS cannot work with this server, or else the error itself."""
        closed = any(text in error.message for text in ("Socket closed", "reset", "Broken pipe"))
        if error.reason or "failed to connect" not in error.message or not closed:
            return error
        problem = await find_problem(self._address, self._tls)
        return UnauthenticatedError(error.code, problem) if problem else error


def provider_params(params: Message) -> ProviderParams:
    """Wraps a model's message into the member of KieParams that has its type.

    Raises TypeError if none has.
    """
    wrapped = ProviderParams()
    for member in KieParams.DESCRIPTOR.oneofs_by_name["model"].fields:
        if member.message_type is params.DESCRIPTOR:
            model = getattr(wrapped.kie, member.name)
            model.SetInParent()  # also without any field set
            model.CopyFrom(params)
            return wrapped
    raise TypeError(f"{params.DESCRIPTOR.full_name} is not the parameters of a model")


def _bare(token: str) -> str:
    """Return a token that may have been copied with the word that precedes it in the header."""
    words = token.split()
    bare = words[1] if len(words) == 2 and words[0].lower() == "bearer" else token.strip()  # noqa: PLR2004
    if not TOKEN.fullmatch(bare):
        raise TokenError("the token must consist of printable ASCII characters")
    return bare


def _as_unicode(file_name: str) -> str:
    """Return a name of the file system, whose bytes may be no UTF-8, as text that can be sent."""
    return file_name.encode(errors="surrogateescape").decode(errors="replace")


def _ignore(_: object) -> None:
    pass
