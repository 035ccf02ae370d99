"""The tasks of the caller of this call: reads and cancels them."""

from service.callers import current_caller
from service.errors import ServiceError, not_found
from service.events import TaskEvents
from service.rules import check_task_id
from storage.store import Store
from storage.task import Stage, Task


class OwnTasks:
    """Finds tasks by their ids; those of other callers do not exist."""

    def __init__(self, store: Store, events: TaskEvents) -> None:
        self._store = store
        self._events = events

    def now(self) -> float:
        """Return the time of the database, in unix seconds."""
        return self._store.now()

    async def get(self, task_id: str) -> Task:
        """Return a task.

        Raises:
            ServiceError: INVALID_PARAMS, TASK_NOT_FOUND.
            StorageError: The database cannot be read.
        """
        check_task_id(task_id)
        task = await self._store.get(task_id)
        if task is None or task.caller != current_caller.get():
            raise not_found(task_id)
        return task

    async def cancel(self, task_id: str) -> Task:
        """Cancel a task that has not been sent, and return it; again if it is cancelled already.

        Raises:
            ServiceError: INVALID_PARAMS, TASK_NOT_FOUND, ALREADY_SUBMITTED; SHUTTING_DOWN if only a
                newer version of the service can cancel the task.
            StorageError: The database cannot be used.
        """
        task = await self.get(task_id)
        # Again if it was sent and postponed in between.
        while task.stage is Stage.ACCEPTED and not task.of_newer_version:
            await self._events.cancel(task)
            task = await self.get(task.id)
        if task.of_newer_version and not task.ended:
            words = "this server is older than the task: retry until a newer one responds"
            raise ServiceError("SHUTTING_DOWN", words, metadata={"task_id": task.id})
        if not (task.failure and task.failure.reason == "CANCELLED"):
            raise ServiceError(
                "ALREADY_SUBMITTED",
                "the task was sent to the provider, which cannot cancel it"
                if not task.ended
                else "the task has ended",
                metadata={"task_id": task.id},
            )
        return task
