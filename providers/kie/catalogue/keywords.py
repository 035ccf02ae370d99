"""The keywords of JSON Schema that a reduced schema keeps, and what values they may have."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from providers.kie.catalogue.disputes import unchecked

TEXT_MAX_CHARACTERS = 200
CHOICES_MAX = 500
PATTERN_MAX_CHARACTERS = 256
FIELD_NAME_MAX_CHARACTERS = 128
UNIQUE_ITEMS_MAX = 64
DEFAULT_MAX_CHARACTERS = 2_000
NUMBER_MAX = 2.0**53
TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")

Scalar = str | int | float | bool | None

# They accept and refuse nothing.
ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly"),
        *("writeOnly", "externalDocs", "discriminator", "xml", "$comment", "$schema", "$id"),
        *("$anchor", "$defs", "definitions", "format", "contentMediaType", "contentEncoding"),
    }
)
EXCLUSIVE = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
# Kept by the reducer, which follows what is inside them.
STRUCTURE = frozenset(
    {
        *("properties", "items", "additionalProperties", "patternProperties"),
        *("allOf", "anyOf", "oneOf", "nullable", "$ref"),
    }
)


def shown(text: Any) -> str:
    """Return untrusted text for people: printable, on one line, and at most 200 characters."""
    if not isinstance(text, str):
        return ""
    text = text[: 4 * TEXT_MAX_CHARACTERS]
    words = "".join(character if character.isprintable() else " " for character in text).split()
    return " ".join(words)[:TEXT_MAX_CHARACTERS].rstrip()


def is_field_name(name: Any) -> bool:
    """Return whether an input can have a field of this name."""
    return (
        isinstance(name, str) and 0 < len(name) <= FIELD_NAME_MAX_CHARACTERS and name.isprintable()
    )


def simple(node: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the keywords of a schema that contain no schemas, and how many constraints it lost.

    What OpenAPI 3.0 writes differently is translated: exclusive bounds, and null.
    """
    schema: dict[str, Any] = {}
    lost = 0
    for name, value in node.items():
        if name in STRUCTURE or name.startswith("x-"):
            continue
        read = READERS.get(name)
        usable = None if read is None else read(value)
        if usable is not None:
            schema["enum" if name == "const" else name] = usable
        elif name not in ANNOTATIONS:
            lost += 1
    for exclusive, bound in EXCLUSIVE.items():
        flag = schema.get(exclusive)
        if isinstance(flag, bool):
            del schema[exclusive]
            if flag and bound in schema:
                schema[exclusive] = schema.pop(bound)
    if node.get("nullable") is True or None in schema.get("enum", ()):
        _allow_null(schema)
    if not _choices_fit(schema):
        return unchecked(schema), lost + 1
    if schema.get("uniqueItems") and schema.get("maxItems", math.inf) > UNIQUE_ITEMS_MAX:
        del schema["uniqueItems"]  # comparing many values takes long
        lost += 1
    return schema, lost


def _choices_fit(schema: Mapping[str, Any]) -> bool:
    """Return whether choices have the declared type. `5` as text needs quotes in YAML, too.

    If they have not, either may be wrong, and together they would refuse every value.
    """
    types = schema.get("type", TYPES)
    types = types if isinstance(types, list | tuple) else (types,)
    return all(any(map(_kinds(choice).__contains__, types)) for choice in schema.get("enum", ()))


def _kinds(value: Scalar) -> tuple[str, ...]:
    """Return the types of JSON Schema that a value has."""
    match value:
        case None:
            return ("null",)
        case bool():
            return ("boolean",)
        case str():
            return ("string",)
        case _:
            return ("integer", "number") if float(value).is_integer() else ("number",)


def _allow_null(schema: dict[str, Any]) -> None:
    if isinstance(schema.get("type"), str) and schema["type"] != "null":
        schema["type"] = [schema["type"], "null"]
    elif isinstance(schema.get("type"), list) and "null" not in schema["type"]:
        schema["type"] = [*schema["type"], "null"]
    if "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]


# --- the values of keywords; None if one is not usable ---


def _number(value: Any) -> int | float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return value if usable and abs(value) <= NUMBER_MAX else None


def _exclusive(value: Any) -> int | float | bool | None:
    return value if isinstance(value, bool) else _number(value)


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) >= 0 else None


def _step(value: Any) -> int | None:
    """Keep whole steps only: in doubles, 0.3 is not a multiple of 0.1."""
    count = _count(value)
    return count or None


def _types(value: Any) -> str | list[str] | None:
    if isinstance(value, list):
        names = [name for name in TYPES if name in value[: len(TYPES)]]
        return names if names and len(names) == len(value) else None
    return value if isinstance(value, str) and value in TYPES else None


def _is_choice(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= TEXT_MAX_CHARACTERS and value.isprintable()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value) <= NUMBER_MAX
    return value is None or isinstance(value, bool)


def _choices(value: Any) -> list[Scalar] | None:
    if not isinstance(value, list) or not 0 < len(value) <= CHOICES_MAX:
        return None
    return value if all(map(_is_choice, value)) else None


def _names(value: Any) -> list[str] | None:
    if not isinstance(value, list) or len(value) > CHOICES_MAX:
        return None
    return list(dict.fromkeys(filter(is_field_name, value)))


def _default(value: Any) -> Any:
    if isinstance(value, list | dict):
        return value if not value else None
    if isinstance(value, str):
        return value if len(value) <= DEFAULT_MAX_CHARACTERS and "\0" not in value else None
    return value if _is_choice(value) else None


def _pattern(value: Any) -> str | None:
    usable = isinstance(value, str) and len(value) <= PATTERN_MAX_CHARACTERS
    return value if usable else None


def _text(value: Any) -> str | None:
    return shown(value) or None


READERS: Mapping[str, Callable[[Any], Any]] = {
    "title": _text,
    "description": _text,
    "default": _default,
    "type": _types,
    "enum": _choices,
    "const": lambda value: _choices([value]),
    "format": lambda value: "uri" if value in ("uri", "url") else None,
    "minimum": _number,
    "maximum": _number,
    "exclusiveMinimum": _exclusive,
    "exclusiveMaximum": _exclusive,
    "multipleOf": _step,
    "minLength": _count,
    "maxLength": _count,
    "pattern": _pattern,
    "minItems": _count,
    "maxItems": _count,
    "uniqueItems": _flag,
    "required": _names,
    "minProperties": _count,
    "maxProperties": _count,
}
