"""CreateTask: from a checked request to a stored task, and to the provider's verdict on it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import structlog

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Provider
from service.admission import Admission
from service.callers import current_caller
from service.catalogue import MARKET
from service.errors import REFUSALS, ServiceError, rate_limited
from service.events import TaskEvents
from service.hub import Hub, Subscription
from service.metrics import Metrics
from service.outbox import COUNTED_FROM_BYTES
from service.rules import check_create
from service.task_ids import TaskIds
from storage.creation import Created, CreateLimits, Existing, LimitReached
from storage.store import Store
from storage.task import Stage, Task

ANSWER_BEFORE_DEADLINE_SECONDS = 0.2
# Of the parameters of one caller's tasks: while they are being stored, and while they wait.
STORING_MAX_BYTES = 16 << 20
WAITING_MAX_BYTES = 32 << 20
NOTHING = nullcontext()

SecondsLeft = Callable[[], float | None]

log = structlog.get_logger()


class Creator:
    """Creates tasks."""

    def __init__(
        self,
        *,
        store: Store,
        provider: Provider,
        events: TaskEvents,
        hub: Hub,
        admission: Admission,
        metrics: Metrics,
        wait_seconds: float,
        traceparent: Callable[[], str] | None = None,
    ) -> None:
        """Keep what is needed.

        Args:
            store: Where tasks are kept.
            provider: Knows the rules of parameters.
            events: Have new tasks sent.
            hub: Reports verdicts.
            admission: Which new tasks are admitted.
            metrics: Counts them.
            wait_seconds: How long a call waits for a verdict.
            traceparent: Returns the span of the current call; None if calls are not traced.
        """
        self._store = store
        self._provider = provider
        self._events = events
        self._hub = hub
        self._admission = admission
        self._metrics = metrics
        self._wait_seconds = wait_seconds
        self._traceparent = traceparent
        self._ids = TaskIds()
        self._memory = _Memory(_Bytes(STORING_MAX_BYTES), _Bytes(WAITING_MAX_BYTES))

    async def create(self, request: pb.CreateTaskRequest, seconds_left: SecondsLeft) -> Task:
        """Check a request, store its task, and wait for the provider's verdict.

        Args:
            request: As it was received.
            seconds_left: Returns the time until the caller's deadline; None if there is none.

        Returns:
            The newest snapshot of the new task, or of the one with the same request_id.

        Raises:
            ServiceError: Broken rules, a limit, or a refusal of the provider.
        """
        check_create(request, self._provider)
        task = self._new_task(request)
        try:
            task = self._admission.complete(task, request.provider_params)
        except ServiceError:
            if (earlier := await self._earlier(task)) is None:
                raise  # a known request_id is never refused
            return await self._existing(earlier, request, seconds_left)
        limits = self._admission.create_limits(task.caller)
        if request.validate_only:
            return await self._validated(task, limits, request)
        # Subscribed before the task exists, so that no snapshot is missed.
        with self._hub.subscribe(task.id, wants=_has_verdict) as subscription:
            with self._storing(task):
                result = await self._store.create(task, limits)
            if isinstance(result, Created):
                del request  # parsed, a large one takes much more memory than the task
                self._report(task)
                deadline = self._deadline(seconds_left)
                return _unless_refused(await self._until_verdict(task, subscription, deadline))
        if isinstance(result, LimitReached):
            raise self._admission.refusal_by(result, task.caller)
        return await self._existing(result.task, request, seconds_left)

    def _storing(self, task: Task) -> AbstractContextManager[None]:
        """Count the bytes of a task while it is being stored.

        Raises:
            ServiceError: RATE_LIMITED if too many bytes of its caller are being stored.
        """
        if not self._memory.storing.have_room(task):
            self._metrics.caller_refused(task.caller, "requests")
            raise rate_limited("requests", STORING_MAX_BYTES, caller=task.caller)
        return self._memory.storing.counted(task)

    async def _validated(
        self, task: Task, limits: CreateLimits, request: pb.CreateTaskRequest
    ) -> Task:
        """Return a new task as it would be stored, or raise the error that prevents it."""
        match await self._store.check(task, limits):
            case LimitReached() as reached:
                raise self._admission.refusal_by(reached, task.caller)
            case Existing(earlier):
                return _known(task, earlier, request)
            case None:
                return task._replace(id="")

    def _report(self, task: Task) -> None:
        """Count and log a task that was stored, and have it sent."""
        self._metrics.task_created(task.model, task.caller)
        log.info("task created", task_id=task.id, model=task.model, prompt_id=task.prompt_id)
        self._events.on_created(task)

    async def _earlier(self, task: Task) -> Task | None:
        """Return the existing task with the request_id of a new one, if any."""
        if not task.request_id:
            return None
        return await self._store.find_request(task.caller, task.request_id)

    def _new_task(self, request: pb.CreateTaskRequest) -> Task:
        now = self._store.now()
        model = self._provider.model_of(request.provider_params)
        return Task(
            id=self._ids.new(now),
            caller=current_caller.get(),
            request_id=request.request_id,
            prompt_id=request.prompt_id,
            model=model,
            needs="" if model in self._provider.models else MARKET,
            params=request.provider_params.SerializeToString(deterministic=True),
            create_time=now,
            update_time=now,
            due_time=now,
            traceparent=self._traceparent() if self._traceparent else "",
        )

    async def _existing(
        self, task: Task, request: pb.CreateTaskRequest, seconds_left: SecondsLeft
    ) -> Task:
        """Wait for the verdict on the existing task with the same request_id."""
        if request.validate_only:
            return _known(self._new_task(request), task, request)
        _check_same(task, request)
        del request
        with self._hub.subscribe(task.id, wants=_has_verdict) as subscription:
            newest = await self._store.get(task.id) or task
            deadline = self._deadline(seconds_left)
            return _unless_refused(await self._until_verdict(newest, subscription, deadline))

    def _deadline(self, seconds_left: SecondsLeft) -> float:
        """Return until when to wait for a verdict, by the monotonic clock."""
        wait = self._wait_seconds
        if (remaining := seconds_left()) is not None:
            wait = min(wait, remaining - ANSWER_BEFORE_DEADLINE_SECONDS)
        return time.monotonic() + wait

    async def _until_verdict(self, task: Task, subscription: Subscription, deadline: float) -> Task:
        """Wait for a verdict until the deadline, and return the newest snapshot.

        Do not wait if the caller's waiting tasks take too much memory.
        """
        if not _has_verdict(task) and self._memory.waiting.have_room(task):
            with self._memory.waiting.counted(task):
                await subscription.newer(task.revision, deadline - time.monotonic())
        newest = subscription.newest
        return newest if newest and newest.revision > task.revision else task


class _Bytes:
    """Bytes of the parameters of large tasks that are in memory at a time, by caller."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._callers: Counter[str] = Counter()

    def have_room(self, task: Task) -> bool:
        """Return whether the caller of a task may have its bytes in memory, too."""
        size = _size(task)
        return size < COUNTED_FROM_BYTES or self._callers[task.caller] + size <= self._most

    def counted(self, task: Task) -> AbstractContextManager[None]:
        """Count the bytes of a task for as long as the context lasts."""
        size = _size(task)
        return NOTHING if size < COUNTED_FROM_BYTES else self._counted(task.caller, size)

    @contextmanager
    def _counted(self, caller: str, size: int) -> Iterator[None]:
        self._callers[caller] += size
        try:
            yield
        finally:
            self._callers[caller] -= size


@dataclass(frozen=True, slots=True)
class _Memory:
    """What large tasks take: while they are being stored, and while they wait for a verdict."""

    storing: _Bytes
    waiting: _Bytes


def _size(task: Task) -> int:
    return len(task.params) + len(task.filled_params)


def _has_verdict(task: Task) -> bool:
    return task.ended or task.stage in {Stage.QUEUED, Stage.GENERATING, Stage.STORING}


def _unless_refused(task: Task) -> Task:
    """Return the task, unless the provider refused it: that is the caller's error."""
    if task.failure and task.failure.reason in REFUSALS:
        raise ServiceError(task.failure.reason, task.failure.message, metadata={"task_id": task.id})
    return task


def _known(new: Task, earlier: Task, request: pb.CreateTaskRequest) -> Task:
    """Return what validate_only shows of a task that exists: as it is stored, without an id."""
    _check_same(earlier, request)
    _unless_refused(earlier)
    return new._replace(id="", filled_params=earlier.filled_params)


def _check_same(task: Task, request: pb.CreateTaskRequest) -> None:
    """Refuse a request that would not create an equal task; compare messages, not bytes."""
    params = pb.ProviderParams.FromString(task.params)
    if (task.prompt_id, params) != (request.prompt_id, request.provider_params):
        raise ServiceError(
            "REQUEST_ID_REUSED",
            "the request_id was already used with different parameters; choose a new one",
            metadata={"task_id": task.id},
        )
