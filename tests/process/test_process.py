"""The process itself: its start, its log, its health, its end, and its restart."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.databases import locked
from tests.support.harness import create_request
from tests.support.memory import resident_mib
from tests.support.processes import NAME, Launch, Served, read_to_end, served, started, to
from tests.support.prompts import STUCK_PROMPT
from tests.support.refusals import refused
from tests.support.waiting import eventually

SIMULATED = "ok\nsimulated: results are samples\n"
END_SECONDS = 10  # what orchestrators give by default
RESIDENT_MAX_MIB = 120
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
async def idle(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A process with only its ports set, for tests that do not change it."""
    async with served(tmp_path_factory.mktemp("idle")) as process:
        yield process


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


async def test_with_a_key_the_log_mentions_no_simulator(launch: Launch, kie: Simulator) -> None:
    async with launch(**to(kie.url)) as process:
        assert (await process.end((await process.create()).id)).status == pb.TASK_STATUS_SUCCESS
        assert "simulator" not in process.process.text.lower()
    assert len(kie.tasks) == 1


@pytest.mark.parametrize("name", ["", NAME])
async def test_the_health_service_is_serving_overall_and_by_name(idle: Served, name: str) -> None:
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
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = answers[1].file_descriptor_response.file_descriptor_proto
    assert any(b"CreateTaskRequest" in file for file in files)


async def test_the_admin_port_answers_ok(idle: Served) -> None:
    assert await idle.get("/healthz") == (200, "ok\n")
    assert await idle.get("/readyz") == (200, SIMULATED)


async def test_the_admin_port_serves_nothing_else(idle: Served) -> None:
    assert (await idle.get("/debug"))[0] == 404


async def test_an_empty_admin_address_opens_no_port(launch: Launch) -> None:
    async with launch(ADMIN_ADDRESS="") as process:
        line = process.process.logged("serving")
        assert line
        assert line["admin_address"] == "off"


async def test_an_idle_process_fits_in_120_mib(idle: Served) -> None:
    assert resident_mib(idle.pid) < RESIDENT_MAX_MIB


async def test_a_process_whose_database_cannot_be_written_is_alive_but_not_ready(
    launch: Launch, tmp_path: Path
) -> None:
    async with launch() as process:
        with locked(f"sqlite:///{tmp_path}/generation.db"):
            await process.until("/readyz", (503, "the database is unavailable\n"))
            assert await process.get("/healthz") == (200, "ok\n")
        await process.until("/readyz", (200, SIMULATED))


# --- down ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_signal_ends_a_quiet_watch_with_shutting_down_and_the_process_with_0(
    launch: Launch, number: signal.Signals
) -> None:
    async with launch() as process:
        created = await process.create(STUCK_PROMPT)
        watch: Any = process.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        assert (await watch.read()).task.id == created.id
        health = process.health.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await health.read()).status == SERVING
        upload = process.stub.UploadFile()  # keeps the process running while it is checked
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
    launch: Launch,
) -> None:
    async with launch() as process:
        health = process.health.Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        process.process.signal(signal.SIGTERM)
        assert await process.process.exit_code(END_SECONDS) == 0
        assert (await health.read()).status == NOT_SERVING
        assert await health.read() is grpc.aio.EOF


async def test_a_create_that_waits_for_a_hung_provider_is_answered_pending_before_the_end(
    launch: Launch, kie: Simulator
) -> None:
    kie.add_fault("create:hang")
    async with launch(CREATE_WAIT_SECONDS="60", **to(kie.url)) as process:
        creating = asyncio.ensure_future(process.create())
        await eventually(lambda: kie.stats["faults_struck"])
        signalled = time.monotonic()
        process.process.signal(signal.SIGTERM)
        created = await creating
        assert (created.status, created.stage) == (
            pb.TASK_STATUS_PENDING,
            pb.TASK_STAGE_SUBMITTING,
        )
        assert await process.process.exit_code(END_SECONDS) == 0
        assert time.monotonic() - signalled < END_SECONDS
    async with launch(**to(kie.url)) as process:  # sent, and maybe paid: never sent again
        end = await process.end(created.id)
        assert end.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
    assert kie.stats["requests"]["/api/v1/jobs/createTask"] == 1


async def test_a_repeated_signal_is_still_a_clean_stop(launch: Launch) -> None:
    async with launch() as process:
        process.process.signal(signal.SIGTERM)
        process.process.signal(signal.SIGTERM)
        process.process.signal(signal.SIGINT)
        assert await process.process.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
async def test_an_ignored_signal_does_not_disturb_a_paid_request(
    launch: Launch, kie: Simulator, number: signal.Signals
) -> None:
    kie.add_fault("create:slow,seconds=1")
    async with launch(**to(kie.url)) as process:
        creating = asyncio.ensure_future(process.create())
        await eventually(lambda: kie.stats["faults_struck"])
        process.process.signal(number)
        line = await eventually(lambda: process.process.logged("signal ignored"))
        assert line["signal"] == number.name
        assert (await process.end((await creating).id)).status == pb.TASK_STATUS_SUCCESS
    assert kie.stats["requests"]["/api/v1/jobs/createTask"] == 1


async def test_a_hangup_while_the_process_still_imports_does_not_end_it(tmp_path: Path) -> None:
    async with started(tmp_path) as process:
        maps = Path(f"/proc/{process.process.pid}/maps")
        await eventually(lambda: "grpc" in maps.read_text())
        process.signal(signal.SIGHUP)
        assert await eventually(lambda: process.logged("serving") or process.process.returncode)
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 0


# --- again ---


async def test_a_task_outlives_a_kill_and_ends_after_the_restart_bought_once(
    launch: Launch,
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
    launch: Launch, tmp_path: Path
) -> None:
    async with launch() as first:
        async with started(tmp_path) as second:
            assert await second.exit_code() == 2
        line = second.log[-1]
        assert (line["level"], line["event"]) == ("critical", "cannot start")
        assert line["error"] == "generation.db is in use by another process of this service"
        assert (await first.create()).id
        await first.stop()
    async with launch() as third:
        assert (await third.stub.ListTasks(pb.ListTasksRequest())).tasks


@pytest.mark.parametrize("link", [os.symlink, os.link])
async def test_a_second_process_by_a_link_to_the_file_is_refused(
    launch: Launch, tmp_path: Path, link: Callable[[Path, Path], None]
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
    launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "generation.db")
    async with launch(DATABASE_URL="sqlite:///link.db"), started(tmp_path) as second:
        assert await second.exit_code() == 2


# --- no start ---


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that is in use."""
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
    allowed = {"ALLOW_UNAUTHENTICATED": "true", "KIE_SIMULATOR": "true"}
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
