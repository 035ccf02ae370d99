"""The state of a task in words."""

from kie_generation.enums import short_name
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STAGE_ACCEPTED,
    TASK_STAGE_QUEUED,
    TASK_STAGE_SUBMITTING,
    TASK_STATUS_PENDING,
    GenerationTask,
    TaskStage,
    TaskStatus,
)

_NOT_YET_WORKING = (TASK_STAGE_ACCEPTED, TASK_STAGE_SUBMITTING, TASK_STAGE_QUEUED)


def state(task: GenerationTask) -> str:
    """Return the state of a task in one word: its stage while PENDING, its status afterwards."""
    # A server that is older than the task does not know its stage.
    if task.status == TASK_STATUS_PENDING and task.stage:
        return short_name(TaskStage, task.stage)
    return short_name(TaskStatus, task.status)


def percent(task: GenerationTask) -> int | None:
    """Return the progress in percent; None before the work begins, after it ends, or if unknown."""
    working = task.status == TASK_STATUS_PENDING and task.stage not in _NOT_YET_WORKING
    return task.progress_percent if working and task.HasField("progress_percent") else None
