"""What becomes of each answer of Kie's catalogue API, over HTTP."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from providers.kie.catalogue.client import ListedModel, Listing, NotAnswered, NotListed
from providers.kie.catalogue.openapi import ModelSchema
from providers.kie.catalogue.validator import Validators
from providers.kie.client import KieProvider
from tests.support.scripted_kie import Wire, scripted_wire

ENTRY = {
    "model": "acme/draw",
    "slug": "acme/draw",
    "title": "Draw",
    "provider": "Acme",
    "taskType": ["Text to Image"],
    "description": None,
    "pricingDesc": "4 credits per image",
}
DRAW = ListedModel("acme/draw", "Draw", "Acme", ("Text to Image",), "4 credits per image")
UNKNOWN_WORDS = "The model name you specified is not supported. Please check the model name."
TEXT = {"type": "string"}


@pytest.fixture(scope="module")
async def wire() -> AsyncIterator[Wire]:
    async with scripted_wire() as opened:
        yield opened


def answers(wire: Wire, text: bytes | str, status: int = 200) -> None:
    wire.requests.clear()
    wire.kie.status = status
    wire.kie.text = text.encode() if isinstance(text, str) else text


def answers_data(wire: Wire, data: Any) -> None:
    answers(wire, json.dumps({"code": 200, "msg": "success", "data": data}))


def answers_models(wire: Wire, *entries: Any) -> None:
    answers_data(wire, {"total": len(entries), "models": list(entries)})


def schema_of(input_schema: Any) -> dict[str, Any]:
    body = {"type": "object", "properties": {"model": TEXT, "input": input_schema}}
    content = {"application/json": {"schema": body}}
    create = {"post": {"requestBody": {"content": content}}}
    return {"openapi": "3.1.0", "paths": {"/api/v1/jobs/createTask": create}}


async def listing(wire: Wire) -> Listing:
    found = await wire.provider.catalogue.list_models()
    assert isinstance(found, Listing), found
    return found


# --- the list ---


async def test_the_list_of_models_is_read(wire: Wire) -> None:
    other = {**ENTRY, "model": "kling-3.0/video", "taskType": ["Text to Video", "Image to Video"]}
    answers_models(wire, ENTRY, other)
    found = await listing(wire)
    assert found.models[0] == DRAW
    assert found.models[1].id == "kling-3.0/video"
    assert found.models[1].task_types == ("Text to Video", "Image to Video")
    assert found.ignored == 0
    assert wire.kie.asked["path"] == "/api/v1/models"
    assert wire.requests == [("/api/v1/models", "200")]


async def test_an_empty_list_is_a_list(wire: Wire) -> None:
    answers_data(wire, {"total": 0, "models": []})
    assert await listing(wire) == Listing((), 0)


@pytest.mark.parametrize(
    "bad",
    ["", "..", "a/../b", "./a", "a b", "a\n", "a?b", "a/", "a//b", "a%20", "模型", "a" * 129],
)
async def test_an_entry_with_an_unusable_id_is_ignored(wire: Wire, bad: str) -> None:
    answers_models(wire, {**ENTRY, "model": bad}, ENTRY)
    assert await listing(wire) == Listing((DRAW,), 1)


@pytest.mark.parametrize("bad", [None, 7, True, [], "text", {}, {"model": None}, {"model": 7}])
async def test_an_entry_that_is_no_model_is_ignored(wire: Wire, bad: Any) -> None:
    answers_models(wire, bad, ENTRY)
    assert await listing(wire) == Listing((DRAW,), 1)


async def test_a_repeated_id_counts_once(wire: Wire) -> None:
    answers_models(wire, ENTRY, {**ENTRY, "title": "Draw again"})
    assert (await listing(wire)).models == (DRAW,)


async def test_words_are_printable_and_at_most_200_characters(wire: Wire) -> None:
    answers_models(
        wire,
        {
            "model": "acme/draw",
            "title": "A\x1b[31m\u202etitle\nof two lines\0",
            "provider": "p" * 10_000,
            "taskType": ["t" * 300, "", 7, None, "Text to Image", "Text to Image"],
            "pricingDesc": ["4 credits"],
        },
    )
    (found,) = (await listing(wire)).models
    assert found.title == "A [31m title of two lines"
    assert found.provider == "p" * 200
    assert found.task_types == ("t" * 200, "Text to Image")
    assert found.price_text == ""


@pytest.mark.parametrize("kinds", [None, 7, {}, []])
async def test_a_model_without_usable_words_is_listed_by_its_id(wire: Wire, kinds: Any) -> None:
    answers_models(wire, {"model": "acme/draw", "taskType": kinds})
    assert await listing(wire) == Listing((ListedModel("acme/draw", "acme/draw", "", (), ""),), 0)


HTML = "<html><body>504 Gateway Timeout</body></html>"
NOT_A_LIST: list[tuple[str, int, str]] = [
    (HTML, 200, "HTTP 200 without an envelope"),
    (HTML, 504, "HTTP 504 without an envelope"),
    (HTML, 404, "code 404: "),
    ("", 200, "HTTP 200 without an envelope"),
    ('{"code": 200, "data"', 200, "HTTP 200 without an envelope"),
    ("[" * 100_000, 200, "HTTP 200 without an envelope"),
    ('{"code": 404, "msg": "not found", "data": null}', 200, "code 404: not found"),
    ('{"code": 401, "msg": "no access"}', 200, "code 401: no access"),
    ('{"code": 200, "data": null}', 200, "code 200 without a list of models"),
    ('{"code": 200, "data": {"total": 3}}', 200, "code 200 without a list of models"),
    ('{"code": 200, "data": {"models": {"a": 1}}}', 200, "code 200 without a list of models"),
    ('{"code": 200, "data": [1, 2]}', 200, "code 200 without a list of models"),
]


@pytest.mark.parametrize(("text", "status", "words"), NOT_A_LIST)
async def test_an_answer_without_a_list_is_no_answer(
    wire: Wire, text: str, status: int, words: str
) -> None:
    answers(wire, text, status)
    found = await wire.provider.catalogue.list_models()
    assert isinstance(found, NotAnswered)
    assert found.detail.startswith(words)
    assert not found.limited


LIMITED = '{"code":429,"msg":"call frequency is too high","data":null}'


@pytest.mark.parametrize(("text", "status"), [(LIMITED, 200), (LIMITED, 429), ("slow down", 429)])
async def test_an_answer_about_the_rate_limit_is_reported_as_such(
    wire: Wire, text: str, status: int
) -> None:
    answers(wire, text, status)
    for found in (
        await wire.provider.catalogue.list_models(),
        await wire.provider.catalogue.model_schema("acme/draw"),
    ):
        assert isinstance(found, NotAnswered)
        assert found.limited


async def test_an_answer_of_more_than_a_mebibyte_is_not_parsed(wire: Wire) -> None:
    answers_models(wire, ENTRY, {**ENTRY, "description": "d" * (1 << 20)})
    assert await wire.provider.catalogue.list_models() == NotAnswered("more than 1048576 bytes")
    answers_data(wire, {"model": "acme/draw", "openapi": {"x": "d" * (10 << 20)}})
    found = await wire.provider.catalogue.model_schema("acme/draw")
    assert found == NotAnswered("more than 1048576 bytes")


async def test_a_redirect_is_not_followed(wire: Wire) -> None:
    answers(wire, "", 302)
    wire.kie.headers["Location"] = "/api/v1/elsewhere"
    found = await wire.provider.catalogue.list_models()
    wire.kie.headers.clear()
    assert isinstance(found, NotAnswered)
    assert wire.kie.asked["path"] == "/api/v1/models"


async def test_our_key_is_in_no_outcome(wire: Wire) -> None:
    answers(wire, '{"code": 500, "msg": "bad key: a key that is secret"}')
    found = await wire.provider.catalogue.list_models()
    assert found == NotAnswered("code 500: bad key: (hidden)")


async def test_no_connection_is_no_answer() -> None:
    provider = KieProvider("http://127.0.0.1:9", "http://127.0.0.1:9", "a key")
    try:
        found = await provider.catalogue.list_models()
    finally:
        await provider.close()
    assert isinstance(found, NotAnswered)
    assert "refused the connection" in found.detail


# --- a schema ---


async def test_the_schema_of_a_model_is_read_with_its_endpoint(wire: Wire) -> None:
    described = schema_of({"type": "object", "properties": {"prompt": TEXT}})
    answers_data(wire, {"model": "acme/draw", "openapi": described})
    assert await wire.provider.catalogue.model_schema("acme/draw") == ModelSchema(
        "jobs/createTask",
        {"type": "object", "properties": {"prompt": TEXT}, "additionalProperties": False},
    )
    assert wire.kie.asked["path"] == "/api/v1/models/acme/draw/schema"
    assert wire.requests == [("/api/v1/models/schema", "200")]


async def test_a_document_as_json_text_is_read(wire: Wire) -> None:
    described = json.dumps(schema_of({"type": "object", "properties": {"prompt": TEXT}}))
    answers_data(wire, {"model": "acme/draw", "openapi": described})
    found = await wire.provider.catalogue.model_schema("acme/draw")
    assert isinstance(found, ModelSchema)
    assert found.input_schema is not None


@pytest.mark.parametrize("described", [None, {}, [], "text", schema_of(None)])
async def test_a_model_may_have_no_schema(wire: Wire, described: Any) -> None:
    answers_data(wire, {"model": "acme/draw", "openapi": described})
    found = await wire.provider.catalogue.model_schema("acme/draw")
    assert isinstance(found, ModelSchema)
    assert found.input_schema is None


@pytest.mark.parametrize("code", [404, 422])
async def test_an_unknown_model_is_not_listed(wire: Wire, code: int) -> None:
    answers(wire, json.dumps({"code": code, "msg": UNKNOWN_WORDS, "data": None}))
    found = await wire.provider.catalogue.model_schema("acme/draw")
    assert found == NotListed(f"code {code}: {UNKNOWN_WORDS}")


@pytest.mark.parametrize(("text", "status"), [(HTML, 404), (HTML, 502), ('{"code":500}', 200)])
async def test_an_error_says_nothing_about_a_model(wire: Wire, text: str, status: int) -> None:
    answers(wire, text, status)
    assert isinstance(await wire.provider.catalogue.model_schema("acme/draw"), NotAnswered)


@pytest.mark.parametrize("data", [None, [], {}, {"model": "acme/other", "openapi": None}])
async def test_a_schema_of_another_model_is_no_answer(wire: Wire, data: Any) -> None:
    answers_data(wire, data)
    assert isinstance(await wire.provider.catalogue.model_schema("acme/draw"), NotAnswered)


async def test_disputed_rules_of_a_published_schema_refuse_nothing(wire: Wire) -> None:
    prompt = {"type": "string", "minLength": 3}
    described = schema_of(
        {
            "type": "object",
            "properties": {"prompt": prompt, "size": {"enum": ["a", "b"]}},
            "required": ["prompt", "size"],
        }
    )
    answers_data(wire, {"model": "bytedance/seedance-2", "openapi": described})
    found = await wire.provider.catalogue.model_schema("bytedance/seedance-2")
    assert isinstance(found, ModelSchema)
    assert found.input_schema is not None
    assert found.input_schema["required"] == ["size"]
    assert "minLength" not in found.input_schema["properties"]["prompt"]


async def test_disputed_rules_of_alternatives_refuse_nothing(wire: Wire) -> None:
    prompt = {"type": "string", "minLength": 3}
    described = schema_of(
        {
            "oneOf": [
                {"type": "object", "properties": {"prompt": prompt}, "required": ["prompt"]},
                {"type": "object", "properties": {"prompt": prompt, "size": TEXT}},
            ]
        }
    )
    answers_data(wire, {"model": "bytedance/seedance-2-mini", "openapi": described})
    found = await wire.provider.catalogue.model_schema("bytedance/seedance-2-mini")
    assert isinstance(found, ModelSchema)
    assert found.input_schema is not None
    validators = Validators("input")
    for given in ({}, {"prompt": "a"}, {"prompt": 5, "size": "b"}, {"nsfw_checker": 1}):
        assert validators.check("m", found.input_schema, given).violations == [], given
    (refusal,) = validators.check("m", found.input_schema, {"sze": "b"}).violations
    assert refusal.field == "input.sze"


@pytest.mark.parametrize(
    "text",
    [
        '{"code":200,"data":{"models":[' + ",".join(["1"] * 500_000) + "]}}",
        '{"code":200,"data":{"models":[' + ",".join(['{"model":"a"}'] * 70_000) + "]}}",
        '{"code":200,"data":{"model":"a","openapi":{"paths":{'
        + ",".join(f'"/{n}":{{"post":{{}}}}' for n in range(40_000))
        + "}}}}",
    ],
    ids=["numbers", "models", "paths"],
)
async def test_a_large_answer_does_not_hold_up_the_loop(wire: Wire, text: str) -> None:
    assert len(text) < 1 << 20
    answers(wire, text)
    longest = 0.0
    done = asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not done.is_set():
            started = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - started)

    watching = asyncio.create_task(watch())
    await wire.provider.catalogue.list_models()
    await wire.provider.catalogue.model_schema("a")
    done.set()
    await watching
    assert longest < 0.05
