"""From a record that has ended to its outcome: URLs, media types and result_json, or a failure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from providers.base import Failed, Succeeded
from providers.kie.kept import dump, kept_record
from providers.kie.media_types import mime_type
from providers.kie.values import (
    REQUEST_NAMES,
    as_credits,
    as_time,
    clean,
    field_name,
    first_words,
    unwrapped,
)

RESULTS_MAX = 1_000
URL_MAX_CHARACTERS = 16_384
URLS_MAX_CHARACTERS = 1 << 20  # in all: a message contains them twice
RESULT_MAX_CHARACTERS = 1 << 20
DEPTH_MAX = 7  # how many nested objects and lists are read
# The fields of a record's result, best first; `response` is `resultJson`, already parsed.
RESULT_FIELDS = ("response", "resultJson", "resultInfoJson", "result", "results", "info", "output")
# The names of URLs in a result, best first, as `field_name` writes them. The later ones are other
# versions of the same images or videos.
URL_NAMES = (
    *("resulturls", "resulturl", "fullresulturls", "originurls", "resultwatermarkurls"),
    *("videourls", "videourl", "imageurls", "imageurl", "audiourls", "audiourl"),
    *("outputurls", "outputurl", "downloadurls", "downloadurl", "urls", "url"),
)
URL_START = re.compile(r"https?://[^\s]", re.IGNORECASE)
BETWEEN_URLS = re.compile(r"[,;\s]\s*(?=https?://)", re.IGNORECASE)
BLANKS = " \t\r\n\v\f\ufeff\u200b\xa0\"'"  # around a URL, with quotes
OBJECT_START_MAX_CHARACTERS = 65_536  # of an object that is too large to be kept
# Fields of a result, as `field_name` writes them, that alone are none.
NOT_CONTENT = REQUEST_NAMES.union(
    *(("taskid", "recordid", "id"), ("code", "msg", "message", "status", "state", "successflag")),
    *(("errorcode", "errormessage", "failcode", "failmsg"), URL_NAMES),
)


def succeeded(record: Mapping[str, Any], own_field: str = "response") -> Succeeded:
    """Return the outcome of a successful record.

    Args:
        record: The `data` of the response.
        own_field: The result field of this model family; it is read before all others.
    """
    fields = (own_field, *(name for name in RESULT_FIELDS if name != own_field))
    result, urls = _first_urls([*_results(record, fields), record])
    shown: Mapping[str, Any] = result if isinstance(result, dict) else {}
    text = _result_json(shown, urls) if urls else kept_record(record, shown)
    return _succeeded(record, urls, text)


def succeeded_or_object(record: Mapping[str, Any], *, any_content: bool = False) -> Succeeded:
    """Return the outcome of a successful record whose result may be an object without URLs.

    `resultUrls` are the results; else the audio and video in `data`; else URLs anywhere.

    Args:
        record: The `data` of the response.
        any_content: Whether a result without URLs need not be a `resultObject`.
    """
    results = _results(record, RESULT_FIELDS)
    result, urls = _listed_urls(results) or _first_urls([*results, record])
    shown = dict(result) if isinstance(result, dict) else {}
    found = next((held for held in map(_object_of, [*results, record]) if held is not None), None)
    if found is not None:
        shown["resultObject"] = found
    elif any_content and not urls:
        found = next(filter(_has_content, results), None)
        shown = {"resultObject": found} if found is not None else shown
    if urls:
        return _succeeded(record, urls, _result_json(shown, urls))
    if found is None:
        return _succeeded(record, (), kept_record(record, shown))
    text = dump({**shown, "resultUrls": []})
    if len(text) > RESULT_MAX_CHARACTERS:
        start = text[:OBJECT_START_MAX_CHARACTERS]
        text = dump({"resultUrls": [], "resultObjectStart": start})
    return _succeeded(record, (), text, object_only=True)


def _succeeded(
    record: Mapping[str, Any], urls: tuple[str, ...], text: str, *, object_only: bool = False
) -> Succeeded:
    return Succeeded(
        urls=urls,
        mime_types=tuple(map(mime_type, urls)),
        result_json=text,
        credits_consumed=credits_consumed(record),
        complete_time=as_time(record.get("completeTime")),
        object_only=object_only,
    )


def _results(record: Mapping[str, Any], fields: Iterable[str]) -> list[Any]:
    """Return what the result fields of a record hold, best first."""
    return [held for name in fields if (held := unwrapped(record.get(name))) not in (None, "")]


def _object_of(result: Any) -> dict[str, Any] | list[Any] | str | None:
    """Return the `resultObject` of a result; a text, such as lyrics, is one unless it is blank."""
    found = unwrapped(result.get("resultObject")) if isinstance(result, Mapping) else None
    if isinstance(found, str):
        return found if found.strip() else None
    return found if isinstance(found, dict | list) else None


def _has_content(value: Any, depth: int = DEPTH_MAX) -> bool:
    """Return whether a result contains more than ids, codes and empty fields."""
    value = unwrapped(value)
    if isinstance(value, dict):
        fields = (item for name, item in value.items() if field_name(name) not in NOT_CONTENT)
        return depth > 0 and any(_has_content(item, depth - 1) for item in fields)
    if isinstance(value, list):
        return depth > 0 and any(_has_content(item, depth - 1) for item in value)
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _listed_urls(results: list[Any]) -> tuple[Any, tuple[str, ...]] | None:
    """Return the first result with `resultUrls`, else with audio or video in `data`.

    `data` may also be in a `response` inside the result.
    """
    objects = [result for result in results if isinstance(result, dict)]
    for result in objects:
        if urls := _bounded(_urls_of_result(result)):
            return result, urls
    for result in objects:
        for place in (result, unwrapped(result.get("response"))):
            if isinstance(place, dict) and (urls := _bounded(_urls_of_data(place))):
                return result, urls
    return None


def _urls_of_result(result: dict[str, Any]) -> Iterator[str]:
    fields = {field_name(name): item for name, item in result.items()}
    yield from _urls(fields.get("resulturls"))


def _urls_of_data(result: dict[str, Any]) -> Iterator[str]:
    items = unwrapped(result.get("data"))
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, dict):
            fields = {field_name(name): field for name, field in item.items()}
            for name in ("audiourl", "videourl"):
                yield from _urls(fields.get(name))


def _first_urls(places: list[Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the first place with URLs, and its URLs; the record itself is the last place."""
    *results, record = places
    for result in results:
        if urls := _bounded(_urls(result)):
            return result, urls
    if urls := _bounded(_urls(record)):
        return {}, urls
    for result in results:
        if urls := _bounded(_urls(result, any_field=True)):
            return result, urls
    return next((result for result in results if isinstance(result, dict)), {}), ()


def _result_json(result: Mapping[str, Any], urls: tuple[str, ...]) -> str:
    text = dump({**result, "resultUrls": urls})
    return text if len(text) <= RESULT_MAX_CHARACTERS else dump({"resultUrls": urls})


@dataclass(frozen=True, slots=True)
class FailureFields:
    """The fields of a failed record in one model family, each followed by the other family's."""

    messages: tuple[str, str]
    codes: tuple[str, str]


def failed(record: Mapping[str, Any], fields: FailureFields) -> Failed:
    """Return the outcome of a failed record."""
    codes = (record.get(name) for name in fields.codes)
    return Failed(
        message=first_words(record, *fields.messages) or "the provider gave no reason",
        provider_code=clean(next((code for code in codes if code is not None), None), 50),
        credits_consumed=credits_consumed(record),
        complete_time=as_time(record.get("completeTime")),
    )


def credits_consumed(record: Mapping[str, Any]) -> float | None:
    """Return the cost of a task; in older versions of the API the field was `consumeCredits`."""
    return as_credits(record.get("creditsConsumed", record.get("consumeCredits")))


# --- URLs, wherever they are ---


def urls_of_callback(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the URLs in a callback, in any field but those that repeat our request."""
    return _bounded(_urls(body, any_field=True))


def _bounded(urls: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    characters = 0
    for url in urls:
        characters += len(url)
        if len(kept) == RESULTS_MAX or characters > URLS_MAX_CHARACTERS:
            break
        kept.append(url)
    return tuple(kept)


def _urls(value: Any, depth: int = DEPTH_MAX, *, any_field: bool = False) -> Iterator[str]:
    """Yield the URLs of a text, a list or an object.

    Args:
        value: The text, list or object; each may be JSON text.
        depth: How many levels are read.
        any_field: Read every field of an object but those that repeat our request; otherwise only
            the best one that contains URLs.
    """
    value = unwrapped(value)
    if isinstance(value, str):
        yield from _urls_in(value)
    elif isinstance(value, list) and depth:
        for item in value:
            yield from _urls(item, depth - 1, any_field=any_field)
    elif isinstance(value, dict) and depth:
        if any_field:
            for name, item in value.items():
                if field_name(name) not in REQUEST_NAMES:
                    yield from _urls(item, depth - 1, any_field=True)
        else:
            fields = {field_name(name): item for name, item in value.items()}
            lists = (tuple(_urls(fields.get(name), depth - 1)) for name in URL_NAMES)
            yield from next(filter(None, lists), ())


def _urls_in(text: str) -> Iterator[str]:
    """Yield the URLs in a text of URLs, which may be a list without quotes."""
    text = text.strip(BLANKS)
    if text.startswith("["):
        text = text.strip("[]").strip(BLANKS)
    if URL_START.match(text):
        for part in BETWEEN_URLS.split(text):
            url = part.strip(BLANKS)
            if _is_whole(url):
                yield url


def _is_whole(url: str) -> bool:
    """Return whether a URL can be stored unchanged; otherwise it would be a dead link."""
    return clean(url, URL_MAX_CHARACTERS) == url
