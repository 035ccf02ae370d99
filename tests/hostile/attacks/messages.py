"""Attacks by the content or the size of messages."""

import asyncio
import struct
from collections.abc import AsyncIterator

import grpc

from generated.generation.v1 import generation_pb2 as pb
from tests.hostile.frames import Sender, comes_true, headers
from tests.hostile.target import (
    CALL_SECONDS,
    SERVICE,
    Outcome,
    Target,
    at_once,
    calling,
    create_request,
    imagen4,
)
from tests.support.prompts import STUCK_PROMPT

MESSAGE_BYTES = 4 << 20  # the most that gRPC takes
PART_BYTES = MESSAGE_BYTES * 3 // 4
UNARY_BYTES = 1 << 20
ROOM_BYTES = 1_000  # for the fields around a large value
AT_ONCE = 4
LONG_BYTES = 900_000
UNKNOWN_FIELD = 1_000
HEALTH = "/grpc.health.v1.Health/"
LENGTH_DELIMITED = 2


def _with_urls(size: int) -> list[bytes]:
    """Return valid messages of that many bytes that are nearly all URLs."""
    urls = ["x"] * ((size - ROOM_BYTES) // 3)  # a tag, a length and a letter each
    midjourney = pb.MidjourneyParams(
        prompt="a cat", task_type=pb.MidjourneyParams.TASK_TYPE_IMG2IMG, file_urls=urls
    )
    veo3 = pb.Veo3Params(prompt="a cat", image_urls=urls)
    sora2 = pb.Sora2Params(prompt="a cat", image_urls=urls)
    kinds = (
        pb.KieParams(midjourney=midjourney),
        pb.KieParams(veo3=veo3),
        pb.KieParams(sora2=sora2),
    )
    return [create_request(kie) for kie in kinds]


def _with_text(size: int) -> list[tuple[str, bytes]]:
    """Return a message of that many bytes for each kind of long text."""
    text = "x" * (size - ROOM_BYTES)
    return [
        ("CreateTask", imagen4(text)),
        ("CreateTask", pb.CreateTaskRequest(request_id=text).SerializeToString()),
        ("CreateTask", b"\x12\x00" * (len(text) // 2)),  # provider_params, again and again
        ("QueryTask", pb.QueryTaskRequest(task_id=text).SerializeToString()),
        ("ListTasks", pb.ListTasksRequest(prompt_id=text).SerializeToString()),
        ("ListTasks", pb.ListTasksRequest(page_token=text).SerializeToString()),
        ("CancelTask", pb.CancelTaskRequest(task_id=text).SerializeToString()),
    ]


async def many_values(target: Target) -> Outcome:
    """Send `count` times each kind of large message, just small enough to be read."""
    accepted = 0
    async with calling(target) as calls:
        for _ in range(target.count):
            for size in (UNARY_BYTES, MESSAGE_BYTES):
                for message in _with_urls(size):
                    accepted += await calls.unary("CreateTask", message) is not None
                for method, message in _with_text(size):
                    accepted += await calls.unary(method, message) is not None
    return {"accepted": accepted}


async def refused_messages(target: Target) -> Outcome:
    """Send `count` MiB in messages that are refused: half of them of 4 MiB, half just below 1."""
    large, small = (imagen4("x" * (size - ROOM_BYTES)) for size in (MESSAGE_BYTES, UNARY_BYTES))
    messages = [large] * (target.count // 8) + [small] * (target.count // 2)
    async with calling(target, AT_ONCE) as calls:
        jobs = (calls.unary("CreateTask", message) for message in messages)
        answers = await at_once(jobs, AT_ONCE)
    return {"accepted": sum(answer is not None for answer in answers)}


async def refused_uploads(target: Target) -> Outcome:
    """Send `count` uploads with a chunk of 4 MiB whose declared size is wrong."""
    first = pb.UploadFileRequest(
        metadata=pb.UploadMetadata(file_name="x.png", size_bytes=1)
    ).SerializeToString()
    chunk = pb.UploadFileRequest(chunk=bytes(MESSAGE_BYTES - ROOM_BYTES)).SerializeToString()

    async def messages() -> AsyncIterator[bytes]:
        yield first
        yield chunk

    async with calling(target, AT_ONCE) as calls:

        async def upload() -> bool:
            call = calls.upload(messages())
            async with asyncio.timeout(CALL_SECONDS):
                return bool(await call.code() == grpc.StatusCode.OK)

        accepted = await at_once((upload() for _ in range(target.count)), AT_ONCE)
    return {"accepted": sum(accepted)}


async def unfinished_messages(target: Target) -> Outcome:
    """Send three quarters of `count` messages of 4 MiB, over one connection, and stop."""
    connection = await Sender.connect(target)
    block = headers(target, SERVICE + "CreateTask")
    part = b"\0" + struct.pack(">I", MESSAGE_BYTES - ROOM_BYTES) + bytes(PART_BYTES)
    for _ in range(target.count):
        connection.begin_message(block, part)
        await asyncio.sleep(0)
    await comes_true(lambda: not connection.unsent_bytes, target.seconds)
    return {"unsent MiB": connection.unsent_bytes / (1 << 20)}


async def unknown_fields(target: Target) -> Outcome:
    """Create `count` tasks of 900 KB in fields that the service does not know; list them often."""
    unknown = _field(UNKNOWN_FIELD, bytes(LONG_BYTES))
    params = _field(2, b"a cat") + unknown  # of Imagen4Params
    message = _field(1, b"hostile") + _field(2, _field(1, _field(1, params)))
    listing = pb.ListTasksRequest(page_size=200).SerializeToString()
    async with calling(target, AT_ONCE) as calls:
        jobs = (calls.unary("CreateTask", message) for _ in range(target.count))
        answers = await at_once(jobs, AT_ONCE)
        await asyncio.gather(*(calls.unary("ListTasks", listing) for _ in range(16)))
    return {"accepted": sum(answer is not None for answer in answers)}


async def long_checks(target: Target) -> Outcome:
    """Ask `count` times for the health of a service whose name has 900 KB."""
    message = _field(1, bytes(LONG_BYTES))
    async with calling(target) as calls:
        for _ in range(target.count):
            await calls.begin(HEALTH + "Check", message).code()
    return {}


async def long_streams(target: Target) -> Outcome:
    """Open `count` streams of each kind, whose requests have 900 KB that no rule knows."""
    unknown = _field(UNKNOWN_FIELD, bytes(LONG_BYTES))
    async with calling(target) as calls:
        watch = pb.WatchTaskRequest(task_id=await calls.create(imagen4(STUCK_PROMPT)) or "")
        requests = (
            (SERVICE + "WatchTask", watch.SerializeToString() + unknown),
            (SERVICE + "WatchTasks", unknown),
            (HEALTH + "Watch", _field(1, bytes(LONG_BYTES))),
        )
        streams = []
        for path, message in requests * target.count:
            stream = calls.begin(path, message)
            async with asyncio.timeout(CALL_SECONDS):
                await stream.read()
            streams.append(stream)
        await asyncio.sleep(target.seconds)
        return {"open": sum(not stream.done() for stream in streams)}


def _field(number: int, value: bytes) -> bytes:
    """Return a field of bytes in protobuf's wire format."""
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    rest = b""
    while value > 127:
        rest += struct.pack("B", value & 127 | 128)
        value >>= 7
    return rest + struct.pack("B", value)
