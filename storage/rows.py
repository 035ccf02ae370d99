"""A task as a row of the table, and a row as a task."""

import json
import logging
from collections.abc import Sequence
from dataclasses import astuple
from operator import attrgetter, itemgetter
from typing import Any

from storage.known import LANES, STAGES, STATUSES, Known
from storage.schema import TaskRow
from storage.task import Artifact, Copy, Failure, Status, Task

# All but the one that the database assigns.
COLUMNS = tuple(
    field
    for field in TaskRow._meta.sorted_fields  # noqa: SLF001 - Peewee's documented way
    if field is not TaskRow.change_xid
)
FIXED_COLUMNS = 10  # the first columns, up to traceparent, never change
CHANGING = COLUMNS[FIXED_COLUMNS:]
# What changes only with the results or the end of a task: fields of a Task, and the beginnings of
# the names of columns.
RESULT = (
    *("status", "artifacts", "result_json", "failure"),
    *("credits_consumed", "complete_time", "generated_time"),
)
result_of = attrgetter(*RESULT)
# From CHANGING, or its values, to what changes while a task is worked on.
working_values = itemgetter(
    *(i for i, column in enumerate(CHANGING) if not column.name.startswith(RESULT))
)
WORKING = working_values(CHANGING)
# The fields of a stored artifact that are known: always there, and those of its copy.
PAIR = ("url", "mime_type")
COPY = ("uri", "size_bytes", "sha256", "content_type")
ERROR = "storage_error"

logger = logging.getLogger(__name__)


def row_of(task: Task) -> tuple[object, ...]:
    """Return a task's columns, in the order of the table."""
    failure, lane, stage = task.failure, task.lane, task.stage
    return (
        task.id,
        task.caller,
        task.request_id or None,
        task.prompt_id,
        task.model,
        task.needs or None,
        task.params,
        task.filled_params or None,
        task.create_time,
        task.traceparent or None,
        task.update_time,
        lane and str(lane),  # for an enum, psycopg2 takes six times as long
        task.due_time,
        str(task.status),
        stage and str(stage),
        task.revision,
        task.progress_percent,
        json.dumps(list(map(_stored, task.artifacts))) if task.artifacts else "[]",
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
        task.generated_time,
    )


def task_of(row: Sequence[Any], known: Known) -> Task:
    """Build a task from its columns, in the order of the table."""
    (task_id, caller, request_id, prompt_id, model, needs, params, filled_params, create_time,
     traceparent, update_time, lane, due_time, status, stage, revision, progress_percent,
     artifacts, result_json, failure_reason, failure_message, failure_code, provider_task_id,
     credits_consumed, complete_time, submit_time, accept_time, unknown_time, candidate_id,
     setbacks, version, generated_time) = row  # fmt: skip
    return Task(
        id=task_id,
        caller=caller,
        request_id=request_id or "",
        prompt_id=prompt_id,
        model=model,
        params=bytes(params),
        filled_params=bytes(filled_params or b""),
        create_time=create_time,
        update_time=update_time,
        due_time=due_time,
        status=STATUSES.get(status, Status.PENDING),
        stage=STAGES.get(stage),
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
        needs=needs or "",
        of_newer_version=not (
            status in STATUSES
            and stage in STAGES
            and lane in LANES
            and known.includes(model, needs)
        ),
        traceparent=traceparent or "",
        generated_time=generated_time,
    )


def readable(row: Sequence[Any], known: Known) -> Task | None:
    """Return the task of a row, or None if the row is damaged."""
    try:
        return task_of(row, known)
    except (KeyError, TypeError, ValueError):
        logger.exception("a row is damaged", extra={"task_id": row[0]})
        return None


def _stored(artifact: Artifact) -> object:
    """Return an artifact as JSON: a pair, or an object if there is more to it."""
    pair = (artifact.url, artifact.mime_type)
    copy, error, more = artifact.copy, artifact.storage_error, artifact.more
    if copy is None and not error and not more:
        return pair
    stored = dict(zip(PAIR, pair, strict=True)) | (json.loads(more) if more else {})
    if copy:
        stored |= zip(COPY, astuple(copy), strict=True)
    return stored | ({ERROR: error} if error else {})


def _artifacts(text: str) -> tuple[Artifact, ...]:
    return () if text == "[]" else tuple(map(_artifact, json.loads(text)))


def _artifact(stored: Any) -> Artifact:
    if not isinstance(stored, dict):
        url, mime_type = stored
        return Artifact(url, mime_type)
    stored = dict(stored)
    url, mime_type = (stored.pop(key) for key in PAIR)
    error = stored.pop(ERROR, "")
    copy = None
    if stored.keys() >= set(COPY):
        copy = Copy(*(stored.pop(key) for key in COPY))
    return Artifact(url, mime_type, copy, error, json.dumps(stored) if stored else "")
