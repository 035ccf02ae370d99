"""A server that plays a script, for the tests of the client."""

# ruff: noqa: N802 - gRPC names the methods of a servicer
import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kie_generation import GenerationClient, Retry
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STAGE_GENERATING,
    TASK_STATUS_FAILED,
    TASK_STATUS_PENDING,
    TASK_STATUS_SUCCESS,
    CancelTaskRequest,
    CancelTaskResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    DownloadArtifactRequest,
    DownloadArtifactResponse,
    ErrorReason,
    GenerationTask,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    ListTasksRequest,
    ListTasksResponse,
    QueryTaskRequest,
    QueryTaskResponse,
    SignArtifactRequest,
    SignArtifactResponse,
    TaskFailure,
    UploadedFile,
    UploadFileRequest,
    UploadFileResponse,
    WatchTaskRequest,
    WatchTaskResponse,
    WatchTasksRequest,
    WatchTasksResponse,
)
from kie_generation.generated.generation.v1.generation_pb2_grpc import (
    GenerationServiceServicer,
    add_GenerationServiceServicer_to_server,
)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
FAST = Retry(attempts=3, first_delay_seconds=0.001, max_delay_seconds=0.01)
LOST = [  # the codes of a call that ended on the way, if the service did not send them
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
]


@dataclass(frozen=True)
class Failure:
    """An error to answer with; without a reason it looks like C-core's own."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "as scripted"
    metadata: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None
    retry_delay: Duration | None = None  # instead, also one that is not valid

    async def abort(self, context: Context) -> None:
        if not self.reason:
            await context.abort(self.code, self.message)
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self._details():
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        await context.abort_with_status(rpc_status.to_status(status))

    def _details(self) -> list[Any]:
        info = error_details_pb2.ErrorInfo(
            reason=self.reason, domain="generation.v1", metadata=self.metadata
        )
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=text)
            for name, text in self.fields.items()
        ]
        found: list[Any] = [info]
        if violations:
            found.append(error_details_pb2.BadRequest(field_violations=violations))
        delay = self.retry_delay
        if self.retry_after_ms is not None:
            delay = Duration(nanos=self.retry_after_ms * 1_000_000)
        if delay is not None:
            found.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return found


class Silence:
    """A stream or a call that says no more, and does not end."""


UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE)
NO_ARTIFACT = Failure(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND", "no result")
NOT_FOUND = Failure(grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND", "no task 't-1'")


class ScriptedService(GenerationServiceServicer):
    """Answers each call with the next answer of its script, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: deque[Any] = deque()
        self.streams: deque[list[Any]] = deque()
        self.requests: list[Any] = []
        self.times: list[float] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.watched = asyncio.Event()
        self.upload: list[UploadFileRequest] = []
        self.uploads_to_read: int | None = None

    async def _answer(self, request: Any, context: Context) -> Any:
        self._keep(request, context)
        answer = self.answers.popleft()
        if isinstance(answer, Failure):
            await answer.abort(context)
        if isinstance(answer, Silence):
            await self._say_nothing()
        return answer

    async def _say_nothing(self) -> None:
        self.watched.set()
        await asyncio.Event().wait()

    def _keep(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        self.times.append(time.monotonic())
        self.metadata.append(dict(context.invocation_metadata() or ()))

    async def CreateTask(self, request: CreateTaskRequest, context: Context) -> CreateTaskResponse:
        return CreateTaskResponse(task=await self._answer(request, context))

    async def QueryTask(self, request: QueryTaskRequest, context: Context) -> QueryTaskResponse:
        return QueryTaskResponse(task=await self._answer(request, context))

    async def CancelTask(self, request: CancelTaskRequest, context: Context) -> CancelTaskResponse:
        return CancelTaskResponse(task=await self._answer(request, context))

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        page = await self._answer(request, context)
        assert isinstance(page, ListModelsResponse)
        return page

    async def GetModel(self, request: GetModelRequest, context: Context) -> GetModelResponse:
        return GetModelResponse(model=await self._answer(request, context))

    async def ListTasks(self, request: ListTasksRequest, context: Context) -> ListTasksResponse:
        page = await self._answer(request, context)
        assert isinstance(page, ListTasksResponse)
        return page

    async def WatchTask(
        self, request: WatchTaskRequest, context: Context
    ) -> AsyncIterator[WatchTaskResponse]:
        async for step in self._steps(request, context):
            assert isinstance(step, GenerationTask)
            yield WatchTaskResponse(task=step)

    async def WatchTasks(
        self, request: WatchTasksRequest, context: Context
    ) -> AsyncIterator[WatchTasksResponse]:
        async for step in self._steps(request, context):
            assert isinstance(step, WatchTasksResponse)
            yield step

    async def DownloadArtifact(
        self, request: DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[DownloadArtifactResponse]:
        if not self.streams:
            await NO_ARTIFACT.abort(context)
        async for step in self._steps(request, context):
            assert isinstance(step, DownloadArtifactResponse)
            yield step

    async def SignArtifact(
        self, request: SignArtifactRequest, context: Context
    ) -> SignArtifactResponse:
        signed = await self._answer(request, context)
        assert isinstance(signed, SignArtifactResponse)
        return signed

    async def _steps(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self._keep(request, context)
        for step in self.streams.popleft():
            if isinstance(step, Silence):
                await self._say_nothing()
            elif isinstance(step, Failure):
                await step.abort(context)
            else:
                yield step

    async def UploadFile(
        self, requests: AsyncIterator[UploadFileRequest], context: Context
    ) -> UploadFileResponse:
        self.upload = []
        async for request in requests:
            self.upload.append(request)
            if len(self.upload) == self.uploads_to_read:
                break
        return UploadFileResponse(file=await self._answer(None, context))


@asynccontextmanager
async def serving(service: ScriptedService, port: int = 0) -> AsyncIterator[str]:
    """Yields the address of a real server on loopback."""
    server = grpc.aio.server()
    add_GenerationServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def connected(service: ScriptedService, **settings: Any) -> AsyncIterator[GenerationClient]:
    """Yields a client, quick to try again, of a server that plays the script."""
    async with (
        serving(service) as address,
        GenerationClient(address, **{"retry": FAST, **settings}) as client,
    ):
        yield client


def pending(revision: int, **fields: Any) -> GenerationTask:
    return GenerationTask(
        id="t-1",
        prompt_id="p-1",
        status=TASK_STATUS_PENDING,
        stage=TASK_STAGE_GENERATING,
        revision=revision,
        **fields,
    )


def success(revision: int, **fields: Any) -> GenerationTask:
    return GenerationTask(id="t-1", status=TASK_STATUS_SUCCESS, revision=revision, **fields)


def failed(revision: int) -> GenerationTask:
    failure = TaskFailure(reason=ErrorReason.ERROR_REASON_GENERATION_FAILED, message="no \x1b[2J")
    return GenerationTask(id="t-1", status=TASK_STATUS_FAILED, revision=revision, failure=failure)


def uploaded() -> UploadedFile:
    return UploadedFile(download_url="https://files.example/u-photo.png", size_bytes=3)
