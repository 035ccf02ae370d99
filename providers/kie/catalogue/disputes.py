"""What the sources of the snapshot do not settle: it is never a reason to refuse an input."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from providers.kie.catalogue.snapshot import entries

COMBINATORS = ("allOf", "anyOf", "oneOf")
NOT_CHECKED = "Kie's documents disagree about this field, so its value is not checked."


@dataclass(frozen=True, slots=True)
class Disputes:
    """What is disputed about the input of a model.

    Attributes:
        fields: Those that are described differently; some may be missing from a schema.
        partial: Whether the model has fields that are not known.
    """

    fields: tuple[str, ...]
    partial: bool


@cache
def disputes() -> Mapping[str, Disputes]:
    """Return what is disputed, by model; a model without disputes is missing."""
    return {
        entry["id"]: Disputes(tuple(entry.get("doubts", ())), entry.get("partial", False))
        for entry in entries()
        if "doubts" in entry or "partial" in entry
    }


def without_disputes(schema: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """Return a schema that does not enforce what is disputed about a model."""
    found = disputes().get(model)
    if found is None:
        return schema
    named = {**schema, "properties": {**schema.get("properties", {})}}
    for name in found.fields:
        named["properties"].setdefault(name, {})
    return _relaxed(named, found)


def _relaxed(schema: Mapping[str, Any], found: Disputes) -> dict[str, Any]:
    relaxed = dict(schema)
    fields = schema.get("properties", {})
    accepting = {name: unchecked(fields[name]) for name in found.fields if name in fields}
    if accepting:
        relaxed["properties"] = {**fields, **accepting}
    if "required" in schema:
        relaxed["required"] = [
            name
            for name in schema["required"]
            if name not in found.fields or "default" in accepting.get(name, ())
        ]
    if found.partial:
        relaxed.pop("additionalProperties", None)
    for combinator in COMBINATORS:
        if combinator in schema:
            branches = [_relaxed(branch, found) for branch in schema[combinator]]
            # A relaxed branch may accept what only another one should.
            exact = combinator != "oneOf" or branches == schema[combinator]
            relaxed[combinator if exact else "anyOf"] = branches
            if not exact:
                del relaxed[combinator]
    return relaxed


def unchecked(field: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description of a field that accepts every value."""
    kept = {name: field[name] for name in ("title", "default", "examples") if name in field}
    if "enum" in field:
        kept["examples"] = field["enum"]
    return {**kept, "description": NOT_CHECKED}
