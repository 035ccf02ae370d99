"""How a task stands, as people read it."""

from client.enums import short_name
from generated.generation.v1.generation_pb2 import (
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
    """Returns how a task stands in a word: the stage while PENDING, else the status."""
    if task.status == TASK_STATUS_PENDING:
        return short_name(TaskStage, task.stage)
    return short_name(TaskStatus, task.status)


def percent(task: GenerationTask) -> int | None:
    """Returns how far the work is, None when it has not begun, has ended, or is not known."""
    working = task.status == TASK_STATUS_PENDING and task.stage not in _NOT_YET_WORKING
    return task.progress_percent if working and task.HasField("progress_percent") else None
