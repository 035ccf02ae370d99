"""Uploads in flat memory, whatever callers and providers do."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from kie_generation.upload import CHUNK_BYTES
from tests.support.harness import SERVICE
from tests.support.memory import resident_mib
from tests.support.processes import served, to
from tests.support.refusals import refusal
from tests.support.uploading import MESSAGE, MIB, UploadHost, chunk, hang, metadata, raw_host
from tests.support.waiting import eventually


async def test_an_upload_to_a_provider_that_hangs_holds_one_message_and_little_more(
    tmp_path: Path,
) -> None:
    uploads = 32
    first, message = metadata().SerializeToString(), chunk(bytes(MESSAGE)).SerializeToString()
    async with raw_host(hang) as url, served(tmp_path, **to(url)) as process:
        channels = [
            grpc.aio.insecure_channel(
                process.address, options=(("grpc.use_local_subchannel_pool", 1),)
            )
            for _ in range(uploads)
        ]
        sent = 0

        async def without_end() -> AsyncIterator[bytes]:
            nonlocal sent
            yield first
            while True:
                yield message
                sent += 1

        before = resident_mib(process.pid)
        methods: list[Any] = [c.stream_unary(f"{SERVICE}UploadFile") for c in channels]
        calls = [method(without_end()) for method in methods]
        await eventually(lambda: sent >= uploads, 30)
        await asyncio.sleep(2)  # whatever is still read ahead
        growth = (resident_mib(process.pid) - before) / uploads
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for channel in channels:
            await channel.close()
    # The message has 4 MiB. As it was received and as it was parsed it is freed again, but glibc
    # may keep that memory for the process.
    assert growth < 14, f"{growth:.1f} MiB for each upload"


async def test_refused_uploads_keep_no_messages(tmp_path: Path, host: UploadHost) -> None:
    first = metadata(size_bytes=3).SerializeToString()
    message = chunk(bytes(MESSAGE)).SerializeToString()
    async with served(tmp_path, **to(host.url)) as process:
        method: Any = process.channel.stream_unary(f"{SERVICE}UploadFile")

        async def refuse(times: int) -> None:
            for _ in range(times):
                call = method(iter([first, message]))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert refusal(caught.value).reason == "UPLOAD_MISMATCH"

        await asyncio.gather(*(refuse(2) for _ in range(4)))
        before = resident_mib(process.pid)
        await asyncio.gather(*(refuse(50) for _ in range(4)))
        growth = resident_mib(process.pid) - before
    assert growth < 150, f"{growth:.0f} MiB"


@pytest.mark.parametrize("declared", [True, False], ids=["declared size", "unknown size"])
async def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, host: UploadHost, declared: bool
) -> None:
    host.handle = host.read_and_drop
    piece = os.urandom(CHUNK_BYTES)
    size = 256 * MIB

    def messages(size: int) -> Iterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=size) if declared else metadata()
        for _ in range(size // CHUNK_BYTES):
            yield chunk(piece)

    async with served(tmp_path, UPLOAD_MAX_BYTES=str(10**12), **to(host.url)) as process:
        await process.stub.UploadFile(messages(MIB))
        before = resident_mib(process.pid, "VmHWM")
        answer = await process.stub.UploadFile(messages(size))
        growth = resident_mib(process.pid, "VmHWM") - before
    assert answer.file.size_bytes == size < host.data["size"]
    assert growth < 30, f"{growth:.0f} MiB"
