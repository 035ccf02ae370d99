"""UploadFile: pass a stream of chunks on to the provider, and check it on the way.

Memory does not grow with the size of the file.
"""

import asyncio
import mimetypes
import re
import time
import unicodedata
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Provider, StoredFile, Upload, UploadError, Violation
from service.errors import ServiceError, invalid_params
from service.messages import timestamp

# grpc.aio ends the iteration of a cancelled call like that of a finished one, a moment before it
# cancels the handler. A file of undeclared size counts as complete only after that moment.
CANCELLATION_SECONDS = 0.1
NAME_MAX_BYTES = 255
# Control and formatting characters, such as the right-to-left override, and line separators.
HIDDEN_CATEGORIES = {"Cc", "Cf", "Zl", "Zp"}
# They join letters of some scripts, and emoji.
JOINERS = {"\u200c", "\u200d"}
DEFAULT_PATH = "user-uploads"
SHA256_BYTES = 32
MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(;[\x20-\x7e]{1,100})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class UploadPace:
    """The lowest speed of an upload. Only time spent waiting for the caller counts.

    Attributes:
        metadata_seconds: How long the first message may take.
        bytes_per_second: The lowest rate, in each window.
        window_seconds: The length of a window.
    """

    metadata_seconds: float = 10.0
    bytes_per_second: int = 64 << 10
    window_seconds: float = 60.0


class Uploads:
    """Passes files on to the provider."""

    def __init__(
        self,
        provider: Provider,
        max_bytes: int,
        retention_seconds: float,
        pace: UploadPace,
    ) -> None:
        self._provider = provider
        self._max_bytes = max_bytes
        self._retention_seconds = retention_seconds
        self._pace = pace

    async def upload(self, requests: AsyncIterator[pb.UploadFileRequest]) -> pb.UploadedFile:
        """Upload one file.

        Raises:
            ServiceError: Broken rules, a mismatch, or a refusal of the provider.
        """
        metadata = await _first(requests, self._pace.metadata_seconds)
        check_metadata(metadata)
        if metadata.size_bytes > self._max_bytes:
            raise _too_large(metadata.size_bytes, self._max_bytes)
        content = _Content(requests, metadata, self._max_bytes, self._pace)
        try:
            stored = await self._provider.upload(_upload(metadata), content)
        except UploadError as error:
            raise ServiceError(error.reason, str(error)) from None
        return self._message(stored, content, metadata)

    def _message(
        self, stored: StoredFile, content: "_Content", metadata: pb.UploadMetadata
    ) -> pb.UploadedFile:
        uploaded = stored.upload_time or time.time()
        expires = stored.expire_time or 0.0
        if expires <= uploaded:  # not reported, or impossible
            expires = uploaded + self._retention_seconds
        return pb.UploadedFile(
            file_name=stored.file_name,
            file_path=stored.file_path,
            download_url=stored.download_url,
            mime_type=stored.mime_type or _content_type(metadata),
            size_bytes=content.size_bytes,
            sha256=content.digest.digest(),
            upload_time=timestamp(uploaded),
            expire_time=timestamp(expires),
        )


class _Content:
    """The chunks, counted, hashed and checked before the end of the file is passed on.

    An iterator and not a generator: the frame of a generator would keep each chunk in memory until
    the next one arrives.
    """

    def __init__(
        self,
        requests: AsyncIterator[pb.UploadFileRequest],
        metadata: pb.UploadMetadata,
        max_bytes: int,
        pace: UploadPace,
    ) -> None:
        self._requests = requests
        self._metadata = metadata
        self._max_bytes = max_bytes
        self._pace = pace
        self._window_bytes = 0
        self._waited_seconds = 0.0  # in this window
        self.size_bytes = 0
        self.digest = sha256()

    def __aiter__(self) -> "_Content":
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk for the provider.

        Raises:
            ServiceError: UPLOAD_MISMATCH or UPLOAD_TOO_LARGE, as early as possible.
        """
        while (chunk := await self._next_chunk()) is not None:
            self._count(chunk)
            if chunk:
                return chunk
        if not (self._metadata.HasField("size_bytes") or self._metadata.sha256):
            await asyncio.sleep(CANCELLATION_SECONDS)
        self._check_end()
        raise StopAsyncIteration

    async def _next_chunk(self) -> bytes | None:
        """Wait for a chunk; None if the caller has sent all of them."""
        asked = time.monotonic()
        request = await anext(self._requests, None)
        self._waited_seconds += time.monotonic() - asked
        if request is None:
            return None
        if request.WhichOneof("payload") != "chunk":
            raise _mismatch("every message after the first must be a chunk")
        chunk = request.chunk  # each access copies the bytes
        self._window_bytes += len(chunk)
        if self._waited_seconds >= self._pace.window_seconds:
            self._check_pace()
        return chunk

    def _check_pace(self) -> None:
        if self._window_bytes < self._waited_seconds * self._pace.bytes_per_second:
            raise _mismatch(
                f"the upload was aborted: slower than {self._pace.bytes_per_second} bytes/s"
                f" over {self._waited_seconds:.0f} s"
            )
        self._window_bytes = 0
        self._waited_seconds = 0.0

    def _count(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        self.digest.update(chunk)
        if self.size_bytes > self._max_bytes:
            raise _too_large(self.size_bytes, self._max_bytes)
        if self._metadata.HasField("size_bytes") and self.size_bytes > self._metadata.size_bytes:
            declared = self._metadata.size_bytes
            raise _mismatch(f"the file is larger than the declared size_bytes ({declared})")

    def _check_end(self) -> None:
        declared = self._metadata
        if not self.size_bytes:
            raise _mismatch("the file is empty")
        if declared.HasField("size_bytes") and declared.size_bytes != self.size_bytes:
            raise _mismatch(
                f"the file has {self.size_bytes} bytes,"
                f" not the declared size_bytes ({declared.size_bytes})"
            )
        if declared.sha256 and declared.sha256 != self.digest.digest():
            raise _mismatch("the SHA-256 does not match metadata.sha256")


async def _first(
    requests: AsyncIterator[pb.UploadFileRequest], seconds: float
) -> pb.UploadMetadata:
    try:
        async with asyncio.timeout(seconds):
            request = await anext(requests, pb.UploadFileRequest())
    except TimeoutError:
        raise _mismatch(f"no metadata arrived within {seconds:g} s") from None
    if request.WhichOneof("payload") == "metadata":
        return request.metadata
    raise _mismatch("the first message must contain the metadata")


def _too_large(size_bytes: int, max_bytes: int) -> ServiceError:
    words = f"the file is at least {size_bytes} bytes; the limit is {max_bytes}"
    return ServiceError("UPLOAD_TOO_LARGE", words)


def _mismatch(words: str) -> ServiceError:
    return ServiceError("UPLOAD_MISMATCH", words)


def _upload(metadata: pb.UploadMetadata) -> Upload:
    """Return the upload for the provider.

    The provider overwrites files of the same name, so each upload gets a unique one.
    """
    return Upload(
        file_name=f"{uuid.uuid4().hex}-{metadata.file_name}",
        content_type=_content_type(metadata),
        upload_path=metadata.upload_path.strip("/") or DEFAULT_PATH,
        size_bytes=metadata.size_bytes if metadata.HasField("size_bytes") else None,
    )


def _content_type(metadata: pb.UploadMetadata) -> str:
    guess, encoding = mimetypes.guess_type(metadata.file_name, strict=False)
    if guess is None or encoding:  # cat.svg.gz is not an image
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
        return "must be a plain file name without a path"
    return _text_rule(name)


def _path_rule(path: str) -> str:
    if too_long := _length_rule(path):
        return too_long
    if path.startswith(("/", "\\")) or "\\" in path or ".." in PurePosixPath(path).parts:
        return "must be a relative path without `..` and backslashes"
    return _text_rule(path)


def _length_rule(text: str) -> str:
    """Check the length, before any rule that reads the whole text."""
    too_long = len(text.encode()) > NAME_MAX_BYTES
    return f"must have at most {NAME_MAX_BYTES} bytes in UTF-8" if too_long else ""


def _text_rule(text: str) -> str:
    if any(unicodedata.category(c) in HIDDEN_CATEGORIES for c in set(text) - JOINERS):
        return "must not contain control or formatting characters"
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
