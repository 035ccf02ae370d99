"""From a stored snapshot to the message that callers see.

A snapshot never changes: (task id, revision) determines its message, for every caller and in every
process. So recently serialized responses are cached, and a change that goes out to many streams is
serialized once. A SUCCESS is final, once its results have their copies: its response needs no read.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from sys import intern

from cachetools import LRUCache
from google.protobuf.timestamp_pb2 import Timestamp

from generated.generation.v1 import generation_pb2 as pb
from storage.task import Artifact, Stage, Status, Task

CHANGING_MAX_BYTES = 8 << 20
ENDED_MAX_BYTES = 32 << 20
ENTRY_BYTES = 400  # the memory of a cached response, without the response itself

STATUSES = {status: pb.TaskStatus.Value(f"TASK_STATUS_{status}") for status in Status}
STAGES: dict[Stage | None, pb.TaskStage.ValueType] = {
    None: pb.TASK_STAGE_UNSPECIFIED,
    **{stage: pb.TaskStage.Value(f"TASK_STAGE_{stage}") for stage in Stage},
}

REASONS = {name.removeprefix("ERROR_REASON_"): value for name, value in pb.ErrorReason.items()}


def _not_public(uri: str) -> str:
    del uri
    return ""


@dataclass(frozen=True, slots=True)
class Links:
    """How the URLs of results work.

    Attributes:
        provider_seconds: How long the provider's URLs work, from the end of a task at the provider.
        public_url: Returns the public URL of a copy, by its URI; "" if it has none.
        copies_may_follow: Whether a task that has succeeded may still get copies of its results.
    """

    provider_seconds: float
    public_url: Callable[[str], str] = _not_public
    copies_may_follow: bool = False

    def are_final(self, task: Task) -> bool:
        """Return whether a task never changes again."""
        if task.status is not Status.SUCCESS:
            return False
        return not self.copies_may_follow or all(artifact.copy for artifact in task.artifacts)


@dataclass(frozen=True, slots=True)
class _Ended:
    """The response for a task that has succeeded, and the task's caller."""

    caller: str
    end_time: float
    answer: bytes


class Answers:
    """Serialized responses that contain a task, in a cache of limited size.

    CreateTaskResponse, QueryTaskResponse, WatchTaskResponse and CancelTaskResponse are the same on
    the wire: a task in field 1. A ListTasksResponse is the concatenation of one for each task.
    """

    def __init__(self, links: Links, kept_seconds: float = math.inf) -> None:
        """Start empty.

        Args:
            links: How the URLs of results work.
            kept_seconds: How long a task is kept after its end; then any process may purge it.
        """
        self._links = links
        self._kept_seconds = kept_seconds
        self._changing: LRUCache[tuple[str, int], bytes] = LRUCache(CHANGING_MAX_BYTES, _size)
        self._ended: LRUCache[str, _Ended] = LRUCache(ENDED_MAX_BYTES, lambda e: _size(e.answer))
        self._last: tuple[Task | None, bytes] = None, b""

    def of(self, task: Task) -> bytes:
        """Return the response that contains this snapshot."""
        last, answer = self._last
        if task is not last:  # the same one again: it goes out to many streams
            answer = self._known(task) or self._make(task)
            self._last = task, answer
        return answer

    def listed(self, task: Task) -> bytes:
        """Return the response that contains this snapshot, without caching it.

        A long list would evict the responses that are requested often.
        """
        return self._known(task) or self._serialized(task)

    def _known(self, task: Task) -> bytes | None:
        if self._links.are_final(task):
            ended = self._ended.get(task.id)
            return ended.answer if ended else None
        return self._changing.get((task.id, task.revision))

    def _make(self, task: Task) -> bytes:
        answer = self._serialized(task)
        with suppress(ValueError):  # larger than the whole cache
            if self._links.are_final(task):
                self._ended[task.id] = _Ended(intern(task.caller), task.update_time, answer)
            else:
                self._changing[task.id, task.revision] = answer
        return answer

    def for_success(self, caller: str, task_id: str, now: float) -> bytes | None:
        """Return the response for a caller's task that has succeeded, if it is cached."""
        known = self._ended.get(task_id)
        if known and known.caller == caller and now < known.end_time + self._kept_seconds:
            return known.answer
        return None

    def _serialized(self, task: Task) -> bytes:
        message = task_message(task, self._links)
        return pb.QueryTaskResponse(task=message).SerializeToString()


def _size(answer: bytes) -> int:
    return ENTRY_BYTES + len(answer)


def size_of(task: Task) -> int:
    """Return how many bytes the message of a snapshot has, if it has many."""
    return len(task.filled_params or task.params) + len(task.result_json)


def task_message(task: Task, links: Links) -> pb.GenerationTask:
    """Return the message of a snapshot."""
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
    message.provider_params.ParseFromString(task.filled_params or task.params)
    if task.complete_time is not None:
        message.complete_time.CopyFrom(timestamp(task.complete_time))
    if task.failure is not None:
        message.failure.CopyFrom(_failure(task))
    message.artifacts.extend(_artifacts(task, links))
    return message


def params_of(task: Task) -> pb.ProviderParams:
    """Return the parameters of a task as they are sent, and shown to callers."""
    return pb.ProviderParams.FromString(task.filled_params or task.params)


def timestamp(unix_seconds: float) -> Timestamp:
    """Return a time with the microseconds that a float can represent."""
    micros = round(unix_seconds * 1_000_000)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)


def _failure(task: Task) -> pb.TaskFailure:
    assert task.failure is not None
    return pb.TaskFailure(
        reason=REASONS.get(task.failure.reason, pb.ERROR_REASON_UNSPECIFIED),
        message=task.failure.message,
        provider_code=task.failure.provider_code,
    )


def _artifacts(task: Task, links: Links) -> list[pb.Artifact]:
    if not task.artifacts:
        return []
    expiry = timestamp(task.delivery_time + links.provider_seconds)
    return [_artifact(artifact, expiry, task, links) for artifact in task.artifacts]


def _artifact(artifact: Artifact, expiry: Timestamp, task: Task, links: Links) -> pb.Artifact:
    """Return an artifact; copies are shown once all are complete, which is a new revision."""
    message = pb.Artifact(url=artifact.url, mime_type=artifact.mime_type, expire_time=expiry)
    if not task.ended:
        return message
    message.storage_error = artifact.storage_error
    if copy := artifact.copy:
        message.mime_type = copy.mime_type
        message.size_bytes = copy.size_bytes
        message.sha256 = bytes.fromhex(copy.sha256)
        message.storage_uri = copy.uri
        message.public_url = links.public_url(copy.uri)
    return message
