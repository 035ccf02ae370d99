"""How models are shown to people: a table of them, and the form of one."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from kie_generation.cli.terminal import one_line
from kie_generation.enums import short_name
from kie_generation.generated.generation.v1.generation_pb2 import Model

COLUMNS = 80
ID_COLUMNS = 40
STATE_COLUMNS = 9
NAME_COLUMNS = 24
DEPTH_MAX = 3  # of objects inside each other
CHOICES_MAX = 60

_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
    "array": "list",
    "null": "null",
}


def width() -> int:
    """Return how many columns to use."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else COLUMNS


def model_lines(model: Model) -> list[str]:
    """Return a model as one row of a table, or two if its id is long."""
    state = short_name(Model.Lifecycle, model.lifecycle).lower()
    state = "" if state == "active" else state
    details = f"{state:<{STATE_COLUMNS}} {_cost(model)}".rstrip()
    model_id = one_line(model.id)
    lines = [f"{model_id:<{ID_COLUMNS}} {details}".rstrip()]
    if len(model_id) > ID_COLUMNS:
        lines = [model_id, *([f"{'':<{ID_COLUMNS}} {details}"] if details.strip() else [])]
    return [line if line == model_id else line[:COLUMNS].rstrip() for line in lines]


def _cost(model: Model) -> str:
    measured = model.measured
    if measured.max_credits:
        return f"{measured.median_credits:g} credits, {measured.median_seconds:.0f} s here"
    return one_line(model.price_text)


def properties(model: Model) -> list[tuple[str, str]]:
    """Return what is known of a model, apart from its form."""
    return [
        ("model", model.id),
        ("title", model.title),
        ("provider", model.provider),
        ("does", ", ".join(model.task_types)),
        ("state", short_name(Model.Lifecycle, model.lifecycle)),
        ("use", f"{model.replacement} instead" if model.replacement else ""),
        ("price", model.price_text),
        ("measured", _measured(model)),
        ("send as", model.member),
    ]


def _measured(model: Model) -> str:
    found = model.measured
    if not found.tasks:
        return ""
    words = f"{found.tasks} tasks, {found.median_seconds:.0f} s (95 %: {found.p95_seconds:.0f} s)"
    if found.max_credits:
        words += f", {found.min_credits:g} to {found.max_credits:g} credits"
    return words


def form_lines(model: Model) -> list[str]:
    """Return the fields of a model's input: a name, and what it takes."""
    if not model.HasField("input_schema"):
        return []
    return list(_fields(MessageToDict(model.input_schema), "", 1))


def _fields(schema: Mapping[str, Any], indent: str, depth: int) -> Iterator[str]:
    required = schema.get("required", ())
    fields = schema.get("properties", {})
    branches = list(_branches(schema))
    for name in sorted(fields, key=lambda name: (name not in required, name)):
        field = fields[name] or _in_branches(name, branches)
        yield from _field(indent + one_line(name), _words(field, needed=name in required))
        inner = field.get("items", {}) if field.get("type") == "array" else field
        if depth < DEPTH_MAX and isinstance(inner, dict) and inner.get("properties"):
            yield from _fields(inner, f"{indent}  ", depth + 1)
    for group in branches:
        if names := group.get("required"):
            yield f"  {indent}either: {', '.join(map(one_line, names))}"


def _branches(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the alternatives of an object, also those that are written inside `allOf`."""
    for name in ("oneOf", "anyOf"):
        yield from schema.get(name, ())
    for part in schema.get("allOf", ()):
        yield from _branches(part)


def _in_branches(name: str, branches: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what the alternatives of an object say about a field that it only names itself."""
    found = [field for each in branches if (field := each.get("properties", {}).get(name))]
    if len(found) > 1 and all("enum" in field for field in found):
        choices = [choice for field in found for choice in field["enum"]]
        return {"enum": [c for n, c in enumerate(choices) if c not in choices[:n]]}
    return found[0] if len(found) == 1 else {"anyOf": found} if found else {}


def _field(name: str, words: str) -> Iterator[str]:
    lines = textwrap.wrap(words, width() - NAME_COLUMNS - 3, break_on_hyphens=False) or [""]
    if len(name) > NAME_COLUMNS:
        yield f"  {name}"
        name = ""
    yield f"  {name:<{NAME_COLUMNS}} {lines[0]}"
    yield from (f"  {'':<{NAME_COLUMNS}} {line}" for line in lines[1:])


def _words(field: Mapping[str, Any], *, needed: bool) -> str:
    words = [_kind(field), *_bounds(field)]
    if "default" in field:
        words.append(f"default {_value(field['default'])}")
    elif needed:
        words.insert(0, "required")
    return one_line("; ".join(filter(None, words)))


def _kind(field: Mapping[str, Any]) -> str:
    """Return what a field takes."""
    if choices := field.get("enum"):
        more = f" and {len(choices) - CHOICES_MAX} more" if len(choices) > CHOICES_MAX else ""
        return "one of " + ", ".join(map(_value, choices[:CHOICES_MAX])) + more
    if "const" in field:
        return _value(field["const"])
    if variants := field.get("oneOf") or field.get("anyOf"):
        return " or ".join(dict.fromkeys(_kind(each) for each in variants))
    kind = field.get("type", "")
    if not kind and (parts := field.get("allOf")):
        return _kind(parts[0])
    if isinstance(kind, list):
        return " or ".join(_KINDS.get(str(each), str(each)) for each in kind)
    if kind == "array":
        items = field.get("items", {})
        return f"list of: {_kind(items)}" if items else "list"
    if kind == "string" and field.get("format") == "uri":
        return "URL"
    return _KINDS.get(kind, kind) or str(field.get("description", "any value"))


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    for least, most, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " values"),
    ):
        low, high = field.get(least), field.get(most)
        if low is not None and high is not None:
            yield f"{_value(low)} to {_value(high)}{unit}"
        elif low is not None:
            yield f"at least {_value(low)}{unit}"
        elif high is not None:
            yield f"at most {_value(high)}{unit}"
    if "exclusiveMinimum" in field:
        yield f"more than {_value(field['exclusiveMinimum'])}"
    if "exclusiveMaximum" in field:
        yield f"less than {_value(field['exclusiveMaximum'])}"


def _value(value: Any) -> str:
    """Return a value as it is written after `-i name=`: text that is valid JSON needs quotes."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and not _is_json(value):
        return value or '""'
    return json.dumps(value, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
