"""Stream a file to Kie's upload host, and read its response."""

import asyncio
import math
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, cast

import aiohttp
from aiohttp import hdrs

from providers.base import CallObserver, StoredFile, Upload, UploadError
from providers.kie.envelope import OK, Envelope
from providers.kie.http import (
    BROKEN,
    CONNECT_SECONDS,
    Exchange,
    Timeouts,
    authorization,
    describe,
    read_envelope,
)
from providers.kie.reasons import upload_reason
from providers.kie.values import as_time, clean
from providers.urls import split_http_url

UPLOAD_PATH = "/api/file-stream-upload"
PIECE_BYTES = 256 << 10  # what is buffered for a provider that does not read
RESCHEDULE_SHARE = 1 / 60  # reschedule at most 60 times per timeout: a timer per chunk is expensive
URL_MAX_CHARACTERS = 4_096


class Uploader:
    """Uploads files, each over its own connection."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        current_key: Callable[[], str],
        observe: CallObserver,
        timeouts: Timeouts,
    ) -> None:
        self._session = session
        self._url = base_url.rstrip("/") + UPLOAD_PATH
        self._current_key = current_key
        self._observe = observe
        self._timeouts = timeouts

    async def upload(self, upload: Upload, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Stream a file as multipart/form-data; the text parts first, as the file may be large."""
        source = _Source(chunks, self._timeouts.upload_stall_seconds)
        with Exchange(UPLOAD_PATH, self._observe) as exchange:
            envelope = await self._send(upload, source, exchange)
        stored = _stored_file(envelope)
        if not source.ended:
            words = "the provider answered before it had the whole file"
            raise source.error or UploadError("PROVIDER_UNAVAILABLE", words)
        return stored

    async def _send(self, upload: Upload, source: "_Source", exchange: Exchange) -> Envelope:
        key = self._current_key()
        form = aiohttp.MultipartWriter("form-data")
        _add_text(form, "uploadPath", upload.upload_path)
        _add_text(form, "fileName", upload.file_name)
        form.append_payload(_FilePayload(source, upload))
        try:
            async with (
                asyncio.timeout(source.stall_seconds) as source.stall,
                self._session.post(
                    self._url,
                    data=form,
                    headers=authorization(key),
                    timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
                    allow_redirects=False,
                ) as response,
            ):
                return await read_envelope(
                    response,
                    exchange,
                    secrets=(key,),
                    rest_seconds=self._timeouts.rest_seconds,
                )
        except BROKEN as error:
            if source.error is None and not _is_callers_stall(error, source):
                exchange.broke(error)
            failure = source.error or _upload_error(error, source)
            _clear_frames(error)
        finally:
            source.release()
        # Raised outside the handler: inside it, aiohttp's error and all that it refers to would
        # become the context of this one.
        raise failure.with_traceback(None)


class _Source:
    """Passes the caller's chunks on in pieces.

    An iterator and not a generator: the frame of a generator, and with it a chunk, lives for as
    long as aiohttp refers to it.

    Attributes:
        stall_seconds: The time for each piece.
        error: The exception that ended the chunks: aiohttp hides it behind its own.
        waiting: Whether the next chunk is awaited from the caller.
        ended: Whether all chunks were taken.
        stall: The timeout, rescheduled with each piece and at the end of the chunks.
    """

    def __init__(self, chunks: AsyncIterator[bytes], stall_seconds: float) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._unseen_bytes = 0  # passed on since the event loop had its turn
        self.stall_seconds = stall_seconds
        self.error: Exception | None = None
        self.waiting = False
        self.ended = False
        self.stall: asyncio.Timeout
        self._rescheduled_time = -math.inf

    def __aiter__(self) -> "_Source":
        return self

    async def __anext__(self) -> memoryview:
        self._reschedule()  # the provider has taken the last piece
        if not self._rest:
            self._rest = memoryview(await self._next_chunk())
        piece = self._rest[:PIECE_BYTES]
        self._rest = self._rest[PIECE_BYTES:]
        self._unseen_bytes += len(piece)
        if self._unseen_bytes >= PIECE_BYTES:
            # Let the event loop read an early response. A write to a connection that the provider
            # has closed would close it here as well, and discard the response.
            self._unseen_bytes = 0
            await asyncio.sleep(0)
        return piece

    async def _next_chunk(self) -> bytes:
        self.waiting = True
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self.waiting = False
            self.ended = True
            self._reschedule()
            raise
        except Exception as error:
            self.error = error
            raise
        self.waiting = False
        self._reschedule()
        return chunk

    def release(self) -> None:
        """Drop the current chunk."""
        self._rest = memoryview(b"")

    def _reschedule(self) -> None:
        now = asyncio.get_running_loop().time()
        due = self._rescheduled_time + self.stall_seconds * RESCHEDULE_SHARE
        if now >= due and not self.stall.expired():
            self._rescheduled_time = now
            self.stall.reschedule(now + self.stall_seconds)


class _FilePayload(aiohttp.AsyncIterablePayload):
    """The file's part. If the caller declared the size, the request has a Content-Length."""

    def __init__(self, source: _Source, upload: Upload) -> None:
        # aiohttp passes on whatever it can write, views of bytes as well.
        pieces = cast("AsyncIterable[bytes]", source)
        super().__init__(pieces, content_type=upload.content_type)
        self._size = upload.size_bytes
        # As browsers do it, and like the part `fileName`; aiohttp would percent-encode the name.
        name = upload.file_name.replace('"', "%22")
        self.headers[hdrs.CONTENT_DISPOSITION] = f'form-data; name="file"; filename="{name}"'


def _upload_error(error: BaseException, source: _Source) -> UploadError:
    if _is_callers_stall(error, source):
        words = f"the upload was aborted: no bytes arrived for {source.stall_seconds:g} s"
        return UploadError("UPLOAD_MISMATCH", words)
    return UploadError("PROVIDER_UNAVAILABLE", f"the provider cannot be reached: {describe(error)}")


def _is_callers_stall(error: BaseException, source: _Source) -> bool:
    return isinstance(error, TimeoutError) and source.waiting


def _clear_frames(error: BaseException | None) -> None:
    """Free what an error's frames refer to: aiohttp keeps the error in a reference cycle."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _add_text(form: aiohttp.MultipartWriter, name: str, value: str) -> None:
    form.append(value).set_content_disposition("form-data", name=name)


def _stored_file(envelope: Envelope) -> StoredFile:
    """Read the upload host's response.

    Raises:
        UploadError: It is a refusal, or contains no URL.
    """
    if envelope.code != OK or not envelope.success:
        raise UploadError(_refusal_reason(envelope), envelope.message, str(envelope.code))
    record = envelope.record or {}
    url = _usable_url(record.get("downloadUrl"))
    if not url:
        words = "the provider stored the file but returned no usable URL"
        raise UploadError("PROVIDER_UNAVAILABLE", words)
    return StoredFile(
        file_name=clean(record.get("fileName")),
        file_path=clean(record.get("filePath")),
        download_url=url,
        mime_type=clean(record.get("mimeType"), 255),
        upload_time=as_time(record.get("uploadedAt")),
        expire_time=as_time(record.get("expiresAt")),
    )


def _refusal_reason(envelope: Envelope) -> str:
    reason = upload_reason(envelope.code, envelope.message)
    # Code 200 with `success: false` is about this very file, so a retry cannot help.
    return "PROVIDER_REJECTED" if envelope.code == OK and reason == "PROVIDER_ERROR" else reason


def _usable_url(value: Any) -> str:
    """Return a URL that callers can send to models; "" if it is not one.

    It ends with the name of the file, which may contain a blank that is not encoded.
    """
    url = clean(value, URL_MAX_CHARACTERS).strip().replace(" ", "%20")
    parts = split_http_url(url)
    return url if parts and "%" not in parts.netloc else ""
