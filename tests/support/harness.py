"""The real service in this process, the simulator on a socket, and calls to them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import json_format
from pydantic import SecretStr

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator, SimulatorSettings
from service import server
from service.bounds import BOUNDS, Bounds, PollerBounds
from service.settings import Settings
from service.tracing import Tracing
from tests.support.waiting import DEADLINE_SECONDS

if TYPE_CHECKING:  # it exists for type checkers only
    from generated.generation.v1.generation_pb2_grpc import GenerationServiceAsyncStub

API_KEY = "kie-key-of-the-tests"
DIRECT = [("grpc.enable_http_proxy", 0)]  # by default gRPC uses a proxy even for loopback
SERVICE = "/generation.v1.GenerationService/"

# Everything at once: no limits, results within milliseconds.
INSTANT = SimulatorSettings(
    api_key=API_KEY,
    seed=1,
    seconds=dict.fromkeys(("imagen4", "midjourney", "veo3", "sora2", "market"), (0.01, 0.02)),
    visible_after_seconds=0,
    creates_per_window=0,
    records_per_second=0,
    catalogue_per_second=0,
)


@dataclass(frozen=True)
class Service:
    """A running service, and a channel to it."""

    address: str
    admin_address: str
    http_address: str
    channel: grpc.aio.Channel
    stub: "GenerationServiceAsyncStub"
    kie: Simulator
    folder: Path
    database_url: str

    async def create(
        self, params: dict[str, Any] | None = None, **fields: Any
    ) -> pb.GenerationTask:
        """Create a task of `{model: params}`, Imagen's by default."""
        metadata = fields.pop("metadata", None)
        timeout = fields.pop("timeout", DEADLINE_SECONDS)
        request = create_request(params, **fields)
        answer = await self.stub.CreateTask(request, timeout=timeout, metadata=metadata)
        return answer.task

    async def query(self, task_id: str) -> pb.GenerationTask:
        return (await self.stub.QueryTask(pb.QueryTaskRequest(task_id=task_id), timeout=5)).task

    async def watch(
        self, task_id: str, after_revision: int = 0, timeout: float = DEADLINE_SECONDS
    ) -> AsyncIterator[pb.GenerationTask]:
        """Watch, and check what every stream promises."""
        request = pb.WatchTaskRequest(task_id=task_id, after_revision=after_revision)
        seen = None
        async for answer in self.stub.WatchTask(request, timeout=timeout):
            assert seen is None or not ended(seen), "nothing comes after the terminal snapshot"
            assert seen is None or answer.task.revision >= seen.revision, "revisions never fall"
            seen = answer.task
            yield seen
        assert seen is not None, "a stream never ends OK without a snapshot"
        assert ended(seen), "a stream never ends OK without the end"

    async def end(self, task_id: str) -> pb.GenerationTask:
        """Watch a task to its end."""
        async for task in self.watch(task_id):
            last = task
        return last

    async def until(
        self, task_id: str, holds: Callable[[pb.GenerationTask], bool]
    ) -> pb.GenerationTask:
        """Query a task until a condition of it holds."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not holds(task := await self.query(task_id)):
                pass
        return task

    async def until_put_back(self, task_id: str) -> pb.GenerationTask:
        """Watch a task until the provider has not accepted it."""
        async for task in self.watch(task_id):
            if task.stage == pb.TASK_STAGE_ACCEPTED and task.revision > 1:
                return task
        raise AssertionError(f"{task_id} ended")

    def bodies(self) -> list[dict[str, Any]]:
        """What the provider was sent, oldest first."""
        return [task["body"] for task in self.kie.tasks]


def ended(task: pb.GenerationTask) -> bool:
    return task.status != pb.TASK_STATUS_PENDING


def has_artifacts(task: pb.GenerationTask) -> bool:
    return bool(task.artifacts)


def create_request(
    params: dict[str, Any] | None = None, *, prompt_id: str = "p", request_id: str = ""
) -> pb.CreateTaskRequest:
    kie = params if params is not None else {"imagen4": {"prompt": "a cat"}}
    return json_format.ParseDict(
        {"prompt_id": prompt_id, "request_id": request_id, "provider_params": {"kie": kie}},
        pb.CreateTaskRequest(),
    )


def poller_bounds(**changes: Any) -> Bounds:
    """Return the usual bounds, with changes to those of the poller."""
    return replace(BOUNDS, poller=PollerBounds(**changes))


Serve = Callable[..., AbstractAsyncContextManager[Service]]


@asynccontextmanager
async def serving(
    folder: Path,
    kie: Simulator,
    *,
    database_url: str = "",
    bounds: Bounds = BOUNDS,
    tracing: Tracing | None = None,
    **settings: Any,
) -> AsyncIterator[Service]:
    """Run the service against a simulator, with a database in `folder` unless another is given."""
    database_url = database_url or f"sqlite:///{folder}/generation.db"
    values: dict[str, Any] = {
        "listen_address": "127.0.0.1:0",
        "admin_address": "",
        "database_url": SecretStr(database_url),
        "kie_api_key": SecretStr(API_KEY),
        "kie_api_url": kie.url,
        "kie_upload_url": kie.url,
        "kie_creates_per_10_seconds": 0,
        "kie_status_per_second": 0,
        "kie_running_max": 0,
        "kie_catalogue_refresh_seconds": 0,
        "poll_interval_seconds": 0.02,
    }
    async with (
        server.serving(Settings(**values | settings), bounds, tracing) as addresses,
        grpc.aio.insecure_channel(addresses.address, DIRECT) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        yield Service(
            addresses.address,
            addresses.admin_address,
            addresses.http_address,
            channel,
            stub,
            kie,
            folder,
            database_url,
        )


def upload_messages(
    content: bytes, chunk_bytes: int = 65_536, **metadata: Any
) -> list[pb.UploadFileRequest]:
    """Return the messages of an upload."""
    first = pb.UploadFileRequest(metadata=pb.UploadMetadata(**{"file_name": "cat.png"} | metadata))
    chunks = [content[i : i + chunk_bytes] for i in range(0, len(content), chunk_bytes)]
    return [first, *(pb.UploadFileRequest(chunk=chunk) for chunk in chunks)]


def result_urls(task: pb.GenerationTask) -> list[str]:
    urls: list[str] = json.loads(task.result_json)["resultUrls"]
    return urls
