"""Results: valid files, their downloads, and versions made of them."""

import json
import struct
import zlib
from typing import Any

import pytest

from providers.kie.simulator import media
from providers.kie.simulator.lettering import lit
from tests.support.kie_client import IMAGE, JOBS, MIDJOURNEY, MJ, SORA2, VEO, VEO3, Kie, running


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
async def test_a_range_of_a_result_can_be_requested(
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


async def test_a_second_request_for_a_4k_version_is_code_422_with_data(kie: Kie) -> None:
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
