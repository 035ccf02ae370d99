"""The simulated upload host: streamed, base64 and fetched files.

Only a complete body becomes a file: an incomplete stream leaves nothing behind. The path that a
client chooses is only a key of the store, never a path on disk, so it cannot leave the folder.
"""

import base64
import binascii
import hashlib
import json
import logging
import mimetypes
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlsplit

import aiohttp
from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from providers.kie.simulator.account import Account
from providers.kie.simulator.addresses import is_loopback
from providers.kie.simulator.api import Api
from providers.kie.simulator.faults import ACCEPTED, ARRIVAL
from providers.kie.simulator.files import FileStore, StoredFile
from providers.kie.simulator.rules import RefusedError, is_url
from providers.kie.simulator.wire import JSON_MAX_BYTES, json_object, spoiled

logger = logging.getLogger(__name__)

CHUNK_BYTES: Final = 256 * 1024
FIELDS_MAX: Final = 20
TEXT_FIELD_MAX_BYTES: Final = 4 * 1024
BASE64_MAX_BYTES: Final = 20 * 1024 * 1024
FETCH_MAX_BYTES: Final = 100 * 1024 * 1024
FETCH_TIMEOUT_SECONDS: Final = 30
NAME_MAX_CHARACTERS: Final = 200
PATH_MAX_CHARACTERS: Final = 500

UNSAFE_CHARACTERS: Final = re.compile(r'[\x00-\x1f\x7f"<>\\|?*#%]')
DATA_URL: Final = re.compile(r"data:([\w.+/-]*)[^,]*;base64,", re.ASCII)
CONTENT_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
UNKNOWN_TYPE: Final = "application/octet-stream"
BROKEN_BODY: Final = (
    aiohttp.ClientError,
    HttpProcessingError,
    web.RequestPayloadError,
    AssertionError,  # aiohttp's multipart reader asserts what a client may get wrong
    LookupError,
    OSError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Received:
    """A complete body on disk, and its metadata."""

    path: Path
    name: str
    content_type: str
    fields: dict[str, str]


class Uploads:
    """The handlers of the upload host."""

    def __init__(self, account: Account, api: Api, files: FileStore) -> None:
        self._account = account
        self._api = api
        self._files = files

    def routes(self) -> list[web.RouteDef]:
        """Return every route of the upload host."""
        return [
            web.post("/api/file-stream-upload", self._handler(self._from_stream)),
            web.post("/api/file-base64-upload", self._handler(self._from_base64)),
            web.post("/api/file-url-upload", self._handler(self._from_url)),
            web.get("/kieai/{path:.+}", self._download),
        ]

    def _handler(
        self, receive: Callable[[web.Request], Awaitable[Received]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def upload(request: web.Request) -> web.StreamResponse:
            self._account.counts.requests[request.path] += 1
            if answer := await self._spoiled(request, "upload", ARRIVAL):
                return answer
            try:
                key = self._checked_key(request)
                received = await receive(request)
                data = self._stored(request, key, received)
            except RefusedError as refused:
                return self._refusal(refused)
            self._account.counts.uploads["completed"] += 1
            url = data["downloadUrl"]
            if answer := await self._spoiled(request, "upload", ACCEPTED, downloadUrl=url):
                return answer
            msg = "File uploaded successfully"
            return _answer({"success": True, "code": 200, "msg": msg, "data": data})

        return upload

    def _checked_key(self, request: web.Request) -> str:
        try:
            return self._api.authorised(request)
        except RefusedError as refused:
            raise RefusedError(refused.code, "Authentication failed: Invalid API Key") from None

    def _refusal(self, refused: RefusedError) -> web.Response:
        self._account.counts.uploads["refused"] += 1
        logger.info("simulator: upload refused: %s %r", refused.code, refused.msg)
        return _answer({"success": False, "code": refused.code, "msg": refused.msg})

    async def _spoiled(
        self, request: web.Request, endpoint: str, moment: str, **values: str
    ) -> web.StreamResponse | None:
        rule = self._account.faults.take(endpoint, moment, None)
        return await spoiled(rule, request, None, **values) if rule else None

    async def _from_stream(self, request: web.Request) -> Received:
        """Receive a multipart body, its parts in any order."""
        path = self._files.new_place()
        fields: dict[str, str] = {}
        name, content_type = "", ""
        with self._kept_if_complete(path):
            async for part in _parts(request):
                if part.name == "file":
                    name, content_type = part.filename or "", part.headers.get("Content-Type", "")
                    await self._write(path, _chunks(part), self._account.settings.upload_max_bytes)
                elif part.name and len(fields) < FIELDS_MAX:
                    fields[part.name] = await _text_of(part)
        if not path.exists():
            raise RefusedError(400, "Missing required parameter: file")
        return Received(path, name, content_type, fields)

    async def _from_base64(self, request: web.Request) -> Received:
        """Receive a JSON body: `{base64Data, uploadPath, fileName?}`."""
        fields = await _json_fields(request, BASE64_MAX_BYTES)
        encoded = fields.pop("base64Data", "")
        if not encoded:
            raise RefusedError(400, "Missing required parameter: base64Data")
        prefix = DATA_URL.match(encoded)
        content_type = prefix[1] if prefix else ""
        try:
            content = base64.b64decode(encoded[prefix.end() if prefix else 0 :], validate=True)
        except (binascii.Error, ValueError):
            raise RefusedError(400, "Base64 decoding failed: Invalid Base64 format") from None
        path = self._files.new_place()
        path.write_bytes(content)
        return Received(path, "", content_type, fields)

    async def _from_url(self, request: web.Request) -> Received:
        """Receive a JSON body, `{fileUrl, uploadPath, fileName?}`, and fetch the URL."""
        fields = await _json_fields(request, JSON_MAX_BYTES)
        url = fields.get("fileUrl", "")
        if not is_url(url):
            raise RefusedError(400, "Missing required parameter: fileUrl")
        allowed = self._account.settings.allow_url_upload
        if not allowed and not is_loopback(url):
            raise RefusedError(400, "Only loopback URLs are fetched without --allow-url-upload")
        path = self._files.new_place()
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_SECONDS)
        with self._kept_if_complete(path):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(url, allow_redirects=allowed) as answer,
            ):
                if answer.status != 200:  # noqa: PLR2004 - OK
                    raise RefusedError(400, f"Failed to download the file: HTTP {answer.status}")
                chunks = answer.content.iter_chunked(CHUNK_BYTES)
                await self._write(path, chunks, FETCH_MAX_BYTES)
        name = urlsplit(url).path.rpartition("/")[2]
        return Received(path, name, answer.headers.get("Content-Type", ""), fields)

    @contextmanager
    def _kept_if_complete(self, path: Path) -> Iterator[None]:
        """Delete the file at `path` unless it is complete; refuse a broken body with code 400."""
        try:
            yield
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, RefusedError):
                raise
            self._account.counts.uploads["aborted"] += 1
            if isinstance(error, BROKEN_BODY):
                raise RefusedError(400, "The file is incomplete") from error
            raise

    async def _write(self, path: Path, chunks: AsyncIterator[bytes], max_bytes: int) -> None:
        """Write chunks as they arrive, to the page cache: a thread would be more expensive."""
        written = 0
        with _opened(path) as file:
            async for chunk in chunks:
                written += len(chunk)
                if written > max_bytes:
                    raise RefusedError(400, f"The file is larger than {max_bytes} bytes")
                file.write(chunk)

    def _stored(self, request: web.Request, key: str, received: Received) -> dict[str, Any]:
        """Make a received file downloadable; it replaces an earlier one of its path."""
        folder = _clean_path(received.fields.get("uploadPath", ""))
        if not folder:
            received.path.unlink()
            raise RefusedError(400, "Missing required parameter: uploadPath")
        content_type = _content_type(received)
        name = _clean_name(received.fields.get("fileName", "")) or _new_name(received, content_type)
        path = f"kieai/{_user_id(key)}/{folder}/{name}"
        base_url = self._api.base_url(request)
        size_bytes = received.path.stat().st_size
        file = StoredFile(
            path=path, base_url=base_url, size_bytes=size_bytes, content_type=content_type
        )
        self._files.put(file, received.path)
        return {
            "success": True,
            "fileName": name,
            "filePath": path,
            "downloadUrl": f"{base_url}/{quote(path)}",
            "fileSize": size_bytes,
            "mimeType": content_type,
            "uploadedAt": _iso_ms(self._account.now_ms()),
        }

    async def _download(self, request: web.Request) -> web.StreamResponse:
        """Send an uploaded file; it needs no key, as on the real media host."""
        if answer := await self._spoiled(request, "result", ARRIVAL):
            return answer
        found = self._files.get("kieai/" + request.match_info["path"])
        if found is None:
            return web.Response(status=404, text="404 Not Found")
        file, place = found
        return web.FileResponse(place, headers={"Content-Type": file.content_type})


def _answer(body: dict[str, Any]) -> web.Response:
    """Return a JSON answer of the upload host, which names no charset."""
    return web.Response(body=json.dumps(body).encode(), content_type="application/json")


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    """Yield the parts of a multipart body; raise if the body is cut short."""
    reader = await request.multipart()
    async for part in reader:
        if not isinstance(part, BodyPartReader):
            raise ValueError("a part of a form must not be multipart")  # noqa: TRY004 - malformed
        yield part
    async for _ in request.content.iter_chunked(CHUNK_BYTES):
        pass  # data after the last boundary is ignored, but must arrive


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(CHUNK_BYTES):
        yield chunk


async def _text_of(part: BodyPartReader) -> str:
    text = bytearray()
    async for chunk in _chunks(part):
        text += chunk
        if len(text) > TEXT_FIELD_MAX_BYTES:
            raise ValueError(f"{part.name} is longer than {TEXT_FIELD_MAX_BYTES} bytes")
    return text.decode("utf-8", "replace")


async def _json_fields(request: web.Request, max_bytes: int) -> dict[str, str]:
    """Return the strings of a JSON body."""
    try:
        body = await json_object(request, max_bytes)
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
    return {name: value for name, value in body.items() if isinstance(value, str)}


def _opened(path: Path) -> BinaryIO:
    return path.open("wb")


def _clean_path(path: str) -> str:
    """Return `path` without what leaves the folder, hides or breaks a URL; may be empty."""
    segments = [_clean_name(segment) for segment in re.split(r"[/\\]", path)]
    return "/".join(segment for segment in segments if segment)[:PATH_MAX_CHARACTERS].rstrip("/")


def _clean_name(name: str) -> str:
    last = re.split(r"[/\\]", name)[-1]
    encodable = last.encode("utf-8", "replace").decode()
    return UNSAFE_CHARACTERS.sub("_", encodable).strip(" .")[-NAME_MAX_CHARACTERS:]


def _content_type(received: Received) -> str:
    """Return the declared type if it is one, else a guess from the file's names."""
    said = received.content_type.partition(";")[0].strip().lower()
    if CONTENT_TYPE.fullmatch(said) and said != UNKNOWN_TYPE:
        return said
    names = (received.fields.get("fileName", ""), received.name)
    guesses = (mimetypes.guess_type(name)[0] for name in names)
    return next((guess for guess in guesses if guess), UNKNOWN_TYPE)


def _new_name(received: Received, content_type: str) -> str:
    """Return `<unix ms>-<random>.<extension>`, as the real host names a file without a name."""
    extension = Path(_clean_name(received.name)).suffix or mimetypes.guess_extension(content_type)
    return f"{time.time_ns() // 1_000_000}-{secrets.token_hex(5)}{extension or '.bin'}"


def _user_id(key: str) -> int:
    """Return a number that identifies the owner of `key` without revealing it."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 1_000_000


def _iso_ms(unix_ms: int) -> str:
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
