"""A task as a row of the table, and a row as a task."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from storage.schema import TaskRow
from storage.task import Artifact, Failure, Stage, Status, Task

COLUMNS = tuple(TaskRow._meta.sorted_fields)  # noqa: SLF001 - Peewee's documented way
FIXED_COLUMNS = 7  # the first columns, up to create_time, never change

logger = logging.getLogger(__name__)


def row_of(task: Task) -> tuple[object, ...]:
    """Return a task's columns, in the order of the table."""
    failure = task.failure
    return (
        task.id,
        task.caller,
        task.request_id or None,
        task.prompt_id,
        task.model,
        task.params,
        task.create_time,
        task.update_time,
        task.lane,
        task.due_time,
        task.status,
        task.stage,
        task.revision,
        task.progress_percent,
        json.dumps([(a.url, a.mime_type) for a in task.artifacts]) if task.artifacts else "[]",
        task.result_json,
        failure and failure.reason,
        failure and failure.message,
        failure and failure.provider_code,
        task.provider_task_id,
        task.credits_consumed,
        task.complete_time,
        task.submit_time,
        task.accept_time,
        task.unknown_time,
        task.candidate_id,
        task.setbacks,
        task.version,
    )


def task_of(row: Sequence[Any]) -> Task:
    """Build a task from its columns, in the order of the table."""
    (task_id, caller, request_id, prompt_id, model, params, create_time, update_time, _lane,
     due_time, status, stage, revision, progress_percent, artifacts, result_json, failure_reason,
     failure_message, failure_code, provider_task_id, credits_consumed, complete_time,
     submit_time, accept_time, unknown_time, candidate_id, setbacks, version) = row  # fmt: skip
    return Task(
        id=task_id,
        caller=caller,
        request_id=request_id or "",
        prompt_id=prompt_id,
        model=model,
        params=bytes(params),
        create_time=create_time,
        update_time=update_time,
        due_time=due_time,
        status=Status(status),
        stage=stage and Stage(stage),
        revision=revision,
        progress_percent=progress_percent,
        artifacts=_artifacts(artifacts),
        result_json=result_json,
        failure=failure_reason and Failure(failure_reason, failure_message, failure_code),
        provider_task_id=provider_task_id,
        credits_consumed=credits_consumed,
        complete_time=complete_time,
        submit_time=submit_time,
        accept_time=accept_time,
        unknown_time=unknown_time,
        candidate_id=candidate_id,
        setbacks=setbacks,
        version=version,
    )


def readable(row: Sequence[Any]) -> Task | None:
    """Return the task of a row, or None if the row is damaged."""
    try:
        return task_of(row)
    except (TypeError, ValueError):
        logger.exception("a row is damaged", extra={"task_id": row[0]})
        return None


def _artifacts(text: str) -> tuple[Artifact, ...]:
    return () if text == "[]" else tuple(Artifact(*item) for item in json.loads(text))
