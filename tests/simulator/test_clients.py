"""Plain HTTP clients that know nothing about the simulator, at its default settings.

They create, poll at once, accept every answer as final, and download; and they keep links.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from providers.kie.simulator import Simulator, SimulatorSettings
from providers.kie.simulator.addresses import PORTS_MAX, base_urls_by_port
from tests.support.kie_client import (
    IMAGEN4,
    JOBS,
    MIDJOURNEY,
    MJ,
    ORDERS,
    PNG,
    RECORDS,
    Kie,
    form,
    upload,
)
from tests.support.processes import served

FAST = 1000


def ask(url: str, body: Any = None) -> Any:
    """A request as the standard library makes it."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": "Bearer any", "Content-Type": "application/json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - of the simulator
    with opener.open(request) as answer:
        return json.loads(answer.read())


def followed(base_url: str, path: str, body: Any) -> list[Any]:
    """Return every record that a client sees if it polls at once and stops at any code but 200."""
    created = ask(base_url + path, body)
    assert created["code"] == 200
    records: list[Any] = []
    while not records or is_pending(records[-1]):
        answer = ask(f"{base_url}{RECORDS[path]}?taskId={created['data']['taskId']}")
        assert answer["code"] == 200, answer
        records.append(answer["data"])
    return records


def is_pending(record: Any) -> bool:
    return bool(record["successFlag"] == 0)


def first_url(record: Any) -> str:
    result = record.get("response") or record["resultInfoJson"]
    url = result["resultUrls"][0]
    return str(url["resultUrl"] if isinstance(url, dict) else url)


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_a_client_that_polls_at_once_meets_a_record_and_then_a_result(
    path: str, body: Any
) -> None:
    settings = SimulatorSettings(speed=FAST, records_per_second=0)
    async with Simulator(settings) as simulator, aiohttp.ClientSession() as session:
        records = await asyncio.to_thread(followed, simulator.url, path, body)
        assert records[-1]["successFlag"] == 1
        async with session.get(first_url(records[-1])) as answer:
            assert answer.status == 200
            assert await answer.read()


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_a_new_task_is_visible_in_the_first_poll(path: str, body: Any) -> None:
    async with Simulator() as simulator:
        created = await asyncio.to_thread(ask, simulator.url + path, body)
        record = f"{simulator.url}{RECORDS[path]}?taskId={created['data']['taskId']}"
        answer = await asyncio.to_thread(ask, record)
    assert (answer["code"], answer["data"]["successFlag"]) == (200, 0)


def test_speed_divides_every_wait() -> None:
    settings = SimulatorSettings(
        speed=10,
        visible_after_seconds=1,
        latency_seconds=(1, 2),
        callback_retry_seconds=(1, 2),
        seconds={"veo3": (10, 20)},
    )
    assert settings.hidden_seconds == 0.1
    assert settings.latency == (0.1, 0.2)
    assert settings.callback_waits == (0.1, 0.2)
    assert SimulatorSettings(realistic=True, speed=10).latency == (0.02, 0.09)


async def test_late_visibility_can_be_set_for_a_share_of_polls(tmp_path: Path) -> None:
    async with bundled(tmp_path, speed=1) as kie:
        kie.simulator.update(records_per_second=0)
        kie.simulator.add_fault("record:not_visible,times=0,probability=0.5")
        task_id = await kie.create()
        answers = [await kie.get(RECORDS[JOBS], taskId=task_id) for _ in range(50)]
    assert {answer["code"] for answer in answers} == {200, 422}


@asynccontextmanager
async def bundled(folder: Path, **changes: Any) -> AsyncIterator[Kie]:
    """The simulator as a service without a key starts it: with a state file, on port 0."""
    values: dict[str, Any] = {"speed": FAST, "state_file": folder / "generation.db.simulator"}
    headers = {"Authorization": "Bearer any"}
    async with (
        Simulator(SimulatorSettings(**values | changes)) as simulator,
        aiohttp.ClientSession(headers=headers) as session,
    ):
        yield Kie(simulator, session)


async def content(kie: Kie, url: str) -> bytes:
    async with kie.session.get(url) as answer:
        assert answer.status == 200
        return await answer.read()


async def finished_url(kie: Kie, path: str, body: Any) -> str:
    task_id = await kie.create(path, body)
    kie.simulator.finish(task_id)
    return first_url(await kie.record(task_id, path))


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_a_link_to_a_result_works_after_a_restart(
    tmp_path: Path, path: str, body: Any
) -> None:
    async with bundled(tmp_path) as kie:
        url = await finished_url(kie, path, body)
        before = await content(kie, url)
    async with bundled(tmp_path) as kie:
        assert url.startswith(kie.simulator.url)
        assert await content(kie, url) == before


async def test_an_uploaded_file_is_there_after_a_restart(tmp_path: Path) -> None:
    async with bundled(tmp_path) as kie:
        url = (await upload(kie, form()))["data"]["downloadUrl"]
    async with bundled(tmp_path) as kie:
        assert await content(kie, url) == PNG
        kie.simulator.reset()
    assert list((tmp_path / "generation.db.simulator.files").iterdir()) == []


async def test_an_upload_of_yesterday_is_dropped_at_a_restart(tmp_path: Path) -> None:
    async with bundled(tmp_path) as kie:
        await upload(kie, form())
    folder = tmp_path / "generation.db.simulator.files"
    yesterday = time.time() - 25 * 3_600
    for file in folder.iterdir():
        os.utime(file, (yesterday, yesterday))
    async with bundled(tmp_path):
        assert list(folder.iterdir()) == []


async def test_a_result_is_served_on_another_port_while_its_own_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bundled(tmp_path) as kie:
        task_id = await kie.create(MJ, MIDJOURNEY)
        kie.simulator.finish(task_id)
        old_url = first_url(await kie.record(task_id, MJ))
        port = int(kie.simulator.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), caplog.at_level(logging.WARNING):
        async with bundled(tmp_path) as kie:
            new_url = first_url(await kie.record(task_id, MJ))
            assert new_url != old_url
            assert await content(kie, new_url)
            newest_url = await finished_url(kie, JOBS, IMAGEN4)
    assert f"port {port} is in use" in caplog.text
    async with bundled(tmp_path) as kie:
        assert await content(kie, old_url)
        assert await content(kie, newest_url)


async def test_a_result_of_a_service_without_a_key_is_fetched_after_it_was_killed(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as service:
        ended = await service.end((await service.create("a cat [sim:seconds=0.1]")).id)
        under_way = (await service.create("a dog [sim:seconds=1]")).id
        service.process.signal(signal.SIGKILL)
        await service.process.exit_code()
    async with served(tmp_path) as service, aiohttp.ClientSession() as session:
        for task in (ended, await service.end(under_way)):
            async with session.get(task.artifacts[0].url) as answer:
                assert (answer.status, answer.content_type) == (200, "image/png")


def test_only_ports_of_loopback_are_opened_again_newest_first_and_not_too_many() -> None:
    urls = ["http://127.0.0.1:7", "http://kie:8", "http://localhost:9", "http://127.0.0.1:9", "x"]
    assert base_urls_by_port([*urls, "http://[::1]:10", "http://127.0.0.1:99999"]) == {
        10: ["http://[::1]:10"],
        9: ["http://127.0.0.1:9", "http://localhost:9"],
        7: ["http://127.0.0.1:7"],
    }
    many = [f"http://127.0.0.1:{port}" for port in range(1, 100)]
    assert list(base_urls_by_port(many)) == list(range(99, 99 - PORTS_MAX, -1))
