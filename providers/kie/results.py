"""From a provider's result object to URLs, media types and the contract's result_json."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from providers.base import Succeeded
from providers.kie.envelope import as_credits, as_time, clean

SCHEMES = ("https://", "http://")
RESULTS_MAX = 100
URL_MAX_CHARACTERS = 16_384
# Where results stand, best first. The later ones hold the same work in another form.
URL_FIELDS = ("resultUrls", "fullResultUrls", "originUrls", "resultWaterMarkUrls")
MIME_TYPES = {
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".mov": "video/quicktime",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".webm": "video/webm",
    ".webp": "image/webp",
}


def succeeded(record: Mapping[str, Any], result: Mapping[str, Any]) -> Succeeded:
    """Build the outcome of a record that says success.

    Args:
        record: The `data` of the answer.
        result: The object in it that holds the URLs.
    """
    urls = next(filter(None, (_urls(result.get(field)) for field in URL_FIELDS)), ())
    return Succeeded(
        urls=urls,
        mime_types=tuple(map(mime_type, urls)),
        result_json=_dump({**result, "resultUrls": urls}),
        credits_consumed=credits_consumed(record),
        complete_time=as_time(record.get("completeTime")),
    )


def credits_consumed(record: Mapping[str, Any]) -> float | None:
    """Return what the task cost; older copies of the API spelled it the other way round."""
    return as_credits(record.get("creditsConsumed", record.get("consumeCredits")))


def mime_type(url: str) -> str:
    """Return the media type that a result's URL shows by its extension."""
    try:
        extension = PurePosixPath(urlsplit(url).path).suffix.lower()
    except ValueError:
        extension = ""
    return MIME_TYPES.get(extension, "application/octet-stream")


def _urls(value: Any) -> tuple[str, ...]:
    return tuple(_each_url(value))[:RESULTS_MAX]


def _each_url(value: Any) -> Iterator[str]:
    """Yield the URLs of a list of strings or of `{resultUrl}` objects."""
    for item in _as_list(value):
        url = item.get("resultUrl") if isinstance(item, dict) else item
        if isinstance(url, str) and url.startswith(SCHEMES) and _is_whole(url):
            yield url


def _is_whole(url: str) -> bool:
    """Whether a URL can be kept as it is; changed, it would be a dead link."""
    return clean(url, URL_MAX_CHARACTERS) == url


def _as_list(value: Any) -> list[Any]:
    """Return a list that may come as text, with or without its quotes, or as its only item."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = re.split(r",\s*(?=https?://)", value.strip("[] "))
    return value if isinstance(value, list) else [value]


def _dump(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False).encode(errors="replace").decode()
