"""A short method for each RPC: from messages to the store, the poller and the watcher, and back."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceServicer
from providers.base import Provider
from service.admission import Admission
from service.callers import current_caller
from service.errors import REFUSALS, ServiceError, invalid, not_found
from service.messages import Answers
from service.metrics import Metrics
from service.open_calls import LimitedCalls
from service.pages import Pages, list_filter, page_token, read_page_token
from service.poller import Poller
from service.rules import check_create, check_task_id
from service.uploads import Uploads
from service.watch import Hub, Subscription, Watcher
from storage.creation import Existing, LimitReached
from storage.store import Store
from storage.task import Stage, Task

ANSWER_BEFORE_DEADLINE_SECONDS = 0.2
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 200

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[object, object]
Answer = Any  # the bytes of the response's message: see messages.Answers


class Servicer(GenerationServiceServicer):
    """Translates; what happens is decided behind it."""

    def __init__(
        self,
        *,
        store: Store,
        provider: Provider,
        poller: Poller,
        hub: Hub,
        watcher: Watcher,
        uploads: Uploads,
        admission: Admission,
        limited_calls: LimitedCalls,
        create_wait_seconds: float,
        answers: Answers,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._provider = provider
        self._poller = poller
        self._hub = hub
        self._watcher = watcher
        self._uploads = uploads
        self._admission = admission
        self._limited_calls = limited_calls
        self._create_wait_seconds = create_wait_seconds
        self._metrics = metrics
        self._answers = answers
        self._pages = Pages(store, answers)

    async def CreateTask(  # noqa: N802 - the proto's name
        self, request: pb.CreateTaskRequest, context: Context
    ) -> Answer:
        """Check, store, wake the poller, wait for the verdict, answer."""
        check_create(request, self._provider)
        task = self._new_task(request)
        # From before anything can happen to it.
        with self._hub.subscribe(task.id, wants=_has_verdict) as subscription:
            earlier = await self._store_new(task, request)
            if earlier is None:
                task = await _until_verdict(task, subscription, self._deadline(context))
        if earlier is not None:
            task = await self._verdict_of(earlier, context)
        if task.failure and task.failure.reason in REFUSALS:
            raise ServiceError(
                task.failure.reason, task.failure.message, metadata={"task_id": task.id}
            )
        return self._answers.of(task)

    async def QueryTask(  # noqa: N802
        self, request: pb.QueryTaskRequest, context: Context
    ) -> Answer:
        """Read one row, unless the task is known to have succeeded."""
        del context
        now = self._store.now()
        known = self._answers.of_ended(current_caller.get(), request.task_id, now)
        return known or self._answers.of(await self._own(request.task_id))

    async def WatchTask(  # type: ignore[override] # noqa: N802 - grpc.aio takes writers as well
        self, request: pb.WatchTaskRequest, context: Context
    ) -> None:
        """Write the watcher's snapshots."""
        check_task_id(request.task_id)
        if request.after_revision < 0:
            raise invalid("after_revision", "must not be negative")
        await self._watcher.watch(
            current_caller.get(),
            request.task_id,
            request.after_revision,
            lambda task: context.write(self._answers.of(task)),
        )

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Context
    ) -> pb.UploadFileResponse:
        """Pass the chunks through to the provider."""
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
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        with self._limited_calls.lists.counted(which.caller):
            tasks, last = await self._pages.read(which, before, size)
        if last is None:
            return b"".join(tasks)
        token = pb.ListTasksResponse(next_page_token=page_token(last, which))
        return b"".join((*tasks, token.SerializeToString()))

    async def CancelTask(  # noqa: N802
        self, request: pb.CancelTaskRequest, context: Context
    ) -> Answer:
        """Cancel what was not sent."""
        del context
        task = await self._own(request.task_id)
        while task.stage is Stage.ACCEPTED:  # again if it was sent and put back in between
            await self._poller.cancel(task)
            task = await self._own(task.id)
        if not (task.failure and task.failure.reason == "CANCELLED"):
            raise ServiceError(
                "ALREADY_SUBMITTED",
                "the task was sent to the provider, which cannot cancel it"
                if not task.ended
                else "the task has ended",
                metadata={"task_id": task.id},
            )
        return self._answers.of(task)

    # --- CreateTask, step by step ---

    async def _store_new(self, task: Task, request: pb.CreateTaskRequest) -> Task | None:
        """Store a new task, or return the one that its request_id made before.

        Only a request_id that is not known yet can be refused for its model or by a limit.
        """
        if refusal := self._admission.refusal_of_model(task):
            earlier = await self._earlier(task)
            if earlier is None:
                raise refusal
            return _same(earlier, request)
        match await self._store.create(task, self._admission.create_limits(task.caller)):
            case LimitReached() as reached:
                raise self._admission.refusal_by(reached, task.caller)
            case Existing(earlier):
                return _same(earlier, request)
            case _:
                self._metrics.task_created(task.model, task.caller)
                log.info(
                    "task created", task_id=task.id, model=task.model, prompt_id=task.prompt_id
                )
                self._poller.created(task)
                return None

    async def _earlier(self, task: Task) -> Task | None:
        """Return the existing task with the request_id of a new one, if any."""
        if not task.request_id:
            return None
        return await self._store.find_request(task.caller, task.request_id)

    def _new_task(self, request: pb.CreateTaskRequest) -> Task:
        now = self._store.now()
        return Task(
            id=uuid.uuid4().hex,
            caller=current_caller.get(),
            request_id=request.request_id,
            prompt_id=request.prompt_id,
            model=self._provider.model_of(request.provider_params),
            params=request.provider_params.SerializeToString(deterministic=True),
            create_time=now,
            update_time=now,
            due_time=now,
        )

    async def _verdict_of(self, task: Task, context: Context) -> Task:
        """Wait for the verdict of a task that was there before."""
        with self._hub.subscribe(task.id, wants=_has_verdict) as subscription:
            newest = await self._store.get(task.id) or task
            return await _until_verdict(newest, subscription, self._deadline(context))

    def _deadline(self, context: Context) -> float:
        """Return until when to wait for a verdict: within the caller's patience and ours."""
        wait = self._create_wait_seconds
        if (remaining := context.time_remaining()) is not None:
            wait = min(wait, remaining - ANSWER_BEFORE_DEADLINE_SECONDS)
        return time.monotonic() + wait

    async def _own(self, task_id: str) -> Task:
        """Return a task of the caller."""
        check_task_id(task_id)
        task = await self._store.get(task_id)
        if task is None or task.caller != current_caller.get():
            raise not_found(task_id)
        return task


async def _until_verdict(task: Task, subscription: Subscription, deadline: float) -> Task:
    """Wait for a verdict, and return the newest snapshot there is by then."""
    if not _has_verdict(task):
        await subscription.newer(task.revision, deadline - time.monotonic())
    newest = subscription.newest
    return newest if newest and newest.revision > task.revision else task


def _has_verdict(task: Task) -> bool:
    return task.ended or task.stage in {Stage.QUEUED, Stage.GENERATING}


def _same(task: Task, request: pb.CreateTaskRequest) -> Task:
    """Return the task if the request would make it again; messages are compared, not bytes."""
    params = pb.ProviderParams.FromString(task.params)
    if (task.prompt_id, params) != (request.prompt_id, request.provider_params):
        raise ServiceError(
            "REQUEST_ID_REUSED",
            "the request_id was used with other parameters",
            metadata={"task_id": task.id},
        )
    return task
