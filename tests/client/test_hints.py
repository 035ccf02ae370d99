"""What the command line says: hints that fit, options by their names, help for any terminal."""

import asyncio
import os
import re
import shlex
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner

from kie_generation.cli.app import app
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STAGE_ACCEPTED,
    TASK_STAGE_QUEUED,
    TASK_STAGE_SUBMITTING,
    Artifact,
    KieParams,
    ListTasksResponse,
    MidjourneyParams,
    ProviderParams,
)
from kie_generation.states import percent
from tests.support.command import NOWHERE, command, finish
from tests.support.paths import ROOT
from tests.support.results_server import PNG, serving_results
from tests.support.scripted_server import (
    NOT_FOUND,
    UNAVAILABLE,
    Failure,
    ScriptedService,
    Silence,
    pending,
    serving,
    success,
)

COMMANDS = [
    "",
    "create",
    *(f"create {model.name}" for model in KieParams.DESCRIPTOR.fields),
    *("get", "list", "watch", "follow", "upload", "cancel"),
]
MODEL_VALUES = {
    "midjourney": ["txt2img", "style-reference", "omni-reference", "video-hd"],
    "veo3": ["veo3-fast", "first-and-last-frames-2-video", "reference-2-video"],
    "sora2": ["pro-image-to-video", "landscape"],
}


def help_of(names: str) -> str:
    return CliRunner().invoke(app, [*names.split(), "--help"], prog_name="kie-generation").stdout


@pytest.mark.parametrize("columns", ["80", "40"])
@pytest.mark.parametrize("names", COMMANDS)
def test_help_fits_the_terminal_and_shows_every_name_in_full(
    monkeypatch: pytest.MonkeyPatch, names: str, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = help_of(names)
    # Examples are kept on their line, so that they can be copied.
    prose = [line for line in shown.splitlines() if "kie-generation" not in line]
    assert max(map(len, prose)) <= int(columns)
    assert "…" not in shown
    assert not re.search(r"<\w+>|\{\w+\}", shown)
    words = set(re.split(r"[\s,.]+", shown))
    model = KieParams.DESCRIPTOR.fields_by_name.get(names.removeprefix("create "))
    if model is not None and model.message_type is not None:
        fields = [field.name.replace("_", "-") for field in model.message_type.fields]
        options = {f"--{name.removesuffix('s') if 'url' in name else name}" for name in fields}
        assert options - {"--prompt", "--model"} - words == set()  # those are arguments
        assert set(MODEL_VALUES.get(model.name, [])) - words == set()


# --- broken rules by the names of the options ---


@pytest.mark.parametrize(
    ("model", "field", "description", "shown"),
    [
        (
            "veo3",
            "provider_params.kie.veo3.api_model",
            "must not be API_MODEL_VEO3 with GENERATION_TYPE_REFERENCE_2_VIDEO",
            "--api-model: must not be veo3 with reference-2-video",
        ),
        ("veo3", "provider_params.kie.veo3.seed", "must be 5", "--seed: must be 5"),
        ("veo3", "provider_params.kie.veo3.prompt", "is required", "PROMPT: is required"),
        ("veo3", "provider_params.kie.veo3.image_urls", "x", "--image-url: x"),
        (
            "veo3",
            "provider_params.kie.veo3.image_urls[1]",
            "must be an absolute http or https URL",
            "--image-url (number 2): must be an absolute http or https URL",
        ),
        (
            "sora2",
            "provider_params.kie.sora2.size",
            "must be unset without a PRO api_model",
            "--size: must be unset without a PRO --api-model",
        ),
        ("sora2", "prompt_id", "is required", "--prompt-id: is required"),
        ("sora2", "request_id", "is too long", "--request-id: is too long"),
        ("sora2", "provider_params.kie.newer.field", "is odd", "--field: is odd"),
        ("sora2", "provider_params", "is unknown", "provider_params: is unknown"),
    ],
)
async def test_a_broken_rule_names_the_option_and_its_values(
    model: str, field: str, description: str, shown: str
) -> None:
    service = ScriptedService()
    broken = Failure(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS", fields={field: description}
    )
    service.answers.append(broken)
    async with serving(service) as address:
        ran = await command(address, "create", model, "x")
    assert ran.code == 2
    assert ran.err.splitlines()[1] == f"  {shown}"
    assert ran.err.splitlines()[2].endswith(f"-m client create {model} --help")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("create", "veo3", "x", "--seed", str(2**40)), "--seed"),
        (("create", "veo3", "x", "--seed", "many"), "--seed"),
        (("create", "veo3", "x", "--api-model", "huge"), "--api-model"),
        (("list", "--limit", "0"), "--limit"),
    ],
)
async def test_an_impossible_value_names_its_option(
    arguments: tuple[str, ...], option: str
) -> None:
    ran = await command(NOWHERE, *arguments)
    assert ran.code == 2
    assert option in ran.err.splitlines()[0]


# --- hints ---


@pytest.mark.parametrize(
    ("code", "reason", "fits", "does_not_fit"),
    [
        ("UNAVAILABLE", "STORAGE_UNAVAILABLE", "try again later", "TLS"),
        ("FAILED_PRECONDITION", "ALREADY_SUBMITTED", "get t-9", "watch the task"),
        ("INVALID_ARGUMENT", "UPLOAD_MISMATCH", "empty", "--help"),
        ("NOT_FOUND", "TASK_NOT_FOUND", "list", "token"),
        (
            "PERMISSION_DENIED",
            "MODEL_NOT_ALLOWED",
            "ask the operator to allow it",
            "GENERATION_TOKEN",
        ),
        ("UNAVAILABLE", "", "is a generation service running", "token"),
    ],
)
async def test_each_error_has_its_own_hint(
    code: str, reason: str, fits: str, does_not_fit: str
) -> None:
    service = ScriptedService()
    failure = Failure(grpc.StatusCode[code], reason, "no", metadata={"task_id": "t-9"})
    service.answers.extend([failure] * 20)
    async with serving(service) as address:
        ran = await command(address, "--timeout", "0.4", "cancel", "t-9")
    hint = ran.err.splitlines()[-1]
    assert fits in hint
    assert does_not_fit not in hint


async def test_a_hint_is_a_command_that_runs_as_it_is_printed() -> None:
    service = ScriptedService()
    service.answers.extend([NOT_FOUND, ListTasksResponse()])
    async with serving(service) as address:
        ran = await command(NOWHERE, "--address", address, "get", "t-1")
        hint = ran.err.splitlines()[-1].partition("tasks: ")[2]
        inherited = {name: value for name, value in os.environ.items() if name != "PATH"}
        listing = await asyncio.create_subprocess_shell(
            hint, cwd=ROOT, env=inherited, stdout=DEVNULL, stderr=PIPE
        )
        _, err = await asyncio.wait_for(listing.communicate(), 30)
    assert (listing.returncode, err) == (0, b"no tasks\n")


async def test_a_download_that_failed_can_be_repeated_as_the_hint_says(tmp_path: Path) -> None:
    service = ScriptedService()
    async with serving_results() as results, serving(service) as address:
        task = success(2, artifacts=[results.add("/picture.png", b"")])
        service.answers.extend([task, task])
        failed = await command(NOWHERE, "--address", address, "get", "t-1", "--save", str(tmp_path))
        results.add("/picture.png", PNG)
        hint = failed.err.splitlines()[-1].partition("again: ")[2]
        again = await asyncio.create_subprocess_shell(hint, cwd=ROOT, stdout=DEVNULL)
        assert (failed.code, await asyncio.wait_for(again.wait(), 30)) == (7, 0)
    assert (tmp_path / "t-1_1.png").read_bytes() == PNG


async def test_a_watch_that_never_reached_the_server_does_not_say_that_the_task_continues() -> None:
    ran = await command(NOWHERE, "--give-up-after", "0", "watch", "t-1")
    assert ran.code == 6
    assert "continues" not in ran.err
    assert "watch t-1" in ran.err


async def test_a_create_that_waits_for_its_answer_says_so() -> None:
    service = ScriptedService()
    service.answers.append(Silence())
    async with serving(service) as address:
        ran = await command(address, "--timeout", "2", "create", "imagen4", "x")
    assert ran.err.splitlines()[0] == "waiting for the provider to accept the task"


async def test_a_retried_call_says_so_once() -> None:
    service = ScriptedService()
    service.answers.extend([UNAVAILABLE, UNAVAILABLE, pending(1)])
    async with serving(service) as address:
        ran = await command(address, "get", "t-1")
    assert ran.code == 0
    assert ran.err == "UNAVAILABLE: retrying for up to 30 s\n"


# --- output ---


async def test_get_shows_all_fields_of_a_task() -> None:
    service = ScriptedService()
    late, soon = (Timestamp(seconds=1_800_000_000 + day * 86_400) for day in (1, 0))
    task = success(
        3,
        request_id="r-1",
        provider_task_id="k-1",
        provider_params=ProviderParams(
            kie=KieParams(
                midjourney=MidjourneyParams(
                    prompt="a\nlighthouse",
                    task_type=MidjourneyParams.TASK_TYPE_STYLE_REFERENCE,
                    file_urls=["https://x.example/1?a=1&b=2", "https://x.example/2"],
                    variety=0,
                    watermark="o'\x1b[31m",
                    enable_translation=False,
                )
            )
        ),
        credits_consumed=4.5,
        artifacts=[Artifact(url="https://x.example/1", expire_time=each) for each in (late, soon)],
    )
    service.answers.append(task)
    async with serving(service) as address:
        ran = await command(address, "get", "t-1")
    rows = {line[:10].strip(): line[11:] for line in ran.out.splitlines()}
    assert rows["prompt"] == "a lighthouse"
    assert shlex.split(rows["parameters"]) == [
        *("--task-type", "style-reference"),
        *("--file-url", "https://x.example/1?a=1&b=2", "--file-url", "https://x.example/2"),
        *("--variety", "0", "--watermark", "o'\ufffd[31m", "--no-enable-translation"),
    ]
    assert rows["request id"] == "r-1"
    assert rows["id at Kie"] == "k-1"
    assert rows["credits"] == "4.5"
    assert rows["expires"] == "2027-01-15 08:00:00 UTC"


@pytest.mark.parametrize("stage", [TASK_STAGE_ACCEPTED, TASK_STAGE_SUBMITTING, TASK_STAGE_QUEUED])
def test_only_a_task_in_progress_has_a_percentage(stage: int) -> None:
    task = pending(1, progress_percent=87)
    assert percent(task) == 87
    task.stage = stage  # type: ignore[assignment]
    assert percent(task) is None
    assert percent(success(1, progress_percent=87)) is None
    assert percent(pending(1)) is None


@pytest.mark.parametrize(
    "arguments", [("get", "t-1", "--json"), ("get", "--json", "t-1"), ("--json", "get", "t-1")]
)
async def test_the_json_option_is_accepted_before_and_after_the_command(
    arguments: tuple[str, ...],
) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with serving(service) as address:
        ran = await command(address, *arguments)
    assert ran.objects()[0]["id"] == "t-1"


async def test_a_code_that_is_also_the_reason_is_shown_once() -> None:
    service = ScriptedService()
    service.answers.append(Failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "no token"))
    async with serving(service) as address:
        ran = await command(address, "get", "t-1")
    assert ran.err.splitlines()[0] == "error: UNAUTHENTICATED: no token"


@pytest.mark.parametrize("token", ["ä", "a\nb", "a\x7fb"])
async def test_a_token_that_no_call_can_carry_is_a_wrong_token(token: str) -> None:
    ran = await command(NOWHERE, "--token", token, "list")
    assert ran.code == 4
    assert "must consist of printable ASCII" in ran.err
    assert token not in ran.err


async def test_a_folder_that_cannot_be_created_is_found_before_anything_is_bought(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    service = ScriptedService()
    async with serving(service) as address:
        folder = str(tmp_path / "file" / "results")
        ran = await command(address, "create", "imagen4", "a cat", "--save", folder)
    assert ran.code == 7
    assert not service.requests


@pytest.mark.parametrize("arguments", [(), ("create",)])
async def test_no_command_is_one_line_and_a_hint(arguments: tuple[str, ...]) -> None:
    ran = await command(NOWHERE, *arguments)
    assert ran.code == 2
    assert ran.err.splitlines()[0] == "error: USAGE: Missing command."


async def test_a_missing_file_is_named_without_pythons_words(tmp_path: Path) -> None:
    ran = await command(NOWHERE, "upload", str(tmp_path / "missing.png"))
    assert ran.code == 7
    assert ran.err == f"error: LOCAL_FILE: {tmp_path}/missing.png: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        ((b"get", b"\xff"), b""),
        ((b"create", b"imagen4", b"\xff"), b""),
        ((b"create", b"imagen4", b"x", b"--prompt-id", b"\xff"), b""),
        ((b"create", b"imagen4", b"-"), b"\xff"),
    ],
)
async def test_text_that_is_not_utf_8_is_wrong_usage(
    arguments: tuple[bytes, ...], stdin: bytes
) -> None:
    process = await asyncio.create_subprocess_exec(
        os.fsencode(sys.executable),
        *(b"-m", b"client", b"--timeout", b"0.5"),
        *arguments,
        cwd=ROOT,
        env={**os.environ, "GENERATION_ADDRESS": NOWHERE, "PYTHONUTF8": "1"},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    ran = await finish(process, stdin)
    assert ran.code == 2, ran.err
