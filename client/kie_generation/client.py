"""The async client: one method for each RPC, with retries and reconnects."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from google.protobuf.message import Message

from kie_generation.artifacts import ArtifactCalls
from kie_generation.changes import ChangeStream, TaskChange
from kie_generation.connection import CALL_TIMEOUT_SECONDS, ignore
from kie_generation.errors import GenerationError
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STATUS_UNSPECIFIED,
    CancelTaskRequest,
    CreateTaskRequest,
    GenerationTask,
    GetModelRequest,
    ListModelsRequest,
    ListTasksRequest,
    Model,
    QueryTaskRequest,
    TaskStatus,
    UploadedFile,
    UploadMetadata,
    WatchTaskRequest,
    WatchTasksRequest,
)
from kie_generation.params import provider_params
from kie_generation.retry import Retry
from kie_generation.state_file import StateFile
from kie_generation.streams import OnConnection
from kie_generation.times import timestamp
from kie_generation.upload import fingerprint, in_thread, read_chunks, send
from kie_generation.watch import WatchCall, ended, watch_until_ended

UPLOAD_TIMEOUT_SECONDS = 600.0
UPLOAD_ATTEMPTS = 8  # unless Retry.attempts is set; each attempt sends the whole file


class GenerationClient(ArtifactCalls):
    """An async client of the generation service.

    Use it with `async with`, in a single event loop, where any number of tasks can share it.

    Every method raises GenerationError or a subclass of it; see `kie_generation.errors`. Calls that
    fail with UnavailableError are retried within their timeout.
    """

    async def create(
        self,
        params: Message,
        *,
        prompt_id: str,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: float = CALL_TIMEOUT_SECONDS,
    ) -> GenerationTask:
        """Create a task and return it, usually PENDING.

        Args:
            params: A model's message: MarketParams for any model of the catalogue, Imagen4Params,
                MidjourneyParams, Veo3Params, Sora2Params, or a later one.
            prompt_id: Your reference, 1-255 characters.
            request_id: Makes the create idempotent; None generates a random one, so that retries
                never pay twice.
            validate_only: Only check the request, and return the task as it would be stored, with
                an empty id. Nothing is paid for.
            timeout: Seconds for all attempts. If it is shorter than the service's
                CREATE_WAIT_SECONDS, the call may return a task that the provider refuses later.

        Raises:
            RefusedError: The provider refused; `task_id` is the id of the FAILED task.
            GenerationError: `request_id` is set; repeat the create with it after UnavailableError.
            TypeError: `params` is not a model's message.
        """
        request = CreateTaskRequest(
            prompt_id=prompt_id,
            provider_params=provider_params(params),
            request_id=request_id or uuid.uuid4().hex,
            validate_only=validate_only,
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
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        model: str = "",
        page_size: int = 0,
        timeout: float = CALL_TIMEOUT_SECONDS,
    ) -> AsyncGenerator[GenerationTask, None]:
        """Yield the caller's tasks, newest first; pages are fetched as they are needed.

        Args:
            prompt_id: Only tasks with this prompt_id; "" for all.
            status: Only tasks with this status; TASK_STATUS_UNSPECIFIED for all.
            created_after: Only tasks created at this time or later, with a time zone.
            created_before: Only tasks created before this time, with a time zone.
            model: Only tasks of this model, such as `imagen4`; "" for all.
            page_size: Tasks per page, at most 200; 0 for the service's default.
            timeout: Seconds for each page.

        Raises:
            ValueError: A time has no time zone.
        """
        request = ListTasksRequest(
            prompt_id=prompt_id,
            status=status,
            created_after=timestamp(created_after),
            created_before=timestamp(created_before),
            model=model,
            page_size=page_size,
        )
        while True:
            page = await self._call(self._stub.ListTasks, request, timeout)
            for task in page.tasks:
                yield task
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def list_models(
        self,
        query: str = "",
        *,
        task_type: str = "",
        provider: str = "",
        include_retired: bool = False,
        page_size: int = 0,
        timeout: float = CALL_TIMEOUT_SECONDS,
    ) -> AsyncGenerator[Model, None]:
        """Yield the known models, sorted by id, without their schemas.

        Args:
            query: Words of the id, title, provider or task types.
            task_type: Such as `Text to Image`.
            provider: Such as `Google`.
            include_retired: Also models that are no longer in the catalogue.
            page_size: Models per page, at most 200; 0 for the service's default.
            timeout: Seconds for each page.
        """
        request = ListModelsRequest(
            query=query, task_type=task_type, provider=provider, page_size=page_size
        )
        request.include_retired = include_retired
        while True:
            page = await self._call(self._stub.ListModels, request, timeout)
            for model in page.models:
                yield model
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_model(self, model_id: str, *, timeout: float = CALL_TIMEOUT_SECONDS) -> Model:
        """Return a model, with the JSON Schema of its input.

        Raises:
            RefusedError: The model is not known.
        """
        request = GetModelRequest(id=model_id)
        return (await self._call(self._stub.GetModel, request, timeout)).model

    async def cancel(
        self, task_id: str, *, timeout: float = CALL_TIMEOUT_SECONDS
    ) -> GenerationTask:
        """Cancel a task that has not been sent to the provider, and return it as FAILED.

        Raises:
            GenerationError: With the reason ALREADY_SUBMITTED if it is too late.
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
            task_id: The task.
            after_revision: The last revision received; 0 for none.
            on_connection: Called with the error whenever the stream is lost, and with None when it
                works again.

        Raises:
            GenerationError: An error that a retry cannot fix, at once; UnavailableError only after
                give_up_after_seconds.
        """

        def open_stream(seen: int) -> WatchCall:
            request = WatchTaskRequest(task_id=task_id, after_revision=seen)
            return self._stub.WatchTask(request, metadata=self._metadata)

        return watch_until_ended(
            open_stream, after_revision, self._watch_policy, on_connection or ignore
        )

    def watch_tasks(
        self,
        *,
        prompt_id: str = "",
        ended_only: bool = False,
        from_now: bool = False,
        resume_token: str = "",
        state: str | Path | None = None,
        on_connection: OnConnection | None = None,
    ) -> AsyncGenerator[TaskChange, None]:
        """Yield all existing tasks, and then every change of the caller's tasks, without end.

        A lost stream is reopened automatically. Changes are delivered at least once; revisions of a
        task never decrease, and its newest snapshot always comes. Intermediate ones may be skipped.

        Args:
            prompt_id: Only tasks with this prompt_id; "" for all.
            ended_only: Only tasks that have ended.
            from_now: Skip the existing tasks, unless the stream is resumed.
            resume_token: The token of the last item handled; "" to start with all tasks.
            state: A file that remembers the token of each item once the next one is requested, so
                that a new process continues there. It replaces `resume_token`.
            on_connection: As for `watch`.

        Raises:
            ValueError: Both `resume_token` and `state` are given.
            StateFileError: The state file is damaged, or belongs to another stream.
            OSError: The state file cannot be read or written.
            GenerationError: As for `watch`. An expired token is not an error: an item with
                `started_over` comes, and then all tasks.
        """
        if resume_token and state is not None:
            raise ValueError("resume_token and state cannot be used together")
        request = WatchTasksRequest(
            prompt_id=prompt_id,
            ended_only=ended_only,
            resume_token=resume_token,
            from_now=from_now,
        )
        return ChangeStream(
            lambda wanted: self._stub.WatchTasks(wanted, metadata=self._metadata),
            request,
            None if state is None else StateFile(state),
            self._watch_policy,
            on_connection or ignore,
        ).changes()

    async def wait(self, task_id: str, timeout: float | None = None) -> GenerationTask:
        """Return the terminal snapshot.

        Raises:
            TimeoutError: The task has not ended within `timeout` seconds; it is not affected.
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
            source: A path, or the content in chunks of any size.
            file_name: 1-255 bytes in UTF-8; defaults to the path's. Required with an iterator.
            content_type: The media type; defaults to that of the file name's extension.
            upload_path: The folder at the provider; defaults to the service's default.
            timeout: Seconds for all attempts.

        Raises:
            ValueError: An iterator was given without a file_name.
            OSError: The file cannot be read.
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


def _as_unicode(file_name: str) -> str:
    """Return a file name that can be sent, even if its bytes on disk are not valid UTF-8."""
    return file_name.encode(errors="surrogateescape").decode(errors="replace")
