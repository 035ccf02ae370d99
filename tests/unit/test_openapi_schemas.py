"""OpenAPI documents, written by hand, and what the schemas made from them accept and refuse."""

import json
import time
from typing import Any

import pytest

from providers.base import Violation
from providers.kie.catalogue.openapi import ModelSchema, reduced
from providers.kie.catalogue.validator import Validators

CREATE = "/api/v1/jobs/createTask"
TEXT = {"type": "string"}


def document(input_schema: Any, **components: Any) -> dict[str, Any]:
    body = {"type": "object", "properties": {"model": TEXT, "input": input_schema}}
    return around(body, **components)


def around(body: Any, **components: Any) -> dict[str, Any]:
    """Return a document around the schema of a body."""
    content = {"application/json": {"schema": body}}
    return {
        "openapi": "3.1.0",
        "paths": {CREATE: {"post": {"requestBody": {"content": content}}}},
        "components": {"schemas": components},
    }


def at_path(path: str, described: dict[str, Any]) -> dict[str, Any]:
    return {**described, "paths": {path: described["paths"][CREATE]}}


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def refusals(described: Any, given: dict[str, Any]) -> dict[str, str]:
    """Return the words for each refused field of an input."""
    schema = reduced(described).input_schema
    assert schema is not None
    found = Validators("input").check("model", schema, given).violations
    return {violation.field: violation.description for violation in found}


def filled(described: Any, given: dict[str, Any]) -> Any:
    schema = reduced(described).input_schema
    assert schema is not None
    checked = Validators("input").check("model", schema, given)
    assert checked.violations == []
    return checked.input


# --- where the input is ---


PROMPT = fields("prompt", prompt={"type": "string", "maxLength": 10})
DIRECT = document(PROMPT)
REFERRED = document({"$ref": "#/components/schemas/Input"}, Input=PROMPT)
TWICE = document(
    {"$ref": "#/components/schemas/A"}, A={"$ref": "#/components/schemas/Input"}, Input=PROMPT
)
WITH_PERCENT = document({"$ref": "#/components/schemas/Draw%20Input"}, **{"Draw Input": PROMPT})
WITH_KEPT_PERCENT = document(
    {"$ref": "#/components/schemas/Draw%20Input"}, **{"Draw%20Input": PROMPT}
)
KEY_WITH_PERCENT = document({"$ref": "#/components/schemas/Draw Input"}, **{"Draw%20Input": PROMPT})
KEY_WITH_BLANK = document({"$ref": "#/components/schemas/Input"}, **{"Input ": PROMPT})
REFERENCE_WITH_BLANK = document({"$ref": "#/components/schemas/Input%20"}, Input=PROMPT)
WITH_SLASH = document({"$ref": "#/components/schemas/a~1b~0c"}, **{"a/b~c": PROMPT})
REFERRED_BODY = around(
    {"$ref": "#/components/schemas/Body"}, Body={"type": "object", "properties": {"input": PROMPT}}
)
ALL_OF_BODY = around(
    {"allOf": [{"properties": {"model": TEXT}}, {"properties": {"input": PROMPT}}]}
)
ALL_OF_INPUT = document({"allOf": [{"$ref": "#/components/schemas/Input"}]}, Input=PROMPT)
WITHOUT_TYPE = document({"properties": PROMPT["properties"], "required": ["prompt"]})
WITH_NOTES = document(
    {"$ref": "#/components/schemas/Input", "description": "What to draw."}, Input=PROMPT
)
OTHER_MEDIA_TYPE = {
    "paths": {
        CREATE: {
            "post": {
                "requestBody": {
                    "content": {
                        "application/json; charset=utf-8": {
                            "schema": {"properties": {"input": PROMPT}}
                        }
                    }
                }
            }
        }
    }
}
FORMS = {
    "direct": DIRECT,
    "referred": REFERRED,
    "referred twice": TWICE,
    "a reference with %20": WITH_PERCENT,
    "a reference and a key with %20": WITH_KEPT_PERCENT,
    "a key with %20": KEY_WITH_PERCENT,
    "a key with a blank at its end": KEY_WITH_BLANK,
    "a reference with a blank at its end": REFERENCE_WITH_BLANK,
    "a key with a slash": WITH_SLASH,
    "a referred body": REFERRED_BODY,
    "a body of allOf": ALL_OF_BODY,
    "an input of allOf": ALL_OF_INPUT,
    "an input without a type": WITHOUT_TYPE,
    "a reference with a description": WITH_NOTES,
    "another media type": OTHER_MEDIA_TYPE,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_input_is_found_in_every_form_of_a_document(form: str) -> None:
    described = FORMS[form]
    assert reduced(described).path == "jobs/createTask"
    assert refusals(described, {"prompt": "a cat"}) == {}
    assert refusals(described, {}) == {"input.prompt": "is required"}
    assert refusals(described, {"prompt": "a large cat", "promt": 1}) == {
        "input.prompt": "must have at most 10 characters",
        "input.promt": "is unknown; did you mean prompt?",
    }


@pytest.mark.parametrize(
    "described",
    [
        None,
        [],
        "text",
        7,
        {},
        {"paths": None},
        {"paths": {CREATE: None}},
        {"paths": {CREATE: {"post": {"requestBody": {"content": {}}}}}},
        document(None),
        document({}),
        document({"type": "object"}),
        document({"type": "string"}),
        document({"type": "object", "properties": {}}),
        document({"type": "object", "properties": {"callBackUrl": TEXT}}),
        document({"$ref": "#/components/schemas/Missing"}),
        document({"$ref": "https://kie.example/schemas/input.json"}),
        document({"$ref": "other.json#/Input"}),
        document({"$ref": 7}),
        document({"$ref": "#/paths"}),
        around({"properties": {"prompt": TEXT}}),
    ],
)
def test_a_document_without_a_usable_input_has_no_schema(described: Any) -> None:
    assert reduced(described).input_schema is None


def test_a_document_says_where_a_model_lives() -> None:
    chat = at_path("/chat/v1/completions", around({"properties": {"messages": {}}}))
    assert reduced(chat) == ModelSchema("/chat/v1/completions", None)
    omni = at_path("/api/v1/omni/audio/create", document(PROMPT))
    assert reduced(omni).path == "omni/audio/create"
    both = document(PROMPT)
    both["paths"] = {"/api/v1/veo/generate": both["paths"][CREATE], **both["paths"]}
    assert reduced(both).path == "jobs/createTask"


def test_a_callback_url_is_no_part_of_an_input() -> None:
    described = document(fields("prompt", "callBackUrl", prompt=TEXT, callBackUrl=TEXT))
    assert refusals(described, {"prompt": "a cat"}) == {}


# --- keywords: a schema of the field `x`, values that are accepted, and (value, words) refused ---

RULES: dict[str, tuple[Any, list[Any], list[tuple[Any, str]]]] = {
    "string duration": (
        {"type": "string", "enum": ["5", "10"], "default": "5"},
        ["5", "10"],
        [(5, 'must be the string "5"'), ("6", 'must be one of "5", "10"')],
    ),
    "integer duration": (
        {"type": "integer", "enum": [5, 10]},
        [5, 10],
        [("5", "must be the number 5"), (6, "must be one of 5, 10"), (5.5, "must be one of 5, 10")],
    ),
    "choices": (
        {"type": "string", "enum": ["480p", "720p", "1080p"]},
        ["480p", "1080p"],
        [("720P", "must be one of 480p, 720p, 1080p"), (720, "must be one of 480p, 720p, 1080p")],
    ),
    "one choice": ({"const": "s3"}, ["s3"], [("oss", "must be s3")]),
    "mixed choices": (
        {"enum": ["auto", 1, True, None]},
        ["auto", 1, True, None],
        [("Auto", "must be one of auto, 1, true, null")],
    ),
    "integer": (
        {"type": "integer", "minimum": -1, "maximum": 30},
        [-1, 30],
        [
            (-2, "must be at least -1"),
            (31, "must be at most 30"),
            (1.5, "must be an integer"),
            (True, "must be an integer"),
            (None, "must be an integer"),
            ("many", "must be an integer"),
        ],
    ),
    "bounds of OpenAPI 3.0": (
        {"type": "number", "minimum": 0, "exclusiveMinimum": True, "exclusiveMaximum": False},
        [0.1, 1],
        [(0, "must be more than 0")],
    ),
    "bounds of OpenAPI 3.1": (
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5},
        [0.1, 1],
        [(0, "must be more than 0"), (1.5, "must be less than 1.5"), ("1", "must be the number 1")],
    ),
    "boolean": (
        {"type": "boolean"},
        [True, False],
        [("true", "must be the boolean true"), (1, "must be true or false")],
    ),
    "nullable in OpenAPI 3.0": (
        {"type": "string", "enum": ["a", "b"], "nullable": True},
        ["a", None],
        [("c", "must be one of a, b, null")],
    ),
    "nullable in OpenAPI 3.1": (
        {"type": ["string", "null"]},
        ["a", None],
        [(5, 'must be the string "5"'), ([], "must be a string or null")],
    ),
    "text": (
        {"type": "string", "minLength": 2, "maxLength": 3},
        ["ab", "猫犬鳥"],
        [("a", "must have at least 2 characters"), ("abcd", "must have at most 3 characters")],
    ),
    "list": (
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        [["a"], ["a", "b"]],
        [([], "must contain at least 1 value"), (["a"] * 3, "must contain at most 2 values")],
    ),
    "unique values": (
        {"type": "array", "uniqueItems": True, "maxItems": 3},
        [["a", "b"]],
        [(["a", "a"], "must not contain a value twice")],
    ),
    "text or a list": (
        {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        ["a", ["a"]],
        [(5, 'must be the string "5" or a list'), ({}, "must be a string or a list")],
    ),
    "a word or a number": (
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "enum": ["auto"]}]},
        [1, "auto"],
        [(0, "must be at least 1"), ("Auto", "must be an integer or auto")],
    ),
    "pattern": (
        {"type": "string", "pattern": "^[0-9]+:[0-9]+$"},
        ["16:9"],
        [("16/9", "must match the pattern ^[0-9]+:[0-9]+$")],
    ),
    "whole step": ({"type": "integer", "multipleOf": 8}, [8], [(9, "must be a multiple of 8")]),
    "URL": (
        {"type": "string", "format": "uri"},
        ["https://a.example/b.png", "asset://1", "oss://a"],
        [("http://", "must be an absolute http or https URL that is reachable from the internet")],
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_accepts_and_refuses(rule: str) -> None:
    schema, accepted, refused = RULES[rule]
    described = document(fields(x=schema, y=TEXT))
    for value in accepted:
        assert refusals(described, {"x": value}) == {}, value
    for value, words in refused:
        assert refusals(described, {"x": value}) == {"input.x": words}, value


LENIENT = {
    "a look-ahead": {"type": "string", "pattern": "^(?=a)b$"},
    "a back reference": {"type": "string", "pattern": r"^(a)\1$"},
    "a broken pattern": {"type": "string", "pattern": "("},
    "a huge pattern": {"type": "string", "pattern": "(a{1000}){1000}"},
    "a long pattern": {"type": "string", "pattern": "a" * 10_000},
    "a fractional step": {"type": "number", "multipleOf": 0.1},
    "unknown types": {"type": "file"},
    "a wrong bound": {"maxLength": "ten", "minimum": None},
    "a choice that nobody can type": {"enum": ["a\0b", "c"]},
    "a choice of 10,000 characters": {"enum": ["a" * 10_000]},
    "objects as choices": {"enum": [{"a": 1}]},
    "not": {"not": {"type": "string"}},
    "conditions": {"if": {}, "then": {"type": "object"}, "else": {"type": "object"}},
    "a false schema": False,
    "a list of schemas": [{"type": "object"}],
    "a remote reference": {"$ref": "https://kie.example/a.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "a missing reference": {"$ref": "#/components/schemas/Missing"},
    "a format": {"type": "string", "format": "date-time"},
}


@pytest.mark.parametrize("rule", LENIENT)
def test_a_rule_that_cannot_be_checked_refuses_nothing(rule: str) -> None:
    described = document(fields(x=LENIENT[rule], y=TEXT))
    given = 0.3 if "step" in rule else "text"
    assert refusals(described, {"x": given}) == {}
    assert refusals(described, {"x": given, "y": 5}) == {"input.y": 'must be the string "5"'}


def test_a_list_without_a_limit_is_not_compared_for_equal_values() -> None:
    described = document(fields(x={"type": "array", "uniqueItems": True}))
    started = time.process_time()
    assert refusals(described, {"x": [{"a": [n // 2]} for n in range(5_000)]}) == {}
    assert time.process_time() - started < 0.5


# --- defaults ---


def test_a_required_default_is_filled_in_and_an_optional_one_is_not() -> None:
    described = document(
        fields(
            "quality",
            "shots",
            quality={"type": "string", "enum": ["basic", "high"], "default": "basic"},
            size={"type": "string", "default": "1K"},
            shots={
                "type": "array",
                "items": fields("seconds", seconds={"type": "integer", "default": 5}, text=TEXT),
            },
        )
    )
    assert filled(described, {"shots": [{"text": "a"}, {"seconds": 3}]}) == {
        "quality": "basic",
        "shots": [{"text": "a", "seconds": 5}, {"seconds": 3}],
    }
    given = {"quality": "high", "shots": []}
    assert filled(described, given) is given


def test_a_default_that_the_schema_refuses_is_not_filled_in() -> None:
    described = document(
        fields("x", "y", x={"type": "string", "default": 5}, y={"enum": ["a"], "default": "b"})
    )
    assert refusals(described, {}) == {"input.x": "is required", "input.y": "is required"}


def test_a_default_of_an_alternative_is_filled_in_where_it_is_the_one_that_fits() -> None:
    described = document(
        {
            "oneOf": [
                fields("text", "voice", text=TEXT, voice={"type": "string", "default": "Ann"}),
                fields("audio", audio=TEXT),
            ]
        }
    )
    assert filled(described, {"text": "hello"}) == {"text": "hello", "voice": "Ann"}
    assert filled(described, {"audio": "a"}) == {"audio": "a"}


@pytest.mark.parametrize("combinator", ["oneOf", "anyOf"])
def test_a_default_is_filled_in_where_alternatives_do_not_exclude_each_other(
    combinator: str,
) -> None:
    voice = {"type": "string", "default": "Ann"}
    spoken = fields("text", "voice", text=TEXT, voice=voice)
    edited = fields("text", "voice", "audio", text=TEXT, voice=voice, audio=TEXT)
    described = document({combinator: [spoken, edited]})
    assert filled(described, {"text": "hello"}) == {"text": "hello", "voice": "Ann"}
    assert filled(described, {"text": "hello", "voice": "Bob"}) == {"text": "hello", "voice": "Bob"}


# --- alternatives ---


def test_an_input_of_alternatives_refuses_what_none_of_them_knows() -> None:
    described = document(
        {
            "oneOf": [
                {"$ref": "#/components/schemas/Text%20Input"},
                {"$ref": "#/components/schemas/Image"},
            ]
        },
        **{
            "Text Input ": fields("prompt", prompt={"type": "string", "maxLength": 5}),
            "Image": fields("image_url", "mode", image_url=TEXT, mode={"enum": ["a", "b"]}),
        },
    )
    assert refusals(described, {"prompt": "cat"}) == {}
    assert refusals(described, {"image_url": "u", "mode": "a"}) == {}
    assert refusals(described, {"image_url": "u"}) == {"input.mode": "is required"}
    assert refusals(described, {"prompt": "a tiger"}) == {
        "input.prompt": "must have at most 5 characters"
    }
    assert refusals(described, {"prompt": "cat", "image": "u"}) == {
        "input.image": "is unknown; did you mean image_url?"
    }
    assert refusals(described, {"prompt": "cat", "image_url": "u", "mode": "a"}) == {
        "input": "must have only one of prompt, image_url and mode"
    }


def test_fields_that_all_alternatives_require_are_named_once() -> None:
    described = document(
        {
            "oneOf": [
                fields("prompt", "task_id", prompt=TEXT, task_id=TEXT),
                fields("prompt", "image_url", prompt=TEXT, image_url=TEXT),
            ]
        }
    )
    assert refusals(described, {"prompt": "a", "task_id": "1"}) == {}
    assert refusals(described, {"prompt": "a"}) == {
        "input": "must have exactly one of task_id, image_url"
    }
    assert refusals(described, {}) == {
        "input": "must have exactly one of task_id, image_url",
        "input.prompt": "is required",
    }
    assert refusals(described, {"prompt": "a", "task_id": "1", "image_url": "u"}) == {
        "input": "must have only one of task_id, image_url"
    }


def test_fields_around_alternatives_are_known() -> None:
    described = document(
        {
            **fields("prompt", prompt=TEXT),
            "anyOf": [{"required": ["task_id"]}, {"required": ["image_url"]}],
            "allOf": [fields(task_id=TEXT), fields(image_url=TEXT)],
        }
    )
    assert refusals(described, {"prompt": "a", "task_id": "1"}) == {}
    assert refusals(described, {"prompt": "a", "task_id": "1", "image_url": "u"}) == {}
    assert refusals(described, {"prompt": "a"}) == {
        "input": "must have at least one of task_id, image_url"
    }
    assert refusals(described, {"prompt": "a", "task_id": 1}) == {
        "input.task_id": 'must be the string "1"'
    }


def test_alternatives_that_close_themselves_accept_the_fields_around_them() -> None:
    closed = {"additionalProperties": False}
    described = document(
        {
            **fields("prompt", prompt=TEXT),
            **closed,
            "oneOf": [
                {**fields("task_id", task_id=TEXT), **closed},
                {**fields("image_url", image_url=TEXT), **closed},
            ],
        }
    )
    assert refusals(described, {"prompt": "a", "task_id": "1"}) == {}
    assert refusals(described, {"prompt": "a", "image_url": "u"}) == {}
    assert refusals(described, {"prompt": "a", "task_id": "1", "imageurl": "u"}) == {
        "input.imageurl": "is unknown; did you mean image_url?"
    }


def test_closed_alternatives_are_distinguished_by_their_fields() -> None:
    closed = {"additionalProperties": False}
    described = document(
        {
            "oneOf": [
                {**fields("a", a=TEXT), **closed},
                {**fields("a", "b", a=TEXT, b=TEXT), **closed},
            ]
        }
    )
    assert refusals(described, {"a": "1"}) == {}
    assert refusals(described, {"a": "1", "b": "2"}) == {}
    assert refusals(described, {"b": "2"}) == {"input.a": "is required"}


@pytest.mark.parametrize(
    ("variants", "value"),
    [
        (
            [
                fields("prompt", prompt=TEXT, ratio=TEXT),
                fields("prompt", "image_url", prompt=TEXT, image_url=TEXT),
            ],
            {"prompt": "a", "image_url": "u"},
        ),
        (
            [
                fields("prompt", prompt=TEXT, ratio=TEXT),
                fields("prompt", prompt=TEXT, image_url=TEXT),
            ],
            {"prompt": "a"},
        ),
        ([fields(prompt=TEXT), fields("image_url", image_url=TEXT)], {"image_url": "u"}),
        ([fields("prompt", prompt=TEXT)] * 2, {"prompt": "a"}),
        (
            [{"allOf": [fields("prompt", prompt=TEXT)]}, fields("prompt", "mode", mode=TEXT)],
            {"prompt": "a", "mode": "b"},
        ),
    ],
    ids=["more fields", "same fields", "nothing required", "identical", "allOf"],
)
def test_an_alternative_that_needs_no_field_of_its_own_excludes_no_other(
    variants: list[dict[str, Any]], value: dict[str, Any]
) -> None:
    described = document({"oneOf": variants})
    assert refusals(described, value) == {}
    assert "input.zzz" in refusals(described, {**value, "zzz": 1})


def test_a_required_field_that_is_not_described_can_be_given() -> None:
    described = document(fields("prompt", "style", prompt=TEXT))
    assert refusals(described, {"prompt": "a"}) == {"input.style": "is required"}
    assert refusals(described, {"prompt": "a", "style": "b"}) == {}


def test_an_alternative_that_cannot_be_checked_makes_no_input_ambiguous() -> None:
    described = document(
        fields(x={"oneOf": [{"type": "string", "pattern": "^(?=a)"}, {"type": "string"}]})
    )
    assert refusals(described, {"x": "b"}) == {}
    assert refusals(described, {"x": 5}) == {"input.x": 'must be the string "5"'}


@pytest.mark.parametrize(
    "field",
    [
        {"type": "string", "enum": [5, 10]},
        {"type": "integer", "enum": ["5", "10"]},
        {"type": "string", "enum": ["auto", 5, 10]},
        {"type": "string", "enum": [True, False]},
        {"type": ["string", "null"], "enum": [5, 10, None]},
    ],
    ids=["numbers for text", "text for integers", "some", "on and off", "or null"],
)
def test_choices_that_do_not_have_the_declared_type_refuse_nothing(field: Any) -> None:
    described = document(fields(duration=field))
    for value in ("5", 5, 10, "10", "on"):
        assert refusals(described, {"duration": value}) == {}
    schema = reduced(described).input_schema
    assert schema is not None
    assert schema["properties"]["duration"]["examples"] == field["enum"]


def test_null_among_the_choices_is_a_value() -> None:
    described = document(fields(mode={"type": "string", "enum": ["a", None]}))
    assert refusals(described, {"mode": None}) == {}
    assert refusals(described, {"mode": "b"}) == {"input.mode": "must be one of a, null"}


@pytest.mark.parametrize(
    ("variants", "value"),
    [
        ([{"type": "integer"}, {"type": "number"}], 5),
        (
            [{"type": "string", "format": "uri"}, {"type": "string", "format": "byte"}],
            "https://a.b",
        ),
        ([{"type": "string", "enum": ["a", "b"]}, {"type": "string", "maxLength": 5}], "a"),
    ],
    ids=["numbers", "formats", "texts"],
)
def test_a_value_may_be_of_more_than_one_of_the_types_of_a_field(variants: Any, value: Any) -> None:
    described = document(fields(x={"oneOf": variants}))
    assert refusals(described, {"x": value}) == {}
    assert "input.x" in refusals(described, {"x": []})


def test_the_field_that_tells_alternatives_apart_may_be_any_of_theirs() -> None:
    described = document(
        {
            "oneOf": [
                fields("kind", "a", kind={"enum": ["draw"]}, a=TEXT),
                fields("kind", "b", kind={"enum": ["edit"]}, b=TEXT),
            ]
        }
    )
    assert refusals(described, {"kind": "x"}) == {"input.kind": "must be one of draw, edit"}
    assert refusals(described, {"kind": "edit"}) == {"input.b": "is required"}


def test_a_field_that_no_alternative_knows_is_named_once() -> None:
    described = document(
        {
            "oneOf": [
                {**fields("a", a=TEXT), "additionalProperties": False},
                {**fields("b", b=TEXT), "additionalProperties": False},
            ]
        }
    )
    schema = reduced(described).input_schema
    assert schema is not None
    found = Validators("input").check("model", schema, {"a": "x", "zzz": 1}).violations
    assert [violation.field for violation in found] == ["input.zzz"]


def test_parts_of_allof_that_contradict_each_other_all_count() -> None:
    described = document(
        fields(x={"allOf": [{"type": "integer", "minimum": 2}, {"minimum": 4}, {"maximum": 9}]})
    )
    assert refusals(described, {"x": 5}) == {}
    assert refusals(described, {"x": 3}) == {"input.x": "must be at least 4"}


def test_an_object_that_allows_other_fields_takes_them() -> None:
    described = document(
        {
            **fields(
                extra={"type": "object"},
                labels={"type": "object", "additionalProperties": {"type": "integer"}},
                shot={**fields(text=TEXT), "additionalProperties": True},
                strict=fields(text=TEXT),
            )
        }
    )
    assert refusals(described, {"extra": {"a": 1}, "labels": {"a": 1}, "shot": {"b": 1}}) == {}
    assert refusals(described, {"labels": {"a": "1"}, "strict": {"txt": 1}}) == {
        "input.labels.a": "must be the number 1",
        "input.strict.txt": "is unknown; did you mean text?",
    }
    assert refusals(document({**fields(a=TEXT), "additionalProperties": True}), {"b": 1}) == {}


# --- hostile documents ---


def test_a_schema_that_refers_to_itself_is_checked_as_far_as_it_is_new() -> None:
    node = fields("name", name=TEXT, child={"$ref": "#/components/schemas/Node"})
    described = document({"$ref": "#/components/schemas/Node"}, Node=node)
    assert refusals(described, {"name": "a", "child": {"name": "b", "child": {}}}) == {}
    assert refusals(described, {"child": {}}) == {"input.name": "is required"}


@pytest.mark.parametrize("reference", ["#", "#/components/schemas/A", "#/paths"])
def test_a_reference_in_a_circle_is_no_schema(reference: str) -> None:
    described = document(
        {"$ref": reference},
        A={"$ref": "#/components/schemas/B"},
        B={"$ref": "#/components/schemas/A"},
    )
    assert reduced(described).input_schema is None


def test_components_that_all_refer_to_each_other_take_no_time() -> None:
    names = [f"C{n}" for n in range(20)]
    all_of_them = {name: {"$ref": f"#/components/schemas/{name}"} for name in names}
    described = document(
        {"$ref": "#/components/schemas/C0"}, **{name: fields(**all_of_them) for name in names}
    )
    assert_quick(described)


def assert_quick(described: Any) -> ModelSchema:
    """Reduce a document in little time, to a schema that is small and quick to compile."""
    started = time.process_time()
    found = reduced(described)
    assert time.process_time() - started < 1
    if found.input_schema is not None:
        assert len(json.dumps(found.input_schema)) <= 64 << 10
        started = time.process_time()
        Validators("input").check("model", found.input_schema, {})
        assert time.process_time() - started < 0.2
    return found


def nested(depth: int, keyword: str) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {keyword: [schema, schema]} if keyword.endswith("Of") else {keyword: schema}
    return schema


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf", "items", "additionalProperties"])
def test_deep_nesting_is_cut_off(keyword: str) -> None:
    found = assert_quick(document(fields(x=nested(60, keyword), y={"type": "integer"})))
    assert found.input_schema is None or "x" in found.input_schema["properties"]


@pytest.mark.parametrize(
    "schema",
    [
        fields(**{f"field_{n}": TEXT for n in range(100_000)}),
        fields(x={"oneOf": [{"const": n} for n in range(100_000)]}),
        fields(x={"enum": list(range(100_000))}),
        fields(x={"enum": ["a" * 1_000_000]}),
        fields(*[f"field_{n}" for n in range(100_000)], x=TEXT),
        fields(**{f"p{n}": {"type": "string", "pattern": "(a|aa)+$"} for n in range(1_000)}),
        fields(x={"type": "string", "description": "a" * 5_000_000}),
    ],
    ids=["fields", "alternatives", "choices", "a choice", "required", "patterns", "words"],
)
def test_a_huge_schema_takes_no_time(schema: Any) -> None:
    assert_quick(document(schema))


PART: dict[str, Any] = {"$ref": "#/components/schemas/Part"}
MANY = [{"allOf": [PART] * 50}] * 50


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (fields(**{f"f{n}": PART for n in range(1_500)}), {f"x-{n}": n for n in range(50_000)}),
        (
            fields(**{f"f{n}": PART | {"title": "a"} for n in range(1_500)}),
            {f"x-{n}": n for n in range(50_000)},
        ),
        (
            fields(**{f"f{n}": PART for n in range(1_500)}),
            {"properties": {f"\n{n}": TEXT for n in range(50_000)}},
        ),
        (fields(**{f"f{n}": PART for n in range(1_500)}), {"type": ["string"] * 100_000}),
        (
            fields(**{f"f{n}": PART for n in range(1_500)}),
            {"type": "string", "default": "1", "enum": [str(n) for n in range(500)]},
        ),
        (
            fields(**{f"f{n}": PART for n in range(1_500)}),
            {"required": [str(n) for n in range(500)]},
        ),
        (
            fields(**{f"f{n}": PART for n in range(1_500)}),
            {"type": "string", "description": "\n" * 500_000},
        ),
    ],
    ids=["keywords", "titles", "names", "types", "choices", "required", "words"],
)
def test_a_large_part_that_is_referred_to_often_takes_little_time(body: Any, part: Any) -> None:
    started = time.process_time()
    reduced(document(body, Part=part))
    assert time.process_time() - started < 0.5


def test_a_body_of_many_parts_takes_little_time() -> None:
    parts: Any = {"allOf": [{"allOf": [{}] * 30_000}]}
    started = time.process_time()
    assert reduced(around({"allOf": MANY}, Part=parts)).input_schema is None
    assert time.process_time() - started < 0.5


def test_a_name_is_compared_with_similar_ones_in_little_time() -> None:
    letters = "abcdefghijklmnopqrst_0123456789" * 2
    names = [letters[n % 30 :] + str(n) for n in range(600)]
    schema = reduced(document(fields(**dict.fromkeys(names, TEXT)))).input_schema
    assert schema is not None
    validators = Validators("input")
    validators.check("model", schema, {})
    wrong = {letters[n:] + letters[:n]: "x" for n in range(20)}
    started = time.process_time()
    found = validators.check("model", schema, wrong).violations
    assert time.process_time() - started < 0.25
    assert len(found) == 20


def test_a_catastrophic_regular_expression_is_matched_in_linear_time() -> None:
    described = document(fields(x={"type": "string", "pattern": "^(a+)+$"}))
    started = time.process_time()
    assert refusals(described, {"x": "a" * 3_000 + "b"}) == {
        "input.x": "must match the pattern ^(a+)+$"
    }
    assert time.process_time() - started < 0.5


SLOW = "a[ab]{50}c"  # linear, but slow: each character may be the start of a match
BITS = "".join("ab"[n % 7 in {0, 2, 3}] for n in range(250_000))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "pattern": SLOW}, BITS),
        ({"type": "array", "items": {"type": "string", "pattern": SLOW}}, [BITS[:100]] * 2_500),
        ({"anyOf": [{"type": "string", "pattern": SLOW}, {"type": "integer"}]}, BITS),
        ({"type": "object", "additionalProperties": {"pattern": SLOW}}, {"b": BITS}),
    ],
    ids=["text", "list", "alternatives", "object"],
)
def test_a_regular_expression_is_not_matched_with_much_text(schema: Any, value: Any) -> None:
    described = document(fields(x=schema, y={"type": "integer"}))
    found = reduced(described).input_schema
    assert found is not None
    assert "pattern" in json.dumps(found)
    assert refusals(described, {"x": value, "y": "5"}) == {"input.y": "must be the number 5"}
    short = [BITS[:100]] if isinstance(value, list) else BITS[:100]
    given = {"b": short} if isinstance(value, dict) else short
    assert set(refusals(described, {"x": given})) <= {"input.x", "input.x[0]", "input.x.b"}
    assert refusals(described, {"x": given})
    started = time.process_time()
    Validators("input").check("model", found, {"x": value})
    assert time.process_time() - started < 0.2


def test_words_of_a_document_are_printable_and_short() -> None:
    described = document(
        fields(x={"type": "string", "title": "a\x1b[31m\u202eb\n", "description": "d" * 1_000})
    )
    schema = reduced(described).input_schema
    assert schema is not None
    assert schema["properties"]["x"] == {
        "type": "string",
        "title": "a [31m b",
        "description": "d" * 200,
    }


# --- inputs that are expensive to explain ---


@pytest.mark.parametrize(
    "given",
    [
        {"x": [1] * 9_900},
        {f"unknown_{n:0100}": n for n in range(9_900)},
        {"x": [{"a": [1, {"b": 2}]}] * 2_000},
        {"y": ["a"] * 9_000 + [1]},
    ],
    ids=["wrong items", "unknown fields", "wrong objects", "one wrong item at the end"],
)
def test_a_large_wrong_input_is_refused_in_little_time(given: dict[str, Any]) -> None:
    alternatives = [fields("a", a={"type": "string", "minLength": n}) for n in range(6)]
    described = document(
        fields(
            x={"type": "array", "items": {"anyOf": alternatives}},
            y={"type": "array", "items": TEXT},
        )
    )
    schema = reduced(described).input_schema
    assert schema is not None
    validators = Validators("input")
    validators.check("model", schema, {})
    started = time.process_time()
    found = validators.check("model", schema, given).violations
    assert time.process_time() - started < 0.25
    assert 1 <= len(found) <= 100


def test_a_schema_that_changed_is_compiled_again() -> None:
    validators = Validators("input")
    first, second = reduced(DIRECT).input_schema, reduced(document(fields(text=TEXT))).input_schema
    assert first is not None
    assert second is not None
    assert validators.check("m", first, {"prompt": "a"}).violations == []
    assert validators.check("m", second, {"prompt": "a"}).violations == [
        Violation("input.prompt", "is unknown; the fields are text")
    ]


def test_a_url_inside_a_private_network_is_refused_where_the_provider_is_outside() -> None:
    schema = reduced(document(fields(x={"type": "string", "format": "uri"}))).input_schema
    assert schema is not None
    outside = Validators("input", public_urls=True)
    for url in ("http://127.0.0.1/a.png", "https://10.0.0.1/a", "HTTP://localhost/a", "http://a"):
        (refusal,) = outside.check("m", schema, {"x": url}).violations
        assert refusal.field == "input.x"
        assert Validators("input").check("m", schema, {"x": url}).violations == []
    for url in ("https://a.example/b.png", "asset://asset-1", "oss://bucket/a"):
        assert outside.check("m", schema, {"x": url}).violations == []
