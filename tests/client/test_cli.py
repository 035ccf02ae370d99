"""The command line: what its commands do, print and return."""

import io
import json
import os
import signal
from pathlib import Path

import grpc
import pytest
from rich.console import Console
from typer.testing import CliRunner

from kie_generation import UnavailableError
from kie_generation.cli import create
from kie_generation.cli.app import app
from kie_generation.cli.problems import ExitCode
from kie_generation.cli.progress import LiveProgress
from kie_generation.generated.generation.v1.generation_pb2 import (
    Imagen4Params,
    KieParams,
    ListTasksResponse,
    MidjourneyParams,
    Veo3Params,
)
from kie_generation.states import state
from tests.support.command import NOWHERE, command, finish, start
from tests.support.results_server import PNG, serving_results
from tests.support.scripted_server import (
    NOT_FOUND,
    UNAVAILABLE,
    Failure,
    ScriptedService,
    Silence,
    failed,
    pending,
    serving,
    success,
    uploaded,
)


async def test_create_watch_and_save_shows_progress_and_the_result(tmp_path: Path) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with serving_results() as results, serving(service) as address:
        done = success(3, artifacts=[results.add("/picture.png", PNG)])
        service.streams.append([pending(2, progress_percent=45), done])
        arguments = ("create", "imagen4", "-", "--api-model", "ultra", "--save", str(tmp_path))
        ran = await command(address, *arguments, stdin=b"a lighthouse\n")
    assert ran.code == 0
    assert f"{results.base}/picture.png" in ran.out
    assert str(tmp_path / "t-1_1.png") in ran.out
    assert "GENERATING 45% (revision 2)" in ran.err
    request, watched = service.requests
    assert request.prompt_id == "cli"
    assert request.provider_params.kie.imagen4 == Imagen4Params(
        api_model=Imagen4Params.API_MODEL_ULTRA, prompt="a lighthouse"
    )
    assert watched.after_revision == 1


async def test_json_is_one_object_per_line_and_the_last_snapshot_is_terminal() -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    service.streams.append([pending(2), UNAVAILABLE])
    service.streams.append([failed(3)])
    async with serving(service) as address:
        ran = await command(address, "--json", "create", "sora2", "a gull", "--watch")
    assert ran.code == 1
    assert [each["revision"] for each in ran.objects()] == ["1", "2", "3"]
    assert ran.objects()[-1]["failure"]["reason"] == "ERROR_REASON_GENERATION_FAILED"
    assert "reconnecting" in json.loads(ran.err.splitlines()[0])["note"]


async def test_a_failed_task_is_shown_with_its_reason_and_without_terminal_sequences() -> None:
    service = ScriptedService()
    service.streams.append([failed(3)])
    async with serving(service) as address:
        ran = await command(address, "watch", "t-1")
    assert ran.code == 1
    assert "GENERATION_FAILED: no" in ran.out
    assert "\x1b" not in ran.out


async def test_every_option_of_a_model_reaches_its_field_and_a_local_file_is_uploaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "photo.png").write_bytes(b"abc")
    service = ScriptedService()
    service.answers.extend([uploaded(), pending(1)])
    arguments = (
        *("create", "midjourney", "a sea", "--task-type", "omni-reference", "--speed", "TURBO"),
        *("--file-url", "https://x.example/1.png", "--file", str(tmp_path / "photo.png")),
        *("--aspect-ratio", "16:9", "--version", "niji6", "--variety", "0", "--stylization", "2"),
        *("--weirdness", "3", "--ow", "4", "--watermark", "w", "--no-enable-translation"),
        *("--video-batch-size", "2", "--motion", "low", "--prompt-id", "p-7"),
    )
    async with serving(service) as address:
        ran = await command(address, *arguments, "--request-id", "r-7")
    assert ran.code == 0
    request = service.requests[-1]
    assert (request.prompt_id, request.request_id) == ("p-7", "r-7")
    assert request.provider_params.kie.midjourney == MidjourneyParams(
        task_type=MidjourneyParams.TASK_TYPE_OMNI_REFERENCE,
        prompt="a sea",
        file_urls=["https://x.example/1.png", uploaded().download_url],
        speed=MidjourneyParams.SPEED_TURBO,
        aspect_ratio="16:9",
        version="niji6",
        variety=0,
        stylization=2,
        weirdness=3,
        ow=4,
        watermark="w",
        enable_translation=False,
        video_batch_size=2,
        motion=MidjourneyParams.MOTION_LOW,
    )


async def test_options_that_are_not_given_are_not_set() -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with serving(service) as address:
        await command(address, "create", "veo3", "a storm")
    assert service.requests[0].provider_params.kie.veo3 == Veo3Params(prompt="a storm")


def test_every_model_has_a_command_with_an_option_for_every_field() -> None:
    shared = {"context", "prompt_id", "request_id", "validate_only", "watch", "save"}
    declared = {
        each.callback.__name__: set(each.callback.__annotations__) - shared
        for each in create.app.registered_commands
        if each.callback is not None
    }
    assert declared == {
        member.name: set(member.message_type.fields_by_name)
        for member in KieParams.DESCRIPTOR.oneofs_by_name["model"].fields
        if member.message_type is not None
    }


@pytest.mark.parametrize(
    ("failure", "code", "shown"),
    [
        (NOT_FOUND, 3, "error: NOT_FOUND TASK_NOT_FOUND: no task 't-1'"),
        (Failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), 4, "GENERATION_TOKEN"),
        (Failure(grpc.StatusCode.INTERNAL, "INTERNAL", "bug 7f3a"), 70, "bug 7f3a"),
        (
            Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after_ms=900),
            6,
            "retry after: 0.9 s",
        ),
    ],
)
async def test_a_failed_call_has_its_exit_code_and_words(
    failure: Failure, code: int, shown: str
) -> None:
    service = ScriptedService()
    service.answers.append(failure)
    async with serving(service) as address:
        ran = await command(address, "--timeout", "0.5", "get", "t-1")
    assert (ran.code, ran.out) == (code, "")
    assert shown in ran.err


async def test_a_refused_create_exits_with_5_and_names_the_task() -> None:
    service = ScriptedService()
    service.answers.append(
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "PROVIDER_REJECTED", metadata={"task_id": "t-9"})
    )
    async with serving(service) as address:
        ran = await command(address, "--json", "create", "imagen4", "x")
    assert ran.code == 5
    assert ran.error()["task_id"] == "t-9"
    assert ran.error()["reason"] == "PROVIDER_REJECTED"


async def test_every_broken_rule_has_its_own_line() -> None:
    service = ScriptedService()
    fields = {"prompt_id": "is required", "provider_params.kie.imagen4.seed": "must be 0 or more"}
    service.answers.append(
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS", fields=fields)
    )
    async with serving(service) as address:
        ran = await command(address, "create", "imagen4", "x")
    assert ran.code == 2
    assert ran.err.splitlines()[1:3] == [
        "  --prompt-id: is required",
        "  --seed: must be 0 or more",
    ]


async def test_a_create_that_stays_unavailable_says_how_to_repeat_it_safely() -> None:
    arguments = ("--timeout", "0.5", "create", "imagen4", "x", "--request-id", "r-1")
    ran = await command(NOWHERE, *arguments)
    assert ran.code == 6
    assert "--request-id r-1" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "--json"),
        ("--json", "create", "imagen4", "x", "--api-model", "huge"),
        ("--json", "--address"),
    ],
)
async def test_wrong_usage_exits_with_2_in_json_too(arguments: tuple[str]) -> None:
    ran = await command(NOWHERE, *arguments)
    assert ran.code == 2
    assert ran.error()["code"] == "USAGE"


async def test_a_file_that_cannot_be_read_is_reported_without_a_traceback(tmp_path: Path) -> None:
    ran = await command(NOWHERE, "upload", str(tmp_path / "missing.png"))
    assert ran.code == 7
    assert "missing.png" in ran.err


async def test_an_upload_prints_the_url() -> None:
    service = ScriptedService()
    service.answers.append(uploaded())
    async with serving(service) as address:
        ran = await command(address, "upload", __file__)
    assert ran.code == 0
    assert uploaded().download_url in ran.out


async def test_a_list_stops_at_its_limit_and_keeps_its_filter() -> None:
    service = ScriptedService()
    service.answers.append(
        ListTasksResponse(tasks=[pending(1), pending(2), pending(3)], next_page_token="more")
    )
    async with serving(service) as address:
        ran = await command(address, "--json", "list", "--status", "pending", "--limit", "2")
    assert ran.code == 0
    assert [each["revision"] for each in ran.objects()] == ["1", "2"]
    assert (service.requests[0].status, service.requests[0].page_size) == (1, 2)


async def test_an_interrupted_watch_says_how_to_resume() -> None:
    service = ScriptedService()
    service.streams.append([pending(1), Silence()])
    async with serving(service) as address:
        process = await start(address, "watch", "t-1")
        assert process.stderr is not None
        assert await process.stderr.readline() == b"task t-1\n"
        assert b"revision 1" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        ran = await finish(process)
    assert ran.code == 130
    assert f"--address {address} watch t-1" in ran.err


async def test_a_watch_that_gives_up_says_how_to_resume() -> None:
    service = ScriptedService()
    service.streams.append([pending(1), UNAVAILABLE])
    async with serving(service) as address:
        ran = await command(address, "--give-up-after", "0", "watch", "t-1")
    assert ran.code == 6
    assert f"--address {address} watch t-1" in ran.err


async def test_the_token_is_sent_but_never_shown() -> None:
    service = ScriptedService()
    service.answers.append(Failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"))
    async with serving(service) as address:
        ran = await command(address, "--token", "s3cret", "get", "t-1")
    assert service.metadata[0]["authorization"] == "Bearer s3cret"
    assert "s3cret" not in ran.out + ran.err
    assert "GENERATION_TOKEN" in ran.err


async def test_a_closed_stdout_is_not_an_error() -> None:
    service = ScriptedService()
    service.answers.append(ListTasksResponse(tasks=[pending(1)]))
    reader, writer = os.pipe()
    os.close(reader)
    async with serving(service) as address:
        ran = await command(address, "list", stdout=writer)
    os.close(writer)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("--cert", "cert.pem", "list"), "--key"),
        (("create", "veo3", "x", "--seed", str(2**40)), str(2**40)),
    ],
)
async def test_contradictory_options_are_wrong_usage(
    arguments: tuple[str, ...], shown: str
) -> None:
    ran = await command(NOWHERE, *arguments)
    assert ran.code == 2
    assert shown in ran.err


@pytest.mark.parametrize(
    "names",
    [
        "",
        *(f"create {model.name}" for model in KieParams.DESCRIPTOR.fields),
        *("get", "list", "watch", "follow", "upload", "cancel"),
    ],
)
def test_the_help_of_every_command_shows_an_example(names: str) -> None:
    shown = CliRunner().invoke(app, [*names.split(), "--help"], prog_name="kie-generation").stdout
    assert f"kie-generation {names}" in shown.partition("Example")[2]


def test_help_explains_every_exit_code() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f" {code.value}  " in shown for code in ExitCode)


def test_a_terminal_shows_stage_percent_and_revision_and_that_it_reconnects() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with LiveProgress(console) as progress:
        progress.update(pending(7, progress_percent=45))
        progress.connection(UnavailableError(grpc.StatusCode.UNAVAILABLE, "x"))
    assert all(text in screen.getvalue() for text in ("GENERATING", "45%", "reconnecting"))


@pytest.mark.parametrize("reason", ["[/x]", "[bold]\x1b[2J\r", "[link=file:///x]", "a\nb"])
def test_a_remote_message_is_neither_markup_nor_a_terminal_sequence(reason: str) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with LiveProgress(console) as progress:
        progress.update(pending(7))
        progress.connection(UnavailableError(grpc.StatusCode.UNAVAILABLE, "x", reason=reason))
    shown = screen.getvalue()
    assert (
        reason.translate(
            {0x1B: "\N{REPLACEMENT CHARACTER}", 0x0D: "\N{REPLACEMENT CHARACTER}", 0x0A: " "}
        )
        in shown
    )
    assert "\x1b[2J" not in shown


async def test_remote_text_cannot_imitate_a_line_of_the_command_line() -> None:
    service = ScriptedService()
    task = failed(3)
    task.failure.message = "no\nstate      SUCCESS\x1b]0;x\x07\u202e"
    service.answers.append(task)
    service.answers.append(Failure(grpc.StatusCode.ABORTED, "X", "no\nerror: \x1b[2J"))
    async with serving(service) as address:
        shown = await command(address, "get", "t-1")
        refused = await command(address, "get", "t-1")
    assert "state      FAILED" in shown.out.splitlines()
    assert "state      SUCCESS" not in [line[:18] for line in shown.out.splitlines()]
    assert len(refused.err.splitlines()) == 1
    assert all(each.isprintable() or each == "\n" for each in shown.out + refused.err)


def test_a_stage_that_only_a_newer_service_knows_is_shown_by_its_number() -> None:
    task = pending(1)
    task.stage = 99  # type: ignore[assignment]
    assert state(task) == "99"


def test_a_task_whose_stage_an_older_server_does_not_know_is_pending() -> None:
    task = pending(1)
    task.ClearField("stage")
    assert state(task) == "PENDING"
