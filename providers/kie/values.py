"""Read values from Kie: of any type and size, JSON inside JSON, broken text.

Nothing here raises for what Kie sent, except `read_json`.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

MESSAGE_MAX_CHARACTERS = 1_000
ID_MAX_CHARACTERS = 255
NUMBER_MAX_DIGITS = 300  # a float holds 308; Python refuses to parse more than 4,300
LAYERS_MAX = 4  # how often JSON text is decoded inside JSON text
DEPTH_MAX = 6  # how deep an id is searched for
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

# The names of an id, in lower case and without underscores, best first.
ID_NAMES = ("taskid", "recordid", "jobid", "id")
# These fields repeat our own request: an id or a URL in them is not news from the provider.
REQUEST_NAMES = frozenset({"param", "paramjson", "promptjson", "input", "request"})
# In text that is not JSON, or in JSON text inside such text.
ID_IN_TEXT = re.compile(
    r'"(?:task|record)_?id\\*"\s*:\s*(?:\\*"\s*([\w.:/-]{1,255})\s*\\*"|(\d{1,30})\s*[,}\]])',
    re.IGNORECASE,
)
# A text that can only be an id: one word with a digit in it.
BARE_ID = re.compile(r"(?=\D*\d)[A-Za-z0-9][A-Za-z0-9._:/-]{3,254}")


# --- JSON ---


def text_of(data: bytes) -> str:
    """Decode a response; bytes that are not text become replacement characters."""
    if data.startswith(UTF_16_MARKS):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def read_json(text: str) -> Any:
    """Read JSON with common faults: NaN, huge numbers, raw line feeds in strings.

    Numbers that JSON cannot represent are kept as text.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return _LENIENT.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unwrapped(value: Any) -> Any:
    """Return the value of JSON text, however often it was encoded; any other value unchanged."""
    for _ in range(LAYERS_MAX):
        if not isinstance(value, str) or not value.lstrip("\ufeff \t\r\n").startswith(
            ("{", "[", '"')
        ):
            break
        try:
            value = read_json(value.lstrip("\ufeff"))
        except ValueError:
            break
    return value


def as_object(value: Any) -> dict[str, Any]:
    """Return an object that may be JSON text or the only item of a list; {} if it is neither."""
    value = unwrapped(value)
    if isinstance(value, list) and len(value) == 1:
        value = unwrapped(value[0])
    return value if isinstance(value, dict) else {}


def field_name(name: str) -> str:
    """Return a name for comparison: `task_id`, `taskID` and `TaskId` are equal."""
    return name.replace("_", "").replace("-", "").lower()


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= NUMBER_MAX_DIGITS else digits


def _float(digits: str) -> float | str:
    """Keep a number beyond a float's range as text: JSON cannot represent infinity."""
    number = float(digits)
    return number if math.isfinite(number) else digits


_LENIENT = json.JSONDecoder(
    strict=False, parse_constant=str, parse_int=_integer, parse_float=_float
)


# --- ids ---


def as_id(value: Any) -> str:
    """Return an id as text; "" if it is not a usable one."""
    value = unwrapped(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        value = str(value)
    if not isinstance(value, str):
        return ""
    text = value.strip(" \t\r\n\"'")
    whole = len(text) <= ID_MAX_CHARACTERS and any(map(str.isalnum, text))
    return clean(text) if whole else ""


def find_id(value: Any, depth: int = DEPTH_MAX) -> str:
    """Return the id in one of the fields for it, here or deeper; "" if there is none."""
    return _likeliest(_named_ids(unwrapped(value), depth))


def _likeliest(ids: Iterable[str]) -> str:
    """Return the first one that looks like Kie's ids, else the first one."""
    first = ""
    for found in ids:
        if found and BARE_ID.fullmatch(found):
            return found
        first = first or found
    return first


def _named_ids(value: Any, depth: int) -> Iterator[str]:
    """Yield ids in the order of ID_NAMES, those here before those deeper."""
    if not depth or not isinstance(value, dict | list):
        return
    named = {field_name(name): item for name, item in _items(value)}
    for name in ID_NAMES:
        yield as_id(named.get(name))
    for name, item in _items(value):
        if field_name(name) not in REQUEST_NAMES:
            yield from _named_ids(unwrapped(item), depth - 1)


def _items(value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    else:
        yield from (("", item) for item in value)


def bare_id(value: Any) -> str:
    """Return a value that is itself an id, or the only item of a list; "" if it is not."""
    value = unwrapped(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    known = as_id(value)
    return known if BARE_ID.fullmatch(known) else ""


def id_in_text(text: str) -> str:
    """Return the id in text that is not JSON, perhaps truncated; "" if there is none."""
    return _likeliest(as_id(found[1] or found[2]) for found in ID_IN_TEXT.finditer(text))


def id_anywhere(text: str) -> str:
    """Return the id in a response, whether it is JSON or not; "" if there is none."""
    return find_id(text) or id_in_text(text)


def same_id(one: Any, other: str) -> bool:
    """Return whether two ids are equal: a provider may change the case, or add spaces."""
    return as_id(one).casefold() == other.strip().casefold()


# --- single values ---


def as_int(value: Any) -> int | None:
    """Read a whole number, which may be a string; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    try:
        return int(value)
    except ValueError:
        return None


def as_credits(value: Any) -> float | None:
    """Read an amount of credits, which may be a string; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if 0 <= amount < math.inf else None


def as_time(value: Any) -> float | None:
    """Read a time as unix seconds.

    Accepts unix milliseconds, ISO 8601, and `YYYY-MM-DD hh:mm:ss` (as UTC).
    """
    number = as_int(value)
    if number is not None:
        return number / 1_000 if 0 < number < 10**14 else None
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def clean(words: Any, most: int = MESSAGE_MAX_CHARACTERS) -> str:
    """Return text that any database and any message can store.

    Without NUL and lone surrogates, and truncated.
    """
    text = words if isinstance(words, str) else "" if words is None else str(words)[:most]
    return text[:most].replace("\0", "\ufffd").encode(errors="replace").decode()


def first_words(holder: Mapping[str, Any], *names: str) -> str:
    """Return the first of these fields that contains text; in an object, its message."""
    for name in names:
        value = holder.get(name)
        if isinstance(value, dict):
            value = value.get("message") or value.get("msg")
        if value not in (None, "", [], {}, False):
            return clean(value)
    return ""
