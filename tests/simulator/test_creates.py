"""The simulator over a real socket: creates, records, limits, credits and results.

Tasks here run for a thousand seconds unless a test ends them, so that no test depends on time.
"""

import io
import json
import struct
import zlib
from typing import Any

import aiohttp
import pytest

from providers.kie.simulator import Simulator, media
from providers.kie.simulator.lettering import lit
from tests.support.kie_client import (
    IMAGEN4,
    JOBS,
    MIDJOURNEY,
    MJ,
    RECORDS,
    SORA2,
    STILL,
    VEO,
    VEO3,
    Kie,
    running,
)

IMAGE = "https://example.com/cat.png"


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


async def test_a_pending_jobs_record_has_the_keys_and_nulls_of_the_wire(kie: Kie) -> None:
    record = await kie.record(await kie.create())
    assert set(record) == {
        *("taskId", "model", "state", "param", "resultJson", "failCode", "failMsg"),
        *("costTime", "completeTime", "createTime", "creditsConsumed", "operationType"),
        *("successFlag", "paramJson", "response", "progress"),
    }
    shown = (record["state"], record["successFlag"], record["resultJson"])
    assert shown == ("waiting", 0, "")
    nulls = ("failCode", "failMsg", "costTime", "completeTime", "response", "progress")
    assert [record[name] for name in nulls] == [None] * 6


async def test_the_input_inside_param_is_encoded_twice(kie: Kie) -> None:
    param = json.loads((await kie.record(await kie.create()))["param"])
    assert json.loads(param["input"]) == {"prompt": "a cat"}


async def test_param_is_compact_sorted_and_holds_nothing_that_was_not_sent(kie: Kie) -> None:
    wanted = {"prompt": "größe", "nsfw_checker": False, "aspect_ratio": "1:1"}
    record = await kie.record(await kie.create(JOBS, {"model": "google/imagen4", "input": wanted}))
    inner = '{"aspect_ratio":"1:1","nsfw_checker":false,"prompt":"größe"}'
    outer = json.dumps({"input": inner, "model": "google/imagen4"}, ensure_ascii=False)
    assert record["param"] == outer.replace('": ', '":').replace(', "', ',"')
    assert record["paramJson"] == record["param"]


async def test_a_finished_jobs_record_carries_a_url_for_each_image(kie: Kie) -> None:
    wanted = {"prompt": "a cat", "num_images": "3"}
    task_id = await kie.create(JOBS, {"model": "google/imagen4-fast", "input": wanted})
    kie.simulator.finish(task_id)
    record = await kie.record(task_id)
    assert (record["state"], record["successFlag"]) == ("success", 1)
    assert len(json.loads(record["resultJson"])["resultUrls"]) == 3
    assert record["response"] == json.loads(record["resultJson"])
    assert " " not in record["resultJson"]


async def test_a_failed_jobs_record_carries_its_code_as_a_string(kie: Kie) -> None:
    task_id = await kie.create()
    kie.simulator.finish(task_id, state="fail", code="501", msg="too dark")
    record = await kie.record(task_id)
    shown = (record["state"], record["failCode"], record["failMsg"], record["resultJson"])
    assert shown == ("fail", "501", "too dark", "")
    assert (record["successFlag"], record["response"], record["creditsConsumed"]) == (3, None, 0.0)


async def test_only_a_sora_record_shows_progress(kie: Kie) -> None:
    task_id = await kie.create(JOBS, SORA2)
    assert (await kie.record(task_id))["progress"] == 0
    kie.simulator.finish(task_id)
    assert (await kie.record(task_id))["progress"] == 100


async def test_a_veo_record_has_no_response_until_it_succeeds(kie: Kie) -> None:
    task_id = await kie.create(VEO, VEO3)
    pending = await kie.record(task_id, VEO)
    kie.simulator.finish(task_id)
    done = await kie.record(task_id, VEO)
    assert (pending["successFlag"], pending["response"]) == (0, None)
    assert (done["successFlag"], done["response"]["originUrls"]) == (1, None)
    assert len(done["response"]["resultUrls"]) == 1
    assert (pending["errorMessage"], done["errorMessage"]) == (None, None)


async def test_a_veo_success_has_seeds_and_sound_and_9_16_has_equal_origin_urls(kie: Kie) -> None:
    task_id = await kie.create(VEO, {**VEO3, "aspect_ratio": "9:16", "seeds": 12_345})
    kie.simulator.finish(task_id)
    response = (await kie.record(task_id, VEO))["response"]
    assert response["originUrls"] == response["resultUrls"]
    assert (response["seeds"], response["hasAudioList"]) == ([12_345], [True])
    assert response["fullResultUrls"] is None


@pytest.mark.parametrize(("code", "flag"), [("400", 2), ("500", 3), ("501", 3)])
@pytest.mark.parametrize(("path", "body"), [(VEO, VEO3), (MJ, MIDJOURNEY)])
async def test_the_flag_of_a_failed_veo_or_mj_record_depends_on_who_failed(
    kie: Kie, path: str, body: Any, code: str, flag: int
) -> None:
    task_id = await kie.create(path, body)
    kie.simulator.finish(task_id, state="fail", code=code, msg="unsafe")
    record = await kie.record(task_id, path)
    shown = (record["successFlag"], record["errorCode"], record["errorMessage"])
    assert shown == (flag, int(code), "unsafe")


async def test_veo_times_are_integer_milliseconds_of_whole_seconds(kie: Kie) -> None:
    task_id = await kie.create(VEO, VEO3)
    kie.simulator.finish(task_id)
    record = await kie.record(task_id, VEO)
    times = [record["createTime"], record["completeTime"]]
    assert [(type(time), time % 1000) for time in times] == [(int, 0)] * 2


@pytest.mark.parametrize(
    ("times", "shape"), [("text", "2026-11-22 10:00:00"), ("iso", "2026-11-22T10:00:00")]
)
async def test_veo_times_come_in_the_format_that_is_set(kie: Kie, times: str, shape: str) -> None:
    kie.simulator.update(veo_times=times)
    created = (await kie.record(await kie.create(VEO, VEO3), VEO))["createTime"]
    assert [c.isdigit() for c in created] == [c.isdigit() for c in shape]
    assert created[10] == shape[10]


async def test_an_mj_record_holds_four_result_objects_and_millisecond_times(kie: Kie) -> None:
    task_id = await kie.create(MJ, MIDJOURNEY)
    kie.simulator.finish(task_id)
    record = await kie.record(task_id, MJ)
    assert [list(item) for item in record["resultInfoJson"]["resultUrls"]] == [["resultUrl"]] * 4
    assert record["completeTime"] >= record["createTime"] > 1_600_000_000_000


async def test_mj_echoes_the_servers_defaults_and_drops_an_empty_callback_url(kie: Kie) -> None:
    task_id = await kie.create(MJ, {**MIDJOURNEY, "callBackUrl": ""})
    param = json.loads((await kie.record(task_id, MJ))["paramJson"])
    defaults = {"motion": "high", "videoBatchSize": 1, "enableTranslation": True}
    assert param == {**defaults, **MIDJOURNEY}


@pytest.mark.parametrize("path", RECORDS)
async def test_an_unknown_task_is_code_422_and_null(kie: Kie, path: str) -> None:
    answer = await kie.get(RECORDS[path], taskId="f" * 32)
    assert (answer["code"], answer["data"]) == (422, None)
    assert answer["msg"].endswith("is null")


async def test_a_new_task_is_not_visible_at_first() -> None:
    async with running(visible_after_seconds=1000) as kie:
        answer = await kie.get(RECORDS[JOBS], taskId=await kie.create())
    assert answer == {"code": 422, "msg": "recordInfo is null", "data": None}


async def test_a_task_is_not_found_through_another_api(kie: Kie) -> None:
    task_id = await kie.create(VEO, VEO3)
    assert (await kie.get(RECORDS[JOBS], taskId=task_id))["code"] == 422


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


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"[" * 100_000])
async def test_a_body_that_is_not_a_json_object_is_refused(kie: Kie, body: bytes) -> None:
    async with kie.session.post(kie.simulator.url + JOBS, data=body) as answer:
        assert (await answer.json())["code"] == 422


async def test_a_json_body_over_a_mebibyte_is_http_413(kie: Kie) -> None:
    body = io.BytesIO(b"a" * (1024 * 1024 + 1))
    async with kie.session.post(kie.simulator.url + JOBS, data=body) as answer:
        assert answer.status == 413


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer "}, {"Authorization": "any-key"}])
async def test_a_request_without_a_key_is_code_401_in_http_200(header: dict[str, str]) -> None:
    async with Simulator(STILL) as simulator, aiohttp.ClientSession(headers=header) as session:
        for method, path in (("POST", JOBS), ("GET", RECORDS[VEO]), ("GET", "/api/v1/chat/credit")):
            async with session.request(method, simulator.url + path, json={}) as answer:
                assert answer.status == 200
                assert await answer.json() == {
                    "code": 401,
                    "msg": "You do not have access permissions",
                    "data": None,
                }


async def test_with_a_key_set_every_other_key_is_refused() -> None:
    async with running(api_key="the-key") as kie:
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 401
        kie.session.headers["Authorization"] = "Bearer the-key"
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 200


async def test_a_burst_over_the_limit_is_refused_with_code_429_and_not_queued() -> None:
    async with running(creates_per_window=20) as kie:
        codes = [(await kie.post(JOBS, IMAGEN4))["code"] for _ in range(25)]
        assert codes == [200] * 20 + [429] * 5
        assert kie.simulator.stats["purchases"]["total"] == 20
        assert kie.simulator.stats["creates_refused"] == {"429": 5}
        assert kie.simulator.stats["peaks"]["creates_in_a_window"] == 25


async def test_the_limit_of_creates_is_held_for_each_key_alone() -> None:
    async with running(creates_per_window=1) as kie:
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 200
        assert (await kie.post(VEO, VEO3))["code"] == 429
        kie.session.headers["Authorization"] = "Bearer another-key"
        assert (await kie.post(VEO, VEO3))["code"] == 200


async def test_an_exceeded_limit_can_be_http_429_too() -> None:
    async with running(creates_per_window=1, http_429=True) as kie:
        await kie.create()
        async with kie.session.post(kie.simulator.url + JOBS, json=IMAGEN4) as answer:
            assert (answer.status, (await answer.json())["code"]) == (429, 429)


async def test_the_eleventh_record_query_in_a_second_is_code_429() -> None:
    async with running(records_per_second=10) as kie:
        task_id = await kie.create()
        codes = [(await kie.get(RECORDS[JOBS], taskId=task_id))["code"] for _ in range(11)]
    assert codes == [200] * 10 + [429]


async def test_no_more_tasks_run_than_allowed() -> None:
    async with running(max_running=2) as kie:
        first = await kie.create()
        await kie.create()
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 429
        kie.simulator.finish(first)
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 200


async def test_a_create_is_code_402_when_credits_run_out() -> None:
    async with running(credits=10, costs={"imagen4": 4.5}) as kie:
        codes = [(await kie.post(JOBS, IMAGEN4))["code"] for _ in range(3)]
        assert codes == [200, 200, 402]
        assert (await kie.get("/api/v1/chat/credit"))["data"] == 1.0


async def balance(kie: Kie) -> float:
    left = (await kie.get("/api/v1/chat/credit"))["data"]
    assert isinstance(left, float)
    return left


async def test_a_task_that_fails_costs_nothing() -> None:
    async with running(credits=10, costs={"imagen4": 4.5}) as kie:
        task_id = await kie.create()
        assert await balance(kie) == 5.5
        kie.simulator.finish(task_id, state="fail")
        assert await balance(kie) == 10
        assert kie.simulator.stats["credits"] == {"balance": 10, "spent": 0}


async def test_a_task_that_fails_by_itself_is_refunded_once() -> None:
    async with running(credits=10, seconds={"imagen4": (0, 0)}, fail_rate=1) as kie:
        await kie.create()
        assert [await balance(kie), await balance(kie)] == [10, 10]


async def test_a_failure_that_becomes_a_success_costs_after_all(kie: Kie) -> None:
    kie.simulator.update(credits=10)
    task_id = await kie.create()
    kie.simulator.finish(task_id, state="fail")
    kie.simulator.finish(task_id, state="fail")
    assert await balance(kie) == 10
    kie.simulator.finish(task_id)
    assert await balance(kie) == 6


async def test_a_record_has_the_credits_before_the_task_ends(kie: Kie) -> None:
    credits_ = (await kie.record(await kie.create()))["creditsConsumed"]
    assert (type(credits_), credits_) == (float, 4.0)


async def test_images_are_valid_differ_and_have_the_requested_aspect_ratio(kie: Kie) -> None:
    wanted = {"prompt": "a cat", "num_images": "2", "aspect_ratio": "9:16"}
    task_id = await kie.create(JOBS, {"model": "google/imagen4", "input": wanted})
    kie.simulator.finish(task_id)
    urls = json.loads((await kie.record(task_id))["resultJson"])["resultUrls"]
    first, second = [await downloaded(kie, url, "image/png") for url in urls]
    assert first != second
    assert struct.unpack(">II", first[16:24]) == (288, 512)
    pixels = first[first.index(b"IDAT") + 4 : first.index(b"IEND") - 8]
    assert len(zlib.decompress(pixels)) == 512 * (1 + 288 * 3)


async def test_an_image_shows_sample_the_model_and_the_prompt(kie: Kie) -> None:
    words = media.png("a", (512, 512), ["google/imagen4-fast", "a cat"])
    other = media.png("a", (512, 512), ["google/imagen4-fast", "a dog"])
    task_id = await kie.create()
    kie.simulator.finish(task_id)
    name = f"{task_id}_0.png"
    shown = await downloaded(kie, f"{kie.simulator.url}/results/{name}", "image/png")
    assert shown == media.png(name, (512, 288), ["google/imagen4-fast", "a cat"])
    assert len({words, other, media.png("a", (512, 512))}) == 3


def test_every_dot_of_a_text_lies_inside_the_image() -> None:
    for size in ((512, 256), (256, 512), (512, 512)):
        rows = lit([("SAMPLE", 6), ("größe " * 400, 2)], size)
        assert rows
        assert min(rows) > 0
        assert max(rows) < size[1]
        dots = [dot for runs in rows.values() for run in runs for dot in run]
        assert min(dots) > 0
        assert max(dots) < size[0]


async def test_videos_are_mp4_and_differ(kie: Kie) -> None:
    first_id, second_id = await kie.create(VEO, VEO3), await kie.create(JOBS, SORA2)
    names = [f"{task_id}_0.mp4" for task_id in (first_id, second_id)]
    kie.simulator.finish(first_id)
    kie.simulator.finish(second_id)
    first, second = [
        await downloaded(kie, f"{kie.simulator.url}/results/{name}", "video/mp4") for name in names
    ]
    assert first != second
    assert first[4:8] == b"ftyp"


async def downloaded(kie: Kie, url: str, content_type: str) -> bytes:
    async with kie.session.get(url) as answer:
        assert (answer.status, answer.content_type) == (200, content_type)
        return await answer.read()


async def test_a_result_is_not_there_before_its_task_succeeds(kie: Kie) -> None:
    task_id = await kie.create()
    async with kie.session.get(f"{kie.simulator.url}/results/{task_id}_0.png") as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    ("asked", "status", "length"),
    [("bytes=0-9", 206, 10), ("bytes=-5", 206, 5), ("bytes=99999-", 416, 0)],
)
async def test_a_part_of_a_result_can_be_asked_for(
    kie: Kie, asked: str, status: int, length: int
) -> None:
    task_id = await kie.create(VEO, VEO3)
    kie.simulator.finish(task_id)
    url = f"{kie.simulator.url}/results/{task_id}_0.mp4"
    async with kie.session.get(url, headers={"Range": asked}) as answer:
        assert (answer.status, len(await answer.read())) == (status, length)


async def test_a_download_link_is_given_for_own_results_only(kie: Kie) -> None:
    task_id = await kie.create()
    kie.simulator.finish(task_id)
    url = f"{kie.simulator.url}/results/{task_id}_0.png"
    link = (await kie.post("/api/v1/common/download-url", {"url": url}))["data"]
    assert await downloaded(kie, link, "image/png") == await downloaded(kie, url, "image/png")
    async with kie.session.get(url, params={"expires": "1"}) as answer:
        assert answer.status == 403
    for wrong in (IMAGE, f"{IMAGE}/results/{task_id}_0.png", f"{kie.simulator.url}/results/x", 7):
        other = await kie.post("/api/v1/common/download-url", {"url": wrong})
        assert other == {"code": 422, "msg": "url is wrong", "data": None}


async def test_a_download_link_has_the_host_that_was_asked(kie: Kie) -> None:
    task_id = await kie.create()
    kie.simulator.finish(task_id)
    asked = kie.simulator.url.replace("127.0.0.1", "localhost")
    url = f"{kie.simulator.url}/results/{task_id}_0.png"
    link = f"{asked}/api/v1/common/download-url"
    async with kie.session.post(link, json={"url": url}) as answer:
        assert (await answer.json())["data"].startswith(f"{asked}/results/{task_id}_0.png?")


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


async def test_a_video_can_be_extended_once_it_has_succeeded(kie: Kie) -> None:
    task_id = await kie.create(VEO, VEO3)
    order = {"taskId": task_id, "prompt": "on and on"}
    assert (await kie.post("/api/v1/veo/extend", order))["code"] == 422
    kie.simulator.finish(task_id)
    longer_id = await kie.create("/api/v1/veo/extend", order)
    kie.simulator.finish(longer_id)
    assert (await kie.record(longer_id, VEO))["response"]["fullResultUrls"]


async def test_a_video_that_went_through_1080p_is_not_extended(kie: Kie) -> None:
    task_id = await kie.create(VEO, VEO3)
    kie.simulator.finish(task_id)
    await kie.get("/api/v1/veo/get-1080p-video", taskId=task_id)
    answer = await kie.post("/api/v1/veo/extend", {"taskId": task_id, "prompt": "on and on"})
    assert (answer["code"], answer["data"]) == (422, None)


async def test_a_1080p_version_is_available_some_time_after_its_video() -> None:
    async with running(speed=1e9, seconds={"veo3": (0, 0)}) as kie:
        task_id = await kie.create(VEO, VEO3)
        kie.simulator.finish(task_id)
        answer = await kie.get("/api/v1/veo/get-1080p-video", taskId=task_id, index="0")
        await downloaded(kie, answer["data"]["resultUrl"], "video/mp4")
        kie.simulator.update(speed=0.001)
        waiting = await kie.get("/api/v1/veo/get-1080p-video", taskId=task_id)
        assert waiting["code"] == 400
        assert waiting["msg"].startswith("1080P is processing")


async def test_a_4k_version_asked_for_again_is_code_422_with_data(kie: Kie) -> None:
    path, order = "/api/v1/veo/get-4k-video", {"taskId": await kie.create(VEO, VEO3)}
    kie.simulator.finish(order["taskId"])
    first = await kie.post(path, order)
    again = await kie.post(path, order)
    kie.simulator.finish(first["data"]["taskId"])
    done = await kie.post(path, order)
    assert (first["code"], first["data"]["resultUrls"]) == (200, None)
    assert (again["code"], again["data"]) == (422, first["data"])
    assert done["code"] == 422
    assert len(done["data"]["resultUrls"]) == 1
    assert kie.simulator.stats["purchases"]["by_model"]["veo_4k"] == 1


@pytest.mark.parametrize(
    ("path", "extra", "results"),
    [
        ("generateUpscale", {"imageIndex": 0}, 1),
        ("generateVary", {"imageIndex": 3}, 4),
        ("generateVideoExtend", {"taskType": "mj_video_extend_auto", "index": 0}, 1),
    ],
)
async def test_midjourney_follow_ups_are_separate_tasks(
    kie: Kie, path: str, extra: Any, results: int
) -> None:
    source = await kie.create(MJ, MIDJOURNEY)
    kie.simulator.finish(source)
    task_id = await kie.create(f"/api/v1/mj/{path}", {"taskId": source, **extra})
    kie.simulator.finish(task_id)
    record = await kie.record(task_id, MJ)
    assert len(record["resultInfoJson"]["resultUrls"]) == results


async def test_an_unknown_path_is_404_and_a_wrong_method_405(kie: Kie) -> None:
    for method, path, status in (("GET", "/api/v1/nowhere", 404), ("GET", JOBS, 405)):
        async with kie.session.request(method, kie.simulator.url + path) as answer:
            assert answer.status == status
            assert (await answer.json())["code"] == status
