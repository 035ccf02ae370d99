"""Creates over a real socket: which bodies are accepted, and how they are answered.

Tasks here run for a thousand seconds unless a test ends them, so that no test depends on time.
"""

import io
from typing import Any

import pytest

from tests.support.kie_client import IMAGE, IMAGEN4, JOBS, MIDJOURNEY, MJ, RECORDS, VEO, VEO3, Kie


async def test_a_jobs_create_answers_with_an_id_of_32_hex_digits_twice(kie: Kie) -> None:
    answer = await kie.post(JOBS, IMAGEN4)
    data = answer.pop("data")
    assert answer == {"code": 200, "msg": "success"}
    assert data["taskId"] == data["recordId"]
    assert len(bytes.fromhex(data["taskId"])) == 16


@pytest.mark.parametrize(("path", "body"), [(VEO, VEO3), (MJ, MIDJOURNEY)])
async def test_a_veo_or_mj_create_answers_with_the_task_id_alone(
    kie: Kie, path: str, body: Any
) -> None:
    assert list((await kie.post(path, body))["data"]) == ["taskId"]


REFUSED = [
    (JOBS, {}),
    (JOBS, {"model": "nobody/nothing", "input": {"prompt": "a"}}),
    (VEO, {"model": "veo3"}),
    (VEO, {**VEO3, "model": "veo2"}),
    (VEO, {**VEO3, "seeds": 9_999}),
    (VEO, {**VEO3, "imageUrls": [IMAGE] * 4}),
    (VEO, {**VEO3, "duration": 5}),
    (VEO, {**VEO3, "generationType": "TEXT_2_VIDEO", "imageUrls": [IMAGE]}),
    (VEO, {**VEO3, "generationType": "FIRST_AND_LAST_FRAMES_2_VIDEO"}),
    (VEO, {**VEO3, "generationType": "REFERENCE_2_VIDEO"}),
    (VEO, {"prompt": "a", "model": "veo3", "imageUrls": [IMAGE] * 3}),
    (VEO, {**VEO3, "imageUrls": [IMAGE] * 3, "aspect_ratio": "Auto"}),
    (VEO, {**VEO3, "imageUrls": [IMAGE] * 3, "duration": 4}),
    (MJ, {"prompt": "a"}),
    (MJ, {"taskType": "mj_txt2img"}),
    (MJ, {**MIDJOURNEY, "prompt": "a" * 2001}),
    (MJ, {**MIDJOURNEY, "variety": 101}),
    (MJ, {**MIDJOURNEY, "version": "4"}),
    (MJ, {"prompt": "a", "taskType": "mj_img2img"}),
    (MJ, {"prompt": "a", "taskType": "mj_video", "fileUrls": [IMAGE, IMAGE]}),
]


@pytest.mark.parametrize(("path", "body"), REFUSED)
async def test_a_body_that_breaks_a_rule_is_code_422_and_buys_nothing(
    kie: Kie, path: str, body: Any
) -> None:
    answer = await kie.post(path, body)
    assert (answer["code"], answer["data"]) == (422, None)
    assert answer["msg"]
    assert kie.simulator.stats["purchases"]["total"] == 0


REQUIRED, TOO_LONG = "This field is required", "The text length cannot exceed the maximum limit"
NOT_ALLOWED = "is not within the range of allowed options"
BAD_FIELDS = [
    ("google/imagen4", {}, REQUIRED),
    ("google/imagen4", {"prompt": " "}, REQUIRED),
    ("google/imagen4", {"prompt": "a" * 5001}, TOO_LONG),
    ("google/imagen4", {"prompt": "a", "num_images": "5"}, f"num_images {NOT_ALLOWED}"),
    ("google/imagen4", {"prompt": "a", "num_images": 2}, f"num_images {NOT_ALLOWED}"),
    ("google/imagen4", {"prompt": "a", "aspect_ratio": "2:1"}, f"aspect_ratio {NOT_ALLOWED}"),
    ("google/imagen4", {"prompt": "a", "seed": 7}, TOO_LONG),
    ("google/imagen4-fast", {"prompt": "a", "seed": "7"}, "seed must be a whole number"),
    ("google/imagen4", "a", "input must be an object"),
    ("sora-2-image-to-video", {"prompt": "a"}, REQUIRED),
    ("sora-2-image-to-video", {"prompt": "a", "image_urls": ["x"]}, "image_urls must be"),
    ("sora-2-text-to-video", {"prompt": "a", "n_frames": "12"}, f"n_frames {NOT_ALLOWED}"),
    ("sora-2-text-to-video", {"prompt": "a", "n_frames": 15}, f"n_frames {NOT_ALLOWED}"),
]


@pytest.mark.parametrize(("model", "wanted", "words"), BAD_FIELDS)
async def test_a_bad_field_of_a_jobs_create_is_code_500_with_the_message_seen_live(
    kie: Kie, model: str, wanted: Any, words: str
) -> None:
    answer = await kie.post(JOBS, {"model": model, "input": wanted})
    assert (answer["code"], answer["data"]) == (500, None)
    assert answer["msg"].startswith(words)
    assert kie.simulator.stats["purchases"]["total"] == 0


async def test_an_unknown_model_is_code_422_with_the_message_seen_live(kie: Kie) -> None:
    answer = await kie.post(JOBS, {"model": "nobody/nothing", "input": {"prompt": "a"}})
    assert answer["code"] == 422
    assert answer["msg"].startswith("The model name you specified is not supported")


ACCEPTED = [
    (JOBS, {"model": "google/imagen4", "input": {"prompt": "a", "num_images": "2", "seed": "7"}}),
    (JOBS, {"model": "google/imagen4-fast", "input": {"prompt": "a", "seed": 7, "other": [1]}}),
    (JOBS, {"model": "sora-2-text-to-video", "input": {"prompt": "a", "n_frames": "15"}}),
    (JOBS, {"model": "sora-2-pro-image-to-video", "input": {"prompt": "a", "image_urls": [IMAGE]}}),
    (VEO, {"prompt": "a"}),
    (VEO, {**VEO3, "aspect_ratio": "9:16"}),
    (VEO, {**VEO3, "aspectRatio": "Auto", "imageUrls": [IMAGE, IMAGE]}),
    (VEO, {**VEO3, "imageUrls": [IMAGE] * 3, "duration": 8}),
    (MJ, {"prompt": "a", "taskType": "mj_img2img", "fileUrl": IMAGE}),
    (MJ, {"prompt": "a", "taskType": "mj_video", "fileUrls": [IMAGE], "version": 7}),
    (MJ, {"prompt": "a", "taskType": "mj_omni_reference", "fileUrls": [IMAGE, IMAGE], "ow": 500}),
    (MJ, {**MIDJOURNEY, "fileUrl": "", "waterMark": "", "stylization": 1}),
]


@pytest.mark.parametrize(("path", "body"), ACCEPTED)
async def test_what_real_clients_send_is_accepted(kie: Kie, path: str, body: Any) -> None:
    assert (await kie.post(path, body))["msg"] == "success"


async def test_a_bad_jobs_create_can_be_code_422_instead(kie: Kie) -> None:
    kie.simulator.update(jobs_validation_code=422)
    assert (await kie.post(JOBS, {"model": "google/imagen4", "input": {}}))["code"] == 422


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'{"a": NaN}', b"[" * 100_000])
async def test_a_body_that_is_not_a_json_object_is_refused(kie: Kie, body: bytes) -> None:
    async with kie.session.post(kie.simulator.url + JOBS, data=body) as answer:
        assert (await answer.json())["code"] == 422


async def test_a_json_body_over_a_mebibyte_is_http_413(kie: Kie) -> None:
    body = io.BytesIO(b"a" * (1024 * 1024 + 1))
    async with kie.session.post(kie.simulator.url + JOBS, data=body) as answer:
        assert answer.status == 413


@pytest.mark.parametrize(
    ("accepts", "encoding"),
    [
        ("gzip, deflate", "gzip"),
        ("deflate, GZIP;q=0.5", "gzip"),
        ("identity", None),
        ("gzip;q=0", None),
        ("", None),
    ],
)
async def test_api_answers_are_gzip_to_a_client_that_takes_it(
    kie: Kie, accepts: str, encoding: str | None
) -> None:
    headers = {"Accept-Encoding": accepts}
    for path in ("/api/v1/chat/credit", f"{RECORDS[VEO]}?taskId=x", "/api/v1/nowhere"):
        async with kie.session.get(kie.simulator.url + path, headers=headers) as answer:
            assert answer.headers.get("Content-Encoding") == encoding
            assert "code" in await answer.json()


async def test_an_unknown_path_is_404_and_a_wrong_method_405(kie: Kie) -> None:
    for method, path, status in (("GET", "/api/v1/nowhere", 404), ("GET", JOBS, 405)):
        async with kie.session.request(method, kie.simulator.url + path) as answer:
            assert answer.status == status
            assert (await answer.json())["code"] == status
