"""The process itself: its start, its log, its health, its end, and what outlives it."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
)
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from tests.support.databases import change, locked
from tests.support.harness import (
    API_KEY,
    INSTANT,
    Refusal,
    create_request,
    ended,
    refusal,
    upload_messages,
)
from tests.support.paths import ROOT

if TYPE_CHECKING:  # it exists for type checkers only
    from generated.generation.v1.generation_pb2_grpc import GenerationServiceAsyncStub

NAME = "generation.v1.GenerationService"
START_SECONDS = 30
END_SECONDS = 10  # what orchestrators give by default
RSS_MAX_KIB = 120 * 1_024
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# --- a process ---


@dataclass(frozen=True)
class Process:
    """A process of the service, whose output goes to a file."""

    process: asyncio.subprocess.Process
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines so far; each must be JSON."""
        whole, _, _ = self.text.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def logged(self, event: str) -> dict[str, Any] | None:
        return next((line for line in self.log if line["event"] == event), None)

    @property
    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self, seconds: float = START_SECONDS) -> int:
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@asynccontextmanager
async def started(folder: Path, **variables: str) -> AsyncIterator[Process]:
    """Start a process in a folder; kill it if it is still there afterwards."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "LISTEN_ADDRESS": "127.0.0.1:0",
        "ADMIN_ADDRESS": "127.0.0.1:0",
        "LOG_FORMAT": "json",
        "POLL_INTERVAL_SECONDS": "0.1",
        "TMPDIR": str(folder),  # what a killed process leaves there goes with the test's folder
    }
    output = folder / f"output-{time.monotonic_ns()}"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service"),
            cwd=folder,
            env=environment | variables,
            stdout=file,
            stderr=file,
        )
    try:
        yield Process(process, output)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """Wait until a condition holds, and return what it returned."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.01)
    return found


@dataclass(frozen=True)
class Served:
    """A process that serves, and a channel to it."""

    process: Process
    channel: grpc.aio.Channel
    stub: "GenerationServiceAsyncStub"
    health: Any
    admin_url: str

    async def create(self, prompt: str = "a cat", **options: Any) -> pb.GenerationTask:
        request = create_request({"imagen4": {"prompt": prompt}})
        return (await self.stub.CreateTask(request, timeout=20, **options)).task

    async def end(self, task_id: str) -> pb.GenerationTask:
        """Watch a task to its end."""
        request = pb.WatchTaskRequest(task_id=task_id)
        last = [answer.task async for answer in self.stub.WatchTask(request, timeout=20)][-1]
        assert ended(last)
        return last

    async def get(self, path: str) -> tuple[int, str]:
        """Ask the admin port."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.admin_url + path) as response,
        ):
            return response.status, await response.text()

    async def stop(self) -> None:
        """Stop the process as an orchestrator does."""
        self.process.signal(signal.SIGTERM)
        assert await self.process.exit_code() == 0


@asynccontextmanager
async def served(folder: Path, **variables: str) -> AsyncIterator[Served]:
    """Start a process, and wait until it says that it serves."""
    async with started(folder, **variables) as process:
        line = await until(lambda: _serving(process))
        async with grpc.aio.insecure_channel(line["address"]) as channel:
            yield Served(
                process,
                channel,
                GenerationServiceStub(channel),
                health_pb2_grpc.HealthStub(channel),
                f"http://{line['admin_address']}",
            )


def _serving(process: Process) -> dict[str, Any] | None:
    """Return the line that names the addresses, in either form of the log."""
    assert process.process.returncode is None, process.text
    if line := re.search(r"serving +address=(\S+) admin_address=(\S+)", process.text):
        return {"address": line[1], "admin_address": line[2]}
    return process.logged("serving") if process.text.startswith("{") else None


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def launch(tmp_path: Path) -> Serve:
    """Start processes in one folder: again for a restart."""
    return lambda **variables: served(tmp_path, **variables)


@pytest.fixture(scope="module")
async def idle(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A process without any setting but its ports, for tests that leave it as it is."""
    async with served(tmp_path_factory.mktemp("idle")) as process:
        yield process


def to(kie: Simulator) -> dict[str, str]:
    """Return the settings of a process that uses a simulator of the test's."""
    return {"KIE_API_KEY": API_KEY, "KIE_API_URL": kie.url, "KIE_UPLOAD_URL": kie.url}


async def refused(call: Any) -> Refusal:
    """Await a call that must be refused, and return how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


async def read_to_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


# --- up ---


async def test_without_a_key_the_log_says_loudly_that_a_simulator_is_used(idle: Served) -> None:
    [line] = [line for line in idle.process.log if "KIE_API_KEY IS NOT SET" in line["event"]]
    assert line["level"] == "warning"
    assert line["simulator"].startswith("http://127.0.0.1:")


async def test_without_a_key_a_task_of_each_model_succeeds(idle: Served) -> None:
    prompt = {"prompt": "a cat [sim:seconds=0.1]"}
    models: dict[str, dict[str, Any]] = {
        "imagen4": prompt,
        "midjourney": prompt | {"task_type": "TASK_TYPE_TXT2IMG"},
        "veo3": prompt,
        "sora2": prompt,
    }
    for model, params in models.items():
        answer = await idle.stub.CreateTask(create_request({model: params}), timeout=20)
        assert (await idle.end(answer.task.id)).status == pb.TASK_STATUS_SUCCESS


async def test_with_a_key_nothing_is_said_of_a_simulator(launch: Serve, kie: Simulator) -> None:
    async with launch(**to(kie)) as process:
        assert (await process.end((await process.create()).id)).status == pb.TASK_STATUS_SUCCESS
        assert "simulator" not in process.process.text.lower()
    assert len(kie.tasks) == 1


@pytest.mark.parametrize("name", ["", NAME])
async def test_the_health_service_says_serving_overall_and_by_name(idle: Served, name: str) -> None:
    answer = await idle.health.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == SERVING


async def test_the_health_service_does_not_know_other_names(idle: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await idle.health.Check(health_pb2.HealthCheckRequest(service="generation.v2.Other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services_and_knows_their_messages(idle: Served) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
    ]
    stub = reflection_pb2_grpc.ServerReflectionStub(idle.channel)
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests), timeout=5)]
    assert {service.name for service in answers[0].list_services_response.service} == {
        NAME,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = answers[1].file_descriptor_response.file_descriptor_proto
    assert any(b"CreateTaskRequest" in file for file in files)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_the_admin_port_answers_ok(idle: Served, path: str) -> None:
    assert await idle.get(path) == (200, "ok\n")


async def test_the_admin_port_serves_nothing_else(idle: Served) -> None:
    assert (await idle.get("/debug"))[0] == 404


async def test_an_empty_admin_address_opens_no_port(launch: Serve) -> None:
    async with launch(ADMIN_ADDRESS="") as process:
        line = process.process.logged("serving")
        assert line
        assert line["admin_address"] == "off"


async def test_an_idle_process_fits_in_120_mib(idle: Served) -> None:
    assert idle.process.resident_kib < RSS_MAX_KIB


async def test_a_process_whose_database_cannot_be_written_is_alive_but_not_ready(
    launch: Serve, tmp_path: Path
) -> None:
    async with launch() as process:
        with locked(f"sqlite:///{tmp_path}/generation.db"):
            assert await process.get("/readyz") == (503, "the database is unavailable\n")
            assert await process.get("/healthz") == (200, "ok\n")
        assert await process.get("/readyz") == (200, "ok\n")


# --- down ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_signal_ends_a_quiet_watch_with_shutting_down_and_the_process_with_0(
    launch: Serve, number: signal.Signals
) -> None:
    async with launch() as process:
        created = await process.create("a cat [sim:stuck]")
        watch: Any = process.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        assert (await watch.read()).task.id == created.id
        health = process.health.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await health.read()).status == SERVING
        upload = process.stub.UploadFile()  # holds the process up while it is looked at
        await upload.write(pb.UploadFileRequest(metadata=pb.UploadMetadata(file_name="a.png")))
        assert (await process.health.Check(health_pb2.HealthCheckRequest())).status == SERVING

        signalled = time.monotonic()
        process.process.signal(number)
        assert (await health.read()).status == NOT_SERVING
        assert await process.get("/readyz") == (503, "shutting down\n")
        assert await process.get("/healthz") == (200, "ok\n")

        error = await refused(read_to_end(watch))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert error.retry_seconds is not None
        upload.cancel()
        assert await process.process.exit_code() == 0
        assert time.monotonic() - signalled < END_SECONDS
        assert process.process.log[-1]["event"] == "stopped"


async def test_an_open_health_watch_does_not_delay_the_shutdown(
    launch: Serve,
) -> None:
    async with launch() as process:
        health = process.health.Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        process.process.signal(signal.SIGTERM)
        assert await process.process.exit_code(END_SECONDS) == 0
        assert (await health.read()).status == NOT_SERVING
        assert await health.read() is grpc.aio.EOF


async def test_a_create_that_waits_for_a_hung_provider_is_answered_pending_before_the_end(
    launch: Serve, kie: Simulator
) -> None:
    kie.add_fault("create:hang")
    async with launch(CREATE_WAIT_SECONDS="60", **to(kie)) as process:
        creating = asyncio.ensure_future(process.create())
        await until(lambda: kie.stats["faults_struck"])
        signalled = time.monotonic()
        process.process.signal(signal.SIGTERM)
        created = await creating
        assert (created.status, created.stage) == (
            pb.TASK_STATUS_PENDING,
            pb.TASK_STAGE_SUBMITTING,
        )
        assert await process.process.exit_code(END_SECONDS) == 0
        assert time.monotonic() - signalled < END_SECONDS
    async with launch(**to(kie)) as process:  # sent, and maybe paid: never sent again
        end = await process.end(created.id)
        assert end.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
    assert kie.stats["requests"]["/api/v1/jobs/createTask"] == 1


async def test_a_repeated_signal_is_still_a_clean_stop(launch: Serve) -> None:
    async with launch() as process:
        process.process.signal(signal.SIGTERM)
        process.process.signal(signal.SIGTERM)
        process.process.signal(signal.SIGINT)
        assert await process.process.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
async def test_an_ignored_signal_does_not_disturb_a_paid_request(
    launch: Serve, kie: Simulator, number: signal.Signals
) -> None:
    kie.add_fault("create:slow,seconds=1")
    async with launch(**to(kie)) as process:
        creating = asyncio.ensure_future(process.create())
        await until(lambda: kie.stats["faults_struck"])
        process.process.signal(number)
        line = await until(lambda: process.process.logged("signal ignored"))
        assert line["signal"] == number.name
        assert (await process.end((await creating).id)).status == pb.TASK_STATUS_SUCCESS
    assert kie.stats["requests"]["/api/v1/jobs/createTask"] == 1


async def test_a_hangup_while_the_process_still_imports_does_not_end_it(tmp_path: Path) -> None:
    async with started(tmp_path) as process:
        maps = Path(f"/proc/{process.process.pid}/maps")
        await until(lambda: "grpc" in maps.read_text())
        process.signal(signal.SIGHUP)
        assert await until(lambda: process.logged("serving") or process.process.returncode)
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 0


# --- again ---


async def test_a_task_outlives_a_kill_and_ends_after_the_restart_bought_once(
    launch: Serve,
) -> None:
    async with launch() as process:
        created = await process.create("a cat [sim:seconds=1]")
        assert created.provider_task_id
        process.process.signal(signal.SIGKILL)
        assert await process.process.exit_code() == -signal.SIGKILL
    async with launch() as process:
        end = await process.end(created.id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert end.provider_task_id == created.provider_task_id
        assert end.revision > created.revision

        simulator = next(line for line in process.process.log if "simulator" in line)["simulator"]
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{simulator}/simulator/tasks") as response,
        ):
            assert (await response.json())["total"] == 1


async def test_a_second_process_on_the_same_database_is_refused_and_the_first_continues(
    launch: Serve, tmp_path: Path
) -> None:
    async with launch() as first:
        async with started(tmp_path) as second:
            assert await second.exit_code() == 2
        [line] = second.log
        assert (line["level"], line["event"]) == ("critical", "cannot start")
        assert line["error"] == "generation.db is in use by another process of this service"
        assert (await first.create()).id
        await first.stop()
    async with launch() as third:
        assert (await third.stub.ListTasks(pb.ListTasksRequest())).tasks


@pytest.mark.parametrize("link", [os.symlink, os.link])
async def test_a_second_process_by_a_link_to_the_file_is_refused(
    launch: Serve, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with launch() as first:
        link(tmp_path / "generation.db", elsewhere / "other.db")
        async with started(tmp_path, DATABASE_URL="sqlite:///elsewhere/other.db") as second:
            assert await second.exit_code() == 2
        assert second.log[-1]["error"] == (
            "elsewhere/other.db is in use by another process of this service"
        )
        assert (await first.create()).id
        await first.stop()
    assert not list(elsewhere.glob("other.db-*"))


async def test_a_dangling_link_creates_a_file_that_is_locked_under_its_own_name_too(
    launch: Serve, tmp_path: Path
) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "generation.db")
    async with launch(DATABASE_URL="sqlite:///link.db"), started(tmp_path) as second:
        assert await second.exit_code() == 2


# --- no start ---


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody else serves on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        yield f"127.0.0.1:{holder.getsockname()[1]}"


@pytest.mark.parametrize("name", ["LISTEN_ADDRESS", "ADMIN_ADDRESS", "HTTP_ADDRESS"])
async def test_an_address_in_use_ends_the_process_with_1_and_is_named_by_its_setting(
    tmp_path: Path, taken: str, name: str
) -> None:
    public = {"PUBLIC_URL": "https://here.example", "HTTP_ADDRESS": "127.0.0.1:0"}
    async with started(tmp_path, **public | {name: taken}) as process:
        assert await process.exit_code() == 1
    line = process.log[-1]
    assert (line["level"], line["event"]) == ("critical", "cannot start")
    assert line["error"] == f"{name}: cannot listen on {taken}: address already in use"
    assert all(line["event"] != "serving" for line in process.log)


@pytest.mark.parametrize("name", ["LISTEN_ADDRESS", "ADMIN_ADDRESS"])
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.1:50051", "cannot assign requested address"),
        ("no-such-host.invalid:50051", "not known"),
    ],
)
async def test_a_foreign_address_is_named_with_the_reason(
    tmp_path: Path, name: str, address: str, why: str
) -> None:
    allowed = {"ALLOW_UNAUTHENTICATED": "true"}
    async with started(tmp_path, **allowed | {name: address}) as process:
        assert await process.exit_code() == 1
    error = process.log[-1]["error"]
    assert error.startswith(f"{name}: cannot listen on {address}: ")
    assert why in error or "name resolution" in error


async def test_a_database_that_cannot_be_opened_ends_the_process_with_1_and_is_named(
    tmp_path: Path,
) -> None:
    async with started(tmp_path, DATABASE_URL="sqlite:///no/such/folder/x.db") as process:
        assert await process.exit_code() == 1
    assert "no/such/folder/x.db" in process.log[-1]["error"]
    assert "Traceback" not in process.text


# --- what is said ---

TOKEN = "token-of-alice"
WEBHOOK_KEY = "key-of-the-webhooks"
CALLBACK_SECRET = "secret-of-the-callbacks"
PROMPT = "prompt-that-is-nobody-elses-business"
ALICE: Any = {"metadata": [("authorization", f"Bearer {TOKEN}")]}

BAD_AUTHORIZATIONS = (TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN}, {TOKEN}")
REFUSED_CREATES = (
    f"create:code,code=401,msg=no access with {API_KEY}",
    "create:http,status=403,body=error 1010",
)
LOST_CREATES = ("create:accept_then_reset", "create:garbage", "create:wrong_types")
REFUSED_UPLOADS = ("upload:code,code=401,msg=no access", "upload:reset", "upload:garbage")


async def cause_failures(process: Served, kie: Simulator) -> None:
    """Let go wrong what can, with the key or a token at hand each time."""
    stub = process.stub
    for value in BAD_AUTHORIZATIONS:
        metadata = [("authorization", value)]
        error = await refused(stub.ListTasks(pb.ListTasksRequest(), metadata=metadata))
        assert error.reason == "UNAUTHENTICATED"
    for fault in REFUSED_CREATES:
        kie.add_fault(fault)
        assert (await refused(process.create(PROMPT, **ALICE))).reason == "PROVIDER_UNAUTHORIZED"
    for fault in LOST_CREATES:
        kie.add_fault(fault)
        assert (await process.create(PROMPT, **ALICE)).failure.message
    for fault in REFUSED_UPLOADS:
        kie.add_fault(fault)
        await refused(stub.UploadFile(iter(upload_messages(b"x" * 99_999)), **ALICE))
    not_a_message: Any = process.channel.unary_unary(f"/{NAME}/QueryTask")
    assert (await refused(not_a_message(b"\xff\xff", **ALICE))).reason == "INVALID_PARAMS"


async def cause_a_traceback(process: Served, kie: Simulator, folder: Path) -> None:
    """End a task over bad weather, damage its row, and find it by its request_id."""
    kie.add_fault("record:reset,times=2")
    request = create_request({"imagen4": {"prompt": PROMPT}}, request_id="r")
    created = (await process.stub.CreateTask(request, **ALICE)).task
    await read_to_end(process.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id), **ALICE))
    database_url = f"sqlite:///{folder}/generation.db"
    change(database_url, "UPDATE tasks SET status = 'X' WHERE id = ?", created.id)
    assert (await refused(process.stub.CreateTask(request, **ALICE))).reason == "INTERNAL"


async def spoil_the_tokens_file(process: Served, folder: Path) -> None:
    """Put the token where its hash belongs, and call until the service has seen it."""
    with (folder / "tokens").open("a") as file:
        file.write(f"{TOKEN} {TOKEN}\n")
    async with asyncio.timeout(START_SECONDS):
        while "sha256-of-token-in-hex" not in process.process.text:
            await process.stub.ListTasks(pb.ListTasksRequest(), **ALICE)


@pytest.mark.parametrize("form", ["json", "text"])
async def test_a_log_full_of_failures_contains_no_secret_and_has_one_format(
    launch: Serve, stack: AsyncExitStack, tmp_path: Path, form: str
) -> None:
    digest = sha256(TOKEN.encode()).hexdigest()
    (tmp_path / "tokens").write_text(f"alice {digest}\n")
    variables = {
        "AUTH_TOKENS_FILE": "tokens",
        "LOG_FORMAT": form,
        "LOG_LEVEL": "debug",
        "PUBLIC_URL": "https://here.example",
        "HTTP_ADDRESS": "127.0.0.1:0",
        "KIE_WEBHOOK_KEY": WEBHOOK_KEY,
        "CALLBACK_SECRET": CALLBACK_SECRET,
        "CREATE_WAIT_SECONDS": "1",
        "UNKNOWN_WAIT_SECONDS": "0",
    }
    async with Simulator(INSTANT) as kie:
        process = await stack.enter_async_context(launch(**variables, **to(kie)))
        await cause_failures(process, kie)
        await spoil_the_tokens_file(process, tmp_path)
        await cause_a_traceback(process, kie, tmp_path)
    assert (await process.create(PROMPT, **ALICE)).stage == pb.TASK_STAGE_ACCEPTED
    await process.stop()

    text = process.process.text
    for secret in (API_KEY, WEBHOOK_KEY, CALLBACK_SECRET, TOKEN, digest, PROMPT):
        assert secret not in text
    for event in (
        "unhandled exception",
        "ValueError",
        "the provider takes no tasks now",
        "stopped",
    ):
        assert event in text
    if form == "json":
        assert text.endswith("\n")
        assert all({"event", "level", "timestamp"} <= line.keys() for line in process.process.log)
