"""The bundled snapshot of Kie's catalogue: facts of each model, and the schema made from them.

`snapshot.json` has one model per line. Its `fields` have the bounds of JSON Schema under the same
names; `items` is the type of an array's items, and `format` applies to them. `one_of` lists groups
of fields of which exactly one is needed. What its sources do not settle is never a reason to refuse
an input: `partial` models have fields that are missing here, and the fields in `doubts` are
described differently by different sources.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

SNAPSHOT = Path(__file__).with_name("snapshot.json")
JOBS_PATH = "jobs/createTask"
MODEL_ID_MAX_CHARACTERS = 128
MODEL_ID = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
DOT_SEGMENTS = frozenset({".", ".."})
NOT_CHECKED = "Kie's documents disagree about this field, so its value is not checked."

ResultKind = Literal["urls", "audio", "object", "unknown"]
JsonSchema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model of the snapshot.

    Attributes:
        id: Kie's id, such as `kling-3.0/video`.
        title: The name for people.
        provider: Who made the model.
        task_types: What it does, such as `Text to Image`.
        price_text: What it costs in Kie's credits, or "".
        path: The endpoint that creates its tasks, JOBS_PATH for those that `market` takes.
        listed: Whether Kie's catalogue listed it when the snapshot was made.
        result: What a success contains.
        input_schema: The JSON Schema of its input; None if its fields are not known.
    """

    id: str
    title: str
    provider: str
    task_types: tuple[str, ...]
    price_text: str
    path: str
    listed: bool
    result: ResultKind
    input_schema: JsonSchema | None


@dataclass(frozen=True, slots=True)
class Disputes:
    """What the sources of the snapshot do not settle about a model's input.

    Attributes:
        fields: Those that are described differently; some may be missing from a schema.
        partial: Whether the model has fields that are not known.
    """

    fields: tuple[str, ...] = ()
    partial: bool = False


@cache
def bundled() -> Mapping[str, ModelFacts]:
    """Return the models of the snapshot by id."""
    return {entry["id"]: _facts(entry) for entry in _entries()}


@cache
def disputes() -> Mapping[str, Disputes]:
    """Return what is disputed, by model; a model without disputes is missing."""
    return {
        entry["id"]: Disputes(tuple(entry.get("doubts", ())), entry.get("partial", False))
        for entry in _entries()
        if "doubts" in entry or "partial" in entry
    }


def is_model_id(text: str) -> bool:
    """Return whether a text may be the id of a model; `.` and `..` are no segments of one."""
    return (
        len(text) <= MODEL_ID_MAX_CHARACTERS
        and MODEL_ID.fullmatch(text) is not None
        and DOT_SEGMENTS.isdisjoint(text.split("/"))
    )


def without_disputes(schema: JsonSchema, model: str) -> JsonSchema:
    """Return a schema that refuses nothing on grounds that the snapshot's sources dispute."""
    found = disputes().get(model)
    if found is None:
        return schema
    open_schema = {**schema}
    properties = {**schema.get("properties", {})}
    required = set(schema.get("required", ()))
    for name in found.fields:
        known = properties.get(name)
        properties[name] = _unchecked(known if isinstance(known, Mapping) else {})
        if "default" not in properties[name]:
            required.discard(name)
    open_schema["properties"] = properties
    open_schema["required"] = [name for name in schema.get("required", ()) if name in required]
    if found.partial:
        open_schema.pop("additionalProperties", None)
    return open_schema


def _unchecked(field: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description of a field that accepts every value."""
    kept = {name: field[name] for name in ("title", "default", "examples") if name in field}
    if "enum" in field:
        kept["examples"] = field["enum"]
    return {**kept, "description": NOT_CHECKED}


@cache
def _entries() -> tuple[Mapping[str, Any], ...]:
    return tuple(json.loads(SNAPSHOT.read_text(encoding="utf-8"))["models"])


def _facts(entry: Mapping[str, Any]) -> ModelFacts:
    schema = _schema(entry["fields"], entry.get("one_of", ())) if "fields" in entry else None
    return ModelFacts(
        id=entry["id"],
        title=entry["title"],
        provider=entry["provider"],
        task_types=tuple(entry["task_types"]),
        price_text=_price_text(entry["credits"]),
        path=entry["path"],
        listed=entry["listed"],
        result=entry["result"],
        input_schema=schema and without_disputes(schema, entry["id"]),
    )


def _schema(
    fields: Mapping[str, Mapping[str, Any]], one_of: Collection[list[str]]
) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _property(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.get("required")],
        "additionalProperties": False,
    }
    if one_of:
        schema["oneOf"] = [{"required": group} for group in one_of]
    return schema


def _property(field: Mapping[str, Any]) -> dict[str, Any]:
    described = {name: value for name, value in field.items() if name != "required"}
    if field["type"] == "array":
        items = {"type": described.pop("items")}
        if "format" in described:
            items["format"] = described.pop("format")
        described["items"] = items
    return described


def _price_text(numbers: list[float]) -> str:
    """Return the range of a price; the snapshot does not say what each number is for."""
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return f"{high:g} credits" if low == high else f"{low:g} to {high:g} credits"
