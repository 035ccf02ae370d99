"""Creates of every model of the snapshot: which inputs are accepted, and what they deliver."""

import io
import json
import wave
from typing import Any

import pytest

from providers.kie.simulator import SimulatorSettings, sound
from providers.kie.simulator.facts import all_facts
from providers.kie.simulator.inputs import check_input
from providers.kie.simulator.models import MODELS, NAMED_MODELS
from providers.kie.simulator.rules import REQUIRED, BadFieldError
from tests.support.kie_client import JOBS, Kie, bought, running
from tests.support.market_inputs import (
    JOBS_MODELS,
    LISTED_JOBS_MODELS,
    checked_fields,
    minimal_input,
    values_of_other_types,
)

NOT_ALLOWED = "is not within the range of allowed options"
IMAGE_TO_VIDEO = "hailuo/2-3-image-to-video-pro"
SONG, LYRICS = "ai-music-api/generate", "ai-music-api/generate-lyrics"
SPEECH, LAYERS = "elevenlabs/text-to-speech-multilingual-v2", "seedream/5-pro-layer-decomposition"


def refusal(model: str, given: dict[str, Any]) -> str | None:
    """Return the message with which an input is refused, or None."""
    try:
        check_input(all_facts()[model], given)
    except BadFieldError as error:
        return error.msg
    return None


async def made(kie: Kie, model: str, **changes: Any) -> Any:
    """Return the record of a task of a model that has succeeded."""
    body = {"model": model, "input": minimal_input(model) | changes}
    task_id = await kie.create(JOBS, body)
    kie.simulator.finish(task_id)
    return await kie.record(task_id)


async def test_every_model_of_the_jobs_api_is_created_and_delivers_its_results() -> None:
    assert len(LISTED_JOBS_MODELS) == 179
    async with running(tasks_max=1000) as kie:
        for model in JOBS_MODELS:
            record = await made(kie, model)
            assert (record["model"], record["state"]) == (model, "success")
            assert record["response"] == json.loads(record["resultJson"])
            assert json.loads(json.loads(record["param"])["input"]) == minimal_input(model)
        assert bought(kie) == len(JOBS_MODELS)


@pytest.mark.parametrize("model", sorted(set(JOBS_MODELS) - set(NAMED_MODELS)))
def test_an_input_that_breaks_one_published_rule_is_refused(model: str) -> None:
    valid = minimal_input(model)
    assert refusal(model, valid | {"no_such_field": 1}) is None
    for name, field in checked_fields(model):
        if field.get("required"):
            assert refusal(model, {k: v for k, v in valid.items() if k != name}) == REQUIRED
        if "enum" in field:
            for value in ("no such choice", 1.25):
                assert refusal(model, valid | {name: value}) == f"{name} {NOT_ALLOWED}"
        for value in values_of_other_types(field):
            assert refusal(model, valid | {name: value}), (name, value)


BROKEN = [
    (IMAGE_TO_VIDEO, {"image_url": "ftp://x/y"}, "image_url must be a URL"),
    (IMAGE_TO_VIDEO, {"prompt": "a" * 100_000}, "The text length cannot exceed the maximum limit"),
    (SONG, {"weirdness_constraint": 1.5}, f"weirdness_constraint {NOT_ALLOWED}"),
    (SONG, {"instrumental": "true"}, "instrumental must be true or false"),
    ("minimax-h3/text-to-video", {"duration": 6.0}, f"duration {NOT_ALLOWED}"),
    ("pixverse-v6/text-to-video", {"duration": "5"}, "duration must be a whole number"),
    ("pixverse-v6/text-to-video", {"duration": 16}, f"duration {NOT_ALLOWED}"),
    ("grok-imagine-image-2-0/segment-map", {"task_id": "a", "image_url": ""}, None),
    ("grok-imagine-image-2-0/segment-map", {"task_id": "", "image_url": ""}, REQUIRED),
    (
        "grok-imagine-image-2-0/segment-map",
        {"task_id": "a", "image_url": "https://x/y.png"},
        "only one of task_id and image_url may be given",
    ),
    ("bytedance/seedance-2", {"first_frame_url": "asset://abc"}, None),
    ("elevenlabs/text-to-dialogue-v3", {"stability": 0.25}, f"stability {NOT_ALLOWED}"),
    ("elevenlabs/text-to-dialogue-v3", {"stability": 1}, None),
]


@pytest.mark.parametrize(("model", "changes", "words"), BROKEN)
async def test_a_broken_rule_is_code_500_and_buys_nothing(
    kie: Kie, model: str, changes: dict[str, Any], words: str | None
) -> None:
    answer = await kie.post(JOBS, {"model": model, "input": minimal_input(model) | changes})
    expected = (500, words, 0) if words else (200, "success", 1)
    assert (answer["code"], answer["msg"], bought(kie)) == expected


@pytest.mark.parametrize(
    "model", ["claude-opus-5", "gemini-omni-audio", "veo3", "mj_video", "a", 7, None]
)
async def test_a_model_that_the_jobs_api_does_not_have_is_code_422(kie: Kie, model: Any) -> None:
    answer = await kie.post(JOBS, {"model": model, "input": {"prompt": "a"}})
    assert answer["code"] == 422
    assert answer["msg"].startswith("The model name you specified is not supported")


async def test_a_withdrawn_model_is_code_422_until_it_is_published_again(kie: Kie) -> None:
    body = {"model": "z-image", "input": minimal_input("z-image")}
    kie.simulator.update(withdrawn_models=["z-image"])
    answer = await kie.post(JOBS, body)
    words = "The page does not exist or is not published"
    assert answer == {"code": 422, "msg": words, "data": None}
    assert bought(kie) == 0
    kie.simulator.update(withdrawn_models=[])
    assert (await kie.post(JOBS, body))["code"] == 200


async def test_songs_are_audio_files_under_data(kie: Kie) -> None:
    response = (await made(kie, SONG, prompt="a song"))["response"]
    assert list(response) == ["data"]
    sounds = [await downloaded(kie, song["audio_url"], "audio/wav") for song in response["data"]]
    assert len(set(sounds)) == len(sounds) == 2


async def test_speech_is_an_audio_file_under_result_urls(kie: Kie) -> None:
    (url,) = (await made(kie, SPEECH))["response"]["resultUrls"]
    await downloaded(kie, url, "audio/wav")


async def test_a_sound_is_short_audible_and_the_same_each_time() -> None:
    assert sound.wav("a") == sound.wav("a") != sound.wav("b")
    for name in ("a", "name of even length", "größe"):
        with wave.open(io.BytesIO(sound.wav(name))) as file:
            assert file.getparams()[:3] == (1, 2, sound.SAMPLES_PER_SECOND)
            samples = memoryview(file.readframes(file.getnframes())).cast("h")
            assert file.getnframes() == sound.SECONDS * sound.SAMPLES_PER_SECOND
        assert max(samples) > 8_000
        assert abs(samples[-1]) < 10


async def test_an_object_is_a_success_without_files(kie: Kie) -> None:
    response = (await made(kie, LYRICS, prompt="of rain"))["response"]
    assert response == {"resultObject": {"title": "SAMPLE", "model": LYRICS, "text": "of rain"}}


async def test_a_video_with_its_last_frame_has_two_images_more(kie: Kie) -> None:
    model = "bytedance/seedance-2-fast"
    response = (await made(kie, model, prompt="a storm", return_last_frame=True))["response"]
    (video,) = response["resultUrls"]
    (first,), (last,) = response["firstFrameUrl"], response["lastFrameUrl"]
    await downloaded(kie, video, "video/mp4")
    frames = [await downloaded(kie, url, "image/png") for url in (first, last)]
    assert frames[0] != frames[1]
    without = (await made(kie, model, prompt="a storm", return_last_frame=False))["response"]
    assert list(without) == ["resultUrls"]
    (url,) = without["resultUrls"]
    async with kie.session.get(url.replace("_0.mp4", "_last.png")) as answer:
        assert answer.status == 404


async def test_layers_are_files_and_an_object(kie: Kie) -> None:
    response = (await made(kie, LAYERS))["response"]
    assert sorted(response) == ["resultObject", "resultUrls"]


@pytest.mark.parametrize(
    ("model", "changes", "files"),
    [
        ("ideogram/character", {"num_images": "3"}, 3),
        ("bytedance/seedream-v4-text-to-image", {"max_images": 2}, 2),
        ("wan/2-7-image", {"n": 1_000_000}, 15),
        ("wan/2-7-image", {"n": -1}, 1),
        (IMAGE_TO_VIDEO, {}, 1),
    ],
)
async def test_a_success_delivers_as_many_files_as_requested(
    kie: Kie, model: str, changes: dict[str, Any], files: int
) -> None:
    assert len((await made(kie, model, **changes))["response"]["resultUrls"]) == files


async def test_a_model_makes_files_of_the_kind_that_its_task_type_names() -> None:
    kinds = {
        "z-image": "png",
        "recraft/remove-background": "png",
        IMAGE_TO_VIDEO: "mp4",
        "topaz/video-upscale": "mp4",
        "volcengine/video-to-video-lip-sync": "mp4",
        "kling/ai-avatar-pro": "mp4",
        "ai-music-api/create-music-video": "mp4",
        "ai-music-api/cover-generate": "png",
        SPEECH: "wav",
        "elevenlabs/audio-isolation": "wav",
    }
    assert {name: MODELS[name].media for name in kinds} == kinds


async def test_directives_work_in_the_field_that_holds_the_text(kie: Kie) -> None:
    given = minimal_input(SPEECH) | {"text": "[sim:seconds=0][sim:fail=501 too loud]"}
    record = await kie.record(await kie.create(JOBS, {"model": SPEECH, "input": given}))
    assert (record["state"], record["failCode"], record["failMsg"]) == ("fail", "501", "too loud")


async def test_faults_and_settings_name_models_of_the_market_and_their_family() -> None:
    settings = SimulatorSettings(seconds={"market": (0, 0), "z-image": (5, 5)}, costs={"market": 3})
    async with running(settings) as kie:
        kie.simulator.add_fault("create:code,code=455,model=z-image")
        kie.simulator.add_fault("create:code,code=433,family=market")
        body = {"model": "z-image", "input": minimal_input("z-image")}
        assert [(await kie.post(JOBS, body))["code"] for _ in range(3)] == [455, 433, 200]
        (task,) = kie.simulator.tasks
        assert task["ends_ms"] - task["created_ms"] == 5_000
        assert (task["family"], task["credits"]) == ("market", 3)


async def downloaded(kie: Kie, url: str, content_type: str) -> bytes:
    async with kie.session.get(url) as answer:
        assert (answer.status, answer.content_type) == (200, content_type)
        return await answer.read()
