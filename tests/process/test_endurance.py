"""The memory of the real process must not grow with streams and large files."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from tests.support.killing import Victim, create, patient_client
from tests.support.memory import resident_mib

pytestmark = pytest.mark.torture

BATCH = 1_000
CHUNK = bytes(1 << 20)


@pytest.fixture
async def victim(
    tmp_path: Path, kie: Simulator, unused_tcp_port_factory: object
) -> AsyncIterator[Victim]:
    assert callable(unused_tcp_port_factory)
    ports = [unused_tcp_port_factory(), unused_tcp_port_factory()]
    victim = Victim(tmp_path, kie, ports, UPLOAD_MAX_BYTES=str(2 << 30), POLL_INTERVAL_SECONDS="60")
    await victim.start()
    yield victim
    await victim.stop()


async def test_fifty_thousand_watches_opened_and_cancelled_leave_memory_where_it_was(
    victim: Victim, kie: Simulator
) -> None:
    kie.update(seconds={"imagen4": [3_600, 3_600]})
    async with patient_client(victim) as client:
        task = await create(client, "r")
    request = pb.WatchTaskRequest(task_id=task.id)
    after = []
    async with grpc.aio.insecure_channel(victim.address) as channel:
        stub = GenerationServiceStub(channel)
        for _ in range(50):
            calls = [stub.WatchTask(request) for _ in range(BATCH)]
            await asyncio.gather(*(call.read() for call in calls))
            for call in calls:
                call.cancel()
            after.append(resident_mib(victim.pid))
    print([round(mebibytes) for mebibytes in after[::5]])  # noqa: T201
    assert after[-1] - after[4] < 8, "after the first thousands, memory stays"


async def test_a_gibibyte_is_uploaded_in_flat_memory(victim: Victim, kie: Simulator) -> None:
    async def messages() -> AsyncIterator[pb.UploadFileRequest]:
        yield pb.UploadFileRequest(metadata=pb.UploadMetadata(file_name="large.bin"))
        for _ in range(1_024):
            yield pb.UploadFileRequest(chunk=CHUNK)

    before = resident_mib(victim.pid)
    async with grpc.aio.insecure_channel(victim.address) as channel:
        answer = await GenerationServiceStub(channel).UploadFile(messages())
    assert answer.file.size_bytes == 1 << 30
    grown = resident_mib(victim.pid, "VmHWM") - before
    print(f"{grown:.1f} MiB")  # noqa: T201
    assert grown < 30
    assert kie.stats["uploads"]["completed"] == 1
