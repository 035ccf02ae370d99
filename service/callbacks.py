"""The provider's callbacks over HTTP: each only ever means "poll this task now".

The URL identifies the task and cannot be forged: it carries our task id and an HMAC of it, the
seal. A valid seal is enough to poll. The provider's own signature need not cover the body, so the
body is never trusted; the signature only decides whether the id in it is looked up.
"""

import hmac
import json
import logging
import re
import secrets
import zlib
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web

from providers.base import CallbackReader
from service.callback_polls import CallbackPolls, NewerVersionError
from service.http import read_body
from service.metrics import Metrics
from service.settings import Settings
from service.sparse import SparseLog
from storage.errors import StorageUnavailableError
from storage.store import Store

PATH = "/callbacks/kie"
PATH_PARTS = PATH.strip("/").split("/")
PURPOSE = b"generation.v1 callback URLs"
BODY_MAX_BYTES = 64 << 10
TASK_ID = re.compile(r"[0-9a-f]{32}")
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

log = structlog.get_logger()


class CallbackUrls:
    """Makes the URLs that the provider is given, and verifies them."""

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

    @staticmethod
    def split(path: str) -> tuple[str, str] | None:
        """Return the task id and the seal in a path; None if it is not one of these URLs.

        A proxy may or may not strip the path of PUBLIC_URL, so only the end of the path counts.
        """
        *_, first, second, task_id, seal = ["", "", "", "", *path.rstrip("/").split("/")]
        return (task_id, seal) if [first, second] == PATH_PARTS else None

    def is_ours(self, task_id: str, seal: str) -> bool:
        """Return whether a seal was made with one of the secrets, for this task."""
        given = seal.encode(errors="replace")
        return any(
            hmac.compare_digest(given, _seal(secret, task_id).encode()) for secret in self._secrets
        )


class Callbacks:
    """Answers the provider's callbacks."""

    def __init__(
        self,
        urls: CallbackUrls,
        reader: CallbackReader,
        polls: CallbackPolls,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._urls = urls
        self._reader = reader
        self._polls = polls
        self._metrics = metrics
        self._now = now
        self._log = SparseLog()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Poll the task of a callback now, whatever the callback says."""
        parts = self._urls.split(request.path)
        if request.method != hdrs.METH_POST or parts is None:
            return self._response(HTTPStatus.NOT_FOUND, "no callback")
        task_id, seal = parts
        if not self._urls.is_ours(task_id, seal):
            self._log.write(logging.INFO, "forged callback", peer=request.remote)
            return self._response(HTTPStatus.UNAUTHORIZED, "forged")
        text = await _text(request)
        callback = self._reader.read(request.headers, text, self._now())
        try:
            known = await self._polls.on_callback(
                task_id,
                callback.provider_task_id if callback.authentic else "",
                callback.hosts,
                content=hash(text),
            )
        except StorageUnavailableError:
            return self._response(
                HTTPStatus.SERVICE_UNAVAILABLE, "the database is unavailable", task_id
            )
        except NewerVersionError:  # the provider repeats the callback, perhaps to such a replica
            return self._response(HTTPStatus.SERVICE_UNAVAILABLE, "newer version", task_id)
        if not known:
            return self._response(HTTPStatus.NOT_FOUND, "unknown", task_id)
        result = "received" if callback.authentic else "wrong signature"
        return self._response(HTTPStatus.OK, result, task_id)

    def _response(self, status: HTTPStatus, result: str, task_id: str = "") -> web.Response:
        if TASK_ID.fullmatch(task_id):
            level = logging.DEBUG if result == "received" else logging.INFO
            log.log(level, "callback", result=result, task_id=task_id)
        self._metrics.called_back(result)
        return web.json_response({"status": result}, status=status)


async def _text(request: web.BaseRequest) -> str:
    """Return what can be read of the body."""
    body = await read_body(request, BODY_MAX_BYTES)
    if request.headers.get(hdrs.CONTENT_ENCODING):
        with suppress(zlib.error):
            body = zlib.decompressobj(GZIP_OR_ZLIB).decompress(body, BODY_MAX_BYTES)
    return body.decode(json.detect_encoding(body), errors="replace")


async def callback_urls(settings: Settings, store: Store) -> CallbackUrls | None:
    """Make callback URLs with CALLBACK_SECRET, or with a secret that the database keeps.

    Earlier versions derive the secret from KIE_API_KEY. If there is a key at the first start, the
    database therefore keeps the derived secret: during an upgrade replicas of both versions verify
    each other's URLs, and a later key changes nothing.
    """
    if settings.public_url is None:
        return None
    if settings.callback_secrets:
        return CallbackUrls(settings.public_url, *settings.callback_secrets)
    if settings.kie_api_key is None:
        kept = await store.callback_secrets(secrets.token_bytes())
        return CallbackUrls(settings.public_url, *kept)
    key = settings.kie_api_key.get_secret_value().encode()
    derived = hmac.digest(key, PURPOSE, "sha256")
    return CallbackUrls(settings.public_url, *await store.callback_secrets(derived), derived)


def _seal(secret: bytes, task_id: str) -> str:
    return hmac.digest(secret, task_id.encode(errors="replace"), "sha256").hex()
