"""Commits whose response is lost: what was paid for is neither lost nor bought twice."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.holds import HoldTimes
from service.leases import LeaseTimes
from service.limits import LimitBounds
from tests.support.databases import rows
from tests.support.harness import Service, ended, poller_bounds, serving
from tests.support.killing import creates
from tests.support.refusals import refusal
from tests.support.waiting import eventually
from tests.support.wire import Wire

# Parts of the statements of a transaction.
STORED = rb"INSERT INTO tasks"
CLAIMED = rb"UPDATE tasks SET.*'SUBMITTING'"
PUT_BACK = rb"UPDATE tasks SET.*'ACCEPTED'"
QUEUED = rb"UPDATE tasks SET.*'QUEUED'"
ENDED = rb"UPDATE tasks SET.*'SUCCESS'"

Replica = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def wire(postgresql_url: str) -> Iterator[Wire]:
    with Wire(postgresql_url) as line:
        yield line


@pytest.fixture
def replica(tmp_path: Path, kie: Simulator) -> Replica:
    """Start a replica whose creates do not wait for a verdict."""

    def start(database_url: str, **bounds: Any) -> AbstractAsyncContextManager[Service]:
        return serving(
            tmp_path,
            kie,
            database_url=database_url,
            create_wait_seconds=0,
            bounds=poller_bounds(**bounds),
        )

    return start


async def patiently(call: Callable[[], Awaitable[pb.GenerationTask]]) -> pb.GenerationTask:
    """Make a call, and repeat it while the database is unavailable."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if refusal(error).reason != "STORAGE_UNAVAILABLE":
                    raise


async def end(service: Service, task_id: str) -> pb.GenerationTask:
    """Watch to the end, as soon as the database is back."""
    return await patiently(lambda: service.end(task_id))


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("what", [CLAIMED, QUEUED, ENDED])
async def test_a_task_is_bought_once_whichever_of_its_commits_has_no_response(
    replica: Replica, wire: Wire, what: bytes, committed: bool
) -> None:
    async with replica(wire.url) as service:
        struck = wire.cut_at_commit(what, committed=committed)
        created = await service.create()
        await eventually(struck.is_set)
        wire.repair()
        assert (await end(service, created.id)).status == pb.TASK_STATUS_SUCCESS
        assert len(service.kie.tasks) == creates(service.kie) == 1


@pytest.mark.parametrize("committed", [True, False])
async def test_a_create_whose_commit_has_no_response_can_be_retried_by_its_request_id(
    replica: Replica, wire: Wire, committed: bool
) -> None:
    async with replica(wire.url) as service:
        wire.cut_at_commit(STORED, committed=committed)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.create(request_id="r")
        assert refusal(caught.value).reason == "STORAGE_UNAVAILABLE"
        wire.repair()
        created = await patiently(lambda: service.create(request_id="r"))
        assert (await end(service, created.id)).status == pb.TASK_STATUS_SUCCESS
        assert len(service.kie.tasks) == 1


async def test_an_uncommitted_claim_is_left_to_the_process_that_claimed_the_task(
    replica: Replica, wire: Wire, postgresql_url: str, kie: Simulator
) -> None:
    kie.add_fault("create:slow,seconds=3")
    async with replica(wire.url) as service:
        struck = wire.cut_at_commit(CLAIMED, committed=False)
        created = await service.create()
        await eventually(struck.is_set)
        async with replica(postgresql_url) as other:
            await eventually(lambda: creates(kie) == 1)
            wire.repair()
            assert (await end(other, created.id)).status == pb.TASK_STATUS_SUCCESS
        later = await patiently(service.create)
        assert ended(await end(service, later.id))
    assert len(kie.tasks) == creates(kie) == 2


async def test_a_late_postponement_does_not_affect_the_next_sender(
    replica: Replica, wire: Wire, postgresql_url: str, kie: Simulator
) -> None:
    short = LimitBounds(holds=HoldTimes(first_seconds=0.05))
    kie.add_fault("create:code,code=455")
    async with replica(wire.url, limits=short) as service:
        struck = wire.cut_at_commit(PUT_BACK, committed=True)
        created = await service.create()
        await eventually(struck.is_set)
        kie.add_fault("create:slow,seconds=3")
        async with replica(postgresql_url, limits=short) as other:
            await eventually(lambda: creates(kie) == 2)
            wire.repair()
            assert (await end(other, created.id)).status == pb.TASK_STATUS_SUCCESS
    assert len(kie.tasks) == 1
    assert creates(kie) == 2


async def test_after_an_outage_senders_can_save_their_responses_before_others_decide(
    replica: Replica, wire: Wire, postgresql_url: str, kie: Simulator
) -> None:
    short = LeaseTimes(lease_seconds=3.0)
    kie.add_fault("create:slow,seconds=0.5")
    with Wire(postgresql_url) as other_wire:
        async with replica(wire.url, leases=short) as sender:
            created = await sender.create()
            await eventually(lambda: kie.stats["faults_struck"].get("slow") == 1)
            async with replica(other_wire.url, leases=short) as other:
                wire.cut()
                other_wire.cut()
                lost = "SELECT 1 FROM tasks WHERE due_time < extract(epoch FROM now())"
                await eventually(lambda: bool(rows(postgresql_url, lost)))
                other_wire.repair()
                claimed = "SELECT 1 FROM tasks WHERE version > 2"
                await eventually(lambda: bool(rows(postgresql_url, claimed)))
                wire.repair()
                assert (await end(other, created.id)).status == pb.TASK_STATUS_SUCCESS
    assert len(kie.tasks) == 1
