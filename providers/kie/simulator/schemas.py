"""The OpenAPI document of a model, as the catalogue API sends it, with its quirks and its faults.

Every quirk of `Quirk` was seen in the real documents. Which model has which is a choice of the
simulator, made by the model's id, so that it is the same in every run.
"""

import re
import zlib
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, Final

from providers.kie.simulator.facts import JOBS_PATH, ModelFacts

Schema = dict[str, Any]

LARGE_CHARACTERS: Final = 10 * 1024 * 1024
SLOW_PATTERN: Final = r"^(\w+\s?)*$"
"""Takes exponential time on a long word that is followed by `!`, if the engine tries all paths."""
CHAT_PATH: Final = "chat/completions"


class Quirk(Enum):
    """What is odd about the document of a model."""

    NONE = "an ordinary document"
    NULL = "no document"
    PERCENT = "the input is a component whose key contains %20"
    BLANK = "the input is a component whose key ends with a blank"
    DANGLING = "the type of an optional field is a component that does not exist"
    ALTERNATIVES = "the input is a oneOf"


QUIRKS: Final = (Quirk.NULL, Quirk.PERCENT, Quirk.BLANK, Quirk.DANGLING, Quirk.ALTERNATIVES)
QUIRK_SHARE: Final = 12
"""One model in so many has each quirk."""


def quirk_of(facts: ModelFacts) -> Quirk:
    """Return what is odd about the document of a model."""
    if facts.one_of:
        return Quirk.ALTERNATIVES
    drawn = zlib.crc32(facts.id.encode()) % QUIRK_SHARE
    quirk = QUIRKS[drawn] if drawn < len(QUIRKS) else Quirk.NONE
    return Quirk.NONE if quirk is Quirk.DANGLING and not _optional_field(facts) else quirk


def document_of(facts: ModelFacts, fault: str | None = None) -> Schema | None:
    """Return the document of a model, altered by the kind of a fault if there is one."""
    quirk = Quirk.NONE if fault else quirk_of(facts)
    if quirk is Quirk.NULL or fault == "null_schema":
        return None
    if facts.path != JOBS_PATH:
        path = CHAT_PATH if facts.path == "other" else facts.path
        return _document(path, {"type": "object"}, {})
    schema = _input_schema(facts)
    if fault:
        schema, components = _spoiled(schema, fault)
    else:
        schema, components = _odd(facts, schema, quirk)
    body = {
        "type": "object",
        "required": ["model", "input"],
        "properties": {
            "model": {"type": "string", "enum": [facts.id], "default": facts.id},
            "callBackUrl": {"type": "string", "format": "uri"},
            "input": schema,
        },
    }
    return _document(facts.path, body, components)


def _document(path: str, body: Schema, components: Schema) -> Schema:
    content = {"application/json": {"schema": body}}
    answer = {"description": "Request successful"}
    post = {"requestBody": {"content": content}, "responses": {"200": answer}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "", "version": "1.0.0"},
        "paths": {f"/api/v1/{path}": {"post": post}},
        "components": {"schemas": components},
    }


def _input_schema(facts: ModelFacts) -> Schema:
    required = [name for name, field in facts.fields.items() if field.get("required")]
    properties = {name: _field_schema(field) for name, field in facts.fields.items()}
    return {"type": "object", "required": required, "properties": properties}


def _field_schema(field: Mapping[str, Any]) -> Schema:
    schema = {name: value for name, value in field.items() if name != "required"}
    if "items" in field:
        schema["items"] = {"type": field["items"]}
        if "format" in field:
            schema["items"]["format"] = schema.pop("format")
    return schema


def _odd(facts: ModelFacts, schema: Schema, quirk: Quirk) -> tuple[Schema, Schema]:
    """Return the schema of an input and the components of its document."""
    name = re.sub(r"\W+", "", facts.title.title())
    match quirk:
        case Quirk.PERCENT:
            key = f"{name}%20Input"
            return {"$ref": f"#/components/schemas/{key}"}, {key: schema}
        case Quirk.BLANK:
            return {"$ref": f"#/components/schemas/{name}%20"}, {f"{name} ": schema}
        case Quirk.DANGLING:
            schema["properties"][_optional_field(facts)] = {"$ref": f"#/components/schemas/{name}"}
            return schema, {}
        case Quirk.ALTERNATIVES:
            return {"oneOf": _alternatives(facts, schema)}, {}
        case _:
            return schema, {}


def _optional_field(facts: ModelFacts) -> str:
    """Return the last field that may be left out; empty if there is none."""
    optional = [name for name, field in facts.fields.items() if not field.get("required")]
    return optional[-1] if optional else ""


def _alternatives(facts: ModelFacts, schema: Schema) -> list[Schema]:
    """Return a schema for each group of fields of which one must be given, without the others."""
    if not facts.one_of:
        return [schema]
    exclusive = {name for group in facts.one_of for name in group}
    return [
        {
            **schema,
            "required": [*schema["required"], *group],
            "properties": {
                name: field
                for name, field in schema["properties"].items()
                if name not in exclusive or name in group
            },
        }
        for group in facts.one_of
    ]


def _spoiled(schema: Schema, fault: str) -> tuple[Schema, Schema]:
    """Return the schema of an input, altered by a fault, and the components of its document."""
    match fault:
        case "changed_schema":
            schema["required"].append("added_field")
            schema["properties"]["added_field"] = {"type": "string", "enum": ["a", "b"]}
        case "large_schema":
            schema["description"] = _large_text()
        case "slow_pattern":
            for field in schema["properties"].values():
                if field["type"] == "string" and "enum" not in field:
                    field["pattern"] = SLOW_PATTERN
        case "recursive_schema":
            itself = {"$ref": "#/components/schemas/Input"}
            schema["properties"]["children"] = {"type": "array", "items": itself}
            return itself, {"Input": {"allOf": [itself, schema]}}
        case _:
            raise AssertionError(f"{fault} does not alter a schema")
    return schema, {}


@cache
def _large_text() -> str:
    return "x" * LARGE_CHARACTERS
