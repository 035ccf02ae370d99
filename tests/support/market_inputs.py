"""Inputs for the models of the bundled snapshot: the smallest valid one, and broken ones."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support.paths import ROOT

SNAPSHOT = ROOT / "providers" / "kie" / "catalogue" / "snapshot.json"
MODELS: dict[str, dict[str, Any]] = {
    model["id"]: model for model in json.loads(SNAPSHOT.read_bytes())["models"]
}
JOBS_MODELS = [name for name, model in MODELS.items() if model["path"] == "jobs/createTask"]
LISTED_JOBS_MODELS = [name for name in JOBS_MODELS if MODELS[name]["listed"]]
IMAGE_URL = "https://example.com/a.png"
OF_TYPE: dict[str, Any] = {
    "string": "a",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": ["a"],
    "object": {"a": 1},
}


def minimal_input(model: str) -> dict[str, Any]:
    """Return the smallest valid input of a model: its required fields, the defaults included."""
    facts = MODELS[model]
    required = {name for name, field in facts["fields"].items() if field.get("required")}
    required |= set(facts.get("one_of", [[]])[0])
    return {name: value_of(facts["fields"][name]) for name in sorted(required)}


def without_defaults(model: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return an input without the fields that the model has defaults for."""
    fields = MODELS[model]["fields"]
    return {name: value for name, value in given.items() if "default" not in fields[name]}


def market(model: str, /, **given: Any) -> dict[str, Any]:
    """Return the parameters of a market task, as `{member: fields}`."""
    return {"market": {"model": model, "input": given}}


def value_of(field: dict[str, Any]) -> Any:
    """Return a valid value of a field."""
    if "default" in field:
        return field["default"]
    if "enum" in field:
        return field["enum"][0]
    match field["type"]:
        case "array":
            item = value_of({"type": field["items"], "format": field.get("format")})
            return [item] * max(1, field.get("minItems", 1))
        case "string" if field.get("format") == "uri":
            return IMAGE_URL
        case "string":
            return "a" * max(1, field.get("minLength", 1))
        case "integer" | "number":
            return field.get("minimum", 1)
        case kind:
            return OF_TYPE[kind]


def checked_fields(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the fields of a model about which its sources agree."""
    facts = MODELS[model]
    for name, field in facts["fields"].items():
        if name not in facts.get("doubts", ()):
            yield name, field


def values_of_other_types(field: dict[str, Any]) -> Iterator[Any]:
    """Return a value of each type that a field does not take."""
    accepted = {field["type"], "integer"} if field["type"] == "number" else {field["type"]}
    return (value for kind, value in OF_TYPE.items() if kind not in accepted)
