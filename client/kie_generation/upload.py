"""A file as the messages of UploadFile.

Memory does not grow with the file, and no read blocks the event loop.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc

from generated.generation.v1.generation_pb2 import (
    UploadFileRequest,
    UploadFileResponse,
    UploadMetadata,
)

CHUNK_BYTES = 256 * 1024

UploadCall: TypeAlias = grpc.aio.StreamUnaryCall[UploadFileRequest, UploadFileResponse]


def fingerprint(path: Path) -> tuple[int, bytes]:
    """Returns the size in bytes and the SHA-256 of a file. Blocks: call it in a thread."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return file.tell(), digest


async def read_chunks(path: Path) -> AsyncIterator[bytes]:
    """Yields the file's bytes, at most CHUNK_BYTES at a time."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


async def send(
    call: UploadCall, metadata: UploadMetadata, content: AsyncIterable[bytes]
) -> UploadFileResponse:
    """Writes the metadata and the content, and returns the answer.

    Raises:
        grpc.aio.AioRpcError: the server refused, perhaps before it had everything.
        Exception: whatever `content` raises; the upload is then cancelled and never completed.
    """
    writer = asyncio.create_task(_write(call, metadata, content))

    def stop(_: object) -> None:
        writer.cancel()

    # The server may answer before the end of the file. Stopping the writer at that very moment lets
    # it not wait for content in vain, and keeps a write that fails from overwriting the answer with
    # "Internal error from Core", as it does in grpcio 1.85.
    call.add_done_callback(stop)
    try:
        await asyncio.wait([writer])
        _raise_what_content_raised(writer)
        return await call
    finally:
        writer.cancel()
        call.cancel()  # nothing after an answer; else half a file must not look like a whole one


async def _write(call: UploadCall, metadata: UploadMetadata, content: AsyncIterable[bytes]) -> None:
    await call.write(UploadFileRequest(metadata=metadata))
    async for piece in content:
        for start in range(0, len(piece), CHUNK_BYTES):
            await call.write(UploadFileRequest(chunk=piece[start : start + CHUNK_BYTES]))
    await call.done_writing()


def _raise_what_content_raised(writer: asyncio.Task[None]) -> None:
    error = None if writer.cancelled() else writer.exception()
    # The other two say only that the call is over; the call itself says why.
    if error is not None and not isinstance(
        error, asyncio.InvalidStateError | grpc.aio.AioRpcError
    ):
        raise error
