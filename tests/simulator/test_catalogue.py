"""The catalogue API: the list of models, their schemas with all oddities, and faults of both."""

import json
import re
from typing import Any

import pytest
from yarl import URL

from providers.kie.simulator import parse_fault
from providers.kie.simulator.facts import all_facts
from providers.kie.simulator.schemas import LARGE_CHARACTERS, Quirk, quirk_of
from tests.support.kie_client import JOBS, Kie, running
from tests.support.market_inputs import LISTED_JOBS_MODELS, MODELS, minimal_input

LIST = "/api/v1/models"
ORDINARY = "kling-3.0/video"


async def listed(kie: Kie, **query: str) -> list[str]:
    """Return the ids of the models that a query finds."""
    answer = await kie.get(LIST, **query)
    assert (answer["code"], answer["msg"]) == (200, "success")
    assert answer["data"]["total"] == len(answer["data"]["models"])
    return [model["model"] for model in answer["data"]["models"]]


async def document(kie: Kie, model: str) -> Any:
    answer = await kie.get(f"{LIST}/{model}/schema")
    assert (answer["code"], answer["data"]["model"]) == (200, model)
    return answer["data"]["openapi"]


def schema_of_input(openapi: Any) -> Any:
    post = openapi["paths"]["/api/v1/jobs/createTask"]["post"]
    return post["requestBody"]["content"]["application/json"]["schema"]["properties"]["input"]


async def test_the_list_has_the_listed_models_of_the_snapshot() -> None:
    async with running(catalogue_per_second=0) as kie:
        assert await listed(kie) == [name for name, model in MODELS.items() if model["listed"]]
        answer = await kie.get(LIST, q="z-image")
        assert answer["data"]["models"] == [
            {
                "model": "z-image",
                "slug": "z-image",
                "title": "Z Image Turbo Text to Image",
                "provider": "Qwen",
                "taskType": ["Text to Image"],
                "description": None,
                "pricingDesc": "0.8 credits",
            }
        ]


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({"provider": "Kling"}, lambda m: m["provider"] == "Kling"),
        ({"q": "KLING"}, lambda m: "kling" in f"{m['id']} {m['title']} {m['provider']}".lower()),
        ({"q": "suno"}, lambda m: m["provider"] == "Suno"),
        ({"taskType": "Lip Sync"}, lambda m: "Lip Sync" in m["task_types"]),
        (
            {"taskType": "Lip Sync, Text to Music"},
            lambda m: {"Lip Sync", "Text to Music"} & set(m["task_types"]),
        ),
        (
            {"taskType": "Text to Image", "provider": "Google", "q": "imagen4"},
            lambda m: m["id"].startswith("google/imagen4"),
        ),
        ({"q": "no such model"}, lambda _: False),
        ({"taskType": "Text to Smell"}, lambda _: False),
    ],
)
async def test_the_list_is_filtered_and_no_match_is_no_error(
    kie: Kie, query: dict[str, str], holds: Any
) -> None:
    expected = [name for name, model in MODELS.items() if model["listed"] and holds(model)]
    assert await listed(kie, **query) == expected


async def test_the_schema_of_a_model_has_its_fields_and_says_where_it_lives(kie: Kie) -> None:
    openapi = await document(kie, ORDINARY)
    schema = schema_of_input(openapi)
    assert quirk_of(all_facts()[ORDINARY]) is Quirk.NONE
    assert set(minimal_input(ORDINARY)) == set(schema["required"])
    assert schema["properties"]["duration"]["enum"][:2] == ["3", "4"]
    assert schema["properties"]["image_urls"]["items"] == {"type": "string", "format": "uri"}


async def test_each_oddity_is_that_of_some_model() -> None:
    first = {quirk_of(all_facts()[name]): name for name in reversed(LISTED_JOBS_MODELS)}
    assert set(first) == set(Quirk)
    async with running(catalogue_per_second=0) as kie:
        assert await document(kie, first[Quirk.NULL]) is None
        for quirk, key in ((Quirk.PERCENT, r".+%20Input"), (Quirk.BLANK, r".+ ")):
            openapi = await document(kie, first[quirk])
            (name,) = openapi["components"]["schemas"]
            assert re.fullmatch(key, name)
            reference = schema_of_input(openapi)["$ref"].removeprefix("#/components/schemas/")
            assert name in {reference, reference.replace("%20", " ")}
        openapi = await document(kie, first[Quirk.DANGLING])
        assert openapi["components"]["schemas"] == {}
        assert "$ref" in list(schema_of_input(openapi)["properties"].values())[-1]
        alternatives = schema_of_input(await document(kie, first[Quirk.ALTERNATIVES]))["oneOf"]
        assert alternatives


async def test_a_choice_of_fields_is_an_alternative_for_each(kie: Kie) -> None:
    openapi = await document(kie, "grok-imagine-image-2-0/segment-map")
    by_task, by_url = schema_of_input(openapi)["oneOf"]
    assert (by_task["required"], by_url["required"]) == (["task_id"], ["image_url"])
    assert "image_url" not in by_task["properties"]


async def test_a_model_of_another_endpoint_names_it(kie: Kie) -> None:
    openapi = await document(kie, "gemini-omni-audio")
    assert list(openapi["paths"]) == ["/api/v1/omni/audio/create"]


async def test_the_price_of_a_model_is_a_text_or_null() -> None:
    async with running(catalogue_per_second=0) as kie:
        for model, price in (("z-image", "0.8 credits"), ("google/gemini-3-8-flash-tts", None)):
            answer = await kie.get(f"{LIST}/{model}/price")
            assert answer["data"] == {"model": model, "pricingDesc": price}


async def test_the_success_rate_counts_the_tasks_that_ended() -> None:
    async with running(catalogue_per_second=0) as kie:
        path = f"{LIST}/z-image/success-rate"
        assert (await kie.get(path))["data"] == {"model": "z-image", "points": []}
        for state in ("success", "success", "fail"):
            body = {"model": "z-image", "input": minimal_input("z-image")}
            kie.simulator.finish(await kie.create(JOBS, body), state=state)
        points = (await kie.get(path))["data"]["points"]
        assert len(points) == 144
        known = [point for point in points if point["successRate"] is not None]
        assert len(known) in {1, 2}  # the tasks may have ended around the full ten minutes
        assert all(round(point["successRate"] + point["errorRate"], 1) == 100 for point in known)
        assert not any(point["isNormal"] for point in known if point["successRate"] < 90)
        assert all(re.fullmatch(r"[-\d]{10}T\d\d:\d0:00Z", point["start"]) for point in points)


@pytest.mark.parametrize("model", ["nobody/nothing", "sora-2-text-to-video", "nano-banana-2-1"])
@pytest.mark.parametrize("part", ["schema", "price", "success-rate"])
async def test_a_model_that_is_not_listed_is_code_404(kie: Kie, model: str, part: str) -> None:
    answer = await kie.get(f"{LIST}/{model}/{part}")
    assert (answer["code"], answer["data"]) == (404, None)
    assert "model name you specified is not supported" in answer["msg"]


async def test_the_slashes_of_an_id_are_not_encoded(kie: Kie) -> None:
    url = f"{kie.simulator.url}{LIST}/{ORDINARY.replace('/', '%2F')}/schema"
    async with kie.session.get(URL(url, encoded=True)) as answer:
        assert (await answer.json())["code"] == 404


async def test_a_withdrawn_model_leaves_the_catalogue() -> None:
    async with running(catalogue_per_second=0, withdrawn_models=("z-image",)) as kie:
        assert "z-image" not in await listed(kie)
        assert (await kie.get(f"{LIST}/z-image/schema"))["code"] == 404


async def test_the_catalogue_needs_a_key(kie: Kie) -> None:
    headers = {"Authorization": ""}
    async with kie.session.get(kie.simulator.url + LIST, headers=headers) as answer:
        assert (await answer.json())["code"] == 401


async def test_all_of_the_catalogue_shares_one_request_a_second(kie: Kie) -> None:
    paths = [LIST, *(f"{LIST}/z-image/{part}" for part in ("schema", "price", "success-rate"))]
    answers = [await kie.get(path) for path in paths * 2]
    refused = [answer for answer in answers if answer["code"] == 429]
    assert answers[0]["code"] == 200
    assert refused
    assert refused[0] == {"code": 429, "msg": "call frequency is too high", "data": None}
    assert kie.simulator.stats["peaks"]["catalogue_in_a_second"] > 1


FAULTS = [
    ("catalogue:garbage", LIST),
    ("schema:http,status=404", f"{LIST}/z-image/schema"),
    ("schema:garbage,model=z-image", f"{LIST}/z-image/schema"),
    ("any:empty", f"{LIST}/z-image/price"),
]


@pytest.mark.parametrize(("fault", "path"), FAULTS)
async def test_faults_of_every_endpoint_strike_the_catalogue_too(
    kie: Kie, fault: str, path: str
) -> None:
    kie.simulator.add_fault(fault)
    async with kie.session.get(kie.simulator.url + path) as answer:
        assert answer.status == (404 if "404" in fault else 200)
        assert "json" not in answer.content_type
    assert (await kie.get(path))["code"] == 200


async def test_a_fault_of_schemas_does_not_strike_the_list(kie: Kie) -> None:
    kie.simulator.add_fault("schema:code,code=429")
    assert len(await listed(kie)) == 218


async def test_the_list_can_be_short_empty_or_of_other_models() -> None:
    async with running(catalogue_per_second=0) as kie:
        everything = await listed(kie)
        for fault, share in (("fewer_models", 0.4), ("fewer_models,share=0.75", 0.75)):
            kie.simulator.add_fault(f"catalogue:{fault}")
            some = await listed(kie)
            assert len(some) == int(218 * share)
            assert set(some) < set(everything)
            jobs = len(set(some) & set(LISTED_JOBS_MODELS))
            assert abs(jobs - 179 * share) < 5
        kie.simulator.add_fault("catalogue:no_models")
        assert await listed(kie) == []
        kie.simulator.add_fault("catalogue:other_models")
        others = await listed(kie)
        assert len(others) == 218
        assert set(others).isdisjoint(everything)
        assert await listed(kie) == everything


async def test_a_schema_can_be_hostile() -> None:
    async with running(catalogue_per_second=0) as kie:
        ordinary = await spoiled(kie, "")
        assert await spoiled(kie, "null_schema") is None
        changed = schema_of_input(await spoiled(kie, "changed_schema"))
        assert changed["required"] == [*schema_of_input(ordinary)["required"], "added_field"]
        assert len(json.dumps(await spoiled(kie, "large_schema"))) > LARGE_CHARACTERS
        recursive = await spoiled(kie, "recursive_schema")
        itself = schema_of_input(recursive)
        assert recursive["components"]["schemas"]["Input"]["allOf"][0] == itself
        slow = schema_of_input(await spoiled(kie, "slow_pattern"))
        assert re.fullmatch(slow["properties"]["prompt"]["pattern"], "a cat")
        assert await spoiled(kie, "") == ordinary


async def spoiled(kie: Kie, kind: str) -> Any:
    """Return the document of an ordinary model, altered by a fault."""
    if kind:
        kie.simulator.add_fault(f"schema:{kind},model={ORDINARY}")
    return await document(kie, ORDINARY)


@pytest.mark.parametrize(
    "fault", ["schema:no_models", "catalogue:large_schema", "catalogue:fewer_models,share=2"]
)
def test_a_fault_that_does_not_suit_the_catalogue_is_refused(fault: str) -> None:
    with pytest.raises(ValueError, match=r"does not suit|between 0 and 1"):
        parse_fault(fault)
