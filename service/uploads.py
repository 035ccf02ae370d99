"""UploadFile: from a stream of chunks to the provider, checked on the way.

Memory does not grow with the file.
"""

import asyncio
import mimetypes
import re
import time
import unicodedata
import uuid
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import PurePosixPath

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Provider, StoredFile, Upload, UploadError, Violation
from service.errors import ServiceError, invalid_params
from service.messages import timestamp

# grpc.aio ends the iteration of a cancelled call like that of a finished one, a moment before it
# cancels the handler. A file whose size nobody told is believed to be whole only after that moment.
CANCELLATION_SECONDS = 0.1
METADATA_SECONDS = 60
NAME_MAX_CHARACTERS = 255
DEFAULT_PATH = "user-uploads"
SHA256_BYTES = 32
MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(;[\x20-\x7e]{1,100})?", re.ASCII)


class Uploads:
    """Passes files through to the provider."""

    def __init__(self, provider: Provider, max_bytes: int, retention_seconds: float) -> None:
        self._provider = provider
        self._max_bytes = max_bytes
        self._retention_seconds = retention_seconds

    async def upload(self, requests: AsyncIterator[pb.UploadFileRequest]) -> pb.UploadedFile:
        """Upload one file.

        Raises:
            ServiceError: The rows of the error table for uploads.
        """
        metadata = await _first(requests)
        check_metadata(metadata)
        if metadata.size_bytes > self._max_bytes:
            raise _too_large(metadata.size_bytes, self._max_bytes)
        content = _Content(requests, metadata, self._max_bytes)
        try:
            stored = await self._provider.upload(_upload(metadata), content.chunks())
        except UploadError as error:
            raise ServiceError(error.reason, str(error)) from None
        return self._message(stored, content, metadata)

    def _message(
        self, stored: StoredFile, content: "_Content", metadata: pb.UploadMetadata
    ) -> pb.UploadedFile:
        uploaded = stored.upload_time or time.time()
        return pb.UploadedFile(
            file_name=stored.file_name,
            file_path=stored.file_path,
            download_url=stored.download_url,
            mime_type=stored.mime_type or _content_type(metadata),
            size_bytes=content.size_bytes,
            sha256=content.digest.digest(),
            upload_time=timestamp(uploaded),
            expire_time=timestamp(stored.expire_time or uploaded + self._retention_seconds),
        )


class _Content:
    """The chunks.

    Counted, hashed and checked before the last of them is followed by the end of the file.
    """

    def __init__(
        self,
        requests: AsyncIterator[pb.UploadFileRequest],
        metadata: pb.UploadMetadata,
        max_bytes: int,
    ) -> None:
        self._requests = requests
        self._metadata = metadata
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self.digest = sha256()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what the provider gets.

        Raises:
            ServiceError: UPLOAD_MISMATCH or UPLOAD_TOO_LARGE, as soon as it is sure.
        """
        async for request in self._requests:
            if request.WhichOneof("payload") != "chunk":
                raise _mismatch("every message after the first must be a chunk")
            chunk = request.chunk  # each access makes a copy
            self._count(chunk)
            if chunk:
                yield chunk
        if not (self._metadata.HasField("size_bytes") or self._metadata.sha256):
            await asyncio.sleep(CANCELLATION_SECONDS)
        self._check_end()

    def _count(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        self.digest.update(chunk)
        if self.size_bytes > self._max_bytes:
            raise _too_large(self.size_bytes, self._max_bytes)
        if self._metadata.HasField("size_bytes") and self.size_bytes > self._metadata.size_bytes:
            raise _mismatch(f"the file has more than the {self._metadata.size_bytes} bytes told")

    def _check_end(self) -> None:
        told = self._metadata
        if not self.size_bytes:
            raise _mismatch("the file is empty")
        if told.HasField("size_bytes") and told.size_bytes != self.size_bytes:
            raise _mismatch(f"the file has {self.size_bytes} bytes, not the {told.size_bytes} told")
        if told.sha256 and told.sha256 != self.digest.digest():
            raise _mismatch("the file has another SHA-256 than the one told")


async def _first(requests: AsyncIterator[pb.UploadFileRequest]) -> pb.UploadMetadata:
    try:
        async with asyncio.timeout(METADATA_SECONDS):
            request = await anext(requests, pb.UploadFileRequest())
    except TimeoutError:
        raise _mismatch(f"no metadata came for {METADATA_SECONDS} s") from None
    if request.WhichOneof("payload") == "metadata":
        return request.metadata
    raise _mismatch("the first message must hold the metadata")


def _too_large(size_bytes: int, max_bytes: int) -> ServiceError:
    words = f"the file has {size_bytes} bytes or more, and at most {max_bytes} are taken"
    return ServiceError("UPLOAD_TOO_LARGE", words)


def _mismatch(words: str) -> ServiceError:
    return ServiceError("UPLOAD_MISMATCH", words)


def _upload(metadata: pb.UploadMetadata) -> Upload:
    """Say what the provider is told.

    It overwrites equal names, so each upload gets a name of its own.
    """
    return Upload(
        file_name=f"{uuid.uuid4().hex}-{metadata.file_name}",
        content_type=_content_type(metadata),
        upload_path=metadata.upload_path.strip("/") or DEFAULT_PATH,
        size_bytes=metadata.size_bytes if metadata.HasField("size_bytes") else None,
    )


def _content_type(metadata: pb.UploadMetadata) -> str:
    guess, encoding = mimetypes.guess_type(metadata.file_name, strict=False)
    if guess is None or encoding:  # cat.svg.gz is no image
        guess = "application/octet-stream"
    return metadata.content_type or guess


# --- rules of the metadata ---


def check_metadata(metadata: pb.UploadMetadata) -> None:
    """Raise INVALID_PARAMS with every broken rule."""
    broken = {
        "file_name": _name_rule(metadata.file_name),
        "content_type": _type_rule(metadata.content_type),
        "upload_path": _path_rule(metadata.upload_path),
        "size_bytes": _size_rule(metadata),
        "sha256": _digest_rule(metadata.sha256),
    }
    violations = [Violation(f"metadata.{field}", words) for field, words in broken.items() if words]
    if violations:
        raise invalid_params(violations)


def _name_rule(name: str) -> str:
    if too_long := _length_rule(name):
        return too_long
    if not name.strip():
        return "is required"
    if "/" in name or "\\" in name or name in {".", ".."}:
        return "must not climb or hold a path"
    return _text_rule(name)


def _path_rule(path: str) -> str:
    if too_long := _length_rule(path):
        return too_long
    if path.startswith(("/", "\\")) or "\\" in path or ".." in PurePosixPath(path).parts:
        return "must be relative and must not climb"
    return _text_rule(path)


def _length_rule(text: str) -> str:
    """Come before every rule that walks over the text."""
    too_long = len(text) > NAME_MAX_CHARACTERS
    return f"must have at most {NAME_MAX_CHARACTERS} characters" if too_long else ""


def _text_rule(text: str) -> str:
    if "Cc" in map(unicodedata.category, text):
        return "must not hold control characters"
    return ""


def _type_rule(content_type: str) -> str:
    if content_type and not MEDIA_TYPE.fullmatch(content_type):
        return "must look like image/png"
    return ""


def _size_rule(metadata: pb.UploadMetadata) -> str:
    if metadata.HasField("size_bytes") and metadata.size_bytes < 0:
        return "must not be negative"
    return ""


def _digest_rule(digest: bytes) -> str:
    return "" if len(digest) in {0, SHA256_BYTES} else f"must have {SHA256_BYTES} bytes"
