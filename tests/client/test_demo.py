"""The demonstration, and the programs that the documentation shows."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

import pytest

from tests.support.command import DEAD_PROXY
from tests.support.examples import example_in
from tests.support.paths import ROOT
from tests.support.results_server import PNG, serving_results
from tests.support.scripted_server import ScriptedService, failed, pending, serving, success


async def start_python(*arguments: str, cwd: Path, **env: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}", **env},
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
    )


async def output_of(process: Process) -> str:
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert b"Traceback" not in out
    return out.decode()


@pytest.mark.torture
async def test_the_demo_runs_behind_a_proxy_on_a_narrow_terminal(tmp_path: Path) -> None:
    demo = await start_python("-m", "examples.demo", cwd=tmp_path, COLUMNS="40", **DEAD_PROXY)
    shown = await output_of(demo)
    assert demo.returncode == 0, shown
    assert max(map(len, shown.splitlines()[1:])) <= 40
    saved = sorted(path.name for path in (tmp_path / "demo-results").iterdir())
    assert saved == [
        *("imagen4_1.png", "imagen4_2.png"),
        *(f"midjourney_{n}.png" for n in range(1, 5)),
        *("sora2_1.mp4", "veo3_1.mp4"),
    ]


@pytest.mark.parametrize("everybody", [True, False])
async def test_an_interrupted_demo_ends_without_a_traceback(
    tmp_path: Path, everybody: bool
) -> None:
    demo = await start_python("-m", "examples.demo", cwd=tmp_path)
    assert demo.stdout is not None
    assert b"Four tasks" in await demo.stdout.readline()
    if everybody:  # as a terminal does
        os.killpg(demo.pid, signal.SIGINT)
    else:
        demo.send_signal(signal.SIGINT)
    shown = await output_of(demo)
    assert demo.returncode == 130
    assert shown.splitlines()[-1] == "Interrupted."


@pytest.mark.parametrize("page", ["README.md", "client/README.md", "docs/client.md"])
async def test_the_example_of_a_page_runs_and_shows_names_and_results(
    tmp_path: Path, page: str
) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with serving_results() as results, serving(service) as address:
        done = success(2, artifacts=[results.add("/picture.png", PNG)])
        service.streams.append([pending(1), done])
        program = example_in(page).replace("127.0.0.1:50051", address)
        shown = await output_of(await start_python("-c", program, cwd=tmp_path))
    assert "GENERATING" in shown
    assert "SUCCESS" in shown
    assert (tmp_path / "results" / "t-1_1.png").read_bytes() == PNG


@pytest.mark.parametrize("page", ["README.md", "client/README.md", "docs/client.md"])
async def test_the_example_of_a_page_shows_why_a_task_failed(tmp_path: Path, page: str) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    task = failed(2)
    task.failure.message = "the prompt was rejected"
    service.streams.append([task])
    async with serving(service) as address:
        program = example_in(page).replace("127.0.0.1:50051", address)
        shown = await output_of(await start_python("-c", program, cwd=tmp_path))
    assert "FAILED" in shown
    assert "the prompt was rejected" in shown
