"""CreateTask of `market`: any model of the catalogue, through a real channel."""

import asyncio
import json
import math
from typing import Any

import grpc
import pytest
import structlog

from generated.generation.v1 import generation_pb2 as pb
from tests.support.callers import Serving
from tests.support.calling_back import callback_url, post, with_callbacks
from tests.support.databases import change
from tests.support.harness import Serve, Service, create_request
from tests.support.market_inputs import (
    LISTED_JOBS_MODELS,
    MODELS,
    market,
    minimal_input,
    without_defaults,
)
from tests.support.metrics_page import ADMIN, scrape
from tests.support.refusals import refused

FIELDS = "provider_params.kie.market."
NANO = "nano-banana-2"  # needs only a prompt
KLING = "kling-3.0/video"  # requires fields that have defaults
UNLISTED = "nano-banana-2-1"
CHAT = "gpt-5-2"
LYRICS = "ai-music-api/generate-lyrics"  # its result is an object
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


async def validate(service: Service, params: dict[str, Any], **fields: Any) -> pb.GenerationTask:
    """Check a request without creating a task."""
    request = create_request(params, **fields)
    request.validate_only = True
    return (await service.stub.CreateTask(request, timeout=10)).task


# --- the whole catalogue ---


async def test_every_model_of_the_catalogue_is_created_ends_and_shows_its_result(
    service: Service,
) -> None:
    room = asyncio.Semaphore(16)

    async def run(model: str) -> pb.GenerationTask:
        async with room:
            given = without_defaults(model, minimal_input(model))
            return await service.end((await service.create(market(model, **given))).id)

    ended = await asyncio.gather(*map(run, LISTED_JOBS_MODELS))
    assert len(ended) == 179
    for model, task in zip(LISTED_JOBS_MODELS, ended, strict=True):
        assert task.status == pb.TASK_STATUS_SUCCESS, (model, task.failure)
        result = json.loads(task.result_json)
        assert [artifact.url for artifact in task.artifacts] == result["resultUrls"]
        if MODELS[model]["result"] == "object":
            assert result["resultObject"], model
        else:
            assert task.artifacts, model
    assert {body["model"] for body in service.bodies()} == set(LISTED_JOBS_MODELS)


# --- what is sent, and what is shown ---


async def test_defaults_that_the_model_requires_are_filled_in_and_shown(service: Service) -> None:
    created = await service.create(market(KLING, prompt="a cat", sound=True))
    [body] = service.bodies()
    assert body == {
        "model": KLING,
        "input": {
            "prompt": "a cat",
            "sound": True,
            "aspect_ratio": "16:9",
            "duration": "5",
            "mode": "pro",
            "multi_shots": False,
        },
    }
    shown = created.provider_params.kie.market
    assert (shown.model, dict(shown.input)) == (KLING, body["input"])
    assert (await service.query(created.id)).provider_params == created.provider_params


async def test_whole_numbers_are_sent_as_integers_and_others_as_decimals(serve: Serve) -> None:
    given = {"whole": 5.0, "large": -(2.0**53), "part": 0.1, "list": [1.0, 2.5], "nothing": None}
    async with serve(kie_market_validation="basic") as service:
        await service.create(market(NANO, prompt="a cat", **given))
        [body] = service.bodies()
    assert json.dumps(body["input"], sort_keys=True) == json.dumps(
        {
            "large": -(2**53),
            "list": [1, 2.5],
            "nothing": None,
            "part": 0.1,
            "prompt": "a cat",
            "whole": 5,
        }
    )


async def test_a_result_that_is_an_object_is_a_success_without_artifacts(service: Service) -> None:
    given = minimal_input(LYRICS)
    task = await service.end((await service.create(market(LYRICS, **given))).id)
    assert (task.status, list(task.artifacts)) == (pb.TASK_STATUS_SUCCESS, [])
    assert json.loads(task.result_json)["resultObject"]


async def test_metrics_name_listed_models_and_count_all_others_as_unlisted(serve: Serve) -> None:
    async with serve(**ADMIN, kie_market_unlisted=True) as service:
        await service.end((await service.create(market(NANO, prompt="a cat"))).id)
        await refused(service.create(market("no/such-model")))
        page = await scrape(service)
    name = "generation_task_moves_total"
    assert page.value(name, model=NANO, stage="ACCEPTED") == 1
    assert page.value(name, model="unlisted", stage="ACCEPTED") == 1
    assert page.value(name, model="no/such-model", stage="ACCEPTED") is None


async def test_a_task_is_sent_as_it_was_checked_although_its_schema_changes_meanwhile(
    serve: Serve,
) -> None:
    async with serve(create_wait_seconds=0) as service:
        service.kie.add_fault("create:code,code=455,times=0")
        created = await service.create(market(KLING, prompt="a cat"))
        await service.until_put_back(created.id)
        stricter = {"type": "object", "properties": {"a": {}}, "required": ["a"]}
        sql = "UPDATE models SET input_schema = ?, refresh_time = 1 WHERE id = ?"
        change(service.database_url, sql, json.dumps(stricter), KLING)
    service.kie.clear_faults()
    async with serve() as service:
        error = await refused(service.create(market(KLING, prompt="a cat")))
        assert FIELDS + "input.a" in error.fields
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS
        [body] = service.bodies()
        assert body["input"] == dict(created.provider_params.kie.market.input)


@pytest.mark.parametrize(
    "fault", ["create:accept_then_reset", "create:accept_then_garbage", "create:accept_then_no_id"]
)
async def test_a_create_whose_response_was_lost_is_recovered_by_its_callback(
    serve: Serve, port: int, fault: str
) -> None:
    async with serve(**with_callbacks(port, create_wait_seconds=0)) as service:
        service.kie.update(seconds={NANO: [0.2, 0.2]})
        service.kie.add_fault(fault)
        given = {"prompt": "a cat", "image_input": ["https://example.com/a.png"]}
        end = await service.end((await service.create(market(NANO, **given))).id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert end.provider_task_id == service.kie.tasks[0]["id"]
    assert len(service.kie.tasks) == 1


async def test_a_success_without_artifacts_does_not_change_after_another_callback(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port)) as service:
        end = await service.end((await service.create(market(LYRICS, **minimal_input(LYRICS)))).id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        body = {"data": {"taskId": end.provider_task_id, "state": "success"}}
        assert [await post(callback_url(service.kie), body) for _ in range(3)] == [200] * 3
        assert await service.query(end.id) == end


async def test_tasks_of_a_model_are_listed_by_its_id(service: Service) -> None:
    created = await service.create(market(NANO, prompt="a cat"))
    await service.create(market(KLING, prompt="a cat"))
    listed = await service.stub.ListTasks(pb.ListTasksRequest(model=NANO))
    assert [task.id for task in listed.tasks] == [created.id]


# --- what is refused ---


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 2.0**53 + 2, -1e300])
async def test_a_number_that_json_cannot_carry_exactly_is_refused_by_its_path(
    service: Service, number: float
) -> None:
    request = create_request(market(NANO, prompt="a cat", image_input=[[1]]))
    values: Any = request.provider_params.kie.market.input["image_input"]
    values[0][0] = number
    error = await refused(service.stub.CreateTask(request))
    assert (error.code, error.reason) == (INVALID, "INVALID_PARAMS")
    assert error.fields == [FIELDS + "input.image_input[0][0]"]


async def test_a_hundred_thousand_keys_and_five_megabytes_are_refused(service: Service) -> None:
    keys = market(NANO, **{f"key {number}": number for number in range(100_000)})
    error = await refused(service.create(keys))
    assert (error.code, error.reason) == (INVALID, "INVALID_PARAMS")
    text = create_request(market(NANO, prompt="a" * 5_000_000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.CreateTask(text)
    assert caught.value.code() in {INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert (await service.create(market(NANO, prompt="a cat"))).provider_task_id


async def test_all_broken_rules_of_the_schema_are_named_and_nothing_is_sent(
    service: Service,
) -> None:
    given = {"aspect_ratio": "17:9", "resolutoin": "4K", "image_input": ["https://a.example/1", 5]}
    error = await refused(service.create(market(NANO, **given)))
    assert (error.code, error.reason) == (INVALID, "INVALID_PARAMS")
    assert sorted(error.fields) == [
        FIELDS + "input.aspect_ratio",
        FIELDS + "input.image_input[1]",
        FIELDS + "input.prompt",
        FIELDS + "input.resolutoin",
    ]
    assert service.bodies() == []


async def test_broken_rules_of_the_request_and_of_the_schema_are_named_together(
    service: Service,
) -> None:
    params = market(NANO, prompt="a cat", aspect_ratio="17:9")
    error = await refused(service.create(params, prompt_id="", request_id="r" * 129))
    assert error.reason == "INVALID_PARAMS"
    assert error.fields == ["prompt_id", "request_id", FIELDS + "input.aspect_ratio"]
    assert service.bodies() == []


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("", "model"),
        ("a b", "model"),
        ("a/../b", "model"),
        ("m" * 129, "model"),
        ("veo3_fast", "model"),
        ("mj_video", "model"),
        ("imagen4", "model"),
    ],
)
async def test_an_id_that_market_does_not_take_is_invalid(
    service: Service, model: str, field: str
) -> None:
    error = await refused(service.create(market(model, prompt="a cat")))
    assert (error.code, error.reason, error.fields) == (INVALID, "INVALID_PARAMS", [FIELDS + field])


@pytest.mark.parametrize("model", ["no/such-model", UNLISTED, CHAT, "gemini-omni-audio"])
async def test_a_model_that_is_not_offered_is_unavailable_and_costs_no_call(
    service: Service, model: str
) -> None:
    error = await refused(service.create(market(model, prompt="a cat")))
    assert (error.code, error.reason) == (PRECONDITION, "MODEL_UNAVAILABLE")
    assert model in error.message
    assert service.bodies() == []
    assert error.metadata == {}, "nothing was stored"


async def test_a_mistyped_model_is_answered_with_the_nearest_one(service: Service) -> None:
    error = await refused(service.create(market("nano-bananna-2", prompt="a cat")))
    assert "did you mean nano-banana-2?" in error.message


async def test_models_outside_of_the_catalogue_are_sent_if_the_operator_allows_them(
    serve: Serve,
) -> None:
    async with serve(kie_market_unlisted=True) as service:
        await service.create(market(UNLISTED, **minimal_input(UNLISTED)))
        error = await refused(service.create(market("no/such-model", anything=1)))
        assert error.reason == "MODEL_UNAVAILABLE", "by the provider"
        assert error.metadata["task_id"]
        chat = await refused(service.create(market(CHAT, prompt="a cat")))
        assert (chat.reason, chat.metadata) == ("MODEL_UNAVAILABLE", {})
    assert [body["model"] for body in service.bodies()] == [UNLISTED]


async def test_basic_validation_leaves_the_rules_of_the_model_to_the_provider(
    serve: Serve,
) -> None:
    async with serve(kie_market_validation="basic") as service:
        await service.create(market(NANO, prompt="a cat", resolutoin="4K"))
        [body] = service.bodies()
        assert body["input"] == {"prompt": "a cat", "resolutoin": "4K"}
        error = await refused(service.create(market(NANO, prompt="a cat", callBackUrl="x")))
        assert error.fields == [FIELDS + "input.callBackUrl"]


# --- two names ---


@pytest.mark.parametrize("disabled", ["imagen4", "google/imagen4-fast", "google/*", "imagen*"])
async def test_a_typed_model_is_disabled_by_either_of_its_names(
    serve: Serve, disabled: str
) -> None:
    async with serve(disabled_models=frozenset({disabled})) as service:
        for params in (
            {"imagen4": {"prompt": "a cat"}},
            market("google/imagen4-fast", prompt="a cat"),
        ):
            error = await refused(service.create(params))
            assert (error.code, error.reason) == (PRECONDITION, "MODEL_UNAVAILABLE")
        model = await service.stub.GetModel(pb.GetModelRequest(id="google/imagen4-fast"))
        assert model.model.lifecycle == pb.Model.LIFECYCLE_DISABLED
    assert service.bodies() == []


async def test_disabling_a_variant_disables_no_other(serve: Serve) -> None:
    async with serve(disabled_models=frozenset({"google/imagen4-fast"})) as service:
        await service.create({"imagen4": {"prompt": "a cat", "api_model": "API_MODEL_ULTRA"}})
        await service.create(market("google/imagen4", prompt="a cat"))
        await service.create(market(NANO, prompt="a cat"))


async def test_models_of_market_are_disabled_by_their_ids_and_beginnings(serve: Serve) -> None:
    async with serve(disabled_models=frozenset({NANO, "wan/*"})) as service:
        for model in (NANO, "wan/2-7-videoedit"):
            error = await refused(service.create(market(model, **minimal_input(model))))
            assert error.reason == "MODEL_UNAVAILABLE"
            assert "disabled" in error.message
        await service.create(market(KLING, prompt="a cat"))


async def test_a_disabled_model_that_does_not_exist_is_logged_as_it_may_be_a_typing_error(
    serve: Serve,
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serve(disabled_models=frozenset({"wan/2-7-videoedlt", "wan/*", NANO})):
            pass
    [line] = [line for line in logs if "DISABLED_MODELS" in line["event"]]
    assert line["models"] == "wan/2-7-videoedlt"


async def test_a_typed_model_is_allowed_if_its_member_is_and_others_by_their_ids(
    serve_both: Serving,
) -> None:
    limits = """
        [callers.alice]
        models = ["imagen4", "wan/*"]
        [callers.bob]
        models = ["google/imagen4-fast", "nano-banana-2"]
    """
    typed, variant = {"imagen4": {"prompt": "a"}}, market("google/imagen4-fast", prompt="a")
    wan = market("wan/2-7-text-to-video", prompt="a")
    nano = market(NANO, prompt="a")
    async with serve_both(limits) as (alice, bob):
        for params in (typed, variant, wan):
            await alice.create(params)
        await bob.create(nano)
        for caller, params in ((alice, nano), (bob, typed), (bob, variant), (bob, wan)):
            error = await refused(caller.create(params))
            assert error.reason == "MODEL_NOT_ALLOWED"


# --- a request_id ---


async def test_a_retry_is_compared_as_it_was_sent_whatever_the_order_of_its_keys(
    service: Service,
) -> None:
    first = await service.create(market(KLING, prompt="a", sound=True), request_id="r")
    again = await service.create(market(KLING, sound=True, prompt="a"), request_id="r")
    assert again.id == first.id
    filled = dict(first.provider_params.kie.market.input)
    error = await refused(service.create(market(KLING, **filled), request_id="r"))
    assert error.reason == "REQUEST_ID_REUSED", "it was not sent with the defaults"
    assert len(service.bodies()) == 1


async def test_a_retry_succeeds_although_its_model_is_not_offered_any_more(serve: Serve) -> None:
    params = market(NANO, prompt="a cat")
    async with serve() as service:
        first = await service.create(params, request_id="r")
    async with serve(disabled_models=frozenset({NANO})) as service:
        assert (await service.create(params, request_id="r")).id == first.id
        error = await refused(service.create(market(NANO, prompt="a dog"), request_id="r"))
        assert error.reason == "REQUEST_ID_REUSED"
        assert (await refused(service.create(params))).reason == "MODEL_UNAVAILABLE"


async def test_a_retry_succeeds_although_its_input_breaks_a_newer_schema(serve: Serve) -> None:
    params = market(NANO, prompt="a cat", resolutoin="4K")
    async with serve(kie_market_validation="basic") as service:
        first = await service.create(params, request_id="r")
    async with serve() as service:
        assert (await service.create(params, request_id="r")).id == first.id
        assert (await refused(service.create(params))).reason == "INVALID_PARAMS"


# --- validate_only ---


async def test_a_valid_request_is_shown_as_it_would_be_stored_and_nothing_happens(
    serve: Serve,
) -> None:
    async with serve() as service:
        shown = await validate(service, market(KLING, prompt="a cat"), request_id="r")
        assert shown.id == ""
        assert (shown.status, shown.stage) == (pb.TASK_STATUS_PENDING, pb.TASK_STAGE_ACCEPTED)
        assert dict(shown.provider_params.kie.market.input)["duration"] == "5"
        assert (shown.request_id, shown.prompt_id) == ("r", "p")
        listed = await service.stub.ListTasks(pb.ListTasksRequest())
        assert list(listed.tasks) == []
        created = await service.create(market(KLING, prompt="a dog"), request_id="r")
        assert created.id, "the request_id was not used"
    assert len(service.bodies()) == 1


async def test_validate_only_works_for_typed_models(service: Service) -> None:
    shown = await validate(service, {"imagen4": {"prompt": "a cat"}})
    assert (shown.id, shown.provider_params.kie.imagen4.prompt) == ("", "a cat")


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "a broken rule": ({"imagen4": {}}, "p"),
    "a broken schema": (market(NANO), "p"),
    "an unknown model": (market("no/such-model"), "p"),
    "no prompt_id": (market(NANO, prompt="a"), ""),
}


@pytest.mark.parametrize(("params", "prompt_id"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_validate_only_gives_the_error_of_the_create(
    service: Service, params: dict[str, Any], prompt_id: str
) -> None:
    error = await refused(validate(service, params, prompt_id=prompt_id))
    assert error == await refused(service.create(params, prompt_id=prompt_id))


async def test_validate_only_gives_the_errors_of_limits_and_of_known_request_ids(
    serve: Serve,
) -> None:
    async with serve(queue_max_tasks=1, create_wait_seconds=0) as service:
        service.kie.add_fault("create:code,code=455,times=0")
        first = await service.create(market(NANO, prompt="a"), request_id="r")
        await service.until_put_back(first.id)
        error = await refused(validate(service, market(NANO, prompt="a")))
        assert error == await refused(service.create(market(NANO, prompt="a")))
        assert error.reason == "RATE_LIMITED"
        reused = await refused(validate(service, market(NANO, prompt="b"), request_id="r"))
        assert reused.reason == "REQUEST_ID_REUSED"
        known = await validate(service, market(NANO, prompt="a"), request_id="r")
        assert (known.id, known.provider_params) == ("", first.provider_params)


async def test_validate_only_repeats_the_refusal_of_a_known_request_id(service: Service) -> None:
    service.kie.add_fault("create:code,code=402,msg=no credits")
    params = market(NANO, prompt="a cat")
    error = await refused(service.create(params, request_id="r"))
    assert await refused(validate(service, params, request_id="r")) == error
