"""The end of the process: nothing that is paid for is lost, and no deploy is noticed."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from tests.support.harness import create_request, upload_messages
from tests.support.postgres import Cluster
from tests.support.processes import Launch, Served, read_to_end, to
from tests.support.prompts import STUCK_PROMPT
from tests.support.refusals import refused
from tests.support.waiting import START_SECONDS, eventually
from tests.support.wire import Wire

CREATE_PATH = "/api/v1/jobs/createTask"
END_SECONDS = 10  # what orchestrators give by default
LONG_SECONDS = 25  # more than any request of these tests takes, on a busy machine, too
NO_LIMITS = {"KIE_CREATES_PER_10_SECONDS": "0", "CREATE_WAIT_SECONDS": "0"}
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


async def ends_of(process: Served, tasks: list[pb.GenerationTask]) -> set[int]:
    ends = await asyncio.gather(*(process.end(task.id) for task in tasks))
    return {end.status for end in ends}


def struck(kie: Simulator) -> int:
    """How many requests have met a fault."""
    return sum(kie.stats["faults_struck"].values())


# --- paid requests ---


@pytest.mark.parametrize("shutdown", [{}, {"SHUTDOWN_SECONDS": str(LONG_SECONDS)}])
async def test_paid_requests_in_progress_get_the_time_that_is_left(
    launch: Launch, kie: Simulator, shutdown: dict[str, str]
) -> None:
    seconds = 8 if shutdown else 6  # the default is 9
    kie.add_fault(f"create:slow,seconds={seconds},times=0")
    async with launch(**to(kie.url), **NO_LIMITS, **shutdown) as process:
        created = [await process.create() for _ in range(5)]
        await eventually(lambda: struck(kie) == 5)
        process.process.signal(signal.SIGTERM)
        assert await process.process.exit_code(START_SECONDS) == 0
        assert process.process.logged("paid requests abandoned, as they were not answered") is None
    kie.clear_faults()
    async with launch(**to(kie.url)) as process:
        assert await ends_of(process, created) == {pb.TASK_STATUS_SUCCESS}
    assert kie.stats["requests"][CREATE_PATH] == 5


async def test_under_load_every_task_is_sent_once_before_the_end_or_after_the_restart(
    launch: Launch, kie: Simulator
) -> None:
    kie.add_fault("create:slow,seconds=2,times=0")
    settings = to(kie.url) | NO_LIMITS | {"SHUTDOWN_SECONDS": str(LONG_SECONDS)}
    async with launch(**settings) as process:
        created = [await process.create() for _ in range(60)]  # 20 may be sent at a time
        await eventually(lambda: struck(kie) > 20)
        process.process.signal(signal.SIGTERM)
        assert await process.process.exit_code(START_SECONDS) == 0
    kie.clear_faults()
    assert kie.stats["requests"][CREATE_PATH] < 60
    async with launch(**settings) as process:
        assert await ends_of(process, created) == {pb.TASK_STATUS_SUCCESS}
    assert kie.stats["requests"][CREATE_PATH] == 60


async def test_a_paid_request_without_an_answer_does_not_delay_the_end_further(
    launch: Launch, kie: Simulator
) -> None:
    kie.add_fault("create:hang")
    async with launch(**to(kie.url), **NO_LIMITS, SHUTDOWN_SECONDS="1") as process:
        await process.create()
        await eventually(lambda: kie.stats["faults_struck"])
        process.process.signal(signal.SIGTERM)
        assert await process.process.exit_code(END_SECONDS) == 0
        line = process.process.logged("paid requests abandoned, as they were not answered")
        assert line
        assert line["count"] == 1


# --- everything else ---


async def test_polls_watches_and_uploads_end_early(launch: Launch, kie: Simulator) -> None:
    kie.add_fault("record:hang,times=0")
    async with launch(**to(kie.url), SHUTDOWN_SECONDS="600") as process:
        created = await process.create(STUCK_PROMPT)
        await eventually(lambda: kie.stats["faults_struck"])
        watch: Any = process.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        assert (await watch.read()).task.id == created.id
        upload: Any = process.stub.UploadFile()
        for message in upload_messages(b"x" * 100):
            await upload.write(message)
        process.process.signal(signal.SIGTERM)
        error = await refused(read_to_end(watch))
        assert error.reason == "SHUTTING_DOWN"
        assert await process.process.exit_code(START_SECONDS) == 0
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await upload


async def test_a_database_that_does_not_answer_does_not_delay_the_end(
    launch: Launch, kie: Simulator, cluster: Cluster
) -> None:
    with Wire(cluster.url) as wire:
        async with launch(**to(kie.url), **NO_LIMITS, DATABASE_URL=wire.url) as process:
            await process.create(STUCK_PROMPT)
            await eventually(lambda: len(kie.tasks) == 1)
            wire.freeze()
            queries = [asyncio.ensure_future(process.create()) for _ in range(3)]
            signalled = time.monotonic()
            process.process.signal(signal.SIGTERM)
            assert await process.process.exit_code(START_SECONDS) == 0
            assert time.monotonic() - signalled < END_SECONDS
            await asyncio.gather(*queries, return_exceptions=True)
            wire.thaw()


# --- the drain delay ---


async def test_calls_are_served_while_the_process_already_reports_that_it_will_stop(
    launch: Launch, kie: Simulator
) -> None:
    async with launch(**to(kie.url), DRAIN_DELAY_SECONDS="600") as process:
        created = await process.create(STUCK_PROMPT)
        watch: Any = process.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        assert (await watch.read()).task.id == created.id
        health = process.health.Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        process.process.signal(signal.SIGTERM)
        assert (await health.read()).status == NOT_SERVING
        assert await process.get("/readyz") == (503, "shutting down\n")
        assert await process.get("/healthz") == (200, "ok\n")

        line = process.process.logged("serving")
        assert line
        async with grpc.aio.insecure_channel(line["address"]) as channel:  # a new connection
            stub: Any = GenerationServiceStub(channel)
            another = (await stub.CreateTask(create_request(), timeout=20)).task
            assert (await process.end(another.id)).status == pb.TASK_STATUS_SUCCESS
        kie.finish(kie.tasks[0]["id"])
        async with asyncio.timeout(START_SECONDS):
            await read_to_end(watch)  # the stream ends with its task, and not with the signal


async def test_after_the_drain_delay_the_process_ends(launch: Launch, kie: Simulator) -> None:
    async with launch(**to(kie.url), DRAIN_DELAY_SECONDS="1") as process:
        created = await process.create(STUCK_PROMPT)
        watch: Any = process.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        assert (await watch.read()).task.id == created.id
        health = process.health.Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        signalled = time.monotonic()
        process.process.signal(signal.SIGTERM)
        assert (await health.read()).status == NOT_SERVING
        assert (await refused(read_to_end(watch))).reason == "SHUTTING_DOWN"
        assert time.monotonic() - signalled >= 1
        assert await health.read() is grpc.aio.EOF
        assert await process.process.exit_code(START_SECONDS) == 0


# --- the folder of results ---


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_file_system_that_hangs_does_not_delay_the_end(
    launch: Launch, kie: Simulator, tmp_path: Path
) -> None:
    """Opening a pipe that nobody writes to hangs, as a file on a server that does not answer."""
    results = tmp_path / "results"
    async with launch(**to(kie.url), RESULTS_URL=results.as_uri()) as process:
        created = await process.create()
        end = await process.end(created.id)
        assert end.artifacts[0].storage_uri
        [copy] = [path for path in results.rglob("*") if path.is_file()]
        copy.unlink()
        os.mkfifo(copy)
        request = pb.DownloadArtifactRequest(task_id=created.id)
        downloads = [process.stub.DownloadArtifact(request) for _ in range(4)]
        reading = asyncio.gather(*(each.read() for each in downloads), return_exceptions=True)
        await eventually(lambda: waiting_for_a_writer(process.pid) == len(downloads))
        process.process.signal(signal.SIGTERM)
        assert await process.process.exit_code(END_SECONDS) == 0
        await reading


def waiting_for_a_writer(pid: int) -> int:
    """How many threads of a process hang at opening a pipe."""
    states = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/wchan")]
    return states.count("wait_for_partner")
