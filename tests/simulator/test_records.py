"""Records over a real socket: their keys, and how they change when a task ends."""

import json
from typing import Any

import pytest

from tests.support.kie_client import JOBS, MIDJOURNEY, MJ, RECORDS, SORA2, VEO, VEO3, Kie, running


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


@pytest.mark.parametrize(("path", "body"), [(JOBS, None), (VEO, VEO3)])
async def test_times_are_integer_milliseconds_of_whole_seconds(
    kie: Kie, path: str, body: Any
) -> None:
    task_id = await kie.create(path, body)
    kie.simulator.finish(task_id)
    record = await kie.record(task_id, path)
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


async def test_only_the_record_of_a_4k_version_has_no_fallback_flag(kie: Kie) -> None:
    video = await kie.create(VEO, VEO3)
    kie.simulator.finish(video)
    version = await kie.create("/api/v1/veo/get-4k-video", {"taskId": video})
    assert "fallbackFlag" in await kie.record(video, VEO)
    assert "fallbackFlag" not in await kie.record(version, VEO)


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
