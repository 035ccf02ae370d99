"""The session with grpcurl that the README shows."""

import asyncio
import json
import re
from asyncio.subprocess import PIPE
from dataclasses import replace
from pathlib import Path
from typing import Any

from providers.kie.simulator import Simulator
from tests.support.harness import INSTANT, serving
from tests.support.paths import ROOT
from tests.support.tools import tool
from tests.support.waiting import DEADLINE_SECONDS

# A `$ grpcurl` command of several lines, and the JSON that it prints.
SESSION = re.compile(r"^\$ (grpcurl .*?)\n(\{\n.*?^\})$", re.DOTALL | re.MULTILINE)
RUNNING = replace(INSTANT, seconds=dict.fromkeys(INSTANT.seconds, (600, 600)))
ADDRESS = "127.0.0.1:50051"
VOLATILE = {"id", "provider_task_id", "create_time", "update_time"}


def shown(answer: dict[str, Any]) -> dict[str, Any]:
    """The task of an answer, without the values that differ each time."""
    task: dict[str, Any] = answer["task"]
    return {name: value for name, value in task.items() if name not in VOLATILE} | dict.fromkeys(
        VOLATILE & task.keys()
    )


async def test_the_grpcurl_call_of_the_readme_prints_what_the_readme_shows(tmp_path: Path) -> None:
    found = SESSION.search((ROOT / "README.md").read_text())
    assert found is not None
    path = str(tool("grpcurl").parent)
    command, output = found.groups()
    assert command.count(ADDRESS) == 1
    async with Simulator(RUNNING) as kie, serving(tmp_path, kie) as service:
        process = await asyncio.create_subprocess_shell(
            command.replace(ADDRESS, service.address), stdout=PIPE, env={"PATH": path}
        )
        printed, _ = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    assert process.returncode == 0
    assert shown(json.loads(printed)) == shown(json.loads(output))


# --- the models of the catalogue, as docs/models.md describes ---


async def test_a_model_is_found_read_used_and_watched_with_grpcurl_alone(tmp_path: Path) -> None:
    async with Simulator(INSTANT) as kie, serving(tmp_path, kie) as service:

        async def call(method: str, **request: Any) -> list[dict[str, Any]]:
            process = await asyncio.create_subprocess_exec(
                *(tool("grpcurl"), "-plaintext", "-d", json.dumps(request), service.address),
                f"generation.v1.GenerationService/{method}",
                stdout=PIPE,
            )
            printed, _ = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
            assert process.returncode == 0
            return answers(printed.decode())

        [found] = await call("ListModels", query="nano banana", task_type="image to image")
        assert "nano-banana-2" in [model["id"] for model in found["models"]]
        [read] = await call("GetModel", id="nano-banana-2")
        form = read["model"]["input_schema"]
        assert form["required"] == ["prompt"]
        given = {
            "prompt": "a lighthouse",
            "resolution": form["properties"]["resolution"]["enum"][0],
        }
        params = {"kie": {"market": {"model": "nano-banana-2", "input": given}}}
        [checked] = await call(
            "CreateTask", prompt_id="p", provider_params=params, validate_only=True
        )
        assert "id" not in checked["task"]
        [created] = await call("CreateTask", prompt_id="p", provider_params=params)
        assert created["task"]["provider_params"] == params
        snapshots = await call("WatchTask", task_id=created["task"]["id"])
    assert snapshots[-1]["task"]["status"] == "TASK_STATUS_SUCCESS"
    assert snapshots[-1]["task"]["artifacts"]


def answers(printed: str) -> list[dict[str, Any]]:
    """The JSON objects that were printed one after another."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(printed.rstrip()):
        answer, end = decoder.raw_decode(printed, at)
        found.append(answer)
        at = end + len(printed[end:]) - len(printed[end:].lstrip())
    return found
