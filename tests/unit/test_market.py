"""Market models at the provider: their rules, what is filled in, and whose task a record is."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from generated.generation.v1.generation_pb2 import MarketParams, ProviderParams
from providers.base import ParamsError, Recognition, Refused, Succeeded, Violation
from providers.kie.catalogue.facts import JsonSchema, bundled
from providers.kie.catalogue.known import BundledModels
from providers.kie.registry import ADAPTERS, REPLACEMENTS, TYPED_IDS, member_of
from tests.support.market_inputs import LISTED_JOBS_MODELS, minimal_input
from tests.support.scripted_kie import Wire, scripted_wire

MARKET = "provider_params.kie.market"
INPUT = f"{MARKET}.input"
ACCEPTED = b'{"code":200,"msg":"success","data":{"taskId":"task-1"}}'


def params_of(model: str, given: dict[str, Any] | None = None) -> ProviderParams:
    params = ProviderParams()
    params.kie.market.model = model
    params.kie.market.input.update(given or {})
    return params


@pytest.fixture(scope="module")
async def wire() -> AsyncIterator[Wire]:
    async with scripted_wire() as opened:
        yield opened


def refusals(wire: Wire, params: ProviderParams) -> list[Violation]:
    with pytest.raises(ParamsError) as raised:
        wire.provider.check(params)
    return raised.value.violations


# --- rules that do not depend on the model ---


@pytest.mark.parametrize(
    "model",
    ["a", "nano-banana-2", "kling-3.0/video", "a/b/c", "ai-music-api/timeStamped-lyrics", "A_1.b"],
)
def test_an_id_may_be_segments_of_letters_digits_and_signs(wire: Wire, model: str) -> None:
    params = params_of(model)
    wire.provider.check(params)
    assert wire.provider.model_of(params) == model


ID_WORDS = "must be an id such as kling-3.0/video: letters, digits, '.', '_', '-' and '/'"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("", "is required"),
        ("a" * 129, "must have at most 128 characters"),
        ("a//b", ID_WORDS),
        ("/a", ID_WORDS),
        ("a/", ID_WORDS),
        ("a b", ID_WORDS),
        ("a\n", ID_WORDS),
        ("a?b=c", ID_WORDS),
        ("a%2Fb", ID_WORDS),
        ("模型", ID_WORDS),
        ("..", ID_WORDS),
        ("a/../b", ID_WORDS),
        ("a/.", ID_WORDS),
        ("veo3", "must be sent in provider_params.kie.veo3"),
        ("veo3_fast", "must be sent in provider_params.kie.veo3"),
        ("veo3_new", "must be sent in provider_params.kie.veo3"),
        ("mj_txt2img", "must be sent in provider_params.kie.midjourney"),
        ("mj_new", "must be sent in provider_params.kie.midjourney"),
        ("midjourney", "must be sent in provider_params.kie.midjourney"),
        ("imagen4", "must be sent in provider_params.kie.imagen4"),
        ("sora2", "must be sent in provider_params.kie.sora2"),
    ],
)
def test_an_id_of_another_form_or_member_is_refused(wire: Wire, model: str, words: str) -> None:
    assert refusals(wire, params_of(model)) == [Violation(f"{MARKET}.model", words)]


def test_the_ids_of_imagen_4_and_sora_2_are_taken_by_both_members(wire: Wire) -> None:
    for model, member in TYPED_IDS.items():
        assert member_of(model) == member
        if member in {"imagen4", "sora2"}:
            wire.provider.check(params_of(model))
    assert member_of("nano-banana-2") == "market"
    assert set(ADAPTERS) == {*TYPED_IDS.values(), "market"}
    assert REPLACEMENTS["veo3_fast"] == "veo-3-1"
    assert bundled()["veo-3-1"].listed


def test_a_violation_has_its_path_inside_the_input(wire: Wire) -> None:
    given = {"image_urls": ["a", "b", "c\0"], "deep": {"list": [{"nul": "\0"}]}}
    assert sorted(refusals(wire, params_of("a?", given)), key=lambda v: v.field) == [
        Violation(f"{INPUT}.deep.list[0].nul", "must not contain NUL"),
        Violation(f"{INPUT}.image_urls[2]", "must not contain NUL"),
        Violation(f"{MARKET}.model", ID_WORDS),
    ]


def test_a_callback_url_in_the_input_is_refused(wire: Wire) -> None:
    assert refusals(wire, params_of("acme/draw", {"callBackUrl": "https://a.example"})) == [
        Violation(f"{INPUT}.callBackUrl", "must not be set: the service receives the callbacks")
    ]


def test_the_members_are_named_where_none_is_set(wire: Wire) -> None:
    assert refusals(wire, ProviderParams()) == [
        Violation("provider_params.kie", "must set one of imagen4, midjourney, veo3, sora2, market")
    ]


def test_an_input_in_json_with_1e400_is_refused(wire: Wire) -> None:
    params = params_of("acme/draw")
    json_format.Parse('{"scale": 1e400}', params.kie.market.input)
    assert refusals(wire, params) == [Violation(f"{INPUT}.scale", "must be a finite number")]


# --- rules of the model, and what is filled in ---


def test_the_params_are_completed_with_what_the_model_requires(wire: Wire) -> None:
    params = params_of("kling-3.0/video", {"duration": "10", "prompt": "a cat"})
    before = params.SerializeToString(deterministic=True)
    completed = wire.provider.complete(params)
    assert json_format.MessageToDict(completed.kie.market.input) == {
        "aspect_ratio": "16:9",
        "duration": "10",
        "mode": "pro",
        "multi_shots": False,
        "prompt": "a cat",
        "sound": False,
    }
    assert completed.kie.market.model == "kling-3.0/video"
    assert params.SerializeToString(deterministic=True) == before
    assert wire.provider.complete(completed) is completed


def test_rules_of_the_model_are_checked_with_paths_in_the_request(wire: Wire) -> None:
    params = params_of("kling-3.0/video", {"duration": 5, "image_urls": ["a", "b", 3]})
    wire.provider.check(params)
    with pytest.raises(ParamsError) as raised:
        wire.provider.complete(params)
    assert raised.value.violations == [
        Violation(f"{INPUT}.duration", 'must be the string "5"'),
        Violation(f"{INPUT}.image_urls[2]", 'must be the string "3"'),
    ]
    assert 'image_urls[2]: must be the string "3"' in str(raised.value)


@pytest.mark.parametrize("model", LISTED_JOBS_MODELS)
def test_the_smallest_valid_input_of_every_model_is_complete(wire: Wire, model: str) -> None:
    params = params_of(model, minimal_input(model))
    wire.provider.check(params)
    assert wire.provider.complete(params) is params


def test_a_model_without_a_known_schema_takes_everything(wire: Wire) -> None:
    params = params_of("acme/draw", {"anything": [1, "2"]})
    assert wire.provider.complete(params) is params


def test_params_of_typed_models_are_complete(wire: Wire) -> None:
    params = ProviderParams()
    params.kie.imagen4.prompt = "a cat"
    assert wire.provider.complete(params) is params


class ChangingModels(BundledModels):
    """The schema of a model changes after each look."""

    def __init__(self) -> None:
        self.schemas: list[JsonSchema | None] = [
            {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
            {"type": "object", "properties": {"b": {}}, "additionalProperties": False},
            None,
        ]

    def schema_of(self, model: str) -> JsonSchema | None:
        del model
        return self.schemas.pop(0)


async def test_what_was_checked_is_sent_though_the_schema_has_changed() -> None:
    async with scripted_wire(ChangingModels()) as wire:
        params = params_of("acme/draw", {"a": 1})
        assert wire.provider.complete(params) is params
        wire.kie.text = ACCEPTED
        await wire.provider.submit(params, None)
        assert wire.kie.asked["body"] == {"model": "acme/draw", "input": {"a": 1}}
        with pytest.raises(ParamsError):
            wire.provider.complete(params)
        assert wire.provider.complete(params) is params


def test_typical_durations_depend_on_what_a_model_does(wire: Wire) -> None:
    seconds = wire.provider.typical_max_seconds
    assert seconds("nano-banana-2") == seconds("imagen4")
    assert seconds("kling-3.0/video") == seconds("sora2")
    assert seconds("nano-banana-2") < seconds("ai-music-api/generate") < seconds("kling-3.0/video")
    assert seconds("acme/unheard-of") == seconds("sora2")


def test_checking_an_input_of_ten_fields_takes_microseconds(wire: Wire) -> None:
    given = {"prompt": "a cat", "resolution": "720p", "duration": 5, "aspect_ratio": "16:9"}
    given |= {f"{n}_frame_url": "https://a.example/1.png" for n in ("first", "last")}
    given |= {"web_search": True, "generate_audio": True, "nsfw_checker": False}
    params = params_of("bytedance/seedance-2", given)
    wire.provider.complete(params)
    started = time.process_time()
    for _ in range(1_000):
        wire.provider.check(params)
        wire.provider.complete(params)
    assert time.process_time() - started < 1


# --- whose task a record is ---


OURS = {"prompt": 'a "cat"\n<b>', "duration": 5, "strength": 0.5, "urls": ["a", "b"], "hd": True}


def record_of(param: Any, model: str = "acme/draw") -> bytes:
    data = {"taskId": "task-1", "model": model, "state": "waiting", "param": param}
    return json.dumps({"code": 200, "msg": "success", "data": data}).encode()


def twice_encoded(given: Any, model: str = "acme/draw") -> str:
    return json.dumps({"input": json.dumps(given), "model": model})


PARAMS: list[tuple[Any, Recognition]] = [
    (twice_encoded(OURS), Recognition.AGREES),
    (twice_encoded({**OURS, "nsfw_checker": False, "seed": 7}), Recognition.AGREES),
    (twice_encoded(dict(reversed(OURS.items()))), Recognition.AGREES),
    (json.dumps({"input": OURS, "model": "acme/draw"}), Recognition.AGREES),
    ({"input": OURS, "model": "acme/draw"}, Recognition.AGREES),
    (twice_encoded({**OURS, "duration": 5.0}), Recognition.AGREES),
    (twice_encoded({**OURS, "duration": 6}), Recognition.DIFFERS),
    (twice_encoded({**OURS, "duration": "5"}), Recognition.DIFFERS),
    (twice_encoded({**OURS, "hd": 1}), Recognition.DIFFERS),
    (twice_encoded({**OURS, "prompt": "a cat"}), Recognition.DIFFERS),
    (twice_encoded({**OURS, "urls": ["b", "a"]}), Recognition.DIFFERS),
    (twice_encoded({**OURS, "urls": ["a"]}), Recognition.DIFFERS),
    (twice_encoded({name: OURS[name] for name in ("prompt", "hd")}), Recognition.DIFFERS),
    (twice_encoded({}), Recognition.DIFFERS),
    (twice_encoded(OURS, "acme/draw-2"), Recognition.DIFFERS),
    (json.dumps({"model": "acme/draw"}), Recognition.SILENT),
    (json.dumps({"input": '{"prompt": "a', "model": "acme/draw"}), Recognition.SILENT),
    ("", Recognition.SILENT),
    (None, Recognition.SILENT),
    ("{half", Recognition.SILENT),
]


@pytest.mark.parametrize(("param", "expected"), PARAMS)
async def test_a_record_is_ours_if_it_repeats_our_model_and_input(
    wire: Wire, param: Any, expected: Recognition
) -> None:
    wire.kie.status, wire.kie.text = 200, record_of(param)
    assert await wire.provider.recognise(params_of("acme/draw", OURS), "task-1") is expected


async def test_a_record_of_another_model_is_not_ours(wire: Wire) -> None:
    wire.kie.status, wire.kie.text = 200, record_of(None, model="acme/other")
    ours = params_of("acme/draw", OURS)
    assert await wire.provider.recognise(ours, "task-1") is Recognition.DIFFERS


async def test_an_input_without_a_prompt_is_recognised(wire: Wire) -> None:
    wire.kie.status, wire.kie.text = 200, record_of(twice_encoded({"image": "a", "n": None}))
    for given, expected in (
        ({"image": "a"}, Recognition.AGREES),
        ({"n": None}, Recognition.AGREES),
        ({"image": "b"}, Recognition.DIFFERS),
        ({}, Recognition.AGREES),
    ):
        params = params_of("acme/draw", given)
        assert await wire.provider.recognise(params, "task-1") is expected


async def test_a_success_that_repeats_another_input_is_said_to_differ(wire: Wire) -> None:
    record = json.loads(record_of(twice_encoded({"prompt": "a dog"})))
    record["data"] |= {"state": "success", "resultJson": '{"resultUrls":["https://r.example/a"]}'}
    wire.kie.text = json.dumps(record).encode()
    outcome = await wire.provider.poll("acme/draw", "task-1", params_of("acme/draw", OURS))
    assert isinstance(outcome, Succeeded)
    assert outcome.differs


# --- results and refusals ---


async def test_an_object_of_megabytes_is_kept_in_part(wire: Wire) -> None:
    given = {"resultObject": {"notes": ["n" * 1_000] * 2_000}}
    data = {"taskId": "task-1", "state": "success", "response": given}
    wire.kie.text = json.dumps({"code": 200, "data": data}).encode()
    outcome = await wire.provider.poll("acme/draw", "task-1")
    assert isinstance(outcome, Succeeded)
    assert outcome.object_only
    kept = json.loads(outcome.result_json)
    assert kept["resultUrls"] == []
    assert kept["resultObjectStart"].startswith('{"resultObject": {"notes": ["nnn')
    assert len(outcome.result_json) < 100_000


SONG = {
    "audio_url": "https://r.example/a.mp3",
    "image_url": "https://r.example/a.jpeg",
    "stream_audio_url": "https://r.example/stream",
}
CAMEL_SONG = {"audioUrl": SONG["audio_url"], "streamAudioUrl": SONG["stream_audio_url"]}


@pytest.mark.parametrize("field", ["resultJson", "response"])
@pytest.mark.parametrize(
    "result",
    [
        {"data": [SONG]},
        {"response": {"data": [SONG]}},
        {"response": json.dumps({"data": [SONG]})},
        {"response": {"data": SONG}},
        {"response": {"data": [CAMEL_SONG]}},
    ],
    ids=["data", "response", "text", "one", "camel case"],
)
async def test_the_result_of_a_song_is_its_audio(wire: Wire, field: str, result: Any) -> None:
    given = json.dumps(result) if field == "resultJson" else result
    data = {"taskId": "task-1", "state": "success", field: given}
    wire.kie.text = json.dumps({"code": 200, "data": data}).encode()
    outcome = await wire.provider.poll("acme/sing", "task-1")
    assert isinstance(outcome, Succeeded)
    assert outcome.urls == (SONG["audio_url"],)
    assert json.loads(outcome.result_json)["resultUrls"] == [SONG["audio_url"]]


async def test_a_text_may_be_the_result_but_not_a_blank_one(wire: Wire) -> None:
    for text, is_result in (("la la la", True), (" ", False), ("", False)):
        given = json.dumps({"resultObject": text})
        data = {"taskId": "task-1", "state": "success", "resultJson": given}
        wire.kie.text = json.dumps({"code": 200, "data": data}).encode()
        outcome = await wire.provider.poll("acme/write", "task-1")
        assert isinstance(outcome, Succeeded)
        assert outcome.object_only is is_result
        assert json.loads(outcome.result_json)["resultObject"] == text


LYRICS = "ai-music-api/generate-lyrics"  # published: its result is an object
PERSONA = "ai-music-api/generate-persona"  # not published what its result is
IMAGE = "nano-banana-2"  # published: its results are URLs


@pytest.mark.parametrize("field", ["resultJson", "response"])
@pytest.mark.parametrize(
    ("model", "result"),
    [
        (LYRICS, {"taskId": "task-1", "data": [{"text": "la la la", "title": "Rain"}]}),
        (LYRICS, [{"text": "la la la"}]),
        (LYRICS, "la la la"),
        (PERSONA, {"personaId": "a70d", "name": "Ann"}),
        (PERSONA, {"resultUrls": [], "isAvailable": False}),
    ],
    ids=["data", "list", "text", "fields", "flag"],
)
async def test_any_content_is_the_result_of_a_model_that_does_not_deliver_urls(
    wire: Wire, field: str, model: str, result: Any
) -> None:
    given = json.dumps(result) if field == "resultJson" else result
    data = {"taskId": "task-1", "model": model, "state": "success", field: given}
    wire.kie.text = json.dumps({"code": 200, "data": data}).encode()
    outcome = await wire.provider.poll(model, "task-1")
    assert isinstance(outcome, Succeeded)
    assert outcome.object_only
    assert json.loads(outcome.result_json) == {"resultObject": result, "resultUrls": []}


@pytest.mark.parametrize(
    ("model", "result"),
    [
        (LYRICS, {}),
        (LYRICS, []),
        (LYRICS, " "),
        (LYRICS, None),
        (LYRICS, {"resultUrls": [], "taskId": "task-1"}),
        (LYRICS, {"code": 200, "msg": "success", "data": None}),
        (LYRICS, {"data": [{"text": "", "status": "complete", "errorMessage": "no words"}]}),
        (LYRICS, {"param": {"prompt": "rain"}}),
        (IMAGE, {"data": [{"text": "la la la"}]}),
        ("acme/new", {"data": [{"text": "la la la"}]}),
    ],
)
async def test_a_success_without_content_or_of_another_model_has_no_result(
    wire: Wire, model: str, result: Any
) -> None:
    data = {"taskId": "task-1", "model": model, "state": "success", "response": result}
    wire.kie.text = json.dumps({"code": 200, "data": data}).encode()
    outcome = await wire.provider.poll(model, "task-1")
    assert isinstance(outcome, Succeeded)
    assert not outcome.has_result
    assert json.loads(outcome.result_json)["record"]["taskId"] == "task-1"


async def test_a_typed_model_without_urls_has_no_result(wire: Wire) -> None:
    data = {"taskId": "task-1", "state": "success", "response": {"resultObject": {"a": 1}}}
    wire.kie.text = json.dumps({"code": 200, "data": data}).encode()
    outcome = await wire.provider.poll("imagen4", "task-1")
    assert isinstance(outcome, Succeeded)
    assert not outcome.has_result


async def test_a_refusal_is_not_judged_by_the_words_of_our_text(wire: Wire) -> None:
    text = "The model name you specified is not supported, said the poet"
    wire.kie.text = json.dumps({"code": 500, "msg": f"cannot speak: {text}"}).encode()
    for given in ({"prompt": text, "text": "x" * 500}, {"lyrics": text, "voice": "Ann"}):
        outcome = await wire.provider.submit(params_of("acme/speak", given), None)
        assert isinstance(outcome, Refused)
        assert outcome.reason == "PROVIDER_ERROR"


def test_the_order_of_keys_does_not_change_the_body() -> None:
    one, other = Struct(), Struct()
    one.update({"a": 1, "b": 2})
    other.update({"b": 2, "a": 1})
    assert MarketParams(model="m", input=one) == MarketParams(model="m", input=other)
