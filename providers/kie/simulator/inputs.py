"""Check the input of a jobs order by the published facts of its model.

Types are strict, as Kie's are: `5` is refused where `"5"` is expected, and `5.0` where a whole
number is. Fields that the facts do not name are ignored, and those about which the sources disagree
are not checked.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from providers.kie.simulator.facts import ModelFacts
from providers.kie.simulator.rules import (
    NOT_ALLOWED,
    REQUIRED,
    TOO_LONG,
    BadFieldError,
    Body,
    is_absent,
    is_blank,
    is_whole,
)

Facts = Mapping[str, Any]

TYPES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    # type: (what a value must be, in words and as a test)
    "string": ("a string", lambda value: isinstance(value, str)),
    "integer": ("a whole number", is_whole),
    "number": ("a number", lambda value: is_whole(value) or isinstance(value, float)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, dict)),
}
URI: Final = re.compile(r"(https?|asset|oss)://\S+", re.ASCII)
"""Some models take ids of their own files as `asset://` and `oss://`."""


def check_input(facts: ModelFacts, given: Body) -> None:
    """Check the input of an order.

    Raises:
        BadFieldError: With the first rule that is broken.
    """
    if facts.one_of:
        _check_alternatives(facts.one_of, given)
    for name, field in facts.fields.items():
        value = given.get(name)
        if name in facts.doubts:
            continue
        if field.get("required") and is_blank(value):
            raise BadFieldError(REQUIRED)
        if not is_absent(value) and (words := _broken_rule(field, value)):
            raise BadFieldError(words.format(name=name))


def _check_alternatives(groups: tuple[tuple[str, ...], ...], given: Body) -> None:
    """Check that exactly one of several groups of fields is given."""
    present = [group for group in groups if not any(is_blank(given.get(name)) for name in group)]
    if not present:
        raise BadFieldError(REQUIRED)
    if len(present) > 1:
        names = " and ".join(name for group in present for name in group)
        raise BadFieldError(f"only one of {names} may be given")


def _broken_rule(field: Facts, value: Any) -> str | None:
    """Return the words of the rule of a field that `value` breaks; None if there is none."""
    words, accepts = TYPES[field["type"]]
    if allowed := field.get("enum"):
        return None if accepts(value) and value in allowed else NOT_ALLOWED
    if not accepts(value):
        return f"{{name}} must be {words}"
    if isinstance(value, str):
        return _broken_rule_of_text(field, value)
    if isinstance(value, list):
        return _broken_rule_of_list(field, value)
    low, high = field.get("minimum"), field.get("maximum")
    is_outside = (low is not None and value < low) or (high is not None and value > high)
    return NOT_ALLOWED if is_outside else None


def _broken_rule_of_text(field: Facts, value: str) -> str | None:
    if len(value) > field.get("maxLength", len(value)):
        return TOO_LONG
    if len(value) < field.get("minLength", 0):
        return f"{{name}} must have at least {field['minLength']} characters"
    if field.get("format") == "uri" and not URI.fullmatch(value):
        return "{name} must be a URL"
    return None


def _broken_rule_of_list(field: Facts, value: list[Any]) -> str | None:
    if not field.get("minItems", 0) <= len(value) <= field.get("maxItems", len(value)):
        return "the number of {name} is not within the allowed range"
    if "items" not in field:
        return None
    item = {"type": field["items"], "format": field.get("format")}
    return next((words for each in value if (words := _broken_rule(item, each))), None)
