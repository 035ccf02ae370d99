"""The command `list`: a table that fits, its filters, and its sums."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.cells import cell_len

from kie_generation.cli.listing import since
from kie_generation.cli.tasks import TaskTable, Totals, change_line
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STATUS_PENDING,
    Artifact,
    GenerationTask,
    ListTasksResponse,
)
from providers.kie.simulator import Simulator
from tests.support.command import NOWHERE, command
from tests.support.harness import serving as serving_real
from tests.support.scripted_server import ScriptedService, failed, pending, serving, success

NOW = 1_800_000_000


def task(prompt: str = "a lighthouse at dawn, in oil on canvas", **fields: Any) -> GenerationTask:
    made = success(3, **fields)
    made.id = "c7b370ef934e447ab2cf36022e20caa6"
    made.provider_params.kie.imagen4.prompt = prompt
    made.create_time.seconds = NOW - 3 * 3600
    return made


def listing(*tasks: GenerationTask) -> ScriptedService:
    service = ScriptedService()
    service.answers.append(ListTasksResponse(tasks=tasks))
    return service


async def test_a_list_has_a_header_rows_that_fit_80_columns_and_sums() -> None:
    artifacts = [Artifact(url="https://x.example/1"), Artifact(url="https://x.example/2")]
    first = task(credits_consumed=4.5, artifacts=artifacts)
    second = task("a gull")
    second.status = TASK_STATUS_PENDING
    async with serving(listing(first, second, failed(1))) as address:
        ran = await command(address, "list")
    header, row, task_id, second_row, *_, totals = ran.out.splitlines()
    assert max(map(len, ran.out.splitlines())) <= 80
    assert header.split() == ["PROMPT", "MODEL", "STATUS", "AGE", "CREDITS", "RESULTS"]
    assert re.match(r"a lighthouse at dawn, in oil.*… imagen4 +SUCCESS .* +4\.5 +2$", row)
    assert [row.index("imagen4"), row.index("SUCCESS")] == [
        header.index("MODEL"),
        header.index("STATUS"),
    ]
    assert task_id.strip() == first.id
    assert second_row.startswith("a gull ")
    assert totals == "3 tasks: 1 SUCCESS, 1 PENDING, 1 FAILED; 4.5 credits, 2 results"


async def test_an_empty_list_says_so() -> None:
    async with serving(listing()) as address:
        ran = await command(address, "list")
    assert (ran.code, ran.out, ran.err) == (0, "", "no tasks\n")


async def test_json_has_tasks_only() -> None:
    async with serving(listing(task(), task())) as address:
        ran = await command(address, "list", "--json")
    assert [each["id"] for each in ran.objects()] == [task().id] * 2
    assert ran.err == ""


async def test_every_filter_reaches_the_service() -> None:
    service = listing(task())
    options = ("--prompt-id", "p-1", "--model", "veo3", "--status", "failed")
    async with serving(service) as address:
        ran = await command(address, "list", *options, "--since", "2026-11-26T08:00:00+02:00")
    assert ran.code == 0
    (request,) = service.requests
    assert (request.prompt_id, request.model, request.status) == ("p-1", "veo3", 3)
    assert request.created_after.ToJsonString() == "2026-11-26T06:00:00Z"


@pytest.mark.parametrize(
    ("arguments", "shown", "sums"),
    [
        ((), 20, "the newest 20 tasks: "),
        (("--since", "7d"), 30, "30 tasks: "),
        (("--limit", "25"), 25, "the newest 25 tasks: "),
        (("--since", "7d", "--limit", "25"), 25, "the newest 25 tasks: "),
    ],
)
async def test_a_list_is_complete_if_a_time_is_given_and_limited_otherwise(
    arguments: tuple[str, ...], shown: int, sums: str
) -> None:
    async with serving(listing(*[task()] * 30)) as address:
        ran = await command(address, "list", *arguments)
    assert ran.out.count(task().id) == shown
    assert ran.out.splitlines()[-1].startswith(sums)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("30m", timedelta(minutes=30)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("2W", timedelta(weeks=2)),
        ("90s", timedelta(seconds=90)),
        (" 1.5h ", timedelta(hours=1.5)),
    ],
)
def test_a_duration_is_a_time_ago(text: str, ago: timedelta) -> None:
    assert abs(datetime.now(UTC) - ago - since(text)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-26", datetime(2026, 11, 26).astimezone()),
        ("2026-11-26T08:30", datetime(2026, 11, 26, 8, 30).astimezone()),
        ("2026-11-26 08:30:15Z", datetime(2026, 11, 26, 8, 30, 15, tzinfo=UTC)),
    ],
)
def test_a_time_without_a_zone_is_local(text: str, time: datetime) -> None:
    assert since(text) == time


@pytest.mark.parametrize(
    "text", ["", "24", "h", "-3h", "24 hours", "yesterday", "99999999999d", "2026-13-01", "٣h"]
)
def test_anything_else_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="30m, 24h, 7d"):
        since(text)


async def test_wrong_usage_names_the_option() -> None:
    ran = await command(NOWHERE, "list", "--since", "soon")
    assert ran.code == 2
    assert "--since" in ran.err


@pytest.mark.parametrize(
    ("seconds", "age"),
    [
        (-5, "0s"),
        (59, "59s"),
        (60, "1m"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (500 * 86400, "500d"),
        (NOW - 1, "57y"),
    ],
)
def test_an_age_has_one_unit(seconds: int, age: str) -> None:
    shown = task()
    shown.create_time.seconds = NOW - seconds
    _, row, _ = TaskTable(80).lines(shown, NOW)
    assert f" {age} " in row


@pytest.mark.parametrize(
    "prompt",
    ["灯台" * 40, "👩‍🚀" * 40, "a\nb\x1b[31m" * 20, "x" * 5000, "", "\u202ereversed", "é" * 90],
)
def test_no_prompt_breaks_the_table(prompt: str) -> None:

    header, row, task_id = TaskTable(80).lines(task(prompt), NOW)
    assert cell_len(header) == cell_len(row) == 80
    assert row.isprintable()
    assert row[-31:].split()[0] == "SUCCESS"
    assert task_id == f"  {task().id}"
    assert cell_len(change_line(task(prompt), 80)) == 80


def test_a_wide_terminal_has_the_id_in_the_same_line() -> None:
    header, row = TaskTable(120).lines(task(), NOW)
    assert header.endswith("RESULTS ID")
    assert row.endswith(task().id)
    assert len(row) == 120


def test_large_numbers_fit() -> None:
    table, totals = TaskTable(80), Totals()
    for _ in range(2):
        shown = task(credits_consumed=1_234_567.891, artifacts=[Artifact()] * 120)
        totals.add(shown)
        assert max(map(len, table.lines(shown, NOW))) == 80
    assert str(totals) == "2 tasks: 2 SUCCESS; 2469135.782 credits, 240 results"


def test_one_task_is_not_plural() -> None:
    totals = Totals()
    totals.add(task(artifacts=[Artifact()]))
    assert str(totals) == "1 task: 1 SUCCESS; 0 credits, 1 result"


def test_a_model_that_only_a_newer_client_knows_is_left_empty() -> None:
    _, row, _ = TaskTable(80).lines(pending(1), NOW)
    assert row.split() == ["GENERATING"]


@pytest.mark.parametrize("columns", ["80", "40"])
async def test_a_list_on_a_terminal_fits_it_and_colours_only_the_state(columns: str) -> None:
    shown = task("SUCCESS \x1b[31m a lighthouse at dawn, in oil on canvas")
    terminal, process_side = os.openpty()
    how: dict[str, Any] = {"stdout": process_side, "COLUMNS": columns, "NO_COLOR": ""}
    async with serving(listing(shown)) as address:
        ran = await command(address, "list", **how)
    os.close(process_side)
    assert ran.code == 0
    output = os.read(terminal, 4096).decode()
    os.close(terminal)
    assert "\x1b[32mSUCCESS" in output
    plain = output.replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert "\x1b" not in plain
    assert "SUCCESS \ufffd[31m a" in plain
    *rows, _ = plain.splitlines()
    assert max(map(len, rows)) <= int(columns)


async def test_a_list_of_the_real_service_answers_what_was_made(
    tmp_path: Path, kie: Simulator
) -> None:
    url = f"sqlite:///{tmp_path}/generation.db"
    async with serving_real(tmp_path, kie, database_url=url) as service:
        for prompt_id in ("p-1", "p-1", "p-2"):
            await service.end((await service.create(prompt_id=prompt_id)).id)
        options = ("--since", "1h", "--model", "imagen4", "--prompt-id", "p-1")
        found = await command(service.address, "list", *options)
        none = await command(service.address, "list", "--model", "veo3")
        every = await command(service.address, "list", "--since", "0001-01-01T00:00Z")
    assert found.out.splitlines()[-1].startswith("2 tasks: 2 SUCCESS; ")
    assert "a cat " in found.out
    assert none.err == "no tasks\n"
    assert every.out.splitlines()[-1].startswith("3 tasks: ")
