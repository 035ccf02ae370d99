"""Callbacks that tests send to the service."""

import io
from typing import Any

import aiohttp

from providers.kie.simulator import Simulator
from tests.support.harness import Service, ended
from tests.support.metrics_page import scrape

OFTEN: dict[str, Any] = {"poll_interval_seconds": 0.02}


def with_callbacks(port: int, **settings: Any) -> dict[str, Any]:
    """Return settings with which the end of a task comes from its callback: polls are slow."""
    return {
        "http_address": f"127.0.0.1:{port}",
        "public_url": f"http://127.0.0.1:{port}",
        "poll_interval_seconds": 5,
        **settings,
    }


async def post(url: str, body: Any = None, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body if body is not None else {}, headers=headers) as response,
    ):
        return response.status


async def post_raw(url: str, body: bytes, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=io.BytesIO(body), headers=headers) as response,
    ):
        return response.status


def callback_url(kie: Simulator) -> str:
    url: str = kie.tasks[-1]["callBackUrl"]
    return url


async def verdicts(service: Service) -> dict[str, int]:
    """Return how many callbacks the service has received, by verdict."""
    samples = [sample for family in (await scrape(service)).families for sample in family.samples]
    return {
        sample.labels["verdict"]: int(sample.value)
        for sample in samples
        if sample.name == "generation_callbacks_total" and sample.value
    }


async def a_while(service: Service) -> None:
    """Let another task of 0.5 s come and go: many intervals."""
    another = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.5]"}})
    await service.until(another.id, ended)


def polls_of(kie: Simulator, task_id: str) -> int:
    [task] = [task for task in kie.tasks if task["id"] == task_id]
    count: int = task["polls"]["count"]
    return count
