"""The rules of single fields of an order, and the errors that a broken rule is answered with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

Body = Mapping[str, Any]

INVALID: Final = 422
URL_MAX_CHARACTERS: Final = 2_048
SHOTS_MAX: Final = 10
SHOT_MIN_SECONDS: Final = 0.1
SHOT_MAX_SECONDS: Final = 15


class RefusedError(Exception):
    """A request that is answered with an error code, and for which nothing is bought."""

    def __init__(self, code: int, msg: str, data: object = None) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.data = data


class BadFieldError(RefusedError):
    """A field that breaks a rule. The real jobs API answers both 422 and 500 to that."""

    def __init__(self, msg: str) -> None:
        super().__init__(INVALID, msg)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field must be, in words and as a test; `words` may contain the field's `{name}`."""

    words: str
    accepts: Callable[[Any], bool]


NOT_ALLOWED: Final = "{name} is not within the range of allowed options"
TOO_LONG: Final = "The text length cannot exceed the maximum limit"
REQUIRED: Final = "This field is required"


def text(longest: int) -> Rule:
    """Return a string of at most `longest` characters."""
    return Rule(TOO_LONG, lambda value: isinstance(value, str) and len(value) <= longest)


def choice(*allowed: str) -> Rule:
    """One of `allowed`; a number is accepted where its text is."""
    return Rule(
        NOT_ALLOWED,
        lambda value: isinstance(value, str | int | float) and str(value) in allowed,
    )


def option(*allowed: str) -> Rule:
    """One of `allowed`, and a string."""
    return Rule(NOT_ALLOWED, lambda value: isinstance(value, str) and value in allowed)


def whole(low: int, high: int) -> Rule:
    """Return a whole number within limits."""
    return Rule(
        f"{{name}} must be a whole number from {low} to {high}",
        lambda value: is_whole(value) and low <= value <= high,
    )


def url_list(most: int) -> Rule:
    """Return a list of at most `most` http(s) URLs."""
    return Rule(
        f"{{name}} must be a list of at most {most} http(s) URLs",
        lambda value: isinstance(value, list) and len(value) <= most and all(map(is_url, value)),
    )


def is_url(value: object) -> bool:
    """Return whether `value` is an absolute http(s) URL of an acceptable length."""
    if not isinstance(value, str) or len(value) > URL_MAX_CHARACTERS:
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def is_whole(value: object) -> bool:
    """Return whether a JSON value is a whole number, written without a decimal point."""
    return isinstance(value, int) and not isinstance(value, bool)


FLAG: Final = Rule("{name} must be true or false", lambda value: isinstance(value, bool))
WHOLE: Final = Rule("{name} must be a whole number", is_whole)
URL: Final = Rule("{name} must be an http(s) URL", is_url)
STORY: Final = Rule(
    f"{{name}} must be at most {SHOTS_MAX} shots, each with a Scene and a duration of"
    f" {SHOT_MIN_SECONDS} to {SHOT_MAX_SECONDS} seconds",
    lambda value: isinstance(value, list) and len(value) <= SHOTS_MAX and all(map(_is_shot, value)),
)


def _is_shot(shot: object) -> bool:
    if not isinstance(shot, dict) or not isinstance(shot.get("Scene"), str):
        return False
    duration = shot.get("duration")
    return isinstance(duration, int | float) and SHOT_MIN_SECONDS <= duration <= SHOT_MAX_SECONDS


def check(body: Body, rules: Mapping[str, Rule], required: tuple[str, ...] = ()) -> None:
    """Check the fields of `body` against `rules`.

    Raises:
        BadFieldError: With the first rule that is broken.
    """
    for name in required:
        if is_blank(body.get(name)):
            raise BadFieldError(REQUIRED)
    for name, rule in rules.items():
        value = body.get(name)
        if not is_absent(value) and not rule.accepts(value):
            raise BadFieldError(rule.words.format(name=name))


def is_absent(value: object) -> bool:
    """Return whether a field counts as not given: null, or empty text or an empty list."""
    return value is None or value in ("", [])


def is_blank(value: object) -> bool:
    """Return whether a required field counts as not given: text of spaces is, too."""
    return is_absent(value) or (isinstance(value, str) and not value.strip())
