"""ListModels and GetModel: what is offered, and on which terms."""

from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from generated.generation.v1 import generation_pb2 as pb
from storage.rows import COLUMNS
from tests.support.databases import change
from tests.support.harness import Serve, Service
from tests.support.market_inputs import LISTED_JOBS_MODELS, MODELS, market
from tests.support.refusals import refused

NANO = "nano-banana-2"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def pages(service: Service, **fields: Any) -> list[list[pb.Model]]:
    """Read all pages of a list."""
    read = []
    request = pb.ListModelsRequest(**fields)
    while True:
        answer = await service.stub.ListModels(request, timeout=10)
        read.append(list(answer.models))
        if not answer.next_page_token:
            return read
        request.page_token = answer.next_page_token


async def listed(service: Service, **fields: Any) -> list[pb.Model]:
    return [model for page in await pages(service, **fields) for model in page]


async def ids(service: Service, **fields: Any) -> list[str]:
    return [model.id for model in await listed(service, **fields)]


async def get(service: Service, model_id: str) -> pb.Model:
    return (await service.stub.GetModel(pb.GetModelRequest(id=model_id), timeout=10)).model


# --- ListModels ---


async def test_every_model_that_creates_tasks_is_listed_once_sorted_and_without_its_schema(
    service: Service,
) -> None:
    models = await listed(service)
    found = [model.id for model in models]
    assert found == sorted(found)
    assert found == sorted(
        name
        for name, facts in MODELS.items()
        if facts["path"] in {"jobs/createTask", "mj/generate", "veo/generate"}
    )
    assert not any(model.HasField("input_schema") for model in models)
    active = {m.id for m in models if m.lifecycle == pb.Model.LIFECYCLE_ACTIVE}
    assert active == set(LISTED_JOBS_MODELS)
    assert {m.lifecycle for m in models if m.id not in active} == {pb.Model.LIFECYCLE_UNLISTED}


async def test_a_model_shows_its_facts_and_the_member_that_takes_it(service: Service) -> None:
    models = {model.id: model for model in await listed(service)}
    nano = models[NANO]
    assert (nano.title, nano.provider, nano.member) == ("Nano Banana 2", "Google", "market")
    assert list(nano.task_types) == ["Text to Image", "Image to Image"]
    assert "8" in nano.price_text
    assert not nano.HasField("measured")
    assert not nano.HasField("refresh_time")
    members = {
        "google/imagen4-fast": "imagen4",
        "google/imagen4": "imagen4",
        "google/imagen4-ultra": "imagen4",
        "mj_video": "midjourney",
        "veo3_lite": "veo3",
        "sora-2-text-to-video": "sora2",
        "sora-2-characters": "market",
    }
    assert {name: models[name].member for name in members} == members
    assert {models[name].replacement for name in ("veo3", "veo3_fast", "veo3_lite")} == {"veo-3-1"}
    assert nano.replacement == ""


FILTERS: dict[str, tuple[dict[str, str], Any]] = {
    "a word of the id": ({"query": "seedream"}, lambda m: "seedream" in m["id"]),
    "words in any case": (
        {"query": "KLING video"},
        lambda m: "kling" in text(m) and "video" in text(m),
    ),
    "a task type": ({"task_type": "text to music"}, lambda m: "Text to Music" in m["task_types"]),
    "a provider": ({"provider": "SUNO"}, lambda m: m["provider"] == "Suno"),
    "all of them": (
        {"query": "wan", "task_type": "Image to Video", "provider": "Wan"},
        lambda m: (
            "wan" in text(m) and "Image to Video" in m["task_types"] and m["provider"] == "Wan"
        ),
    ),
    "nothing": ({"query": "no such model at all"}, lambda _: False),
}


def text(facts: dict[str, Any]) -> str:
    words = (facts["id"], facts["title"], facts["provider"], *facts["task_types"])
    return " ".join(words).casefold()


@pytest.mark.parametrize(("given", "takes"), FILTERS.values(), ids=FILTERS.keys())
async def test_models_are_found_by_words_task_type_and_provider(
    service: Service, given: dict[str, str], takes: Any
) -> None:
    offered = await ids(service)
    assert await ids(service, **given) == [name for name in offered if takes(MODELS[name])]


@pytest.mark.parametrize("size", [1, 7, 200])
async def test_pages_contain_every_model_once(service: Service, size: int) -> None:
    read = await pages(service, page_size=size)
    assert [model.id for page in read for model in page] == await ids(service)
    assert all(len(page) == size for page in read[:-1])


async def test_pages_have_fifty_models_by_default_and_two_hundred_at_most(
    service: Service,
) -> None:
    sizes = [len((await pages(service, page_size=size))[0]) for size in (0, 1_000)]
    assert sizes == [50, 200]


async def test_a_token_of_another_filter_or_no_token_is_invalid(service: Service) -> None:
    first = await service.stub.ListModels(pb.ListModelsRequest(page_size=1))
    for request in (
        pb.ListModelsRequest(page_token=first.next_page_token, query="wan"),
        pb.ListModelsRequest(page_token="x"),
        pb.ListModelsRequest(page_token="\u00e9"),
        pb.ListModelsRequest(page_token="A" * 1_000),
    ):
        error = await refused(service.stub.ListModels(request))
        assert (error.code, error.fields) == (INVALID, ["page_token"])


async def test_bad_filters_are_named_all_at_once(service: Service) -> None:
    request = pb.ListModelsRequest(
        query="x" * 201, task_type="y" * 201, provider="\0", page_size=-1
    )
    error = await refused(service.stub.ListModels(request))
    assert (error.code, error.reason) == (INVALID, "INVALID_PARAMS")
    assert error.fields == ["query", "task_type", "provider", "page_size"]


# --- GetModel ---


async def test_a_model_has_the_schema_of_its_input_as_a_form(service: Service) -> None:
    model = await get(service, NANO)
    schema = json_format.MessageToDict(model.input_schema)
    assert schema["type"] == "object"
    assert schema["required"] == ["prompt"]
    resolution = schema["properties"]["resolution"]
    assert resolution["enum"] == ["1K", "2K", "4K"]
    assert resolution["default"] == "1K"
    model.ClearField("input_schema")
    assert model == next(m for m in await listed(service, query=NANO) if m.id == NANO)


async def test_every_model_of_market_has_a_form_and_others_have_none(service: Service) -> None:
    for model_id in await ids(service):
        model = await get(service, model_id)
        taken = model.member in {"market", "imagen4", "sora2"}
        assert model.HasField("input_schema") == taken, model_id


@pytest.mark.parametrize("model_id", ["", "a b", "../x", "m" * 129, "x\0"])
async def test_what_cannot_be_an_id_is_invalid(service: Service, model_id: str) -> None:
    error = await refused(service.stub.GetModel(pb.GetModelRequest(id=model_id)))
    assert (error.code, error.fields) == (INVALID, ["id"])


@pytest.mark.parametrize("model_id", ["no/such-model", "gpt-5-2", "gemini-omni-audio"])
async def test_a_model_that_creates_no_tasks_is_unavailable(
    service: Service, model_id: str
) -> None:
    error = await refused(service.stub.GetModel(pb.GetModelRequest(id=model_id)))
    assert error.reason == "MODEL_UNAVAILABLE"
    assert model_id in error.message


# --- life cycle ---


async def test_disabled_models_are_listed_as_such(serve: Serve) -> None:
    async with serve(disabled_models=frozenset({"suno*", NANO, "sora2"})) as service:
        models = {model.id: model.lifecycle for model in await listed(service)}
    disabled = {name for name, state in models.items() if state == pb.Model.LIFECYCLE_DISABLED}
    assert NANO in disabled
    assert "sora-2-text-to-video" in disabled
    assert "nano-banana-2-lite" not in disabled


async def retire(serve: Serve, model_id: str) -> None:
    """Mark a model as retired in the database since 2026-11-20."""
    async with serve() as service:
        sql = "UPDATE models SET retired_time = 1795132800 WHERE id = ?"
        change(service.database_url, sql, model_id)


async def test_retired_models_are_listed_only_if_asked_for(serve: Serve) -> None:
    await retire(serve, NANO)
    async with serve() as service:
        assert NANO not in await ids(service)
        [model] = [m for m in await listed(service, include_retired=True) if m.id == NANO]
        assert model.lifecycle == pb.Model.LIFECYCLE_RETIRED
        assert (await get(service, NANO)).lifecycle == pb.Model.LIFECYCLE_RETIRED


async def test_a_retired_model_is_tried_and_a_refusal_says_since_when_it_is_gone(
    serve: Serve,
) -> None:
    await retire(serve, NANO)
    async with serve() as service:
        assert (await service.create(market(NANO, prompt="a cat"))).provider_task_id
        service.kie.add_fault(
            "create:code,code=422,msg=The page does not exist or is not published"
        )
        error = await refused(service.create(market(NANO, prompt="a cat")))
        assert error.reason == "MODEL_UNAVAILABLE"
        assert "page does not exist" in error.message
        assert "has not been in the provider's catalogue since 2026-11-20" in error.message
        task = await service.query(error.metadata["task_id"])
        assert task.failure.message == error.message


# --- measured ---


def cost_more(service: Service, task_id: str, credits_consumed: float, seconds: float) -> None:
    """Change what a task cost and how long it took."""
    sql = "UPDATE tasks SET credits_consumed = ?, accept_time = complete_time - ? WHERE id = ?"
    change(service.database_url, sql, credits_consumed, seconds, task_id)


async def test_a_model_shows_what_its_successes_cost_and_how_long_they_took(
    serve: Serve,
) -> None:
    async with serve() as service:
        for number in range(1, 21):
            task = await service.end((await service.create(market(NANO, prompt="a"))).id)
            cost_more(service, task.id, float(number), number * 10.0)
        service.kie.add_fault("create:code,code=422,msg=no")
        await refused(service.create(market(NANO, prompt="a")))
        measured = (await get(service, NANO)).measured
    assert measured == pb.MeasuredModel(
        tasks=20,
        min_credits=1,
        median_credits=10.5,
        max_credits=20,
        median_seconds=105,
        p95_seconds=190,
    )


async def test_only_the_newest_256_successes_count(serve: Serve) -> None:
    async with serve() as service:
        task = await service.end((await service.create(market(NANO, prompt="a"))).id)
        own = {"id", "complete_time", "credits_consumed", "request_id"}
        columns = [c.column_name for c in COLUMNS if c.column_name not in own]
        names = ", ".join(columns)
        for number in range(300):
            change(
                service.database_url,
                f"INSERT INTO tasks (id, complete_time, credits_consumed, {names})"  # noqa: S608
                f" SELECT id || '-{number}', complete_time + {number + 1}, {number}, {names}"
                " FROM tasks WHERE id = ?",
                task.id,
            )
        measured = (await get(service, NANO)).measured
    assert (measured.tasks, measured.min_credits, measured.max_credits) == (256, 44, 299)


async def test_a_variant_is_measured_by_its_own_tasks_through_either_message(
    serve: Serve,
) -> None:
    async with serve() as service:
        fast = await service.create({"imagen4": {"prompt": "a"}})
        ultra = await service.create({"imagen4": {"prompt": "a", "api_model": "API_MODEL_ULTRA"}})
        other = await service.create(market("google/imagen4-fast", prompt="a"))
        for number, task in enumerate((fast, ultra, other), start=1):
            await service.end(task.id)
            cost_more(service, task.id, float(number), 1.0)
        found = (await get(service, "google/imagen4-fast")).measured
        assert (found.tasks, found.min_credits, found.max_credits) == (2, 1, 3)
        assert (await get(service, "google/imagen4-ultra")).measured.max_credits == 2


async def test_measurements_are_cached_and_lists_show_them(serve: Serve) -> None:
    async with serve() as service:
        await service.end((await service.create(market(NANO, prompt="a"))).id)
        [model] = [m for m in await listed(service, query=NANO) if m.id == NANO]
        assert model.measured.tasks == 1
        await service.end((await service.create(market(NANO, prompt="a"))).id)
        assert (await get(service, NANO)).measured.tasks == 1, "for a minute"
    async with serve() as service:
        assert (await get(service, NANO)).measured.tasks == 2
