"""The log as operators read it: lines about tasks and outages, and their format."""

import asyncio
import re
import subprocess
import sys
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import grpc
import pytest
import structlog

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import create_request
from tests.support.paths import ROOT
from tests.support.postgres import Cluster
from tests.support.processes import Launch, Served, served, to
from tests.support.prompts import STUCK_PROMPT
from tests.support.waiting import DEADLINE_SECONDS, eventually

TOKEN = "token-of-alice"
ALICE: Any = {"metadata": [("authorization", f"Bearer {TOKEN}")]}
OUTAGE_SECONDS = 4.0


def lines(process: Served, task_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return the log's lines about a task, by their events."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in process.process.log:
        if line.get("task_id") == task_id:
            found.setdefault(line["event"], []).append(line)
    return found


def all_three(process: Served, task_id: str) -> dict[str, list[dict[str, Any]]]:
    found = lines(process, task_id)
    return found if len(found) >= 3 else {}


async def create(process: Served, prompt: str) -> pb.GenerationTask:
    request = create_request({"imagen4": {"prompt": prompt}}, prompt_id="prompt-7")
    return (await process.stub.CreateTask(request, timeout=20, **ALICE)).task


async def end(process: Served, task_id: str) -> None:
    request = pb.WatchTaskRequest(task_id=task_id)
    async for _ in process.stub.WatchTask(request, timeout=20, **ALICE):
        pass


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tokens").write_text(f"alice {sha256(TOKEN.encode()).hexdigest()}\n")
    return {"AUTH_TOKENS_FILE": "tokens"}


async def test_a_task_has_a_line_for_its_create_its_acceptance_and_its_end_that_name_it(
    launch: Launch, kie: Simulator, tokens: dict[str, str]
) -> None:
    async with launch(**tokens, **to(kie.url)) as process:
        for prompt, status in (("a cat", "SUCCESS"), ("a cat [sim:fail]", "FAILED")):
            task = await create(process, prompt)
            await end(process, task.id)
            found = await eventually(partial(all_three, process, task.id))
            assert set(found) == {"task created", "task accepted", "task ended"}
            for [line] in found.values():
                named = {name: line[name] for name in ("model", "caller", "prompt_id", "level")}
                assert named == {
                    "model": "imagen4",
                    "caller": "alice",
                    "prompt_id": "prompt-7",
                    "level": "info",
                }
            assert found["task ended"][0]["status"] == status


@pytest.mark.parametrize(
    ("sent", "logged"),
    [("call-1", "call-1"), (None, "[0-9a-f]{16}"), ("a b", "[0-9a-f]{16}")],
    ids=["sent", "missing", "invalid"],
)
async def test_lines_of_a_call_have_the_x_request_id_of_its_metadata_or_one_of_the_service(
    launch: Launch, kie: Simulator, tokens: dict[str, str], sent: str | None, logged: str
) -> None:
    metadata = [*ALICE["metadata"], *([("x-request-id", sent)] if sent else [])]
    request = create_request(request_id="of-the-create")
    async with launch(**tokens, **to(kie.url)) as process:
        task = (await process.stub.CreateTask(request, timeout=20, metadata=metadata)).task
        found = await eventually(lambda: lines(process, task.id).get("task created"))
    assert re.fullmatch(logged, found[0]["request_id"])
    assert found[0]["peer"].startswith("ipv4:127.0.0.1:")


async def test_the_line_of_a_cancel_names_its_task_and_model(
    launch: Launch, kie: Simulator, tokens: dict[str, str]
) -> None:
    kie.add_fault("create:code,code=429,times=0")
    async with launch(CREATE_WAIT_SECONDS="0", **tokens, **to(kie.url)) as process:
        task = await create(process, "a cat")
        await eventually(lambda: kie.stats["faults_struck"])
        request = pb.CancelTaskRequest(task_id=task.id)

        async def is_cancelled() -> bool:
            try:
                cancelled = await process.stub.CancelTask(request, **ALICE)
            except grpc.aio.AioRpcError:  # the task is still being sent
                return False
            return bool(cancelled.task.failure.reason)

        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await is_cancelled():
                pass
        [line] = await eventually(lambda: lines(process, task.id).get("task ended"))
        named = [line[name] for name in ("reason", "model", "caller", "prompt_id")]
        assert named == ["CANCELLED", "imagen4", "alice", "prompt-7"]


async def test_a_task_that_ends_by_its_callback_is_named_as_well(
    launch: Launch, kie: Simulator, tokens: dict[str, str], unused_tcp_port: int
) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    public = {"HTTP_ADDRESS": address, "PUBLIC_URL": f"http://{address}"}
    slow = {"POLL_INTERVAL_SECONDS": "60"}
    async with launch(**public, **slow, **tokens, **to(kie.url)) as process:
        task = await create(process, "a cat")
        [line] = await eventually(lambda: lines(process, task.id).get("task ended"))
        named = [line[name] for name in ("model", "caller", "prompt_id")]
        assert named == ["imagen4", "alice", "prompt-7"]


async def test_an_outage_of_the_database_is_logged_once_and_so_is_its_end(
    tmp_path: Path, cluster: Cluster
) -> None:
    async with served(tmp_path, DATABASE_URL=cluster.url, KIE_SIMULATOR="true") as process:
        task = await process.create(STUCK_PROMPT)
        watch: Any = process.stub.WatchTask(pb.WatchTaskRequest(task_id=task.id))
        await watch.read()
        start = len(process.process.log)
        await asyncio.to_thread(cluster.stop)
        await eventually(lambda: len(process.process.log) > start)
        await asyncio.sleep(OUTAGE_SECONDS)  # in which lines may come
        warnings = [line for line in process.process.log[start:] if line["level"] == "warning"]
        assert len(warnings) <= 2, warnings
        assert any("storage unavailable" in line["event"] for line in warnings)
        await asyncio.to_thread(cluster.start)
        await eventually(lambda: process.process.logged("storage available again"))
        await eventually(
            lambda: process.process.logged("hints between replicas are available again")
        )


# --- the format of lines ---

LOGGING = """
import structlog
from service.logs import configure_logs
configure_logs({form!r}, "info")
log = structlog.get_logger()
"""
FIELDS = {
    "b": "two words",
    "a": 1,
    "url": "http://x/?y=z",
    "none": None,
    "quote": "it's",
    "empty": "",
    "list": ["x"],
}


def logged(statements: str, form: str = "text", stderr: IO[str] | int = PIPE) -> tuple[str, str]:
    """Run statements in a process that logs; return what it printed, and its log."""
    done = subprocess.run(
        [sys.executable, "-c", LOGGING.format(form=form) + statements],
        cwd=ROOT,
        stdout=PIPE,
        stderr=stderr,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout, done.stderr


def test_a_line_of_text_has_structlogs_format_without_colours() -> None:
    _, text = logged(f"log.info('task accepted', **{FIELDS!r})")
    time, _, rest = text.partition(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", time)
    console = structlog.dev.ConsoleRenderer(colors=False)
    expected = console(None, "info", {"event": "task accepted", "level": "info", **FIELDS})
    assert rest.rstrip() == str(expected).rstrip()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_logged_without_the_values_of_variables(form: str) -> None:
    statements = "secret = 'hunter' + '2'\ntry: 1 / 0\nexcept ArithmeticError: log.exception('bad')"
    _, text = logged(statements, form)
    assert "ZeroDivisionError" in text
    assert "hunter2" not in text
    assert form == "json" or text.splitlines()[1].startswith("Traceback")


IN_A_LOOP = """
import asyncio, time
async def main():
    log.info("before")
    try: 1 / 0
    except ArithmeticError: log.info("caught", exc_info=True)
    log.info("after")
    print(time.time())
asyncio.run(main())
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_that_are_written_later_are_complete_and_in_order(form: str) -> None:
    printed, text = logged(IN_A_LOOP, form)
    at = [text.index(words) for words in ("before", "caught", "ZeroDivisionError", "after")]
    assert at == sorted(at)
    times = re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+Z", text)
    logged_at = datetime.fromisoformat(times[-1]).timestamp()
    assert logged_at <= float(printed)


def test_a_log_on_a_full_disk_does_not_fail_its_caller() -> None:
    with Path("/dev/full").open("w") as full:
        printed, _ = logged("log.info('task created')\nprint('continued')", stderr=full)
    assert printed == "continued\n"
