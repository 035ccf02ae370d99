"""The adapters against golden files, in both directions and over HTTP.

    tests/unit/golden/<where>/<direction>-<the fact>.json

`where` is a model, `jobs` or `success_flag` for the two models that share an API, or `every` model.
The files are written by hand from the contract and from what is known of Kie's API (docs/kie.md),
never from the output of this code.

    direction   what it says
    request     params: the model's message -> path and body of the paid request
    create      status and answer of the paid request -> outcome
    record      status and answer of a poll for task_id -> outcome

An answer is JSON (`answer`) or, where it matters to the letter, `text`. An outcome is the name of
its class with its fields; what is None is left out, and so is `detail`, which is for the log.
"""

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from generated.generation.v1 import generation_pb2 as pb
from providers.base import (
    Failed,
    Inconclusive,
    Poll,
    Refused,
    Submission,
    Succeeded,
    Unknown,
)
from providers.kie.client import KieProvider
from providers.kie.envelope import (
    UnreadableAnswerError,
    parse_envelope,
    read_submission,
    unreadable_record,
)
from providers.kie.media_types import mime_type
from providers.kie.registry import ADAPTERS
from tests.support.scripted_kie import Wire, scripted_wire

GOLDEN = Path(__file__).parent / "golden"
DIRECTIONS = ("request", "create", "record")
MODELS = ("imagen4", "midjourney", "veo3", "sora2", "market")
MODELS_IN = {
    **{model: (model,) for model in MODELS},
    "jobs": ("imagen4", "sora2", "market"),
    "success_flag": ("midjourney", "veo3"),
    "every": MODELS,
}
RECORD_PATHS = {
    "imagen4": "/api/v1/jobs/recordInfo",
    "midjourney": "/api/v1/mj/record-info",
    "veo3": "/api/v1/veo/record-info",
    "sora2": "/api/v1/jobs/recordInfo",
    "market": "/api/v1/jobs/recordInfo",
}
MINIMAL: dict[str, dict[str, Any]] = {
    "imagen4": {"prompt": "a cat"},
    "midjourney": {"prompt": "a cat", "task_type": "TASK_TYPE_TXT2IMG"},
    "veo3": {"prompt": "a cat"},
    "sora2": {"prompt": "a cat"},
    "market": {"model": "acme/draw", "input": {"prompt": "a cat"}},
}
VARIANTS: list[tuple[str, str, Any]] = [
    ("imagen4", "api_model", pb.Imagen4Params.ApiModel),
    ("midjourney", "task_type", pb.MidjourneyParams.TaskType),
    ("veo3", "api_model", pb.Veo3Params.ApiModel),
    ("veo3", "generation_type", pb.Veo3Params.GenerationType),
    ("sora2", "api_model", pb.Sora2Params.ApiModel),
]
UNSHOWN = ("detail", "answer", "record")  # for the log, or for an operator
UNSHOWN_VALUES = {
    "provider_task_id": "",
    "reached": True,
    "differs": False,
    "account": False,
    "object_only": False,
}
TASK_ID = "task-1"
ACCEPTED = b'{"code":200,"msg":"success","data":{"taskId":"task-1"}}'


def goldens(direction: str) -> list[Any]:
    """Return (model, content) of every golden file of a direction, for each model it is about."""
    return [
        pytest.param(
            model,
            json.loads(file.read_text()),
            id=f"{model}-{file.stem.removeprefix(f'{direction}-')}",
        )
        for file in sorted(GOLDEN.glob(f"*/{direction}-*.json"))
        for model in MODELS_IN[file.parent.name]
    ]


@pytest.fixture(scope="module")
async def wire() -> AsyncIterator[Wire]:
    async with scripted_wire() as opened:
        yield opened


def params_of(model: str, params: dict[str, Any]) -> pb.ProviderParams:
    return json_format.ParseDict({"kie": {model: params}}, pb.ProviderParams())


def exact(value: Any) -> str:
    """JSON text, as Python thinks that 1 == 1.0 == True."""
    return json.dumps(value, sort_keys=True, indent=1)


def shown(outcome: Submission | Poll) -> dict[str, Any]:
    """An outcome as the golden files show it."""
    if isinstance(outcome, Inconclusive):
        return {type(outcome).__name__: {}}
    fields = {
        name: value
        for name, value in asdict(outcome).items()
        if value is not None and name not in UNSHOWN and UNSHOWN_VALUES.get(name) != value
    }
    if isinstance(outcome, Succeeded):
        fields["result_json"] = strict_json(outcome.result_json)
    return {type(outcome).__name__: fields}


def strict_json(text: str) -> Any:
    """Read strict JSON: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def read(model: str, text: bytes) -> Poll:
    """Read a record without a network, as the provider does."""
    try:
        envelope = parse_envelope(200, text)
    except UnreadableAnswerError as error:
        return unreadable_record(error)
    return ADAPTERS[model].read(envelope)


# --- the golden files ---


@pytest.mark.parametrize(("model", "golden"), goldens("request"))
async def test_the_params_become_the_documented_request(
    wire: Wire, model: str, golden: dict[str, Any]
) -> None:
    wire.kie.status, wire.kie.text = 200, ACCEPTED
    params = params_of(model, golden["params"])
    wire.provider.check(params)
    await wire.provider.submit(params, None)
    assert (wire.kie.asked["method"], wire.kie.asked["path"]) == ("POST", golden["path"])
    assert exact(wire.kie.asked["body"]) == exact(golden["body"])


@pytest.mark.parametrize(("model", "golden"), goldens("create"))
async def test_a_response_to_the_paid_request_has_its_documented_meaning(
    wire: Wire, model: str, golden: dict[str, Any]
) -> None:
    wire.kie.will_answer(golden)
    outcome = await wire.provider.submit(params_of(model, MINIMAL[model]), None)
    assert exact(shown(outcome)) == exact(golden["outcome"])


@pytest.mark.parametrize(("model", "golden"), goldens("record"))
async def test_a_record_has_its_documented_meaning(
    wire: Wire, model: str, golden: dict[str, Any]
) -> None:
    wire.kie.will_answer(golden)
    outcome = await wire.provider.poll(model, golden.get("task_id", TASK_ID))
    assert exact(shown(outcome)) == exact(golden["outcome"])


def test_no_golden_file_is_left_unread() -> None:
    files = [file for file in GOLDEN.rglob("*") if file.is_file()]
    unread = [
        file
        for file in files
        if file.parent.parent != GOLDEN
        or file.parent.name not in MODELS_IN
        or file.suffix != ".json"
        or not file.name.startswith(tuple(f"{direction}-" for direction in DIRECTIONS))
    ]
    assert files
    assert unread == []


@pytest.mark.parametrize(("model", "field_name", "enum"), VARIANTS)
def test_every_variant_of_a_model_has_a_golden_request(
    model: str, field_name: str, enum: Any
) -> None:
    files = GOLDEN.glob(f"{model}/request-*.json")
    tested = {json.loads(file.read_text())["params"].get(field_name) for file in files}
    _unspecified, *variants = enum.keys()
    assert tested - {None} == set(variants)


def test_kie_keeps_results_for_a_day_or_for_two_weeks() -> None:
    assert KieProvider.result_seconds == 24 * 3_600
    assert KieProvider.delivery_seconds == 14 * 24 * 3_600


# --- what no single file contains ---


@pytest.mark.parametrize("model", MODELS)
async def test_the_callback_url_is_at_the_top_level_of_the_body(wire: Wire, model: str) -> None:
    wire.kie.status, wire.kie.text = 200, ACCEPTED
    params = params_of(model, MINIMAL[model])
    await wire.provider.submit(params, None)
    without = wire.kie.asked["body"]
    await wire.provider.submit(params, "https://us.example/callbacks/1")
    assert wire.kie.asked["body"] == {**without, "callBackUrl": "https://us.example/callbacks/1"}


@pytest.mark.parametrize("model", MODELS)
async def test_a_record_is_requested_by_its_id_at_its_models_path(wire: Wire, model: str) -> None:
    await wire.provider.poll(model, "id/with &=+ 猫")
    assert wire.kie.asked == {
        "method": "GET",
        "path": RECORD_PATHS[model],
        "query": {"taskId": "id/with &=+ 猫"},
        "body": None,
    }


def test_every_model_is_tested() -> None:
    assert set(ADAPTERS) == set(MODELS)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x.example/a.png", "image/png"),
        ("https://x.example/a.PNG?name=b.mp4#c.gif", "image/png"),
        ("https://x.example/a.jpg", "image/jpeg"),
        ("https://x.example/a.jpeg", "image/jpeg"),
        ("https://x.example/a.webp", "image/webp"),
        ("https://x.example/a.gif", "image/gif"),
        ("https://x.example/a.mp4", "video/mp4"),
        ("https://x.example/a.mov", "video/quicktime"),
        ("https://x.example/a.webm", "video/webm"),
        ("https://x.example/a.tar.gz", "application/gzip"),
        ("https://x.example/a.ZIP", "application/zip"),
        ("https://x.example/a.mp3?x=1", "audio/mpeg"),
        ("https://x.example/a.wav", "audio/wav"),
        ("https://x.example/a.mid", "audio/midi"),
        ("https://x.example/a.srt", "application/x-subrip"),
        ("https://x.example/a.vtt", "text/vtt"),
        ("https://x.example/a.glb", "model/gltf-binary"),
        ("https://x.example/a.obj", "model/obj"),
        ("https://x.example/a.svg", "image/svg+xml"),
        ("https://x.example/a.exe", "application/octet-stream"),
        ("https://x.example/png", "application/octet-stream"),
        ("https://x.example", "application/octet-stream"),
        ("https://[x.example/a.png", "application/octet-stream"),
    ],
)
def test_the_media_type_is_what_the_urls_path_ends_in(url: str, expected: str) -> None:
    assert mime_type(url) == expected


@pytest.fixture
def in_tokyo() -> Iterator[None]:
    """A process in a time zone nine hours ahead of UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


def test_a_time_without_an_offset_is_utc_wherever_the_service_runs(in_tokyo: None) -> None:
    data = {"successFlag": 2, "completeTime": "2025-06-06 10:30:00"}
    outcome = read("veo3", json.dumps({"code": 200, "data": data}).encode())
    assert isinstance(outcome, Failed)
    assert outcome.complete_time == 1749205800.0


# --- any answer ---


def assert_harmless(outcome: Submission | Poll) -> None:
    """Assert that any database and any message can store the outcome, and JSON its result."""
    for value in asdict(outcome).values():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                assert "\0" not in text
                text.encode()
    if isinstance(outcome, Succeeded):
        assert isinstance(strict_json(outcome.result_json)["resultUrls"], list)
        assert len(outcome.urls) == len(outcome.mime_types)


RECORDS: dict[str, list[dict[str, Any]]] = {
    "jobs": [
        {
            "state": state,
            "progress": 5,
            "resultJson": {"resultUrls": ["https://x.example/a.png"]},
            "failCode": "500",
            "failMsg": "no",
            "creditsConsumed": 4.5,
            "completeTime": 1777539378147,
        }
        for state in ("generating", "success", "fail")
    ],
    "success_flag": [
        {
            "successFlag": flag,
            "response": {"resultUrls": ["https://x.example/a.mp4"]},
            "resultInfoJson": {"resultUrls": [{"resultUrl": "https://x.example/a.png"}]},
            "errorCode": 500,
            "errorMessage": "no",
            "creditsConsumed": 4.5,
            "completeTime": "2025-06-06 10:30:00",
        }
        for flag in (0, 1, 2, 3)
    ],
}
ODD_VALUES = [  # as JSON
    *("null", "true", "false", "0", "-1", "1.5", "1e999", "-1e999", "9" * 400, "9" * 5_000),
    *(r'""', r'" "', r'"\u0000"', r'"\ud800"', r'"["', r'"{"', r'"NaN"', r'"1e999"'),
    *(r'"9999-99-99"', r'"9999-12-31T23:59:59-23:59"', r'"0001-01-01T00:00:00+23:59"'),
    *("[]", "{}", "[[]]", "[null]", r'{"\ud800":"\u0000"}', '"' + "x" * 100_000 + '"'),
    *(r'{"resultUrls":{}}', r'{"resultUrls":[1e999]}', r'{"resultUrls":[{"resultUrl":[]}]}'),
    r'{"resultUrls":["http://[\u0000\ud800"]}',
    r'"{\"resultUrls\":[\"http://\\ud800\"]}"',
]


def spoiled_records() -> Iterator[tuple[str, str]]:
    """Yield (model, answer) with each odd value in the place of each field of each record."""
    for family, records in RECORDS.items():
        for record in records:
            for name in record:
                for odd in ODD_VALUES:
                    whole = json.dumps({"code": 200, "msg": "ok", "data": {**record, name: "@"}})
                    for model in MODELS_IN[family]:
                        yield model, whole.replace('"@"', odd)


def test_no_value_of_any_field_of_a_record_does_harm() -> None:
    for model, text in spoiled_records():
        outcome = read(model, text.encode())
        try:
            assert_harmless(outcome)
        except AssertionError as error:
            raise AssertionError(f"{model}: {text[:500]} became {outcome}") from error


@pytest.mark.parametrize("part", ["code", "msg", "message", "data"])
@pytest.mark.parametrize("code", [200, 422, 501])
def test_no_value_of_any_part_of_an_envelope_does_harm(part: str, code: int) -> None:
    for odd in ODD_VALUES:
        whole = json.dumps({"code": code, part: "@"}).replace('"@"', odd)
        for model in MODELS:
            assert_harmless(read(model, whole.encode()))
        with suppress(UnreadableAnswerError):
            assert_harmless(read_submission(parse_envelope(200, whole.encode())))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("encoded_twice", [False, True])
def test_no_depth_of_nesting_does_harm(model: str, encoded_twice: bool) -> None:
    """Around the depth at which Python's reader gives up, its writer may give up first."""
    for depth in (10, *range(850, 1_010), 2_000, 100_000):
        deep = "[" * depth + "]" * depth
        result = '{"resultUrls":["https://x.example/a.png"],"deep":' + deep + "}"
        held = json.dumps(result) if encoded_twice else result
        record = f'{{"state":"success","successFlag":1,"resultJson":{held},"response":{held},'
        record += f'"resultInfoJson":{held},"param":{json.dumps(deep)}}}'
        assert_harmless(read(model, f'{{"code":200,"data":{record}}}'.encode()))


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\x00", b"\x80", b'{"code":\xff}', b"\x00", b"\x1f\x8b\x08\x00"]
)
async def test_bytes_that_are_not_text_are_inconclusive_and_unknown(
    wire: Wire, text: bytes
) -> None:
    wire.kie.status, wire.kie.text = 200, text
    for model in MODELS:
        assert isinstance(await wire.provider.poll(model, TASK_ID), Inconclusive)
        submission = await wire.provider.submit(params_of(model, MINIMAL[model]), None)
        assert isinstance(submission, Unknown)


def test_words_of_any_length_are_cut() -> None:
    text = json.dumps({"code": 501, "msg": "猫" * 100_000}).encode()
    refused = read_submission(parse_envelope(200, text))
    failed = read("veo3", text)
    assert isinstance(refused, Refused)
    assert isinstance(failed, Failed)
    assert refused.message == failed.message == "猫" * 1_000


def test_a_result_has_at_most_a_thousand_urls() -> None:
    urls = [f"https://x.example/{number}.png" for number in range(1_500)]
    data = {"state": "success", "resultJson": {"resultUrls": urls}}
    outcome = read("imagen4", json.dumps({"code": 200, "data": data}).encode())
    assert isinstance(outcome, Succeeded)
    assert list(outcome.urls) == urls[:1_000]
