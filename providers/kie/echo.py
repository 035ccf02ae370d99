"""Whether a record belongs to our request: Kie repeats the request in most of its records.

The repeated prompt of a typed model may be normalised, escaped or truncated, so only its letters
and digits are compared, in one Unicode form and without case. The input of a market model is
compared value by value: Kie repeats it as it was sent, and may add defaults. A record that repeats
nothing proves nothing.
"""

import re
import unicodedata
from collections.abc import Mapping
from html import unescape
from typing import Any

from providers.base import Recognition
from providers.kie.values import as_object, unwrapped

REQUEST_FIELDS = ("param", "paramJson", "promptJson", "request")
# The name of the model: `model` in jobs and Veo, `taskType` in Midjourney.
MODEL_FIELDS = ("model", "taskType")
CUT_MIN_LETTERS = 20  # of a truncated prompt: fewer could be the start of any other prompt
CUT_MIN_LETTERS_WITH_DOTS = 8  # if it ends in dots, which show that it was truncated
DOTS = ("...", "\u2026")
ESCAPES_MAX = 3  # how often HTML is unescaped
CUT_ENTITY = re.compile(r"&#?\w{0,8}$")
JSON_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\[nrtbf]")


def recognition(body: Mapping[str, Any], record: Mapping[str, Any]) -> Recognition:
    """Compare the prompt and the model of a request's body with what a record repeats."""
    ours = _flat(body)
    repeated = _flat(_request(record))
    for field in MODEL_FIELDS:
        model = repeated.get(field) or record.get(field)
        if field in ours and isinstance(model, str) and _letters(model) != _letters(ours[field]):
            return Recognition.DIFFERS
    prompt = repeated.get("prompt", record.get("prompt"))
    if not isinstance(prompt, str) or not prompt.strip():
        return Recognition.SILENT
    return Recognition.AGREES if _same(prompt, ours["prompt"]) else Recognition.DIFFERS


def same_input(body: Mapping[str, Any], record: Mapping[str, Any]) -> Recognition:
    """Compare the model and the input of a market model with what a record repeats."""
    repeated = _request(record)
    model = repeated.get("model") or record.get("model")
    if isinstance(model, str) and model.strip() != body["model"]:
        return Recognition.DIFFERS
    given = unwrapped(repeated.get("input"))
    if not model or not isinstance(given, dict):
        return Recognition.SILENT
    agrees = all(
        name in given and same_json(value, given[name]) for name, value in body["input"].items()
    )
    return Recognition.AGREES if agrees else Recognition.DIFFERS


def same_json(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; in Python, True is equal to 1."""
    match one:
        case dict():
            return (
                isinstance(other, dict)
                and one.keys() == other.keys()
                and all(same_json(value, other[name]) for name, value in one.items())
            )
        case list():
            return (
                isinstance(other, list)
                and len(one) == len(other)
                and all(map(same_json, one, other))
            )
        case bool():
            return one is other
        case _:
            return not isinstance(other, bool) and bool(one == other)


def _request(record: Mapping[str, Any]) -> dict[str, Any]:
    return next(filter(None, (as_object(record.get(name)) for name in REQUEST_FIELDS)), {})


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request and those of its `input`, which may be JSON text."""
    return {**as_object(request.get("input")), **request}


def _same(repeated: str, ours: str) -> bool:
    theirs, own = _letters(repeated), _letters(ours)
    if theirs == own:
        return True
    dots = repeated.rstrip().endswith(DOTS)
    least = CUT_MIN_LETTERS_WITH_DOTS if dots else CUT_MIN_LETTERS
    # Truncation may have separated the last letter from its accent.
    return len(theirs) >= least and own.startswith(theirs[:-1])


def _letters(text: Any) -> str:
    """Return the letters and digits of a text: they survive any escaping."""
    text = JSON_ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", str(text))
    for _ in range(ESCAPES_MAX):
        text = unescape(text)
    text = CUT_ENTITY.sub("", text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(filter(str.isalnum, folded))
