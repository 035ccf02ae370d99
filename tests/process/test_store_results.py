"""`python -m service store-results`: results of tasks that ended without copies get copies."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.databases import change
from tests.support.harness import API_KEY, Service, serving
from tests.support.kept_places import FolderPlace
from tests.support.media_host import MIB, MediaHost, media
from tests.support.paths import ROOT
from tests.support.waiting import START_SECONDS, eventually

Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "results")


@pytest.fixture
def start(tmp_path: Path, kie: Simulator, database_url: str, host: MediaHost) -> Start:
    """Start the service with this provider, on the database of the commands."""
    urls = {"kie_api_url": host.base, "kie_upload_url": host.base}

    def start(**settings: Any) -> AbstractAsyncContextManager[Service]:
        return serving(tmp_path, kie, database_url=database_url, **urls | settings)

    return start


@pytest.fixture
def begin(tmp_path: Path, database_url: str, host: MediaHost, place: FolderPlace) -> Any:
    """Begin the command as a process."""

    async def begin(*arguments: str, **env: str) -> Process:
        usual = {
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database_url,
            "RESULTS_URL": place.url,
            "KIE_API_KEY": API_KEY,
            "KIE_API_URL": host.base,
            "KIE_UPLOAD_URL": host.base,
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "store-results", *arguments),
            cwd=tmp_path,
            env=usual | env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    return begin


async def finish(process: Process) -> tuple[int | None, str]:
    """Return the exit code of a command, and the last line that it printed."""
    printed, log = await asyncio.wait_for(process.communicate(), START_SECONDS)
    assert "Traceback" not in log.decode()
    return process.returncode, printed.decode().rstrip("\n").rpartition("\n")[2]


async def end(service: Service, host: MediaHost, name: str, content: bytes) -> pb.GenerationTask:
    host.add(name, content)
    task = await service.create({"imagen4": {"prompt": json.dumps([name])}})
    return await service.end(task.id)


def check_copy(task: pb.GenerationTask, before: pb.GenerationTask, place: FolderPlace) -> None:
    """Check that a task got its copy, and is the same otherwise."""
    [artifact] = task.artifacts
    assert artifact.size_bytes == len(place.content(artifact.storage_uri))
    assert artifact.sha256
    assert not artifact.storage_error
    expected = pb.GenerationTask()
    expected.CopyFrom(before)
    expected.revision += 1
    expected.update_time.CopyFrom(task.update_time)
    for name in ("size_bytes", "sha256", "storage_uri"):
        setattr(expected.artifacts[0], name, getattr(artifact, name))
    assert task == expected


async def test_results_without_copies_are_copied_once(
    start: Start, begin: Any, host: MediaHost, place: FolderPlace
) -> None:
    async with start() as service:
        tasks = [await end(service, host, f"{n}.mp4", media(MIB + n, n)) for n in range(3)]
    code, said = await finish(await begin())
    assert code == 0
    assert said.startswith(f"done: tasks: 3; results copied: 3 ({3 * MIB + 3} bytes)")
    code, said = await finish(await begin())
    assert (code, said) == (0, "done: tasks: 0; results copied: 0 (0 bytes); not copied: 0")
    assert [host.asked[f"{n}.mp4"] for n in range(3)] == [1, 1, 1]
    async with start(results_url=place.url) as service:
        for task in tasks:
            check_copy(await service.query(task.id), task, place)
    assert len(place.names()) == 3


async def test_results_that_cannot_be_copied_are_left_for_the_next_time(
    start: Start, begin: Any, host: MediaHost, place: FolderPlace
) -> None:
    async with start() as service:
        tasks = [await end(service, host, f"{n}.mp4", media(99, n)) for n in range(2)]
    lost = host.files.pop("0.mp4")
    code, said = await finish(await begin())
    assert code == 1
    assert "results copied: 1 " in said
    assert "not copied: 1" in said
    async with start(results_url=place.url) as service:
        assert await service.query(tasks[0].id) == tasks[0]
    host.add("0.mp4", lost)
    assert (await finish(await begin()))[0] == 0
    async with start(results_url=place.url) as service:
        for task in tasks:
            check_copy(await service.query(task.id), task, place)


@pytest.mark.parametrize(
    "since_and_copied", [("2026-01-02", 1), ("2026-01-01T12:00+00:00", 2), ("2025-12-31T23:59", 3)]
)
async def test_only_tasks_that_ended_since_a_time_are_looked_at(
    start: Start, begin: Any, host: MediaHost, database_url: str, since_and_copied: tuple[str, int]
) -> None:
    since, copied = since_and_copied
    day = 1_767_225_600.0  # 2026-01-01
    async with start() as service:
        tasks = [await end(service, host, f"{n}.mp4", media(99, n)) for n in range(3)]
    for number, task in enumerate(tasks):
        time = day + number * 43_200
        change(database_url, "UPDATE tasks SET complete_time = ? WHERE id = ?", time, task.id)
    code, said = await finish(await begin("--since", since))
    assert code == 0
    assert said.startswith(f"done: tasks: {copied};")


async def test_without_a_time_tasks_are_copied_for_as_long_as_the_provider_keeps_results(
    start: Start, begin: Any, host: MediaHost, database_url: str
) -> None:
    async with start() as service:
        tasks = [await end(service, host, f"{n}.mp4", media(99, n)) for n in range(2)]
    old = "UPDATE tasks SET complete_time = complete_time - ? WHERE id = ?"
    change(database_url, old, 13 * 86_400, tasks[0].id)
    change(database_url, old, 15 * 86_400, tasks[1].id)
    assert (await finish(await begin()))[1].startswith("done: tasks: 1;")


async def test_an_interrupted_command_can_be_repeated(
    start: Start, begin: Any, host: MediaHost, place: FolderPlace
) -> None:
    go = asyncio.Event()
    async with start() as service:
        tasks = [await end(service, host, f"{n}.mp4", media(99, n)) for n in range(2)]

    async def stuck(request: Any) -> Any:
        await go.wait()
        return await host.send_file(request, "1.mp4")

    host.answers["1.mp4"] = stuck
    process = await begin()
    await eventually(lambda: host.asked["1.mp4"] and len(place.names()) == 1, START_SECONDS)
    process.send_signal(signal.SIGINT)
    assert await finish(process) == (1, "interrupted: repeat the command to continue")
    assert place.temporary() == []
    go.set()
    assert (await finish(await begin()))[0] == 0
    async with start(results_url=place.url) as service:
        for task in tasks:
            check_copy(await service.query(task.id), task, place)


async def test_progress_is_printed_while_a_result_takes_long(
    start: Start, begin: Any, host: MediaHost
) -> None:
    go = asyncio.Event()
    async with start() as service:
        for number in range(2):
            await end(service, host, f"{number}.mp4", media(99, number))

    async def stuck(request: Any) -> Any:
        await go.wait()
        return await host.send_file(request, "1.mp4")

    host.answers["1.mp4"] = stuck
    process = await begin()
    line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    assert line.startswith(b"tasks: 1; results copied: 1 (99 bytes); not copied: 0; until ")
    go.set()
    assert (await finish(process))[0] == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite: one process
async def test_a_running_service_shows_the_copies(
    start: Start, begin: Any, host: MediaHost, place: FolderPlace
) -> None:
    async with start() as service:
        task = await end(service, host, "0.mp4", media(99))
    async with start(results_url=place.url) as service:
        assert await service.query(task.id) == task
        assert (await finish(await begin()))[0] == 0
        check_copy(await service.query(task.id), task, place)


@pytest.mark.parametrize(
    ("arguments", "env"),
    [((), {"RESULTS_URL": ""}), (("--since", "yesterday"), {}), ((), {"KIE_API_KEY": ""})],
)
async def test_wrong_arguments_and_settings_are_refused(
    begin: Any, arguments: tuple[str, ...], env: dict[str, str]
) -> None:
    assert (await finish(await begin(*arguments, **env)))[0] == 2
