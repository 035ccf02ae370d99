"""What an attacker knows about the service, and the gRPC calls that it makes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import grpc

from generated.generation.v1 import generation_pb2 as pb

SERVICE = "/generation.v1.GenerationService/"
CALL_SECONDS = 10.0
Outcome = dict[str, float]
Attack = Callable[["Target"], Awaitable[Outcome]]


@dataclass(frozen=True)
class Target:
    """Where the service is, and how hard to attack it.

    Attributes:
        token: Of the caller; "" to call without one.
        count: How much of what the attack is made of: its docstring names the unit.
        seconds: How long an attack lasts if it does not end by its count.
    """

    address: str
    admin_address: str
    http_address: str
    simulator_url: str
    tokens_file: str
    token: str
    count: int
    seconds: float

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What each call carries."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []


class Calls:
    """Calls of raw bytes, over connections of their own."""

    def __init__(self, target: Target, channels: list[grpc.aio.Channel]) -> None:
        self._metadata = target.metadata
        self._channels = channels
        self._next = 0

    async def unary(self, method: str, message: bytes) -> bytes | None:
        """Call a method; return the response, or None if it was refused or took too long."""
        call: Any = self._channel().unary_unary(SERVICE + method)
        try:
            response: bytes = await call(message, metadata=self._metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError:
            return None
        return response

    def begin(self, path: str, message: bytes) -> Any:
        """Begin a call of any method that takes one message."""
        call: Any = self._channel().unary_stream(path)
        return call(message, metadata=self._metadata)

    def upload(self, messages: AsyncIterator[bytes]) -> Any:
        """Begin an upload."""
        call: Any = self._channel().stream_unary(SERVICE + "UploadFile")
        return call(messages, metadata=self._metadata)

    async def create(self, message: bytes) -> str | None:
        """Create a task; return its id, or None if it was refused."""
        response = await self.unary("CreateTask", message)
        return pb.CreateTaskResponse.FromString(response).task.id if response else None

    def _channel(self) -> grpc.aio.Channel:
        self._next += 1
        return self._channels[self._next % len(self._channels)]


@asynccontextmanager
async def calling(target: Target, connections: int = 1) -> AsyncIterator[Calls]:
    """Connect to the service."""
    # Channels with equal options share a connection unless each has its own pool.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [
        grpc.aio.insecure_channel(target.address, options=options) for _ in range(connections)
    ]
    try:
        yield Calls(target, channels)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def imagen4(prompt: str = "a cat", **fields: Any) -> bytes:
    """Return a CreateTaskRequest for Imagen 4."""
    params = pb.Imagen4Params(prompt=prompt, **fields)
    return create_request(pb.KieParams(imagen4=params))


def create_request(kie: pb.KieParams) -> bytes:
    """Return a CreateTaskRequest."""
    params = pb.ProviderParams(kie=kie)
    return pb.CreateTaskRequest(prompt_id="hostile", provider_params=params).SerializeToString()


async def at_once(jobs: Iterable[Awaitable[Any]], limit: int) -> list[Any]:
    """Run jobs, so many of them at a time; return their results in order."""
    places = asyncio.Semaphore(limit)

    async def run(job: Awaitable[Any]) -> Any:
        async with places:
            return await job

    return await asyncio.gather(*map(run, jobs))
