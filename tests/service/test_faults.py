"""The fault matrix: each fault of the simulator, on each kind of call, and its effect.

docs/guarantees.md has the same table.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.http import Timeouts
from providers.kie.simulator.faults import KINDS
from service.holds import HoldTimes
from service.limits import LimitBounds
from tests.support.calling_back import OFTEN, with_callbacks
from tests.support.harness import Serve, poller_bounds, upload_messages
from tests.support.refusals import refusal
from tests.support.waiting import eventually

IMPATIENT = replace(
    poller_bounds(limits=LimitBounds(holds=HoldTimes(first_seconds=0.05))),
    kie=Timeouts(
        create_seconds=0.5, second_look_seconds=0.01, poll_seconds=0.5, upload_stall_seconds=0.5
    ),
)
# After a create: whether it was bought, and how the task ends without callbacks and with them.
SENT_AGAIN = (1, "SUCCESS", "SUCCESS")
REFUSED = (0, "PROVIDER_ERROR", "PROVIDER_ERROR")
LOST = (0, "SUBMISSION_UNKNOWN", "SUBMISSION_UNKNOWN")
ORPHANED = (1, "SUBMISSION_UNKNOWN", "SUCCESS")
UNHARMED = (1, "SUCCESS", "SUCCESS")

CREATES: dict[str, tuple[int, str, str]] = {
    "code,code=500": REFUSED,
    "code,code=429": SENT_AGAIN,
    "code,code=455": SENT_AGAIN,
    "http,status=502": LOST,
    "http,status=429,body=slow down": SENT_AGAIN,
    "http,status=500": LOST,
    "http,status=302": LOST,
    "reset": LOST,
    "hang": LOST,
    "slow,seconds=0.05": UNHARMED,
    "garbage": LOST,
    "empty": LOST,
    "null_data": LOST,
    "wrong_types": LOST,
    "accept_then_reset": ORPHANED,
    "accept_then_hang": ORPHANED,
    "accept_then_http,status=502": ORPHANED,
    "accept_then_garbage": ORPHANED,
    "accept_then_empty": ORPHANED,
    "accept_then_no_id": ORPHANED,
}
RECORDS = {
    "code,code=401": "SUCCESS",
    "code,code=402": "SUCCESS",
    "code,code=404": "SUCCESS",
    "code,code=429": "SUCCESS",
    "code,code=455": "SUCCESS",
    "code,code=500": "SUCCESS",
    "code,code=501,msg=it failed": "GENERATION_FAILED",
    "http,status=502": "SUCCESS",
    "http,status=403,body=error code: 1010": "SUCCESS",
    "reset": "SUCCESS",
    "hang": "SUCCESS",
    "slow,seconds=0.05": "SUCCESS",
    "garbage": "SUCCESS",
    "empty": "SUCCESS",
    "null_data": "SUCCESS",
    "wrong_types": "SUCCESS",
    "not_visible": "SUCCESS",
    "unknown_state": "SUCCESS",
    "late": "SUCCESS",
    "no_urls": "RESULT_MISSING",
    "result_object": "SUCCESS",
}
UPLOADS = {
    "code,code=400": "PROVIDER_REJECTED",
    "code,code=500": "PROVIDER_UNAVAILABLE",
    "http,status=502": "PROVIDER_UNAVAILABLE",
    "reset": "PROVIDER_UNAVAILABLE",
    "hang": "PROVIDER_UNAVAILABLE",
    "slow,seconds=0.05": "",
    "garbage": "PROVIDER_UNAVAILABLE",
    "empty": "PROVIDER_UNAVAILABLE",
    "null_data": "PROVIDER_UNAVAILABLE",
    "wrong_types": "PROVIDER_UNAVAILABLE",
    "accept_then_reset": "PROVIDER_UNAVAILABLE",
    "accept_then_hang": "PROVIDER_UNAVAILABLE",
    "accept_then_http,status=502": "PROVIDER_UNAVAILABLE",
    "accept_then_garbage": "PROVIDER_UNAVAILABLE",
    "accept_then_empty": "PROVIDER_UNAVAILABLE",
    "accept_then_no_id": "PROVIDER_UNAVAILABLE",
}
CALLBACKS = ("drop", "duplicate", "wrong_signature", "delay,seconds=0.05")


@pytest.fixture
def serve(serve: Serve) -> Serve:
    """Start the service, with short backoffs and short timeouts."""
    return partial(serve, bounds=IMPATIENT)


def how_it_ended(task: pb.GenerationTask) -> str:
    if task.status == pb.TASK_STATUS_SUCCESS:
        return "SUCCESS"
    return pb.ErrorReason.Name(task.failure.reason).removeprefix("ERROR_REASON_")


@pytest.mark.parametrize("fault", CREATES)
async def test_a_fault_on_create_without_callbacks(serve: Serve, fault: str) -> None:
    bought, end, _ = CREATES[fault]
    async with serve(create_wait_seconds=0) as service:
        service.kie.add_fault(f"create:{fault}")
        task = await service.end((await service.create()).id)
    assert (len(service.kie.tasks), how_it_ended(task)) == (bought, end)


@pytest.mark.parametrize("fault", CREATES)
async def test_a_fault_on_create_with_callbacks(
    serve: Serve, unused_tcp_port: int, fault: str
) -> None:
    bought, _, end = CREATES[fault]
    settings = with_callbacks(unused_tcp_port, **OFTEN)
    async with serve(create_wait_seconds=0, unknown_wait_seconds=1, **settings) as service:
        service.kie.update(seconds={"imagen4": [0.3, 0.3]})
        service.kie.add_fault(f"create:{fault}")
        task = await service.end((await service.create()).id)
    assert (len(service.kie.tasks), how_it_ended(task)) == (bought, end)


@pytest.mark.parametrize("fault", RECORDS)
async def test_a_fault_on_a_poll(serve: Serve, fault: str) -> None:
    async with serve() as service:
        service.kie.add_fault(f"record:{fault}")
        task = await service.end((await service.create()).id)
    assert how_it_ended(task) == RECORDS[fault]
    assert len(service.kie.tasks) == 1


@pytest.mark.parametrize("fault", CALLBACKS)
async def test_a_fault_on_a_callback_costs_time_at_most(
    serve: Serve, unused_tcp_port: int, fault: str
) -> None:
    async with serve(**with_callbacks(unused_tcp_port, poll_interval_seconds=0.3)) as service:
        service.kie.add_fault(f"callback:{fault}")
        task = await service.end((await service.create()).id)
        assert how_it_ended(task) == "SUCCESS"
        await eventually(lambda: service.kie.stats["callbacks"]["waiting"] == 0)
        assert await service.query(task.id) == task


@pytest.mark.parametrize("fault", UPLOADS)
async def test_a_fault_on_an_upload(serve: Serve, fault: str) -> None:
    async with serve() as service:
        service.kie.add_fault(f"upload:{fault}")
        reason = ""
        try:
            await service.stub.UploadFile(iter(upload_messages(bytes(100_000))))
        except grpc.aio.AioRpcError as error:
            reason = refusal(error).reason
    assert reason == UPLOADS[fault]


def test_the_matrix_holds_every_fault_that_the_simulator_knows() -> None:
    tables: dict[str, Iterable[str]] = {
        "create": CREATES,
        "record": RECORDS,
        "upload": UPLOADS,
        "callback": CALLBACKS,
    }
    for kind, (endpoints, _) in KINDS.items():
        for endpoint in endpoints & tables.keys():
            assert any(fault.split(",")[0] == kind for fault in tables[endpoint]), (endpoint, kind)
