"""A client of a simulator on a socket, and the bodies that it sends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp

from providers.kie.simulator import Simulator, SimulatorSettings
from tests.support.waiting import eventually

STILL = SimulatorSettings(
    seconds=dict.fromkeys(("imagen4", "midjourney", "veo3", "sora2", "market"), (1000.0, 1000.0)),
    visible_after_seconds=0,
    creates_per_window=0,
    records_per_second=0,
    direct_rate=0,
    queuing_rate=0,
)
IMAGE = "https://example.com/cat.png"
IMAGEN4 = {"model": "google/imagen4-fast", "input": {"prompt": "a cat"}}
SORA2 = {"model": "sora-2-text-to-video", "input": {"prompt": "a cat"}}
VEO3 = {"prompt": "a cat", "model": "veo3_fast"}
MIDJOURNEY = {"prompt": "a cat", "taskType": "mj_txt2img"}
JOBS, VEO, MJ = "/api/v1/jobs/createTask", "/api/v1/veo/generate", "/api/v1/mj/generate"
RECORDS = {
    JOBS: "/api/v1/jobs/recordInfo",
    VEO: "/api/v1/veo/record-info",
    MJ: "/api/v1/mj/record-info",
}
ORDERS = [(JOBS, IMAGEN4), (JOBS, SORA2), (VEO, VEO3), (MJ, MIDJOURNEY)]


class Kie:
    """A running simulator and a client of it."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session

    async def post(self, path: str, body: Any) -> Any:
        async with self.session.post(self.simulator.url + path, json=body) as answer:
            assert answer.status == 200
            return await answer.json()

    async def get(self, path: str, **query: str) -> Any:
        async with self.session.get(self.simulator.url + path, params=query) as answer:
            assert answer.status == 200
            return await answer.json()

    async def create(self, path: str = JOBS, body: Any = None) -> str:
        answer = await self.post(path, body or IMAGEN4)
        assert answer["code"] == 200, answer
        task_id = answer["data"]["taskId"]
        assert isinstance(task_id, str)
        return task_id

    async def record(self, task_id: str, path: str = JOBS) -> Any:
        answer = await self.get(RECORDS[path], taskId=task_id)
        assert answer["code"] == 200, answer
        return answer["data"]


@asynccontextmanager
async def running(settings: SimulatorSettings = STILL, **changes: Any) -> AsyncIterator[Kie]:
    headers = {"Authorization": "Bearer any-key"}
    async with (
        Simulator(replace(settings, **changes)) as simulator,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        yield Kie(simulator, session)


STREAM, BASE64 = "/api/file-stream-upload", "/api/file-base64-upload"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)


def form(order: str = "file uploadPath fileName", **values: str) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    for name in order.split():
        if name == "file":
            data.add_field("file", PNG, filename="cat.png", content_type="image/png")
        else:
            data.add_field(name, values.get(name, {"uploadPath": "cats"}.get(name, "tom.png")))
    return data


async def upload(kie: Kie, data: Any) -> Any:
    async with kie.session.post(kie.simulator.url + STREAM, data=data) as answer:
        assert answer.status == 200
        return await answer.json()


def bought(kie: Kie) -> int:
    total = kie.simulator.stats["purchases"]["total"]
    assert isinstance(total, int)
    return total


async def raw(kie: Kie, path: str = JOBS, body: Any = None) -> tuple[int, bytes]:
    url = kie.simulator.url + path
    async with kie.session.post(url, json=body or IMAGEN4) as answer:
        return answer.status, await answer.read()


async def settled(kie: Kie) -> None:
    await eventually(lambda: kie.simulator.stats["callbacks"]["waiting"] == 0)
