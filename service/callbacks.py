"""Kie's callbacks: each only ever means "poll this task now".

Kie signs the id of a task and not the body, so a body is never believed. Whose callback it is says
the URL, which nobody can make up: it carries our task id and an HMAC of it.
"""

import hmac
import logging
import time
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from json import JSONDecodeError
from typing import Any

import structlog
from aiohttp import web

from service.metrics import Metrics
from service.poller import Poller
from storage.errors import StorageUnavailableError

PATH = "/callbacks/kie"
BODY_MAX_BYTES = 1 << 20
SIGNATURE_AGE_SECONDS = 300.0
ID_MAX_CHARACTERS = 255

log = structlog.get_logger()


class CallbackUrls:
    """Makes the URLs that the provider is given, and knows them again. Nothing secret is stored."""

    def __init__(self, public_url: str, secret: bytes) -> None:
        self._public_url = public_url
        self._secret = secret

    def url(self, task_id: str) -> str:
        """Return the URL for the callbacks of a task."""
        return f"{self._public_url}{PATH}/{task_id}/{self._seal(task_id)}"

    def is_ours(self, task_id: str, seal: str) -> bool:
        """Whether the end of a URL was made here for this task."""
        return _equal(seal, self._seal(task_id))

    def _seal(self, task_id: str) -> str:
        return hmac.new(self._secret, task_id.encode(errors="replace"), sha256).hexdigest()


class Callbacks:
    """Answers the provider's callbacks."""

    def __init__(
        self, urls: CallbackUrls, webhook_key: bytes | None, poller: Poller, metrics: Metrics
    ) -> None:
        self._urls = urls
        self._webhook_key = webhook_key
        self._poller = poller
        self._metrics = metrics

    def app(self) -> web.Application:
        """Return the application that answers callbacks."""
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        # A proxy may or may not strip the path of PUBLIC_URL; the seal is what counts.
        ours = f"/{{prefix:(?:.*/)?}}{PATH[1:]}/{{task_id}}/{{seal}}"
        app.add_routes([web.post(ours, self._receive)])
        app.add_routes([web.route("*", "/{path:.*}", self._refuse)])
        return app

    async def _refuse(self, request: web.Request) -> web.Response:
        log.warning("a request that is no callback", method=request.method)
        self._metrics.called_back("no callback")
        return web.json_response({"status": "unknown"}, status=404)

    async def _receive(self, request: web.Request) -> web.Response:
        task_id = request.match_info["task_id"]
        if not self._urls.is_ours(task_id, request.match_info["seal"]):
            return self._answer(401, "forged", task_id)
        provider_task_id = _task_id(await _json(request))
        if self._webhook_key and not self._is_signed(request.headers, provider_task_id):
            return self._answer(401, "wrong signature", task_id)
        try:
            known = await self._poller.called_back(task_id, provider_task_id)
        except StorageUnavailableError:
            return self._answer(503, "the database is away", task_id)
        if not known:
            return self._answer(404, "unknown", task_id)
        return self._answer(200, "received", task_id)

    def _answer(self, status: int, verdict: str, task_id: str) -> web.Response:
        level = logging.DEBUG if status == HTTPStatus.OK else logging.INFO
        log.log(level, "callback", verdict=verdict, task_id=task_id[:ID_MAX_CHARACTERS])
        self._metrics.called_back(verdict)
        return web.json_response({"status": verdict}, status=status)

    def _is_signed(self, headers: Mapping[str, str], provider_task_id: str) -> bool:
        """Check Kie's own signature, base64(HMAC-SHA256(taskId.timestamp)), and its age."""
        assert self._webhook_key is not None
        timestamp = headers.get("X-Webhook-Timestamp", "")
        if not timestamp.isascii() or not timestamp.isdecimal():
            return False
        if abs(time.time() - int(timestamp[:15])) > SIGNATURE_AGE_SECONDS:
            return False
        signed = f"{provider_task_id}.{timestamp}".encode()
        digest = hmac.new(self._webhook_key, signed, sha256).digest()
        return _equal(headers.get("X-Webhook-Signature", ""), b64encode(digest).decode())


async def _json(request: web.Request) -> Any:
    try:
        return await request.json()
    except (JSONDecodeError, UnicodeDecodeError, RecursionError, LookupError):
        return None


def _task_id(body: Any) -> str:
    """Return the provider's id of the task from where the families put it; "" if there is none."""
    root = body if isinstance(body, dict) else {}
    data = root.get("data")
    for holder in (data if isinstance(data, dict) else {}, root):
        for name in ("taskId", "task_id"):
            value = holder.get(name)
            if isinstance(value, str) and value.isprintable() and len(value) <= ID_MAX_CHARACTERS:
                return value
    return ""


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), right.encode())
