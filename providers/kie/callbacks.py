"""What Kie's callbacks contain: the id of a task, and a signature that covers only that id."""

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from typing import Any

from providers.base import Callback
from providers.kie.results import urls_of_callback
from providers.urls import split_http_url

SIGNATURE_AGE_SECONDS = 300.0
MILLISECONDS_FROM = 10**11  # larger times are milliseconds; as seconds, this is the year 5138
TIMESTAMP_MAX_DIGITS = 15
ID_MAX_CHARACTERS = 255
# In a body that cannot be parsed, perhaps because its end is missing. Quotes inside a string are
# escaped, so this does not match in a prompt.
ID_IN_TEXT = re.compile(r'"task(?:Id|_id)"\s*:\s*"([^"\\]{1,255})"')
HOSTS_MAX = 20
URL_SAFE = str.maketrans("-_", "+/")


class KieCallbacks:
    """Reads callbacks, and verifies them if there is a key."""

    def __init__(self, webhook_key: Callable[[], str] | None) -> None:
        """Verify signatures with a key, if there is one.

        Args:
            webhook_key: Returns the current key of the signatures. None trusts every callback.
        """
        self._webhook_key = webhook_key

    def read(self, headers: Mapping[str, str], text: str, now: float) -> Callback:
        """Return what a callback says.

        Args:
            headers: Its HTTP headers.
            text: Its body, as much as arrived.
            now: Unix seconds.
        """
        body = _body(text)
        task_id = _id_in_text(text) if body is None else _task_id(body)
        return Callback(
            provider_task_id=task_id,
            hosts=frozenset(_hosts(body)),
            authentic=self._webhook_key is None
            or _is_signed(self._webhook_key().encode(), headers, task_id, now),
        )


def _is_signed(key: bytes, headers: Mapping[str, str], task_id: str, now: float) -> bool:
    """Check an HMAC-SHA256 of `taskId.timestamp`, and its age.

    Documented as base64. Hex and the URL-safe alphabet are accepted as well, and seconds as well as
    milliseconds.
    """
    timestamp = headers.get("X-Webhook-Timestamp", "").strip()
    if not timestamp.isascii() or not timestamp.isdecimal():
        return False
    signed_time = float(timestamp[:TIMESTAMP_MAX_DIGITS])
    if signed_time >= MILLISECONDS_FROM:
        signed_time /= 1_000
    if abs(now - signed_time) > SIGNATURE_AGE_SECONDS:
        return False
    digest = hmac.new(key, f"{task_id}.{timestamp}".encode(), sha256).digest()
    given = headers.get("X-Webhook-Signature", "").strip()
    as_base64 = b64encode(digest).decode().rstrip("=")
    return _equal(given.lower(), digest.hex()) or _equal(
        given.translate(URL_SAFE).rstrip("="), as_base64
    )


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), right.encode())


def _body(text: str) -> Any:
    """Return a body as JSON; None if it is not, perhaps because its end is missing."""
    try:
        return json.loads(text, parse_int=str)  # an int of 5,000 digits would raise
    except (ValueError, RecursionError):
        return None


def _id_in_text(text: str) -> str:
    found = ID_IN_TEXT.search(text)
    return found[1] if found and found[1].isprintable() else ""


def _task_id(body: Any) -> str:
    """Return the id from where the model families put it; "" if there is none."""
    root = body if isinstance(body, dict) else {}
    data = root.get("data")
    for holder in (data if isinstance(data, dict) else {}, root):
        for name in ("taskId", "task_id"):
            value = holder.get(name)
            if isinstance(value, str) and value.isprintable() and len(value) <= ID_MAX_CHARACTERS:
                return value
    return ""


def _hosts(body: Any) -> Iterator[str]:
    """Yield the hosts of the results that a callback names, a bounded number of them."""
    urls = urls_of_callback(body) if isinstance(body, dict) else ()
    parts = (split_http_url(url) for url in urls)
    hosts = (part.hostname for part in parts if part is not None and part.hostname)
    yield from islice(dict.fromkeys(hosts), HOSTS_MAX)
