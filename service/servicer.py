"""A short method for each RPC: translate messages to calls of the other parts, and back."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceServicer
from service.artifacts import Artifacts, check_download, check_sign
from service.callers import current_caller
from service.creating import Creator
from service.errors import invalid
from service.messages import Answers
from service.model_lists import ModelLists
from service.open_calls import LimitedCalls
from service.own_tasks import OwnTasks
from service.pages import Pages, list_filter, page_size, page_token, read_page_token
from service.rules import check_task_id
from service.uploads import Uploads
from service.watch import Watcher
from service.watch_all import ChangeWatcher, ChangeWriter, change_filter

Context = grpc.aio.ServicerContext[object, object]
Answer = Any  # the bytes of the response's message: see messages.Answers


class Servicer(GenerationServiceServicer):
    """Translates; the decisions are made elsewhere."""

    def __init__(
        self,
        *,
        tasks: OwnTasks,
        creator: Creator,
        watcher: Watcher,
        change_watcher: ChangeWatcher,
        uploads: Uploads,
        artifacts: Artifacts,
        pages: Pages,
        models: ModelLists,
        limited_calls: LimitedCalls,
        answers: Answers,
    ) -> None:
        self._tasks = tasks
        self._creator = creator
        self._watcher = watcher
        self._change_watcher = change_watcher
        self._uploads = uploads
        self._artifacts = artifacts
        self._pages = pages
        self._models = models
        self._limited_calls = limited_calls
        self._answers = answers

    async def CreateTask(  # noqa: N802 - the proto's name
        self, request: pb.CreateTaskRequest, context: Context
    ) -> Answer:
        """Create a task, and wait for the provider's verdict."""
        creating = self._creator.create(request, context.time_remaining)
        del request  # the creator drops it once the task is stored
        task = await creating
        return self._answers.of(task) if task.id else self._answers.listed(task)

    async def QueryTask(  # noqa: N802
        self, request: pb.QueryTaskRequest, context: Context
    ) -> Answer:
        """Read one row, unless the task is known to have succeeded."""
        del context
        now = self._tasks.now()
        known = self._answers.for_success(current_caller.get(), request.task_id, now)
        return known or self._answers.of(await self._tasks.get(request.task_id))

    async def WatchTask(  # type: ignore[override] # noqa: N802 - grpc.aio takes writers as well
        self, request: pb.WatchTaskRequest, context: Context
    ) -> None:
        """Write the watcher's snapshots."""
        check_task_id(request.task_id)
        if request.after_revision < 0:
            raise invalid("after_revision", "must not be negative")
        stream = self._watcher.watch(
            current_caller.get(),
            request.task_id,
            request.after_revision,
            lambda task: context.write(self._answers.of(task)),
        )
        del request  # it may have a mebibyte of fields that no rule knows
        await stream

    async def WatchTasks(  # type: ignore[override] # noqa: N802
        self, request: pb.WatchTasksRequest, context: Context
    ) -> None:
        """Write the changes of the caller's tasks."""
        which = change_filter(request)
        writer = ChangeWriter(context.write, self._answers, self._tasks.now)
        stream = self._change_watcher.watch(
            which, request.resume_token, writer, from_now=request.from_now
        )
        del request  # as in WatchTask
        await stream

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Context
    ) -> pb.UploadFileResponse:
        """Pass the chunks on to the provider."""
        del context
        with self._limited_calls.uploads.counted(current_caller.get()):
            return pb.UploadFileResponse(file=await self._uploads.upload(request_iterator))

    async def ListTasks(  # noqa: N802
        self, request: pb.ListTasksRequest, context: Context
    ) -> Answer:
        """Read one page of rows."""
        del context
        which = list_filter(request)
        before = read_page_token(request.page_token, which)
        size = page_size(request.page_size)
        with self._limited_calls.lists.counted(which.caller):
            tasks, last = await self._pages.read(which, before, size)
        if last is None:
            return b"".join(tasks)
        token = pb.ListTasksResponse(next_page_token=page_token(last, which))
        return b"".join((*tasks, token.SerializeToString()))

    async def CancelTask(  # noqa: N802
        self, request: pb.CancelTaskRequest, context: Context
    ) -> Answer:
        """Cancel a task that has not been sent."""
        del context
        return self._answers.of(await self._tasks.cancel(request.task_id))

    async def DownloadArtifact(  # type: ignore[override] # noqa: N802
        self, request: pb.DownloadArtifactRequest, context: Context
    ) -> None:
        """Write a result of a task."""
        check_download(request)
        with self._limited_calls.uploads.counted(current_caller.get()):
            task = await self._tasks.get(request.task_id)
            await self._artifacts.download(task, request.index, request.offset, context.write)

    async def SignArtifact(  # noqa: N802
        self, request: pb.SignArtifactRequest, context: Context
    ) -> pb.SignArtifactResponse:
        """Make a link to the copy of a result."""
        del context
        check_sign(request)
        task = await self._tasks.get(request.task_id)
        return await self._artifacts.sign(task, request.index, request.lifetime_seconds)

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Return one page of models."""
        del context
        return await self._models.page(request)

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        """Return a model."""
        del context
        return pb.GetModelResponse(model=await self._models.get(request.id))
