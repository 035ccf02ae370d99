"""What CreateTask holds in memory while it waits for the provider's verdict."""

from pathlib import Path
from typing import Any

import grpc

from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from tests.support.harness import create_request
from tests.support.memory import resident_mib
from tests.support.processes import served, to
from tests.support.waiting import DEADLINE_SECONDS

CREATES = 1_500
LONG = "x" * 240_000


async def test_large_creates_take_less_than_400_mib_and_are_stored_or_refused(
    tmp_path: Path, kie: Simulator
) -> None:
    settings = {"KIE_CREATES_PER_10_SECONDS": "1", "KIE_MARKET_VALIDATION": "basic"}
    market = {"model": "google/nano-banana", "input": {"prompt": "x", "note": LONG}}
    request = create_request({"market": market})
    async with (
        served(tmp_path, **settings, **to(kie.url)) as process,
        grpc.aio.insecure_channel(process.address) as channel,
    ):
        stub: Any = GenerationServiceStub(channel)
        before = resident_mib(process.pid)
        calls = [stub.CreateTask(request, timeout=DEADLINE_SECONDS) for _ in range(CREATES)]
        codes = [await call.code() for call in calls]
        grown = resident_mib(process.pid, "VmHWM") - before
        await process.stop()
    assert grown < 400, f"{grown:.0f} MiB"
    created = process.process.text.count("task created")
    assert codes.count(grpc.StatusCode.OK) == created, "a task was created by a refused call"
