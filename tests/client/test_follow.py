"""The command `follow`: every change, and every result once."""

import asyncio
import json
import signal
import time
from pathlib import Path

import grpc
import pytest

from kie_generation.generated.generation.v1.generation_pb2 import Artifact, GenerationTask
from providers.kie.simulator import Simulator
from tests.support.changing import EXPIRED, bookmark, changed
from tests.support.command import Ran, command, finish, start
from tests.support.harness import serving as serving_real
from tests.support.results_server import PNG, serving_results
from tests.support.scripted_server import (
    UNAVAILABLE,
    Failure,
    ScriptedService,
    Silence,
    failed,
    pending,
    serving,
    success,
)
from tests.support.waiting import eventually

END = Failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "the end of the script")
HOUR = 3600


def named(task: GenerationTask, task_id: str) -> GenerationTask:
    task.id = task_id
    return task


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def follow(service: ScriptedService, *arguments: str) -> Ran:
    """Follow to the end of the script, which is an error that ends the stream."""
    async with serving(service) as address:
        ran = await command(address, "follow", *arguments)
    assert ran.code == 4, ran.err
    return ran


async def test_each_change_is_a_line_without_terminal_sequences() -> None:
    service = ScriptedService()
    working = pending(2)
    working.provider_params.kie.veo3.prompt = "a storm\n\x1b[2J"
    service.streams.append([changed(working, "a"), changed(failed(3), "b"), bookmark("c"), END])
    ran = await follow(service, "--prompt-id", "p-1", "--ended")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines == [["t-1", "GENERATING", "veo3", "a", "storm", "\ufffd[2J"], ["t-1", "FAILED"]]
    (request,) = service.requests
    assert (request.prompt_id, request.ended_only) == ("p-1", True)


async def test_json_is_a_task_a_line_and_notes_are_json_too() -> None:
    service = ScriptedService()
    service.streams.append([changed(pending(1), "a"), bookmark("b"), UNAVAILABLE])
    service.streams.extend([[EXPIRED], [changed(success(2), "c"), END]])
    ran = await follow(service, "--json")
    assert [each["revision"] for each in ran.objects()] == ["1", "2"]
    notes = [json.loads(line).get("note", "") for line in ran.err.splitlines()]
    assert [note.partition(" ")[0] for note in notes[:3]] == [
        "reconnecting",
        "changes",
        "reconnected",
    ]


async def test_it_continues_where_the_last_run_stopped(tmp_path: Path) -> None:
    state = str(tmp_path / "feed.json")
    service = ScriptedService()
    service.streams.append([changed(pending(1), "a"), changed(pending(2), "b"), END])
    service.streams.append([changed(success(3), "c"), END])
    await follow(service, "--state", state)
    ran = await follow(service, "--state", state, "--json")
    assert [each["revision"] for each in ran.objects()] == ["3"]
    assert [request.resume_token for request in service.requests] == ["", "b"]


async def test_an_interruption_says_how_to_continue(tmp_path: Path) -> None:
    state = tmp_path / "feed.json"
    service = ScriptedService()
    service.streams.append([changed(pending(1), "a"), bookmark("b"), Silence()])
    options = ("--ended", "--state", str(state), "--save", str(tmp_path / "my results"))
    async with serving(service) as address:
        process = await start(address, "follow", *options)
        await eventually(lambda: state.exists() and '"b"' in state.read_text())
        process.send_signal(signal.SIGINT)
        ran = await finish(process)
    assert ran.code == 130
    assert f"follow --ended --state {state} --save '{tmp_path}/my results'" in ran.err


async def test_follow_gives_up_if_a_limit_is_given() -> None:
    service = ScriptedService()
    service.streams.extend([[UNAVAILABLE]] * 3)
    async with serving(service) as address:
        ran = await command(address, "--give-up-after", "0", "follow")
    assert ran.code == 6
    assert len(service.requests) == 1


@pytest.mark.parametrize("content", ["", "{}", '{"format": "other"}'])
async def test_a_damaged_state_file_is_reported(tmp_path: Path, content: str) -> None:
    state = tmp_path / "feed.json"
    state.write_text(content)
    service = ScriptedService()
    async with serving(service) as address:
        ran = await command(address, "follow", "--state", str(state))
    assert ran.code == 7
    assert ran.err.startswith(f"error: STATE_FILE: {state}: is ")
    assert state.read_text() == content


# --- saving ---


async def test_every_result_is_saved_once_also_if_it_is_delivered_again(tmp_path: Path) -> None:
    service = ScriptedService()
    async with serving_results() as results:
        done = success(3, artifacts=[results.add("/1.png", PNG), results.add("/2.png", PNG)])
        late = named(failed(2), "t-2")
        late.artifacts.append(results.add("/3.png", PNG))
        service.streams.append([changed(done, "a"), changed(late, "b"), EXPIRED])
        service.streams.append([changed(done, "c"), changed(late, "d"), bookmark("e"), END])
        ran = await follow(service, "--save", str(tmp_path / "results"), "--json")
    assert names_in(tmp_path / "results") == ["t-1_1.png", "t-1_2.png", "t-2_1.png"]
    assert sorted(results.asked) == ["/1.png", "/2.png", "/3.png"]
    saved = [each for each in ran.objects() if "saved" in each]
    assert [(each["task_id"], len(each["saved"])) for each in saved] == [("t-1", 2), ("t-2", 1)]


async def test_what_is_missing_of_a_task_is_saved_by_the_next_run(tmp_path: Path) -> None:
    service = ScriptedService()
    (tmp_path / "t-1_1.png").write_bytes(b"saved before")
    async with serving_results() as results:
        done = success(3, artifacts=[results.add("/1.png", PNG), results.add("/2.png", PNG)])
        service.streams.append([changed(done, "a"), END])
        await follow(service, "--save", str(tmp_path))
    assert (tmp_path / "t-1_1.png").read_bytes() == b"saved before"
    assert (tmp_path / "t-1_2.png").read_bytes() == PNG
    assert results.asked == ["/2.png"]


async def test_a_result_that_cannot_be_had_is_reported_and_the_others_are_saved(
    tmp_path: Path,
) -> None:
    service = ScriptedService()
    async with serving_results() as results:
        gone = Artifact(url=f"{results.base}/gone.png", mime_type="image/png")
        first = success(3, artifacts=[gone, results.add("/2.png", PNG)])
        second = named(success(3, artifacts=[results.add("/3.png", PNG)]), "t-2")
        service.streams.append([changed(first, "a"), changed(second, "b"), END])
        ran = await follow(service, "--save", str(tmp_path))
    assert names_in(tmp_path) == ["t-1_2.png", "t-2_1.png"]
    assert "gone.png: HTTP 404" in ran.err
    assert f"get t-1 --save {tmp_path}" in ran.err
    assert ran.out.count("saved ") == 2


async def test_while_the_network_fails_it_waits_and_forgets_nothing(tmp_path: Path) -> None:
    state = tmp_path / "feed.json"
    service = ScriptedService()
    async with serving_results() as results:
        broken = Artifact(url=f"{results.base}/broken", mime_type="image/png")
        done = success(3, artifacts=[broken, results.add("/2.png", PNG)])
        service.streams.append([changed(done, "a"), END])
        async with serving(service) as address:
            process = await start(address, "follow", "--state", str(state), "--save", str(tmp_path))
            assert process.stderr is not None
            note = await asyncio.wait_for(process.stderr.readline(), 30)
            assert b"trying again in 1 s" in note
            process.kill()
            await process.wait()
    assert "resume_token" not in json.loads(state.read_text())
    assert (tmp_path / "t-1_2.png").read_bytes() == PNG


async def test_results_that_have_expired_are_counted_and_not_requested(tmp_path: Path) -> None:
    service = ScriptedService()
    async with serving_results() as results:
        artifact = results.add("/1.png", PNG)
        artifact.expire_time.seconds = int(time.time()) - HOUR
        old = [changed(named(success(3, artifacts=[artifact]), f"t-{n}"), str(n)) for n in range(3)]
        service.streams.append([*old, bookmark("b", initial_done=True), bookmark("c"), END])
        ran = await follow(service, "--save", str(tmp_path))
    assert ran.err.splitlines()[0] == "the results of 3 tasks have expired"
    assert ran.err.count("expired") == 1
    assert results.asked == []


async def test_a_folder_that_cannot_be_created_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    service = ScriptedService()
    async with serving(service) as address:
        ran = await command(address, "follow", "--save", str(tmp_path / "file" / "results"))
    assert ran.code == 7
    assert not service.requests


async def test_results_of_the_real_service_are_saved_across_runs(
    tmp_path: Path, kie: Simulator
) -> None:
    url = f"sqlite:///{tmp_path}/generation.db"
    folder, state = tmp_path / "results", tmp_path / "feed.json"
    options = ("--state", str(state), "--save", str(folder))
    expected = set()
    async with serving_real(tmp_path, kie, database_url=url) as service:
        for _ in range(2):
            expected.add(f"{(await service.create()).id}_1.png")
            process = await start(service.address, "follow", *options)
            expected.add(f"{(await service.create()).id}_1.png")
            await eventually(
                lambda: folder.exists() and len(list(folder.glob("*.png"))) == len(expected)
            )
            process.kill()
            await process.wait()
    assert names_in(folder) == sorted(expected)
