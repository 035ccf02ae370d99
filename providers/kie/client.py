"""Kie.ai over HTTP: the one place where its API is called, and where its errors become outcomes."""

import asyncio
import math
import time
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import (
    CallObserver,
    ParamsError,
    Poll,
    Postponed,
    Recognition,
    StoredFile,
    Submission,
    Succeeded,
    Unavailable,
    Unknown,
    Unreadable,
    Upload,
    UploadError,
    Violation,
)
from providers.kie.adapter import Adapter
from providers.kie.echo import recognition
from providers.kie.envelope import (
    OK,
    Envelope,
    UnreadableAnswerError,
    is_complete,
    parse_envelope,
    read_submission,
    unreadable_record,
    unreadable_submission,
)
from providers.kie.kept import kept_text
from providers.kie.params import Params
from providers.kie.reasons import upload_reason
from providers.kie.registry import ADAPTERS
from providers.kie.values import as_time, clean, same_id
from providers.public_address import is_public_url

CONNECT_SECONDS = 10
CREATE_SECONDS = (
    60  # recorded creates took under a second; the longer we wait, the fewer answers are lost
)
POLL_SECONDS = 20
UPLOAD_STALL_SECONDS = 60  # without a piece of it moving, or an answer to the last one
UPLOAD_PIECE_BYTES = 256 << 10  # what is buffered for a provider that does not read
PUT_OFF_SHARE = 1 / 60  # of it may pass until it is put off again: a timer for each chunk costs
SECOND_LOOK_SECONDS = 1
URL_MAX_CHARACTERS = 4_096
HIDDEN = b"(hidden)"
SECRET_MIN_CHARACTERS = 8
ANSWER_MAX_BYTES = 8 << 20
HEADER_MAX_BYTES = 65_536
ANSWER_START_BYTES = 65_536  # of one that is too large: its id stands there
REST_SECONDS = 2  # for the rest of an answer that is whole JSON already
POLL_CONNECTIONS = 256
UPLOAD_PATH = "/api/file-stream-upload"
USER_AGENT = "kie-generation-service"  # Kie's edge answers 403 to a library's own

NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
BROKEN_BODY = (aiohttp.ClientError, TimeoutError, OSError)
BROKEN = (aiohttp.ClientError, TimeoutError, OSError, UnreadableAnswerError)
CODES = range(100, 600)  # what an observer is told by its number


def _unobserved(endpoint: str, code: str, seconds: float) -> None:
    del endpoint, code, seconds


class KieProvider:
    """The provider Kie.ai, or a look-alike.

    Create it inside the event loop that uses it, and close it there.
    """

    models = frozenset(ADAPTERS)

    def __init__(
        self, api_url: str, upload_url: str, api_key: str, observe: CallObserver = _unobserved
    ) -> None:
        self._api_key = api_key
        self._observe = observe
        self._api_url = api_url.rstrip("/")
        self._upload_url = upload_url.rstrip("/")
        # A provider inside our network, such as the simulator, also reaches what is inside it.
        self._public_urls = is_public_url(api_url)
        headers = {hdrs.AUTHORIZATION: f"Bearer {api_key}", hdrs.USER_AGENT: USER_AGENT}
        self._reads = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=POLL_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=HEADER_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
        )
        # A kept connection that the peer closed meanwhile fails after sending, when nobody can tell
        # what was bought. On a fresh one, "not connected" (safe to repeat) and "sent, no answer"
        # (never to repeat) stay apart.
        self._writes = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=HEADER_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._reads.close()
        await self._writes.close()

    # --- parameters ---

    def model_of(self, params: ProviderParams) -> str:
        """Return the model that is set in the oneof."""
        model = params.kie.WhichOneof("model")
        assert model is not None, "params were not checked"
        return model

    def usual_seconds(self, model: str) -> float:
        """Return the model's usual longest duration in seconds."""
        return ADAPTERS[model].usual_seconds

    def check(self, params: ProviderParams) -> None:
        """Raise ParamsError unless every rule holds."""
        self._read_params(params, public_urls=self._public_urls)

    def _read_params(
        self, params: ProviderParams, *, public_urls: bool = False
    ) -> tuple[Adapter, Params]:
        model = params.kie.WhichOneof("model")
        if model is None:
            names = ", ".join(ADAPTERS)
            raise ParamsError([Violation("provider_params.kie", f"must set one of {names}")])
        adapter = ADAPTERS[model]
        message = getattr(params.kie, model)
        return adapter, adapter.params.from_message(message, public_urls=public_urls)

    # --- tasks ---

    async def submit(self, params: ProviderParams, callback_url: str | None) -> Submission:
        """Post the paid request once, over a connection of its own."""
        adapter, model_params = self._read_params(params)
        body = adapter.body(model_params)
        if callback_url:
            body["callBackUrl"] = callback_url
        loop = asyncio.get_running_loop()
        with _Call(adapter.create_path, self._observe) as call:
            try:
                async with asyncio.timeout(None) as limit:
                    time_over = loop.call_later(CREATE_SECONDS, _look_again, limit)
                    try:
                        return await self._post(adapter.create_path, body, call)
                    finally:
                        time_over.cancel()
            except TimeoutError as error:
                call.broke(error)
                return Unknown("no answer in time")

    async def _post(self, path: str, body: Mapping[str, Any], call: "_Call") -> Submission:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        try:
            async with self._writes.post(
                self._api_url + path, json=body, timeout=timeout, allow_redirects=False
            ) as response:
                seal = str(body.get("callBackUrl", "")).rpartition("/")[2]
                envelope = await self._read_envelope(response, call, seal)
                return read_submission(envelope, prompt=_prompt(body))
        except NOT_CONNECTED as error:
            call.broke(error)
            return Postponed(f"not connected: {_describe(error)}", reached=False)
        except UnreadableAnswerError as error:
            call.broke(error)
            return unreadable_submission(error)
        except BROKEN as error:
            call.broke(error)
            return Unknown(_describe(error))

    async def poll(
        self, model: str, provider_task_id: str, params: ProviderParams | None = None
    ) -> Poll:
        """Ask for the record of a task."""
        adapter = ADAPTERS[model]
        record = await self._record(adapter, provider_task_id)
        if not isinstance(record, Envelope):
            return record
        outcome = adapter.read(record)
        if params is None or not isinstance(outcome, Succeeded):
            return outcome
        return replace(outcome, differs=self._compare(params, record) is Recognition.DIFFERS)

    async def recognise(self, params: ProviderParams, provider_task_id: str) -> Recognition:
        """Compare a task's record with the request."""
        adapter, _ = self._read_params(params)
        record = await self._record(adapter, provider_task_id)
        if not isinstance(record, Envelope) or record.code != OK or not record.record:
            return Recognition.UNREADABLE
        return self._compare(params, record)

    def _compare(self, params: ProviderParams, envelope: Envelope) -> Recognition:
        adapter, model_params = self._read_params(params)
        return recognition(adapter.body(model_params), envelope.record or {})

    async def _record(self, adapter: Adapter, provider_task_id: str) -> Envelope | Poll:
        try:
            with _Call(adapter.record_path, self._observe) as call:
                envelope = await self._ask(adapter.record_path, provider_task_id, call)
        except UnreadableAnswerError as error:
            return unreadable_record(error)
        except BROKEN as error:
            return Unavailable(_describe(error))
        named = (envelope.record or {}).get("taskId")
        if named and isinstance(named, str) and not same_id(named, provider_task_id):
            words = f"the record of another task, {clean(named, 64)!r}"
            return Unreadable(words, kept_text(envelope.text))
        return envelope

    async def _ask(self, path: str, provider_task_id: str, call: "_Call") -> Envelope:
        async with self._reads.get(
            self._api_url + path,
            params={"taskId": provider_task_id},
            timeout=aiohttp.ClientTimeout(total=POLL_SECONDS, connect=CONNECT_SECONDS),
            allow_redirects=False,
        ) as response:
            return await self._read_envelope(response, call)

    # --- uploads ---

    async def upload(self, upload: Upload, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Stream a file as multipart/form-data; the text parts first, as the file may be large."""
        source = _Source(chunks)
        with _Call(UPLOAD_PATH, self._observe) as call:
            envelope = await self._send_file(upload, source, call)
        stored = _stored_file(envelope)
        if not source.ended:
            words = "the provider answered before it had the whole file"
            raise source.error or UploadError("PROVIDER_UNAVAILABLE", words)
        return stored

    async def _send_file(self, upload: Upload, source: "_Source", call: "_Call") -> Envelope:
        form = aiohttp.MultipartWriter("form-data")
        _add_text(form, "uploadPath", upload.upload_path)
        _add_text(form, "fileName", upload.file_name)
        form.append_payload(_FilePayload(source, upload))
        try:
            async with (
                asyncio.timeout(UPLOAD_STALL_SECONDS) as source.stall,
                self._writes.post(
                    self._upload_url + UPLOAD_PATH,
                    data=form,
                    timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
                    allow_redirects=False,
                ) as response,
            ):
                return await self._read_envelope(response, call)
        except BROKEN as error:
            if source.error is None and not _is_callers_stall(error, source):
                call.broke(error)
            failure = source.error or _upload_error(error, source)
            _clear_frames(error)
        finally:
            source.release()
        # Not in the handler: there aiohttp's error, and all that it holds, would be its context.
        raise failure.with_traceback(None)

    async def _read_envelope(
        self, response: aiohttp.ClientResponse, call: "_Call", seal: str = ""
    ) -> Envelope:
        """Read a bounded answer, without our key and without the seal of our callback URL.

        Raises:
            UnreadableAnswerError: It is too large, or no envelope.
        """
        body = await _body(response)
        envelope = parse_envelope(response.status, _without((self._api_key, seal), body))
        call.answered(envelope.code)
        return envelope


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Read a bounded answer; one that is whole JSON does not need its end.

    Raises:
        UnreadableAnswerError: It is too large, or its rest never came.
    """
    body = bytearray()
    try:
        while chunk := await _next_chunk(response, body):
            body += chunk
            if len(body) > ANSWER_MAX_BYTES:
                words = f"more than {ANSWER_MAX_BYTES} bytes"
                text = bytes(body[:ANSWER_START_BYTES]).decode(errors="replace")
                raise UnreadableAnswerError(words, about_us=response.ok, text=text)
    except BROKEN_BODY as error:
        if not body:
            raise
        if not is_complete(bytes(body)):
            text = body.decode(errors="replace")
            raise UnreadableAnswerError(_describe(error), text=text) from error
    return bytes(body)


async def _next_chunk(response: aiohttp.ClientResponse, body: bytearray) -> bytes:
    """Wait for more, but not long if nothing is missing."""
    if not body or response.content.is_eof():
        return await response.content.readany()
    try:
        async with asyncio.timeout(REST_SECONDS):
            return await response.content.readany()
    except TimeoutError:
        return b"" if is_complete(bytes(body)) else await response.content.readany()


def _look_again(limit: asyncio.Timeout) -> None:
    """Give up a little later: a paused process finds the time over, and the answer waiting."""
    limit.reschedule(asyncio.get_running_loop().time() + SECOND_LOOK_SECONDS)


class _Call:
    """One request, from its start until the observer is told of its end.

    Its code is the answer's, or a word for why there is none: `not_connected`, `no_answer`,
    `unreadable`, or `given_up` if it was neither answered nor broken but left from here.
    """

    def __init__(self, endpoint: str, observe: CallObserver) -> None:
        self._endpoint = endpoint
        self._observe = observe
        self._code = ""

    def answered(self, code: int) -> None:
        """Note the code of an envelope."""
        self._code = str(code) if code in CODES else "other"

    def broke(self, error: BaseException) -> None:
        """Note why there is no answer, if the other side is why."""
        if isinstance(error, NOT_CONNECTED):
            self._code = "not_connected"
        elif isinstance(error, UnreadableAnswerError):
            self._code = "unreadable"
        elif isinstance(error, BROKEN):
            self._code = "no_answer"

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not self._code:
            self.broke(error)
        self._observe(self._endpoint, self._code or "given_up", time.monotonic() - self._started)


class _Source:
    """Hands on the caller's chunks in pieces.

    An iterator and not a generator: the frame of a generator, and with it a chunk, lives for as
    long as aiohttp refers to it.

    Attributes:
        error: The exception that ended them: aiohttp shows it only as its own.
        waiting: Whether the next chunk is the caller's to send.
        ended: Whether all of them were taken.
        stall: Put off with each piece, and with their end.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._unseen_bytes = 0  # handed on since the event loop had its turn
        self.error: Exception | None = None
        self.waiting = False
        self.ended = False
        self.stall: asyncio.Timeout
        self._put_off_time = -math.inf

    def __aiter__(self) -> "_Source":
        return self

    async def __anext__(self) -> memoryview:
        self._put_off_the_stall()  # the provider has taken the last piece
        if not self._rest:
            self._rest = memoryview(await self._next_chunk())
        piece = self._rest[:UPLOAD_PIECE_BYTES]
        self._rest = self._rest[UPLOAD_PIECE_BYTES:]
        self._unseen_bytes += len(piece)
        if self._unseen_bytes >= UPLOAD_PIECE_BYTES:
            # Have an early answer read. A write to a connection that the provider has closed
            # meanwhile would close it here as well, and discard the answer.
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
            self._put_off_the_stall()
            raise
        except Exception as error:
            self.error = error
            raise
        self.waiting = False
        self._put_off_the_stall()
        return chunk

    def release(self) -> None:
        """Let go of the chunk."""
        self._rest = memoryview(b"")

    def _put_off_the_stall(self) -> None:
        now = asyncio.get_running_loop().time()
        due = self._put_off_time + UPLOAD_STALL_SECONDS * PUT_OFF_SHARE
        if now >= due and not self.stall.expired():
            self._put_off_time = now
            self.stall.reschedule(now + UPLOAD_STALL_SECONDS)


class _FilePayload(aiohttp.AsyncIterablePayload):
    """The file's part: with it the request has a Content-Length if the caller told the size."""

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
        words = f"no bytes came for {UPLOAD_STALL_SECONDS} s: the upload was given up"
        return UploadError("UPLOAD_MISMATCH", words)
    return UploadError(
        "PROVIDER_UNAVAILABLE", f"the provider cannot be reached: {_describe(error)}"
    )


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
    """Read the upload host's answer.

    Raises:
        UploadError: It is a refusal, or names no URL.
    """
    if envelope.code != OK or not envelope.success:
        raise UploadError(_refusal_reason(envelope), envelope.message, str(envelope.code))
    record = envelope.record or {}
    url = _usable_url(record.get("downloadUrl"))
    if not url:
        words = "the provider stored the file under no usable URL"
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
    # Code 200 with `success: false`: a word about this very file, so another try cannot help.
    return "PROVIDER_REJECTED" if envelope.code == OK and reason == "PROVIDER_ERROR" else reason


def _usable_url(value: Any) -> str:
    """Return a URL that callers can send to models; "" if it is none."""
    url = clean(value, URL_MAX_CHARACTERS).strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        return ""
    return url if usable and url.isprintable() and " " not in url else ""


def _prompt(body: Mapping[str, Any]) -> str:
    """Return the prompt of a paid request, wherever its family puts it."""
    prompt = {**body, **body.get("input", {})}.get("prompt")
    return prompt if isinstance(prompt, str) else ""


def _without(secrets: tuple[str, ...], text: bytes) -> bytes:
    """Hide what an answer quotes of ours; what is too short to be a secret is just a word."""
    for secret in secrets:
        if len(secret) >= SECRET_MIN_CHARACTERS:
            text = text.replace(secret.encode(), HIDDEN)
    return text


def _describe(error: BaseException) -> str:
    """Say what happened, without URLs that may hold secrets."""
    if isinstance(error, UnreadableAnswerError):
        return str(error)
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"DNS does not resolve {error.host}: {error.os_error.strerror}"
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "")
            return f"the certificate of {error.host} was rejected: {reason or error.strerror}"
        case aiohttp.ClientConnectorSSLError():
            reason = getattr(error.os_error, "reason", None) or error.os_error.strerror
            return f"TLS with {error.host} failed: {reason}"
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return f"{error.host} port {error.port} refused the connection"
        case aiohttp.ClientConnectorError():
            return f"{error.host} cannot be reached: {error.strerror or error.os_error}"
        case aiohttp.ConnectionTimeoutError():
            return f"no connection within {CONNECT_SECONDS} s"
        case _:
            return type(error).__name__
