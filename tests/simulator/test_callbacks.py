"""Callbacks as a receiver on a real socket meets them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from providers.kie.simulator.callbacks import signature
from tests.support.kie_client import (
    IMAGEN4,
    JOBS,
    MIDJOURNEY,
    MJ,
    ORDERS,
    VEO,
    VEO3,
    Kie,
    running,
    settled,
)
from tests.support.receiver import Receiver, receiving


@pytest.fixture
async def kie() -> AsyncIterator[Kie]:
    async with running(callback_retry_seconds=(0.0, 0.0, 0.0)) as started:
        yield started


async def finished(kie: Kie, receiver: Receiver, order: Any = None, **end: Any) -> str:
    """The id of a task that has ended and whose callback is dealt with."""
    path, body = order or (JOBS, IMAGEN4)
    task_id = await kie.create(path, {**body, "callBackUrl": receiver.url})
    kie.simulator.finish(task_id, **end)
    await settled(kie)
    return task_id


async def test_a_jobs_callback_of_a_success_has_the_newest_shape(
    kie: Kie, receiver: Receiver
) -> None:
    task_id = await finished(kie, receiver)
    (body,) = receiver.bodies
    assert (body["code"], body["msg"]) == (200, "Playground task completed successfully.")
    assert (body["data"]["taskId"], body["data"]["state"]) == (task_id, "success")
    assert json.loads(body["data"]["resultJson"])["resultUrls"]
    assert body["data"]["updateTime"] == body["data"]["completeTime"]


async def test_a_jobs_callback_of_a_failure_has_code_501_and_no_result(
    kie: Kie, receiver: Receiver
) -> None:
    await finished(kie, receiver, state="fail", code="422", msg="unsafe")
    (body,) = receiver.bodies
    data = body["data"]
    assert (body["code"], body["msg"]) == (501, "Playground task failed.")
    assert (data["state"], data["failCode"], data["failMsg"]) == ("fail", "422", "unsafe")
    assert data["resultJson"] is None


async def test_a_veo_callback_carries_info_and_its_failure_carries_none(
    kie: Kie, receiver: Receiver
) -> None:
    await finished(kie, receiver, (VEO, VEO3))
    await finished(kie, receiver, (VEO, VEO3), state="fail", code="400", msg="flagged")
    success, failure = receiver.bodies
    assert len(success["data"]["info"]["resultUrls"]) == 1
    assert (failure["code"], failure["msg"]) == (400, "flagged")
    assert set(failure["data"]) == {"taskId", "fallbackFlag"}


async def test_an_mj_callback_carries_plain_strings(kie: Kie, receiver: Receiver) -> None:
    await finished(kie, receiver, (MJ, MIDJOURNEY))
    await finished(kie, receiver, (MJ, MIDJOURNEY), state="fail")
    success, failure = receiver.bodies
    assert [type(url) for url in success["data"]["resultUrls"]] == [str] * 4
    assert (failure["code"], failure["data"]["resultUrls"]) == (500, [])


async def test_a_4k_callback_has_its_own_format(kie: Kie, receiver: Receiver) -> None:
    source = await kie.create(VEO, VEO3)
    kie.simulator.finish(source)
    await finished(kie, receiver, ("/api/v1/veo/get-4k-video", {"taskId": source}))
    (body,) = receiver.bodies
    assert set(body["data"]["info"]) == {"resultUrls", "imageUrls"}


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_a_callback_comes_by_itself_when_a_task_ends(
    receiver: Receiver, path: str, body: Any
) -> None:
    async with running(speed=1e6) as kie:
        task_id = await kie.create(path, {**body, "callBackUrl": receiver.url})
        await settled(kie)
        assert [body["data"]["taskId"] for body in receiver.bodies] == [task_id]
        assert (await kie.record(task_id, path))["taskId"] == task_id


async def test_a_failed_delivery_is_tried_three_more_times_and_given_up(kie: Kie) -> None:
    async with receiving(500) as receiver:
        await finished(kie, receiver)
        assert len(receiver.requests) == 4
    counts = kie.simulator.stats["callbacks"]
    assert (counts["sent"], counts["acknowledged"], counts["failed"]) == (4, 0, 1)


async def test_a_delivery_is_tried_until_it_is_acknowledged(kie: Kie) -> None:
    async with receiving(500, 302, 200) as receiver:
        await finished(kie, receiver)
        assert len(receiver.requests) == 3
    assert kie.simulator.stats["callbacks"]["acknowledged"] == 1


async def test_a_receiver_that_is_not_there_is_given_up(kie: Kie) -> None:
    async with receiving() as receiver:
        pass
    await finished(kie, receiver)
    assert kie.simulator.stats["callbacks"]["failed"] == 1


async def test_a_task_without_a_callback_url_sends_no_callback(kie: Kie) -> None:
    kie.simulator.finish(await kie.create())
    await settled(kie)
    assert kie.simulator.stats["callbacks"]["sent"] == 0


async def test_a_task_can_be_finished_without_its_callback(kie: Kie, receiver: Receiver) -> None:
    await finished(kie, receiver, callback=False)
    assert receiver.requests == []


def test_the_signature_is_the_documented_one() -> None:
    expected = "pWyIqB3XokHJ+bi/+PmlwFhdeyTqDp2KL6omOd179gg="
    assert signature("abc", "1700000000", "secret") == expected


async def test_a_callback_is_signed_when_a_key_is_set(receiver: Receiver) -> None:
    async with running(webhook_key="secret") as kie:
        task_id = await finished(kie, receiver)
    ((headers, _),) = receiver.requests
    timestamp = headers["X-Webhook-Timestamp"]
    assert headers["X-Webhook-Signature"] == signature(task_id, timestamp, "secret")


async def test_a_signature_can_be_wrong(receiver: Receiver) -> None:
    async with running(webhook_key="secret") as kie:
        kie.simulator.add_fault("callback:wrong_signature")
        task_id = await finished(kie, receiver)
    ((headers, _),) = receiver.requests
    right = signature(task_id, headers["X-Webhook-Timestamp"], "secret")
    assert headers["X-Webhook-Signature"] != right


async def test_without_a_key_callbacks_are_not_signed(kie: Kie, receiver: Receiver) -> None:
    await finished(kie, receiver)
    ((headers, _),) = receiver.requests
    assert not [name for name in headers if name.startswith("X-Webhook")]


@pytest.mark.parametrize(("fault", "deliveries"), [("drop", 0), ("duplicate", 2), ("delay", 1)])
async def test_a_callback_can_be_dropped_doubled_or_late(
    kie: Kie, receiver: Receiver, fault: str, deliveries: int
) -> None:
    kie.simulator.add_fault(f"callback:{fault},seconds=0.01")
    await finished(kie, receiver)
    assert len(receiver.requests) == deliveries


async def test_every_callback_can_be_delivered_more_than_once(kie: Kie, receiver: Receiver) -> None:
    kie.simulator.update(callback_duplicates=2)
    task_id = await finished(kie, receiver)
    assert [body["data"]["taskId"] for body in receiver.bodies] == [task_id] * 3


async def test_a_task_finished_twice_calls_back_twice(kie: Kie, receiver: Receiver) -> None:
    task_id = await finished(kie, receiver, state="fail")
    kie.simulator.finish(task_id)
    await settled(kie)
    assert [body["data"]["state"] for body in receiver.bodies] == ["fail", "success"]
