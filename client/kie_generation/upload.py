"""Sending a file as the messages of UploadFile.

Memory use does not depend on the file's size, and no read blocks the event loop.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import Path
from typing import TypeAlias

import grpc

from kie_generation.generated.generation.v1.generation_pb2 import (
    UploadFileRequest,
    UploadFileResponse,
    UploadMetadata,
)

CHUNK_BYTES = 256 * 1024

UploadCall: TypeAlias = grpc.aio.StreamUnaryCall[UploadFileRequest, UploadFileResponse]


def fingerprint(path: Path) -> tuple[int, bytes]:
    """Return the size in bytes and the SHA-256 of a file. It blocks: call it in a thread."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return file.tell(), digest


async def read_chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield the file's bytes, at most CHUNK_BYTES at a time."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


async def in_thread(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks from an iterator that may block; it runs in a thread."""
    iterator = iter(chunks)
    while (chunk := await asyncio.to_thread(next, iterator, None)) is not None:
        yield chunk


async def send(
    call: UploadCall, metadata: UploadMetadata, content: AsyncIterable[bytes]
) -> UploadFileResponse:
    """Send the metadata and the content, and return the response.

    Raises:
        grpc.aio.AioRpcError: The server refused, possibly before it had received the whole file.
        Exception: Any exception that `content` raises; the upload is then cancelled.
    """
    writer = asyncio.create_task(_write(call, metadata, content))

    def stop(_: object) -> None:
        writer.cancel()

    # The server may respond before the end of the file. Stop the writer at once: it need not wait
    # for content nobody will read, and in grpcio 1.85 a failing write would replace the response
    # with "Internal error from Core".
    call.add_done_callback(stop)
    try:
        await asyncio.wait([writer])
        _raise_what_content_raised(writer)
        return await call
    finally:
        writer.cancel()
        call.cancel()  # unless there is a response: an incomplete file must not look complete


async def _write(call: UploadCall, metadata: UploadMetadata, content: AsyncIterable[bytes]) -> None:
    await call.write(UploadFileRequest(metadata=metadata))
    async for piece in content:
        for start in range(0, len(piece), CHUNK_BYTES):
            await call.write(UploadFileRequest(chunk=piece[start : start + CHUNK_BYTES]))
    await call.done_writing()


def _raise_what_content_raised(writer: asyncio.Task[None]) -> None:
    error = None if writer.cancelled() else writer.exception()
    # The other two only say that the call has ended; awaiting the call raises the reason.
    if error is not None and not isinstance(
        error, asyncio.InvalidStateError | grpc.aio.AioRpcError
    ):
        raise error
