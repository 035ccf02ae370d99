"""The real process, killed with SIGKILL at each await of the create and the poll flow."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kie_generation import GenerationClient, GenerationError
from kie_generation.generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import INSTANT
from tests.support.killing import Victim, check_ledger, create, patient_client
from tests.support.waiting import eventually

SUCCESS = pb.TASK_STATUS_SUCCESS
UNKNOWN = pb.ERROR_REASON_SUBMISSION_UNKNOWN

# Where the process dies, and how the task ends: a bought task is recovered by its callback.
POINTS = [
    ("Store.create:before", SUCCESS),
    ("Store.create:after", SUCCESS),
    ("Store.claim_in_turns:before", SUCCESS),
    ("Store.claim_in_turns:after", UNKNOWN),  # SUBMITTING is committed, nothing is sent
    ("KieProvider.submit:before", UNKNOWN),
    ("KieProvider._read:before", SUCCESS),  # sent and bought, the response is not read
    ("KieProvider._read:after", SUCCESS),
    ("KieProvider.submit:after", SUCCESS),
    ("Store.save:before", SUCCESS),  # bought and answered, but not stored
    ("Store.save:after", SUCCESS),
    ("Store.claim:before", SUCCESS),
    ("Store.claim:after", SUCCESS),
    ("KieProvider.poll:before", SUCCESS),
    ("KieProvider.poll:after", SUCCESS),
]


@pytest.fixture
async def kie() -> AsyncIterator[Simulator]:
    """A simulator whose callbacks are retried until a killed service is back."""
    settings = replace(
        INSTANT,
        seconds={"imagen4": (0.05, 0.3)},
        callback_retry_seconds=(0.5, 0.5, 1.0, 1.0, 1.0, 1.0),
    )
    async with Simulator(settings) as simulator:
        yield simulator


@pytest.mark.parametrize(("point", "end"), POINTS)
async def test_a_process_killed_at_any_await_loses_nothing_and_pays_for_nothing_twice(
    tmp_path: Path, kie: Simulator, unused_tcp_port_factory: object, point: str, end: int
) -> None:
    victim = Victim(tmp_path, kie, _ports(unused_tcp_port_factory))
    await victim.start(point)
    async with patient_client(victim) as client:
        ending = asyncio.ensure_future(_create_and_wait(client))
        await victim.crashed()
        await victim.start()
        try:
            task = await ending
        finally:
            await victim.stop()
    check_ledger(kie, [task])
    if end == SUCCESS:
        assert task.status == SUCCESS, task
    else:
        assert task.failure.reason == UNKNOWN
        assert kie.tasks == []


async def _create_and_wait(client: GenerationClient) -> pb.GenerationTask:
    """Watch the task: otherwise it would be left to its callback and not polled."""
    task = await create(client, "r-1")
    return await client.wait(task.id, timeout=60)


@pytest.mark.torture
async def test_two_hundred_kills_at_random_moments_under_load_lose_nothing(
    tmp_path: Path, kie: Simulator, unused_tcp_port_factory: object
) -> None:
    await _kill_at_random(tmp_path, kie, _ports(unused_tcp_port_factory), kills=200)


async def test_five_kills_at_random_moments_under_load_lose_nothing(
    tmp_path: Path, kie: Simulator, unused_tcp_port_factory: object
) -> None:
    await _kill_at_random(tmp_path, kie, _ports(unused_tcp_port_factory), kills=5)


async def _kill_at_random(folder: Path, kie: Simulator, ports: list[int], *, kills: int) -> None:
    """Kill the service again and again while callers create tasks; then let everything end."""
    rng = random.Random(kills)
    victim = Victim(folder, kie, ports)
    acknowledged: list[pb.GenerationTask] = []
    async with patient_client(victim) as client:

        async def caller(name: int) -> None:
            for number in range(10**9):
                with contextlib.suppress(GenerationError):
                    acknowledged.append(await create(client, f"r-{name}-{number}"))

        def reached(count: int) -> bool:
            return len(acknowledged) >= count

        callers = [asyncio.ensure_future(caller(name)) for name in range(8)]
        for kill in range(kills):
            await victim.start()
            if kill % 2:  # every other one at the earliest after a create
                more = len(acknowledged) + 1
                await eventually(partial(reached, more))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), rng.uniform(0.05, 0.6))
            await victim.kill()
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await victim.start()
        try:
            ends = await asyncio.gather(*(client.wait(t.id, timeout=120) for t in acknowledged))
        finally:
            await victim.stop()
    assert len(ends) >= kills // 2
    print(check_ledger(kie, ends))  # noqa: T201 - for the person who runs it


def _ports(factory: object) -> list[int]:
    assert callable(factory)
    return [factory(), factory()]
