"""The simulator controlled from outside: over HTTP and from its command line."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from typing import Any

import aiohttp
import pytest

from providers.kie.simulator import Simulator, SimulatorSettings
from providers.kie.simulator.__main__ import main
from providers.kie.simulator.options import read_options
from tests.support.kie_client import IMAGEN4, JOBS, STILL, VEO, VEO3, Kie, running
from tests.support.paths import ROOT
from tests.support.waiting import eventually


async def control(kie: Kie, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    url = f"{kie.simulator.url}/simulator/{path}"
    async with kie.session.request(method, url, json=body) as answer:
        return answer.status, await answer.json()


async def test_stats_count_purchases_by_model_and_requests_by_path(kie: Kie) -> None:
    await kie.create(JOBS, IMAGEN4)
    await kie.create(VEO, VEO3)
    await kie.post(JOBS, {})
    _, stats = await control(kie, "GET", "stats")
    by_model = {"google/imagen4-fast": 1, "veo3_fast": 1}
    assert stats["purchases"] == {"total": 2, "by_model": by_model}
    assert stats["creates_refused"] == {"422": 1}
    assert stats["requests"] == {JOBS: 2, VEO: 1}
    assert stats == kie.simulator.stats


async def test_tasks_are_listed_with_body_state_and_polls(kie: Kie) -> None:
    task_id = await kie.create()
    await kie.record(task_id)
    _, listed = await control(kie, "GET", "tasks")
    (task,) = listed["tasks"]
    assert (task["id"], task["body"], task["polls"]["count"]) == (task_id, IMAGEN4, 1)
    assert (await control(kie, "GET", f"tasks/{task_id}"))[1] == task


async def test_tasks_are_listed_by_pages_and_model(kie: Kie) -> None:
    ids = [await kie.create() for _ in range(3)]
    await kie.create(VEO, VEO3)
    path = "tasks?model=google/imagen4-fast"
    for query, chosen in (("&limit=2", ids[1:]), ("&limit=1&offset=1", ids[1:2]), ("", ids)):
        _, listed = await control(kie, "GET", path + query)
        assert [task["id"] for task in listed["tasks"]] == chosen
        assert listed["total"] == 3


async def test_a_task_can_be_finished_from_outside(kie: Kie) -> None:
    task_id = await kie.create()
    end = {"state": "fail", "failCode": 501, "failMsg": "too dark"}
    status, task = await control(kie, "POST", f"tasks/{task_id}/finish", end)
    assert (status, task["state"]) == (200, "fail")
    assert (await kie.record(task_id))["failCode"] == "501"


async def test_a_task_is_finished_with_success_by_default_and_with_given_urls(kie: Kie) -> None:
    first, second = await kie.create(), await kie.create()
    async with kie.session.post(f"{kie.simulator.url}/simulator/tasks/{first}/finish") as answer:
        assert (await answer.json())["state"] == "success"
    await control(kie, "POST", f"tasks/{second}/finish", {"urls": ["http://x/y.png"]})
    assert json.loads((await kie.record(second))["resultJson"]) == {
        "resultUrls": ["http://x/y.png"]
    }


async def test_faults_are_listed_added_replaced_and_cleared(kie: Kie) -> None:
    await control(kie, "POST", "faults", {"endpoint": "create", "kind": "reset"})
    _, listed = await control(kie, "POST", "faults", ["create:hang", "credit:code,code=401"])
    assert [fault["kind"] for fault in listed["faults"]] == ["reset", "hang", "code"]
    assert listed["faults"] == kie.simulator.faults
    _, listed = await control(kie, "PUT", "faults", ["create:empty,times=0"])
    assert [(fault["kind"], fault["times"]) for fault in listed["faults"]] == [("empty", 0)]
    number = listed["faults"][0]["id"]
    assert (await control(kie, "DELETE", f"faults/{number}"))[0] == 200
    assert (await control(kie, "DELETE", f"faults/{number}"))[0] == 404
    assert (await control(kie, "DELETE", "faults")) == (200, {"faults": []})


async def test_a_replacement_with_a_wrong_fault_changes_nothing(kie: Kie) -> None:
    kie.simulator.add_fault("create:reset")
    status, _ = await control(kie, "PUT", "faults", ["create:empty", "create:explode"])
    assert status == 400
    assert [fault["kind"] for fault in kie.simulator.faults] == ["reset"]


async def test_settings_are_shown_and_changed_and_credits_set_the_balance(kie: Kie) -> None:
    await kie.create()
    changes = {"credits": 7.5, "seconds": {"veo3": [1, 2]}, "fail_rate": 0.5}
    _, settings = await control(kie, "PATCH", "settings", changes)
    assert (settings["balance"], settings["seconds"]) == (7.5, {"veo3": [1, 2]})
    assert kie.simulator.settings.fail_rate == 0.5
    assert (await control(kie, "GET", "settings"))[1] == settings


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "settings", {"speed": -1}),
        ("PATCH", "settings", {"api_key": "mine"}),
        ("PATCH", "settings", []),
        ("POST", "faults", {"kind": "reset"}),
        ("POST", "faults", "create:explode"),
        ("POST", "faults", 7),
        ("GET", "tasks?limit=few", None),
        ("POST", "tasks/{id}/finish", {"state": "done"}),
        ("POST", "tasks/{id}/finish", {"url": "http://x"}),
        ("POST", "tasks/{id}/finish", {"urls": "http://x"}),
    ],
)
async def test_bad_control_input_is_http_400_with_the_reason(
    kie: Kie, method: str, path: str, body: Any
) -> None:
    task_id = await kie.create()
    status, answer = await control(kie, method, path.format(id=task_id), body)
    assert status == 400
    assert answer["error"]


async def test_an_unknown_task_is_http_404(kie: Kie) -> None:
    assert (await control(kie, "GET", "tasks/nobody"))[0] == 404
    assert (await control(kie, "POST", "tasks/nobody/finish", {}))[0] == 404


async def test_a_reset_forgets_everything(kie: Kie) -> None:
    await kie.create()
    kie.simulator.add_fault("create:reset,times=0")
    kie.simulator.update(credits=0)
    status, stats = await control(kie, "POST", "reset")
    assert (status, stats["purchases"]["total"], stats["tasks_kept"]) == (200, 0, 0)
    assert (await kie.get("/api/v1/chat/credit"))["data"] == STILL.credits
    await kie.create()


async def test_stopping_does_not_wait_for_hung_requests_or_callbacks() -> None:
    async with asyncio.timeout(5), aiohttp.ClientSession() as session:
        async with Simulator(STILL) as simulator:
            simulator.add_fault("any:hang,times=0")
            call = asyncio.create_task(
                session.get(f"{simulator.url}/api/v1/chat/credit").__aenter__()
            )
            await eventually(lambda: simulator.stats["faults_struck"] == {"hang": 1})
        with pytest.raises(aiohttp.ClientError):
            await call


async def left_alone(kie: Kie) -> None:
    """A request whose client waits until a fault has struck, and disconnects."""
    call = asyncio.create_task(kie.get("/api/v1/chat/credit"))
    await eventually(lambda: bool(kie.simulator.stats["faults_struck"]))
    call.cancel()
    await asyncio.wait([call])


async def test_stopping_does_not_wait_for_requests_whose_clients_have_disconnected() -> None:
    async with asyncio.timeout(5), running() as kie:
        kie.simulator.add_fault("credit:slow,seconds=1000")
        await left_alone(kie)


async def test_a_hung_request_does_not_delay_others() -> None:
    async with running() as kie:
        kie.simulator.add_fault("credit:hang")
        await left_alone(kie)
        assert (await kie.get("/api/v1/chat/credit"))["code"] == 200


async def test_the_command_prints_its_url_serves_and_ends_cleanly_on_a_signal() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        process = await started("--port", "0", "--api-key", "the-secret-key", "--speed", "100")
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("Kie simulator ready on http://127.0.0.1:")
        async with (
            aiohttp.ClientSession(headers={"Authorization": "Bearer the-secret-key"}) as session,
            session.post(line.split()[-1] + JOBS, json=IMAGEN4) as answer,
        ):
            assert (await answer.json())["code"] == 200
        process.send_signal(number)
        output, log = await process.communicate()
        assert (process.returncode, output) == (0, b"")
        assert b"created" in log
        assert b"secret" not in log


async def test_a_port_in_use_is_reported_without_a_traceback(kie: Kie) -> None:
    process = await started("--port", kie.simulator.url.rpartition(":")[2])
    _, log = await process.communicate()
    assert process.returncode == 1
    assert log.startswith(b"cannot start: ")
    assert b"Traceback" not in log


async def started(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "providers.kie.simulator", *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_options_become_settings_and_faults() -> None:
    given = read_options(
        [
            "--seconds",
            "veo3=20-40",
            "--seconds",
            "imagen4=2",
            "--cost",
            "veo3=1.5",
            "--realistic",
            "--seed",
            "7",
            "--latency-seconds",
            "0.1-0.2",
            "--callback-retry-seconds",
            "1,2",
            "--fault",
            "create:reset",
            "--fault",
            "any:http,status=500",
            "--public-url",
            "http://kie:8099",
        ]
    )
    assert given.settings == SimulatorSettings(
        seconds={"veo3": (20, 40), "imagen4": (2, 2)},
        costs={"veo3": 1.5},
        realistic=True,
        seed=7,
        latency_seconds=(0.1, 0.2),
        callback_retry_seconds=(1, 2),
        public_url="http://kie:8099",
    )
    assert [fault.kind for fault in given.faults] == ["reset", "http"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--fault create:explode", "unknown fault 'explode'"),
        ("--fail-rate 2", "fail_rate must be a number from 0 to 1"),
        ("--seconds dalle=1-2", "neither a model nor a family"),
        ("--cost veo3=much", "could not convert"),
    ],
)
def test_a_wrong_option_ends_with_status_2_and_the_reason(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_help_names_every_setting_and_directive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for name in SimulatorSettings().shown():
        option = name.replace("_", "-").removesuffix("s") if name == "costs" else name
        assert f"--{option.replace('_', '-')}" in shown
    assert "[sim:fail]" in shown
