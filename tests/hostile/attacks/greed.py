"""Attacks by one caller who takes as much of everything as he can get."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from generated.generation.v1 import generation_pb2 as pb
from tests.hostile.target import Calls, Outcome, Target, at_once, calling, create_request, imagen4
from tests.support.prompts import STUCK_PROMPT

LONG = "\N{CAT FACE}" * 4_900
AT_ONCE = 64
CHUNK_BYTES = 1 << 20
LISTS_AT_ONCE = 64
LISTED_TASKS = 200
DRIP_SECONDS = 1.0
OPENING_SECONDS = 1.0


async def creates(target: Target) -> Outcome:
    """Create `count` tasks that take long."""
    async with calling(target) as calls:
        jobs = (calls.create(imagen4(STUCK_PROMPT)) for _ in range(target.count))
        created = await at_once(jobs, AT_ONCE)
    await asyncio.sleep(target.seconds)
    return {"accepted": sum(task_id is not None for task_id in created)}


async def created_and_cancelled(target: Target) -> Outcome:
    """Create tasks and cancel them, `count` at a time, for `seconds`."""
    async with calling(target) as calls:

        async def create_and_cancel() -> int:
            created = 0
            while loop.time() < end:
                if (task_id := await calls.create(imagen4(LONG))) is None:
                    await asyncio.sleep(0.01)
                    continue
                created += 1
                request = pb.CancelTaskRequest(task_id=task_id)
                await calls.unary("CancelTask", request.SerializeToString())
            return created

        loop = asyncio.get_running_loop()
        end = loop.time() + target.seconds
        created = await asyncio.gather(*(create_and_cancel() for _ in range(target.count)))
    return {"accepted": sum(created)}


async def expensive_creates(target: Target) -> Outcome:
    """Create `count` tasks of a model that the caller may not use."""
    message = create_request(pb.KieParams(veo3=pb.Veo3Params(prompt=STUCK_PROMPT)))
    async with calling(target) as calls:
        jobs = (calls.create(message) for _ in range(target.count))
        created = await at_once(jobs, AT_ONCE)
    return {"accepted": sum(task_id is not None for task_id in created)}


async def long_lists(target: Target) -> Outcome:
    """List 200 tasks with long prompts, `count` times at once, for `seconds`."""
    listing = pb.ListTasksRequest(page_size=LISTED_TASKS).SerializeToString()
    async with calling(target, connections=4) as calls:
        await _create_long(calls)

        async def lists() -> int:
            listed = 0
            while loop.time() < end:
                if await calls.unary("ListTasks", listing) is None:
                    await asyncio.sleep(0.05)  # refused: what a retrying client would do
                else:
                    listed += 1
            return listed

        loop = asyncio.get_running_loop()
        end = loop.time() + target.seconds
        listed = await asyncio.gather(*(lists() for _ in range(target.count)))
    return {"lists": sum(listed)}


async def _create_long(calls: Calls) -> None:
    message = imagen4(LONG, negative_prompt=LONG)
    created = await at_once((calls.create(message) for _ in range(LISTED_TASKS)), AT_ONCE)
    assert all(created)


# --- uploads ---


async def hanging_uploads(target: Target) -> Outcome:
    """Upload `count` large files to a provider that does not read, for `seconds`."""
    async with aiohttp.ClientSession() as session:
        fault = {"endpoint": "upload", "kind": "hang", "times": 0}
        async with session.post(f"{target.simulator_url}/simulator/faults", json=fault) as added:
            added.raise_for_status()

    async def content() -> AsyncIterator[bytes]:
        chunk = pb.UploadFileRequest(chunk=bytes(CHUNK_BYTES)).SerializeToString()
        while True:
            yield chunk

    return await _upload(target, content)


async def dripping_uploads(target: Target) -> Outcome:
    """Upload `count` files a byte at a time, for `seconds`."""

    async def content() -> AsyncIterator[bytes]:
        chunk = pb.UploadFileRequest(chunk=b"x").SerializeToString()
        while True:
            yield chunk
            await asyncio.sleep(DRIP_SECONDS)

    return await _upload(target, content)


async def _upload(target: Target, content: Any) -> Outcome:
    """Keep uploads open for a while; return how many are open at the end."""
    first = pb.UploadFileRequest(metadata=pb.UploadMetadata(file_name="x.png")).SerializeToString()

    async def messages() -> AsyncIterator[bytes]:
        yield first
        async for chunk in content():
            yield chunk

    async with calling(target, connections=4) as calls:
        uploads = [calls.upload(messages()) for _ in range(target.count)]
        await asyncio.sleep(OPENING_SECONDS + target.seconds)
        still_open = sum(not upload.done() for upload in uploads)
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*(upload.code() for upload in uploads))
    return {"open": still_open}
