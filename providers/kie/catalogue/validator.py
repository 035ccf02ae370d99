"""Check an input by its model's schema: all violations at once, in words for people."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cachetools import LRUCache
from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError

from providers.base import Violation
from providers.kie.catalogue.facts import JsonSchema
from providers.kie.catalogue.patterns import (
    TEXT_MAX_CHARACTERS,
    concerned_characters,
    has_patterns,
    without_patterns,
)
from providers.kie.catalogue.words import VIOLATIONS_MAX, violations
from providers.public_address import is_public_host
from providers.urls import split_http_url

COMPILED_MAX = 512
REGEX_MAX_BYTES = 16 << 10  # of a compiled regular expression
REGEX_CACHE_MAX_BYTES = 256 << 10
# Collecting errors takes time for each wrong value; no model needs as many values as this.
VALUES_MAX = 300
# Of a larger input, only so many members of each list and object are checked: the first number
# that leaves no more than VALUES_MAX values.
MEMBERS_MAX = (100, 20, 4, 1)
HIDDEN_WORDS = "contains an invalid value, and too many values to name it"
HTTP = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check.

    Attributes:
        input: The input, with the defaults of the fields that the model requires; the same object
            if none was missing.
        violations: Every broken rule; the fields are paths in the request.
    """

    input: Mapping[str, Any]
    violations: list[Violation]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A compiled schema, and what is known of it.

    Attributes:
        schema: The schema as it was given.
        validator: The compiled schema.
        lenient: The same without regular expressions; None if the schema has none.
        has_defaults: Whether required fields have defaults.
    """

    schema: JsonSchema
    validator: Draft202012Validator
    lenient: "_Compiled | None"
    has_defaults: bool

    @classmethod
    def of(cls, schema: JsonSchema, *, public_urls: bool) -> "_Compiled":
        lenient = None
        if has_patterns(schema):
            lenient = cls.of(without_patterns(schema), public_urls=public_urls)
        validator = compile_schema(schema, public_urls=public_urls)
        return cls(schema, validator, lenient, has_defaults=_has_defaults(schema))

    def for_input(self, given: Mapping[str, Any]) -> "_Compiled":
        """Return the schema itself, unless its regular expressions would take too long."""
        if self.lenient and concerned_characters(self.schema, given) > TEXT_MAX_CHARACTERS:
            return self.lenient
        return self


class Validators:
    """Checks inputs, and keeps a bounded number of compiled schemas."""

    def __init__(self, path: str, *, public_urls: bool = False) -> None:
        """Start without compiled schemas.

        Args:
            path: The path of an input in a request, for violations.
            public_urls: Whether the URLs in an input must have a public host.
        """
        self._path = path
        self._public_urls = public_urls
        self._compiled: LRUCache[str, _Compiled] = LRUCache(COMPILED_MAX)

    def check(self, model: str, schema: JsonSchema, given: Mapping[str, Any]) -> Checked:
        """Check an input of a model by the model's schema."""
        compiled = self._compiled.get(model)
        if compiled is None or compiled.schema is not schema:
            compiled = _Compiled.of(schema, public_urls=self._public_urls)
            self._compiled[model] = compiled
        compiled = compiled.for_input(given)
        filled = _filled(schema, given) if compiled.has_defaults else given
        if compiled.validator.is_valid(filled):
            return Checked(filled, [])
        return self._refused(compiled, filled)

    def _refused(self, compiled: _Compiled, filled: Mapping[str, Any]) -> Checked:
        """Check an input that is wrong, unless the defaults of an alternative make it right."""
        for candidate in _alternatives(compiled.schema, filled):
            if compiled.validator.is_valid(candidate):
                return Checked(candidate, [])
        errors = _errors(compiled.validator, filled)
        broken = violations(errors, compiled.schema, filled, self._path)
        return Checked(filled, broken or [Violation(self._path, HIDDEN_WORDS)])


def compile_schema(schema: JsonSchema, *, public_urls: bool = False) -> Draft202012Validator:
    """Compile a schema. It fetches nothing, and matches regular expressions in linear time.

    Raises:
        ValueError: The schema is not usable.
    """
    return Draft202012Validator(
        dict(schema),
        formats={"uri": _is_reachable if public_urls else _is_url},
        validate_formats=True,
        pattern_options=RegexOptions(REGEX_MAX_BYTES, REGEX_CACHE_MAX_BYTES),
        offline=True,
    )


def _is_url(text: str) -> bool:
    """Return whether a text may be a URL; those that are not http, such as `asset://id`, are."""
    return not text.lower().startswith(HTTP) or split_http_url(text) is not None


def _is_reachable(text: str) -> bool:
    if not text.lower().startswith(HTTP):
        return True
    parts = split_http_url(text)
    return parts is not None and is_public_host(parts.hostname or "") and "@" not in parts.netloc


def _errors(validator: Draft202012Validator, value: Mapping[str, Any]) -> list[ValidationError]:
    """Return the errors of an invalid value; of a huge one, only those in a part of it."""
    return list(islice(validator.iter_errors(_part(value)), VIOLATIONS_MAX))


def _part(value: Any) -> Any:
    """Return a value, without the later members of its lists and objects if it is too large."""
    part = value
    for members_max in MEMBERS_MAX:
        if _count(part) <= VALUES_MAX:
            break
        part = _cut(value, members_max)
    return part


def _cut(value: Any, members_max: int) -> Any:
    if isinstance(value, dict):
        members = islice(value.items(), members_max)
        return {name: _cut(item, members_max) for name, item in members}
    if isinstance(value, list):
        return [_cut(item, members_max) for item in value[:members_max]]
    return value


def _count(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, parts))


# --- defaults ---


def _has_defaults(schema: Any) -> bool:
    """Return whether required fields have defaults, here or deeper."""
    if not isinstance(schema, dict):
        return False
    fields = schema.get("properties", {})
    return (
        any("default" in fields.get(name, ()) for name in schema.get("required", ()))
        or any(map(_has_defaults, fields.values()))
        or _has_defaults(schema.get("items"))
    )


def _filled(schema: Any, value: Any) -> Any:
    """Return a value with the defaults of its required fields; itself if none is missing."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, dict) and "properties" in schema:
        fields = schema["properties"]
        added = {
            name: fields[name]["default"]
            for name in schema.get("required", ())
            if name not in value and "default" in fields.get(name, ())
        }
        inner = {name: _filled(fields.get(name), item) for name, item in value.items()}
        changed = added or any(inner[name] is not item for name, item in value.items())
        return {**inner, **added} if changed else value
    if isinstance(value, list) and "items" in schema:
        items = [_filled(schema["items"], item) for item in value]
        return items if any(map(_is_not, items, value)) else value
    return value


def _is_not(one: Any, other: Any) -> bool:
    return one is not other


def _alternatives(schema: JsonSchema, value: Any) -> Iterator[Any]:
    """Yield a value with the defaults that each branch of a combinator requires.

    A combinator may be a part of `allOf`: schemas that are reduced have `anyOf` there.
    """
    for name in ("oneOf", "anyOf"):
        for branch in schema.get(name, ()):
            filled = _filled(branch, value) if _has_defaults(branch) else value
            if filled is not value:
                yield filled
    for part in schema.get("allOf", ()):
        yield from _alternatives(part, value)
