"""Downloads of results through a channel."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import grpc

from generated.generation.v1 import generation_pb2 as pb
from service.artifacts import CHUNK_MAX_BYTES, CHUNK_MIN_BYTES
from tests.support.harness import Service
from tests.support.refusals import refusal
from tests.support.waiting import DEADLINE_SECONDS


@dataclass
class Downloaded:
    """What was received.

    Attributes:
        info: The first message.
        content: The bytes of the chunks.
        reasons: Why streams ended early.
    """

    info: pb.ArtifactInfo = field(default_factory=pb.ArtifactInfo)
    content: bytes = b""
    reasons: list[str] = field(default_factory=list)

    def check(self, content: bytes, offset: int = 0, *, has_copy: bool) -> None:
        """Check that it is the end of a content."""
        assert self.content == content[offset:]
        expected = hashlib.sha256(content).digest() if has_copy else b""
        assert self.info.sha256 == expected
        if self.info.HasField("size_bytes"):
            assert self.info.size_bytes == len(content)


async def download(
    stub: Any, task_id: str, index: int = 0, offset: int = 0, metadata: Any = None
) -> Downloaded:
    """Read one stream to its end, and check what every stream promises."""
    request = pb.DownloadArtifactRequest(task_id=task_id, index=index, offset=offset)
    call = stub.DownloadArtifact(request, metadata=metadata, timeout=DEADLINE_SECONDS)
    downloaded, chunks = Downloaded(), []
    async for response in call:
        if not downloaded.info.file_name:
            assert response.WhichOneof("payload") == "info", "the info is first"
            downloaded.info.CopyFrom(response.info)
        else:
            assert response.WhichOneof("payload") == "chunk", "there is one info"
            chunks.append(response.chunk)
    assert downloaded.info.file_name, "a stream never ends OK without the info"
    assert all(CHUNK_MIN_BYTES <= len(chunk) <= CHUNK_MAX_BYTES for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= CHUNK_MAX_BYTES for chunk in chunks[-1:])
    downloaded.content = b"".join(chunks)
    return downloaded


async def download_all(stub: Any, task_id: str, index: int = 0, offset: int = 0) -> Downloaded:
    """Download to the end, and resume whenever the service says so."""
    whole = Downloaded()
    while True:
        request = pb.DownloadArtifactRequest(
            task_id=task_id, index=index, offset=offset + len(whole.content)
        )
        try:
            async for response in stub.DownloadArtifact(request, timeout=DEADLINE_SECONDS):
                if response.WhichOneof("payload") == "info":
                    whole.info.CopyFrom(response.info)
                whole.content += response.chunk
        except grpc.aio.AioRpcError as error:
            found = refusal(error)
            if found.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            whole.reasons.append(found.reason)
            continue
        return whole


async def ended(service: Service, *names: str) -> pb.GenerationTask:
    """Create a task whose results are files of a MediaHost, and wait for its end."""
    task = await service.create({"imagen4": {"prompt": json.dumps(names)}})
    return await service.end(task.id)
