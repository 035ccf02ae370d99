"""What is kept of a response that was not understood: truncated, and without secrets.

A record repeats our request, and with it the URL for our callbacks. That URL is enough to make us
poll, so it is hidden.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from providers.kie.values import clean

RECORD_MAX_CHARACTERS = 65_536
TEXT_MAX_CHARACTERS = 2_000
# In JSON, and in JSON text inside JSON, where the quotes are escaped.
CALLBACK_URL = re.compile(
    r'((?:progress)?call_?back_?url\\*"\s*:\s*\\*")[^"\\]*(?:\\+/[^"\\]*)*', re.IGNORECASE
)
HIDDEN = r"\1(hidden)"


def kept_text(text: str) -> str:
    """Return the beginning of a response, for the log."""
    return clean(_without_callback_url(text[: 2 * TEXT_MAX_CHARACTERS]), TEXT_MAX_CHARACTERS)


def kept_record(record: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> str:
    """Return a record without URLs as a task's result_json.

    Args:
        record: The provider's record.
        result: Its result, whose fields are added.
    """
    text = dump({**(result or {}), "resultUrls": [], "record": record})
    text = _without_callback_url(text)
    if len(text) <= RECORD_MAX_CHARACTERS:
        return text
    return dump({"resultUrls": [], "recordStart": text[:RECORD_MAX_CHARACTERS]})


def dump(value: Mapping[str, Any]) -> str:
    """Return JSON text that any database and any message can hold."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # json reads deeper nesting than it writes
        text = json.dumps({"resultUrls": value["resultUrls"]}, ensure_ascii=False)
    return text.encode(errors="replace").decode()


def _without_callback_url(text: str) -> str:
    return CALLBACK_URL.sub(HIDDEN, text)
