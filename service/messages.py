"""From a stored snapshot to the message that callers see.

A snapshot never changes: (task id, revision) says what its message is, whoever asks for it and in
whatever process. So the bytes of the last ones are kept, and a change that goes out to many streams
is serialised once. And nothing changes a SUCCESS any more: its answer needs no read at all.
"""

import math
from contextlib import suppress
from dataclasses import dataclass

from cachetools import LRUCache
from google.protobuf.timestamp_pb2 import Timestamp

from generated.generation.v1 import generation_pb2 as pb
from storage.task import Stage, Status, Task

ARTIFACT_LIFE_SECONDS = 86_400.0  # the shorter of Kie's two statements (kie-api.md 1.4)
CHANGING_MAX_BYTES = 8 << 20
ENDED_MAX_BYTES = 32 << 20
ANSWER_BYTES = 400  # what an entry takes beside the answer itself

STATUSES = {status: pb.TaskStatus.Value(f"TASK_STATUS_{status}") for status in Status}
STAGES: dict[Stage | None, pb.TaskStage.ValueType] = {
    None: pb.TASK_STAGE_UNSPECIFIED,
    **{stage: pb.TaskStage.Value(f"TASK_STAGE_{stage}") for stage in Stage},
}


@dataclass(frozen=True, slots=True)
class _Ended:
    """The answer for a task that nothing changes any more, and whose it is."""

    caller: str
    end_time: float
    answer: bytes


class Answers:
    """Serialised answers that hold a task, bounded by their size.

    CreateTaskResponse, QueryTaskResponse, WatchTaskResponse and CancelTaskResponse are the same on
    the wire: a task in field 1. A ListTasksResponse has one of these for each task.
    """

    def __init__(self, kept_seconds: float = math.inf) -> None:
        """Start with none.

        Args:
            kept_seconds: How long after its end a task is kept; then it may be purged, by any
                process.
        """
        self._kept_seconds = kept_seconds
        self._changing: LRUCache[tuple[str, int], bytes] = LRUCache(CHANGING_MAX_BYTES, _size)
        self._ended: LRUCache[str, _Ended] = LRUCache(ENDED_MAX_BYTES, lambda e: _size(e.answer))
        self._last: tuple[Task | None, bytes] = None, b""

    def of(self, task: Task) -> bytes:
        """Return the answer that holds this snapshot."""
        last, answer = self._last
        if task is not last:  # else it goes out to many streams
            answer = self._known(task) or self._make(task)
            self._last = task, answer
        return answer

    def listed(self, task: Task) -> bytes:
        """Return the answer that holds this snapshot, without keeping it.

        A long list would drive out what is asked for again and again.
        """
        return self._known(task) or _serialized(task)

    def _known(self, task: Task) -> bytes | None:
        if task.status is Status.SUCCESS:
            ended = self._ended.get(task.id)
            return ended.answer if ended else None
        return self._changing.get((task.id, task.revision))

    def _make(self, task: Task) -> bytes:
        answer = _serialized(task)
        with suppress(ValueError):  # larger than all there is room for
            if task.status is Status.SUCCESS:
                self._ended[task.id] = _Ended(task.caller, task.update_time, answer)
            else:
                self._changing[task.id, task.revision] = answer
        return answer

    def of_ended(self, caller: str, task_id: str, now: float) -> bytes | None:
        """Return the answer for a caller's task that has succeeded, if it is known."""
        known = self._ended.get(task_id)
        if known and known.caller == caller and now < known.end_time + self._kept_seconds:
            return known.answer
        return None


def _serialized(task: Task) -> bytes:
    return pb.QueryTaskResponse(task=task_message(task)).SerializeToString()


def _size(answer: bytes) -> int:
    return ANSWER_BYTES + len(answer)


def task_message(task: Task) -> pb.GenerationTask:
    """Return the snapshot as its message."""
    message = pb.GenerationTask(
        id=task.id,
        prompt_id=task.prompt_id,
        status=STATUSES[task.status],
        stage=STAGES[task.stage],
        revision=task.revision,
        progress_percent=task.progress_percent,
        result_json=task.result_json,
        provider_task_id=task.provider_task_id,
        credits_consumed=task.credits_consumed,
        create_time=timestamp(task.create_time),
        update_time=timestamp(task.update_time),
        request_id=task.request_id,
    )
    message.provider_params.ParseFromString(task.params)
    if task.complete_time is not None:
        message.complete_time.CopyFrom(timestamp(task.complete_time))
    if task.failure is not None:
        message.failure.CopyFrom(_failure(task))
    message.artifacts.extend(_artifacts(task))
    return message


def timestamp(unix_seconds: float) -> Timestamp:
    """Return a time with the microseconds that a float holds."""
    micros = round(unix_seconds * 1_000_000)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)


def _failure(task: Task) -> pb.TaskFailure:
    assert task.failure is not None
    return pb.TaskFailure(
        reason=pb.ErrorReason.Value(f"ERROR_REASON_{task.failure.reason}"),
        message=task.failure.message,
        provider_code=task.failure.provider_code,
    )


def _artifacts(task: Task) -> list[pb.Artifact]:
    if not task.artifacts:
        return []
    delivered = task.update_time if task.failure else task.complete_time or task.update_time
    expiry = timestamp(delivered + ARTIFACT_LIFE_SECONDS)
    return [
        pb.Artifact(url=a.url, mime_type=a.mime_type, expire_time=expiry) for a in task.artifacts
    ]
