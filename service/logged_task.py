"""The task that is worked on, for log lines."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from storage.task import Task

# Only logged work pays for the fields: binding them to structlog costs each poll a microsecond.
logged_task: ContextVar[Task | None] = ContextVar("logged_task", default=None)


@contextmanager
def logging_task(task: Task) -> Iterator[None]:
    """Add a task to the log lines within the context."""
    token = logged_task.set(task)
    try:
        yield
    finally:
        logged_task.reset(token)


def add_task(
    logger: object, method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the task to a log line: a structlog processor."""
    del logger, method
    if (task := logged_task.get()) is not None:
        line.setdefault("task_id", task.id)
        line.setdefault("model", task.model)
        line.setdefault("caller", task.caller)
        line.setdefault("prompt_id", task.prompt_id)
    return line
