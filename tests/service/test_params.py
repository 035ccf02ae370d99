"""The rules of parameters, and what is sent to the provider, through a real channel."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import INSTANT, Service, create_request, serving
from tests.support.param_rules import BLANK, MINIMAL, RULES, SMILE, URL, Rule, model_of, never
from tests.support.refusals import refusal
from tests.support.waiting import DEADLINE_SECONDS

# --- creating ---


def exact(value: Any) -> str:
    """JSON text, as Python thinks that 1 == 1.0 == True."""
    return json.dumps(value, sort_keys=True, indent=1)


def brief(value: Any) -> str:
    return repr(value)[:200]


async def sent_for(service: Service, params: dict[str, Any]) -> dict[str, Any]:
    """Create a task, and return the body that the provider got."""
    try:
        created = await service.create(params)
    except grpc.aio.AioRpcError as error:
        raise AssertionError(f"{brief(params)} was refused: {error.details()}") from None
    newest = service.kie.tasks[-1]
    assert newest["id"] == created.provider_task_id
    body: dict[str, Any] = newest["body"]
    return body


@pytest.fixture(scope="module")
async def untouched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One service for all refusals, as they leave no trace."""
    folder = tmp_path_factory.mktemp("untouched")
    async with Simulator(INSTANT) as kie, serving(folder, kie) as running_service:
        yield running_service


async def broken_fields(service: Service, request: pb.CreateTaskRequest) -> list[str]:
    """Create a task that must be refused, and return the named fields, sorted."""
    try:
        await service.stub.CreateTask(request, timeout=DEADLINE_SECONDS)
    except grpc.aio.AioRpcError as error:
        how = refusal(error)
    else:
        raise AssertionError(f"{brief(request)} was accepted")
    assert (how.code, how.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")
    assert how.retry_seconds is None
    return sorted(how.fields)


@asynccontextmanager
async def costing_nothing(service: Service) -> AsyncIterator[None]:
    """Assert that nothing is sent to the provider and nothing stored."""
    before = service.kie.stats
    yield
    assert service.kie.stats == before
    assert service.kie.tasks == []
    assert not (await service.stub.ListTasks(pb.ListTasksRequest())).tasks


# --- row by row ---


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.values.accepted], ids=str)
async def test_an_accepted_value_reaches_the_provider_as_the_table_says(
    service: Service, rule: Rule
) -> None:
    for given, sent in rule.values.accepted:
        body = await sent_for(service, rule.params(given))
        assert exact(body) == exact(rule.body(sent)), f"{rule} = {brief(given)}"


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.values.refused], ids=str)
async def test_a_refused_value_is_named_by_its_path_and_costs_no_call(
    untouched: Service, rule: Rule
) -> None:
    async with costing_nothing(untouched):
        for given in rule.values.refused:
            fields = await broken_fields(untouched, create_request(rule.params(given)))
            assert fields == [rule.path], f"{rule} = {brief(given)}"


@pytest.mark.parametrize("kind", MINIMAL)
async def test_unset_fields_are_not_sent_unless_the_table_says_always(
    service: Service, kind: str
) -> None:
    minimal = MINIMAL[kind]
    body = await sent_for(service, {model_of(kind): minimal.params})
    assert exact(body) == exact(minimal.body)


def test_every_field_of_every_model_has_a_row() -> None:
    """Those of market depend on the model: see test_market and test_model_schemas."""
    messages = {field.name: field.message_type for field in pb.KieParams.DESCRIPTOR.fields}
    in_the_proto = {
        f"provider_params.kie.{model}.{field.name}"
        for model, message in messages.items()
        if message is not None and model != "market"
        for field in message.fields
    }
    assert {rule.path for rule in RULES} == in_the_proto


# --- URLs ---

LONGEST_URL = "https://files.example/" + "x" * (2_048 - len("https://files.example/"))
ABSOLUTE_URLS = [
    "https://files.example/a.png",
    "http://files.example",
    "HTTPS://FILES.EXAMPLE/A.PNG",
    "https://files.example:8443/a%20b.png?x=1&y=[2]#z",
    "https://user:word@files.example/a.png",
    "https://192.0.2.1/a.png",
    "https://[2001:db8::1]:8443/a.png",
    "https://localhost/a.png",
    "https://bücher.example/猫.png",
    LONGEST_URL,
    "https://files.example/" + SMILE * (2_048 - len("https://files.example/")),
]
OTHER_URLS = [
    "",
    "a.png",
    "/a.png",
    "../a.png",
    "//files.example/a.png",
    "files.example/a.png",
    "ftp://files.example/a.png",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "https",
    "https:",
    "https://",
    "https:files.example/a.png",
    "https:/files.example/a.png",
    "https:///a.png",
    "https://?a=b",
    "https://:443/a.png",
    "https://user@/a.png",
    "https://files.example:port/a.png",
    "https://files.example:65536/a.png",
    "https://[2001:db8::1/a.png",
    " https://files.example/a.png",
    "https://files.example/a.png ",
    "https://files.example/a b.png",
    "https://files.example/a\u00a0b.png",
    "https://files.example/a\u3000b.png",
    "https://fi les.example/a.png",
    "https://files.example/a.png\n",
    "https://files.example/a\r\nHost: x",
    "https://files.example/a\tb.png",
    "ht\ntps://files.example/a.png",
    "https://files.example/a\0.png",
    "https://files.example/a\x1b.png",
    "https://files.example/a\x7f.png",
    "https://files.example/a\x85.png",
    LONGEST_URL + "x",
    "https://files.example/" + SMILE * (2_049 - len("https://files.example/")),
]
URL_FIELDS = [
    *((f"midjourney {kind}", "file_urls", "fileUrls") for kind in ("OMNI_REFERENCE", "VIDEO")),
    *((f"veo3{kind}", "image_urls", "imageUrls") for kind in ("", " FIRST_AND_LAST")),
    ("sora2 IMAGE", "image_urls", "input.image_urls"),
]


@pytest.mark.parametrize(("kind", "field", "wire"), URL_FIELDS)
async def test_an_absolute_http_url_reaches_the_provider_unchanged(
    service: Service, kind: str, field: str, wire: str
) -> None:
    rule = Rule(kind, field, wire, never())
    for url in ABSOLUTE_URLS:
        body = await sent_for(service, rule.params([url]))
        assert exact(body) == exact(rule.body([url])), brief(url)


@pytest.mark.parametrize(("kind", "field", "wire"), URL_FIELDS)
async def test_any_other_url_is_named_by_its_index_and_costs_no_call(
    untouched: Service, kind: str, field: str, wire: str
) -> None:
    rule = Rule(kind, field, wire, never())
    async with costing_nothing(untouched):
        for url in OTHER_URLS:
            fields = await broken_fields(untouched, create_request(rule.params([url])))
            assert fields == [f"{rule.path}[0]"], brief(url)


async def test_only_the_bad_urls_of_a_list_are_named(untouched: Service) -> None:
    good_and_bad = [URL, "a.png", URL, "", "ftp://files.example", URL]
    params = {**MINIMAL["midjourney IMG2IMG"].params, "file_urls": good_and_bad}
    fields = await broken_fields(untouched, create_request({"midjourney": params}))
    assert fields == [f"provider_params.kie.midjourney.file_urls[{index}]" for index in (1, 3, 4)]


# --- the plain fields of the request ---


@pytest.mark.parametrize(("field", "most"), [("prompt_id", 255), ("request_id", 128)])
async def test_the_callers_ids_are_returned_unchanged(
    service: Service, field: str, most: int
) -> None:
    for value in ("x", " x ", f"猫\n{SMILE}", "x" * most, SMILE * most):
        created = await service.create(None, **{field: value})
        assert getattr(created, field) == value, brief(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_id", ""),
        ("prompt_id", "x" * 256),
        ("prompt_id", SMILE * 256),
        ("prompt_id", "a\0b"),
        ("request_id", "x" * 129),
        ("request_id", SMILE * 129),
        ("request_id", "a\0b"),
        ("request_id", "\0"),
    ],
    ids=brief,
)
async def test_an_id_that_breaks_its_rule_is_named_and_costs_no_call(
    untouched: Service, field: str, value: str
) -> None:
    async with costing_nothing(untouched):
        assert await broken_fields(untouched, create_request(None, **{field: value})) == [field]


# --- no model ---

NO_KIE = pb.CreateTaskRequest(prompt_id="p")
NO_KIE.provider_params.SetInParent()
NO_MODEL = pb.CreateTaskRequest(prompt_id="p")
NO_MODEL.provider_params.kie.SetInParent()
# Members that a newer proto may have: field 15, a message with a string in its field 2.
A_NEWER_MODEL = pb.CreateTaskRequest(prompt_id="p")
A_NEWER_MODEL.provider_params.kie.MergeFromString(b"\x7a\x03\x12\x01p")
A_NEWER_PROVIDER = pb.CreateTaskRequest(prompt_id="p")
A_NEWER_PROVIDER.provider_params.MergeFromString(b"\x7a\x03\x12\x01p")


@pytest.mark.parametrize(
    ("request_without_model", "fields"),
    [
        (pb.CreateTaskRequest(prompt_id="p"), ["provider_params.kie"]),
        (NO_KIE, ["provider_params.kie"]),
        (NO_MODEL, ["provider_params.kie"]),
        (A_NEWER_MODEL, ["provider_params.kie"]),
        (A_NEWER_PROVIDER, ["provider_params", "provider_params.kie"]),
    ],
    ids=["no params", "no provider", "no model", "a newer model", "a newer provider"],
)
async def test_a_request_without_a_known_model_names_the_oneof_and_costs_no_call(
    untouched: Service, request_without_model: pb.CreateTaskRequest, fields: list[str]
) -> None:
    async with costing_nothing(untouched):
        assert await broken_fields(untouched, request_without_model) == fields


# --- all at once ---

EVERYTHING_WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "imagen4": (
        {
            "api_model": "API_MODEL_ULTRA",
            "prompt": BLANK,
            "negative_prompt": "x" * 5_001,
            "aspect_ratio": "2:1",
            "num_images": 4,
            "seed": -1,
        },
        ["prompt", "negative_prompt", "aspect_ratio", "num_images", "seed"],
    ),
    "midjourney": (
        {
            "task_type": "TASK_TYPE_TXT2IMG",
            "file_urls": [URL, "a.png"],
            "speed": 99,
            "aspect_ratio": "Auto",
            "version": "8",
            "variety": 101,
            "stylization": -1,
            "weirdness": 3_001,
            "ow": 1,
            "watermark": "a\0b",
            "video_batch_size": 1,
            "motion": "MOTION_HIGH",
        },
        [
            *("prompt", "file_urls", "file_urls[1]", "speed", "aspect_ratio", "version"),
            *("variety", "stylization", "weirdness", "ow", "watermark"),
            *("video_batch_size", "motion"),
        ],
    ),
    "veo3": (
        {
            "api_model": "API_MODEL_VEO3",
            "prompt": "x" * 5_001,
            "generation_type": "GENERATION_TYPE_REFERENCE_2_VIDEO",
            "image_urls": [URL, "ftp://files.example/a.png", URL, ""],
            "aspect_ratio": "Auto",
            "seed": 9_999,
            "watermark": "x" * 101,
            "resolution": "4K",
            "duration_seconds": 6,
        },
        [
            *("api_model", "prompt", "image_urls", "image_urls[1]", "image_urls[3]"),
            *("aspect_ratio", "seed", "watermark", "resolution", "duration_seconds"),
        ],
    ),
    "sora2": (
        {
            "api_model": "API_MODEL_IMAGE_TO_VIDEO",
            "prompt": "a\0b",
            "aspect_ratio": 99,
            "duration_seconds": 12,
            "size": "SIZE_HIGH",
        },
        ["prompt", "image_urls", "aspect_ratio", "duration_seconds", "size"],
    ),
}


@pytest.mark.parametrize("model", EVERYTHING_WRONG)
async def test_all_broken_rules_of_a_request_are_reported_at_once(
    untouched: Service, model: str
) -> None:
    params, broken = EVERYTHING_WRONG[model]
    request = create_request({model: params}, prompt_id="x" * 256, request_id="a\0b")
    expected = [f"provider_params.kie.{model}.{field}" for field in broken]
    async with costing_nothing(untouched):
        fields = await broken_fields(untouched, request)
    assert fields == sorted([*expected, "prompt_id", "request_id"])


async def test_a_missing_model_is_reported_together_with_the_other_fields(
    untouched: Service,
) -> None:
    async with costing_nothing(untouched):
        fields = await broken_fields(untouched, pb.CreateTaskRequest(request_id="x" * 129))
    assert fields == ["prompt_id", "provider_params.kie", "request_id"]


async def test_a_value_that_is_unknown_breaks_no_rule_that_spans_fields(untouched: Service) -> None:
    """The number of images depends on the kind."""
    for model, field, urls_field in (
        ("midjourney", "task_type", "file_urls"),
        ("veo3", "generation_type", "image_urls"),
        ("sora2", "api_model", "image_urls"),
    ):
        params = {"prompt": "p", field: 99, urls_field: [URL] * 3}
        fields = await broken_fields(untouched, create_request({model: params}))
        assert fields == [f"provider_params.kie.{model}.{field}"]


async def test_the_message_about_a_broken_rule_uses_the_protos_names(
    untouched: Service,
) -> None:
    request = create_request(
        {"veo3": {"prompt": "x" * 5_001, "watermark": "x" * 101, "image_urls": [LONGEST_URL + "x"]}}
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await untouched.stub.CreateTask(request, timeout=DEADLINE_SECONDS)
    assert refusal(caught.value).message.split("; ") == [
        "provider_params.kie.veo3.prompt must have at most 5000 characters",
        "provider_params.kie.veo3.image_urls[0] must have at most 2048 characters",
        "provider_params.kie.veo3.watermark must have at most 100 characters",
    ]
