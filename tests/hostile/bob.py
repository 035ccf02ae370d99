"""The caller who works while another attacks, and what he observes."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from tests.hostile.processes import TOKENS
from tests.support.harness import create_request, ended

if TYPE_CHECKING:  # it exists for type checkers only
    from generated.generation.v1.generation_pb2_grpc import GenerationServiceAsyncStub

QUERY_SECONDS = 0.01
LIST_SECONDS = 0.1
CREATE_SECONDS = 0.3
HEALTHZ_SECONDS = 0.05
CALL_SECONDS = 10.0
WARM_UP_CALLS = 20


@dataclass
class Noticed:
    """What Bob observes.

    His latencies are those of his client, in the process of the tests, from a call's start to its
    answer. Calls start by the clock, whether earlier ones were answered or not: a server that
    blocks for a second is seen by the hundred calls of that second, and not by one.
    """

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    healthz_seconds: float = 0
    task_seconds: float = 0  # the longest, from a create to the end of its watch


class Bob:
    """Bob at work."""

    def __init__(self, stub: "GenerationServiceAsyncStub", healthz_url: str) -> None:
        self._stub = stub
        self._healthz_url = healthz_url
        self._metadata = (("authorization", f"Bearer {TOKENS['bob']}"),)
        self._task_id = ""
        self.noticed = Noticed()

    async def warm_up(self) -> None:
        """Make the first calls, which are slower than others, and forget them."""
        self._task_id = await self._create()
        for _ in range(WARM_UP_CALLS):
            await self._query()
        await self._list()
        await self._ask_healthz()
        assert not self.noticed.errors, self.noticed.errors
        self.noticed = Noticed()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Work for as long as the context lasts, and finish the calls in progress."""
        duties: list[tuple[float, Callable[[], Awaitable[Any]]]] = [
            (QUERY_SECONDS, self._query),
            (LIST_SECONDS, self._list),
            (CREATE_SECONDS, self._create_and_watch),
            (HEALTHZ_SECONDS, self._ask_healthz),
        ]
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for seconds, duty in duties:
                group.create_task(_repeat(group, over, seconds, duty))
            try:
                yield
            finally:
                over.set()

    # --- his calls ---

    async def _query(self) -> None:
        await self._timed(self._stub.QueryTask, pb.QueryTaskRequest(task_id=self._task_id))

    async def _list(self) -> None:
        await self._timed(self._stub.ListTasks, pb.ListTasksRequest(page_size=5))

    async def _create(self) -> str:
        answer = await self._timed(self._stub.CreateTask, create_request(prompt_id="bob"))
        return answer.task.id if answer else ""

    async def _create_and_watch(self) -> None:
        begun = time.monotonic()
        if not (task_id := await self._create()):
            return
        last = None
        watch = self._stub.WatchTask(
            pb.WatchTaskRequest(task_id=task_id), metadata=self._metadata, timeout=CALL_SECONDS
        )
        try:
            async for answer in watch:
                last = answer.task
        except grpc.aio.AioRpcError as error:
            self._note(error, "WatchTask")
        else:
            if last is None or not ended(last):
                self.noticed.errors["a watch without an end"] += 1
        self.noticed.task_seconds = max(self.noticed.task_seconds, time.monotonic() - begun)

    async def _timed(self, method: Any, request: Any) -> Any:
        begun = time.monotonic()
        try:
            return await method(request, metadata=self._metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._note(error, type(request).__name__.removesuffix("Request"))
            return None
        finally:
            self.noticed.latencies.append(time.monotonic() - begun)

    async def _ask_healthz(self) -> None:
        """Ask over a new connection, as orchestrators do."""
        begun = time.monotonic()
        connector = aiohttp.TCPConnector(force_close=True)
        limit = aiohttp.ClientTimeout(CALL_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as session,
                session.get(self._healthz_url) as response,
            ):
                assert response.status == 200
        except (aiohttp.ClientError, TimeoutError) as error:
            self.noticed.errors[f"/healthz {type(error).__name__}"] += 1
        seconds = time.monotonic() - begun
        self.noticed.healthz_seconds = max(self.noticed.healthz_seconds, seconds)

    def _note(self, error: grpc.aio.AioRpcError, method: str) -> None:
        """Count an error, unless it is a refusal by one of Bob's own limits."""
        status = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        found = status is not None and any(detail.Unpack(info) for detail in status.details)
        reason = info.reason if found else error.code().name
        if reason == "RATE_LIMITED" and info.metadata.get("scope") == "caller":
            self.noticed.refusals[f"{method} {info.metadata['limit']}"] += 1
        else:
            self.noticed.errors[f"{method} {reason}"] += 1


async def _repeat(
    group: asyncio.TaskGroup,
    over: asyncio.Event,
    seconds: float,
    duty: Callable[[], Awaitable[Any]],
) -> None:
    async def do() -> None:
        await duty()

    while not over.is_set():
        group.create_task(do())
        await asyncio.sleep(seconds)


@asynccontextmanager
async def bob(address: str, admin_address: str) -> AsyncIterator[Bob]:
    """Connect Bob to the service."""
    async with grpc.aio.insecure_channel(address) as channel:
        caller = Bob(GenerationServiceStub(channel), f"http://{admin_address}/healthz")
        await caller.warm_up()
        yield caller
