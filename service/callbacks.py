"""Kie's callbacks: each only ever means "poll this task now".

The URL identifies the task and cannot be forged: it carries our task id and an HMAC of it, the
seal. A right seal is enough to poll. Kie's own signature covers the provider's id of the task and
not the body, so the body is never believed; the signature only decides whether the id in it is
looked up.
"""

import hmac
import json
import logging
import re
import zlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web

from service.http import read_body
from service.metrics import Metrics
from service.poller import Poller
from service.sparse import SparseLog
from storage.errors import StorageUnavailableError

PATH = "/callbacks/kie"
PATH_PARTS = PATH.strip("/").split("/")
BODY_MAX_BYTES = 64 << 10
SIGNATURE_AGE_SECONDS = 300.0
MILLISECONDS_FROM = 10**11  # as seconds, this is in the year 5138
ID_MAX_CHARACTERS = 255
TASK_ID = re.compile(r"[0-9a-f]{32}")
# In a body that cannot be parsed, perhaps because its end is missing. Quotes inside a string are
# escaped, so this does not match in a prompt.
ID_IN_TEXT = re.compile(r'"task(?:Id|_id)"\s*:\s*"([^"\\]{1,255})"')
# The hosts of URLs, also where JSON escapes the slashes.
HOST = re.compile(r"https?:(?:\\*/){2}([A-Za-z0-9.-]{1,253})")
HOSTS_MAX = 20
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
URL_SAFE = str.maketrans("-_", "+/")

log = structlog.get_logger()


class CallbackUrls:
    """Makes the URLs that the provider is given, and recognises them."""

    def __init__(self, public_url: str, secret: bytes, *other_secrets: bytes) -> None:
        """Use a secret.

        Args:
            public_url: Where the provider reaches this service.
            secret: Makes and verifies URLs.
            other_secrets: Verify URLs that were made earlier or elsewhere.
        """
        self._public_url = public_url
        self._secrets = (secret, *other_secrets)

    def url(self, task_id: str) -> str:
        """Return the URL for the callbacks of a task."""
        return f"{self._public_url}{PATH}/{task_id}/{_seal(self._secrets[0], task_id)}"

    def is_ours(self, task_id: str, seal: str) -> bool:
        """Whether the end of a URL was made here for this task."""
        return any(_equal(seal, _seal(secret, task_id)) for secret in self._secrets)


class Callbacks:
    """Answers the provider's callbacks."""

    def __init__(
        self,
        urls: CallbackUrls,
        webhook_key: bytes | None,
        poller: Poller,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._urls = urls
        self._webhook_key = webhook_key
        self._poller = poller
        self._metrics = metrics
        self._now = now
        self._log = SparseLog()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Poll the task of a callback now, whatever the callback says.

        A proxy may or may not strip the path of PUBLIC_URL, so only the end of the path counts.
        """
        *_, first, second, task_id, seal = ["", "", "", "", *request.path.rstrip("/").split("/")]
        if request.method != hdrs.METH_POST or [first, second] != PATH_PARTS:
            return self._response(HTTPStatus.NOT_FOUND, "no callback")
        if not self._urls.is_ours(task_id, seal):
            self._log.write(logging.INFO, "forged callback", peer=request.remote)
            return self._response(HTTPStatus.UNAUTHORIZED, "forged")
        text = await _text(request)
        provider_task_id, hosts = _task_id(text), frozenset(HOST.findall(text)[:HOSTS_MAX])
        verdict = "received"
        if self._webhook_key and not self._is_signed(request.headers, provider_task_id):
            provider_task_id, verdict = "", "wrong signature"
        try:
            known = await self._poller.called_back(
                task_id, provider_task_id, hosts, content=hash(text)
            )
        except StorageUnavailableError:
            return self._response(HTTPStatus.SERVICE_UNAVAILABLE, "the database is away", task_id)
        if not known:
            return self._response(HTTPStatus.NOT_FOUND, "unknown", task_id)
        return self._response(HTTPStatus.OK, verdict, task_id)

    def _response(self, status: HTTPStatus, verdict: str, task_id: str = "") -> web.Response:
        if TASK_ID.fullmatch(task_id):
            level = logging.DEBUG if verdict == "received" else logging.INFO
            log.log(level, "callback", verdict=verdict, task_id=task_id)
        self._metrics.called_back(verdict)
        return web.json_response({"status": verdict}, status=status)

    def _is_signed(self, headers: Mapping[str, str], provider_task_id: str) -> bool:
        """Check Kie's own signature, an HMAC-SHA256 of `taskId.timestamp`, and its age.

        Documented as base64. Hex and the URL-safe alphabet are taken as well, and seconds as well
        as milliseconds.
        """
        assert self._webhook_key is not None
        timestamp = headers.get("X-Webhook-Timestamp", "").strip()
        if not timestamp.isascii() or not timestamp.isdecimal():
            return False
        signed_time = float(timestamp[:15])
        if signed_time >= MILLISECONDS_FROM:
            signed_time /= 1_000
        if abs(self._now() - signed_time) > SIGNATURE_AGE_SECONDS:
            return False
        signed = f"{provider_task_id}.{timestamp}".encode()
        digest = hmac.new(self._webhook_key, signed, sha256).digest()
        given = headers.get("X-Webhook-Signature", "").strip()
        as_base64 = b64encode(digest).decode().rstrip("=")
        return _equal(given.lower(), digest.hex()) or _equal(
            given.translate(URL_SAFE).rstrip("="), as_base64
        )


async def _text(request: web.BaseRequest) -> str:
    """Return what can be read of the body."""
    body = await read_body(request, BODY_MAX_BYTES)
    if request.headers.get(hdrs.CONTENT_ENCODING):
        with suppress(zlib.error):
            body = zlib.decompressobj(GZIP_OR_ZLIB).decompress(body, BODY_MAX_BYTES)
    return body.decode(json.detect_encoding(body), errors="replace")


def _task_id(text: str) -> str:
    """Return the provider's id of the task from where the families put it; "" if there is none."""
    try:
        body = json.loads(text, parse_int=str)  # an int of 5,000 digits would be an error
    except (ValueError, RecursionError):
        found = ID_IN_TEXT.search(text)
        return found[1] if found and found[1].isprintable() else ""
    root = body if isinstance(body, dict) else {}
    data = root.get("data")
    for holder in (data if isinstance(data, dict) else {}, root):
        for name in ("taskId", "task_id"):
            value = holder.get(name)
            if isinstance(value, str) and value.isprintable() and len(value) <= ID_MAX_CHARACTERS:
                return value
    return ""


def _seal(secret: bytes, task_id: str) -> str:
    return hmac.new(secret, task_id.encode(errors="replace"), sha256).hexdigest()


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), right.encode())
