"""Regular expressions in schemas, which take too long for long texts even in linear time.

The time grows with the length of the text times the size of the expression. So expressions are only
checked in inputs in which they concern little text, such as the sizes, colours and names that they
are made for.
"""

from collections.abc import Iterator, Mapping
from typing import Any

COMBINATORS = ("allOf", "anyOf", "oneOf")
TEXT_MAX_CHARACTERS = 4_000  # in an input, counted once for each expression


def has_patterns(schema: Any) -> bool:
    """Return whether a schema contains a regular expression."""
    return isinstance(schema, Mapping) and (
        "pattern" in schema or any(map(has_patterns, _parts(schema)))
    )


def concerned_characters(schema: Any, value: Any) -> int:
    """Return how much text of a value is matched with regular expressions."""
    if not isinstance(schema, Mapping):
        return 0
    count = 0
    if isinstance(value, str):
        count = len(value) if "pattern" in schema else 0
    elif isinstance(value, dict):
        fields, rest = schema.get("properties", {}), schema.get("additionalProperties")
        count = sum(concerned_characters(fields.get(n, rest), item) for n, item in value.items())
    elif isinstance(value, list):
        count = sum(concerned_characters(schema.get("items"), item) for item in value)
    branches = (branch for name in COMBINATORS for branch in schema.get(name, ()))
    return count + sum(concerned_characters(branch, value) for branch in branches)


def without_patterns(schema: Any) -> Any:
    """Return a schema without its regular expressions; it accepts more."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {name: value for name, value in schema.items() if name != "pattern"}
    if "properties" in schema:
        fields = schema["properties"].items()
        kept["properties"] = {name: without_patterns(field) for name, field in fields}
    for name in ("items", "additionalProperties"):
        if name in schema:
            kept[name] = without_patterns(schema[name])
    for name in COMBINATORS:
        if name in schema:
            # More than one branch of a oneOf may accept a value now.
            kept.pop(name)
            branches = [without_patterns(branch) for branch in schema[name]]
            same = name != "oneOf" or branches == schema[name]
            kept.setdefault("allOf", []).append({name if same else "anyOf": branches})
    return kept


def _parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    yield from schema.get("properties", {}).values()
    yield schema.get("items")
    yield schema.get("additionalProperties")
    for name in COMBINATORS:
        yield from schema.get(name, ())
