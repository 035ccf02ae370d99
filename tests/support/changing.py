"""Messages of a stream of all changes, for the scripted server."""

import grpc

from kie_generation import Bookmark, GenerationTask
from kie_generation.generated.generation.v1.generation_pb2 import WatchTasksResponse
from tests.support.scripted_server import Failure

EXPIRED = Failure(grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED")


def changed(task: GenerationTask | None, token: str) -> WatchTasksResponse:
    """Return a change of a task; without one, an event that this version does not know."""
    return WatchTasksResponse(task=task, resume_token=token)


def bookmark(token: str, *, initial_done: bool = False) -> WatchTasksResponse:
    return WatchTasksResponse(bookmark=Bookmark(initial_done=initial_done), resume_token=token)
