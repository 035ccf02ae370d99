"""The four flows, each once from start to end."""

from hashlib import sha256
from typing import Any

import aiohttp
import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.harness import Service, ended, result_urls, upload_messages

MODELS: dict[str, dict[str, Any]] = {
    "imagen4": {"prompt": "a cat", "num_images": 2},
    "midjourney": {"prompt": "a cat", "task_type": "TASK_TYPE_TXT2IMG"},
    "veo3": {"prompt": "a cat"},
    "sora2": {"prompt": "a cat"},
}


@pytest.mark.parametrize("model", MODELS)
async def test_a_task_of_each_model_is_created_watched_to_its_end_and_found_again(
    service: Service, model: str
) -> None:
    created = await service.create({model: MODELS[model]}, request_id="r-1")
    assert created.status == pb.TASK_STATUS_PENDING
    assert created.provider_task_id

    end = await service.end(created.id)
    assert end.status == pb.TASK_STATUS_SUCCESS
    assert not end.stage
    assert [artifact.url for artifact in end.artifacts] == result_urls(end)
    assert end.artifacts[0].expire_time.seconds - end.complete_time.seconds == 86_400
    assert end.request_id == "r-1"
    assert end.prompt_id == "p"
    assert await service.query(created.id) == end

    listed = await service.stub.ListTasks(pb.ListTasksRequest())
    assert list(listed.tasks) == [end]


@pytest.mark.parametrize("model", MODELS)
async def test_a_result_can_be_fetched_and_is_what_its_mime_type_says(
    service: Service, model: str
) -> None:
    end = await service.end((await service.create({model: MODELS[model]})).id)
    async with aiohttp.ClientSession() as session:
        for artifact in end.artifacts:
            async with session.get(artifact.url) as response:
                content = await response.read()
            assert response.content_type == artifact.mime_type
            magic = b"\x89PNG" if artifact.mime_type == "image/png" else b"ftyp"
            assert magic in content[:12]


async def test_an_uploaded_file_is_the_input_of_a_task(service: Service) -> None:
    content = b"\x89PNG" + bytes(300_000)
    answer = await service.stub.UploadFile(iter(upload_messages(content)))
    assert answer.file.size_bytes == len(content)
    assert answer.file.sha256 == sha256(content).digest()
    assert answer.file.mime_type == "image/png"
    assert answer.file.file_name.endswith("-cat.png")
    assert answer.file.expire_time.seconds - answer.file.upload_time.seconds == 86_400

    async with (
        aiohttp.ClientSession() as session,
        session.get(answer.file.download_url) as response,
    ):
        assert await response.read() == content

    params = {
        "prompt": "it moves",
        "task_type": "TASK_TYPE_VIDEO",
        "file_urls": [answer.file.download_url],
    }
    end = await service.end((await service.create({"midjourney": params})).id)
    assert end.status == pb.TASK_STATUS_SUCCESS
    assert service.bodies()[-1]["fileUrls"] == [answer.file.download_url]


async def test_a_watch_shows_the_stages_in_their_order(service: Service) -> None:
    service.kie.update(seconds={"veo3": [0.3, 0.3]}, direct_rate=0)
    created = await service.create({"veo3": MODELS["veo3"]})
    stages = [pb.TaskStage.Name(t.stage) async for t in service.watch(created.id) if not ended(t)]
    order = ["TASK_STAGE_QUEUED", "TASK_STAGE_GENERATING"]
    assert [stage for stage in order if stage in stages] == list(dict.fromkeys(stages))
    assert stages
