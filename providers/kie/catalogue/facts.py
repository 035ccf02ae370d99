"""The bundled snapshot of Kie's catalogue: facts of each model, and the schema made from them."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from providers.kie.catalogue.disputes import without_disputes
from providers.kie.catalogue.snapshot import entries

JOBS_PATH = "jobs/createTask"
MODEL_ID_MAX_CHARACTERS = 128
MODEL_ID = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
DOT_SEGMENTS = frozenset({".", ".."})

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


@cache
def bundled() -> Mapping[str, ModelFacts]:
    """Return the models of the snapshot by id."""
    return {entry["id"]: _facts(entry) for entry in entries()}


def is_model_id(text: str) -> bool:
    """Return whether a text may be the id of a model; it has no segment `.` or `..`."""
    return (
        len(text) <= MODEL_ID_MAX_CHARACTERS
        and MODEL_ID.fullmatch(text) is not None
        and DOT_SEGMENTS.isdisjoint(text.split("/"))
    )


def _facts(entry: Mapping[str, Any]) -> ModelFacts:
    schema = _schema(entry["fields"], entry.get("one_of", ())) if "fields" in entry else None
    return ModelFacts(
        id=entry["id"],
        title=" ".join(entry["title"].split()),
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
