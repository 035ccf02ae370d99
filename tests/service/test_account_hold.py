"""While the provider refuses the account, waiting tasks are held instead of failing one by one."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from structlog.testing import capture_logs

from generated.generation.v1 import generation_pb2 as pb
from tests.support.account import (
    NO_CREDITS,
    SHORT_HOLDS,
    Account,
    listening,
    until_held,
    until_probed,
)
from tests.support.databases import change, rows
from tests.support.harness import Service, serving
from tests.support.kie_socket import envelope, http
from tests.support.refusals import refusal
from tests.support.waiting import eventually

TASKS = 12
BAD_KEY = envelope(401, None, "You do not have access permissions")
EDGE = http("error code: 1010", status=403)
REFUSALS = {
    "401": BAD_KEY,
    "402": NO_CREDITS,
    "403": envelope(403, None, "forbidden"),
    "433": envelope(433, None, "Sub-key Usage Exceeds Limit"),
    "500 that says so": envelope(500, None, "Credits insufficient"),
    "page 403": EDGE,
    "page 401": http("unauthorized", status=401),
    "page 407": http("<html>Proxy Authentication Required</html>", status=407),
    "page 404": http("<html>404 Not Found</html>", status=404),
    "page 403 without a body": http("", status=403),
    "page 403 that ends early": http("error", status=403, announced=5_000),
    "page 402 that ends before it begins": http("", status=402, announced=5_000),
    "page 401 in broken gzip": http("no gzip", status=401, headers={"Content-Encoding": "gzip"}),
    "page 403 that is too large": http(9 * 2**20 * b"x", status=403),
}
OF_THE_TASK = {
    "422": envelope(422, None, "prompt is required"),
    "500": envelope(500, None, "Server exception"),
    "page 408": http("<p>request timeout</p>", status=408),
    "page 413": http("<p>too large</p>", status=413),
    "page 499": http("<p>closed</p>", status=499),
    "page 413 that ends early": http("<p>too", status=413, announced=5_000),
    "JSON without a code": http('{"detail": "bad prompt"}', status=400),
}
Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, database_url: str) -> Start:
    """Serve in front of an account; again on the same database for a restart."""

    @asynccontextmanager
    async def started(account: Account, **settings: Any) -> AsyncIterator[Service]:
        settings = {"create_wait_seconds": 0} | settings
        async with serving(
            tmp_path, account.kie, database_url=database_url, bounds=SHORT_HOLDS, **settings
        ) as service:
            yield service

    return started


async def waiting(service: Service, count: int = TASKS) -> list[str]:
    return [(await service.create()).id for _ in range(count)]


async def snapshots(service: Service, ids: Sequence[str]) -> list[pb.GenerationTask]:
    return [await service.query(task_id) for task_id in ids]


async def stages(service: Service, ids: Sequence[str]) -> Counter[str]:
    """Count the tasks by stage, or by the reason that they failed for."""
    return Counter(
        pb.ErrorReason.Name(task.failure.reason)
        if task.HasField("failure")
        else pb.TaskStage.Name(task.stage)
        for task in await snapshots(service, ids)
    )


async def readyz(service: Service) -> tuple[int, str]:
    return await read(f"http://{service.admin_address}/readyz")


async def read(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def held_reasons(service: Service) -> dict[str, float]:
    """Return the reasons in the metric, and 1 for the one that holds tasks."""
    _, page = await read(f"http://{service.admin_address}/metrics")
    lines = page.splitlines()
    held = (line.split("generation_account_held{reason=")[1] for line in lines if "_held{" in line)
    return {reason[1:-1]: float(value) for reason, value in (each.split("} ") for each in held)}


# --- what is held ---


@pytest.mark.parametrize("name", REFUSALS)
async def test_while_the_account_is_refused_one_task_fails_and_the_others_wait(
    start: Start, name: str
) -> None:
    async with listening(Account(REFUSALS[name])) as account, start(account) as service:
        ids = await waiting(service)
        await until_held(service)
        await until_probed(account, 5)
        before = await snapshots(service, ids)
        account.answer = None
        ends = [await service.end(task.id) for task in before]
    assert sum(task.status == pb.TASK_STATUS_FAILED for task in before) == 1
    assert Counter(task.status for task in ends) == {
        pb.TASK_STATUS_FAILED: 1,
        pb.TASK_STATUS_SUCCESS: TASKS - 1,
    }


@pytest.mark.parametrize("name", OF_THE_TASK)
async def test_a_refusal_of_the_task_holds_no_other(start: Start, name: str) -> None:
    async with listening(Account(OF_THE_TASK[name])) as account, start(account) as service:
        ends = [await service.end(task_id) for task_id in await waiting(service, 4)]
        assert not rows(service.database_url, "SELECT since FROM holds")
    assert {end.status for end in ends} == {pb.TASK_STATUS_FAILED}
    assert account.creates == 4, "each is sent once"


async def test_the_create_that_opens_the_hold_reports_the_refusal(start: Start) -> None:
    async with (
        listening(Account(NO_CREDITS)) as account,
        start(account, create_wait_seconds=10) as service,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await service.create()
    assert refusal(error.value).reason == "CREDITS_EXHAUSTED"


async def test_held_tasks_are_tried_one_at_a_time(start: Start) -> None:
    async with listening(Account(NO_CREDITS)) as account, start(account) as service:
        await waiting(service, 1)
        await until_held(service)
        await waiting(service)
        account.in_flight.clear()
        await until_probed(account, 6)
    assert set(account.in_flight) == {1}


async def test_the_hold_is_for_all_models_and_any_accepted_create_ends_it(start: Start) -> None:
    async with listening(Account(NO_CREDITS)) as account, start(account) as service:
        [first] = await waiting(service, 1)
        await until_held(service)
        ids = await waiting(service, 3)
        ids += [(await service.create({"sora2": {"prompt": "a cat"}})).id for _ in range(3)]
        await until_probed(account)
        assert await stages(service, ids) <= Counter(
            {"TASK_STAGE_ACCEPTED": 6, "TASK_STAGE_SUBMITTING": 1}
        )
        account.answer = None
        ends = [await service.end(task_id) for task_id in ids]
        failed = await service.query(first)
        await eventually(lambda: not rows(service.database_url, "SELECT since FROM holds"))
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    assert failed.failure.reason == pb.ERROR_REASON_CREDITS_EXHAUSTED


async def test_a_task_that_is_bad_in_itself_fails_during_the_hold_and_does_not_end_it(
    start: Start,
) -> None:
    async with listening(Account(NO_CREDITS)) as account, start(account) as service:
        await waiting(service, 1)
        await until_held(service)
        account.answer = OF_THE_TASK["422"]
        bad = await service.end((await service.create()).id)
        account.answer = NO_CREDITS
        ids = await waiting(service)
        await until_probed(account, 4)
        assert "PROVIDER_REJECTED" in pb.ErrorReason.Name(bad.failure.reason)
        assert not [task for task in await snapshots(service, ids) if task.HasField("failure")]


async def test_a_held_task_can_be_cancelled(start: Start) -> None:
    async with listening(Account(NO_CREDITS)) as account, start(account) as service:
        await waiting(service, 1)
        await until_held(service)
        ids = await waiting(service)
        cancelled = await service.stub.CancelTask(pb.CancelTaskRequest(task_id=ids[-1]), timeout=5)
        account.answer = None
        ends = [await service.end(task_id) for task_id in ids]
    assert cancelled.task.failure.reason == pb.ERROR_REASON_CANCELLED
    assert [end.status for end in ends[:-1]] == [pb.TASK_STATUS_SUCCESS] * (TASKS - 1)
    assert ends[-1] == cancelled.task


async def test_without_a_hold_time_each_refused_task_fails_and_none_waits(start: Start) -> None:
    async with (
        listening(Account(NO_CREDITS)) as account,
        start(account, account_hold_seconds=0) as service,
    ):
        ends = [await service.end(task_id) for task_id in await waiting(service)]
    assert {end.failure.reason for end in ends} == {pb.ERROR_REASON_CREDITS_EXHAUSTED}
    assert account.creates == TASKS


# --- how long ---


async def test_tasks_that_were_held_for_too_long_fail_with_the_last_reason_and_are_not_sent(
    start: Start,
) -> None:
    async with listening(Account(NO_CREDITS)) as account:
        async with start(account, account_hold_seconds=3_600) as service:
            [first] = await waiting(service, 1)
            await until_held(service)
            ids = await waiting(service, 100)
            await until_probed(account, 2)
            assert first not in ids
            assert not [task for task in await snapshots(service, ids) if task.HasField("failure")]
        account.answer = BAD_KEY
        sent = account.creates
        hour_ago(service)
        async with start(account, account_hold_seconds=3_600) as service:
            ends = [await service.end(task_id) for task_id in ids]
    assert {end.failure.reason for end in ends} == {pb.ERROR_REASON_PROVIDER_UNAUTHORIZED}
    assert {end.failure.provider_code for end in ends} == {"401"}
    assert account.creates - sent < 10, "most of them were never sent"


async def test_a_short_hold_time_fails_held_tasks_in_the_same_process(start: Start) -> None:
    async with (
        listening(Account(NO_CREDITS)) as account,
        start(account, account_hold_seconds=0.5) as service,
    ):
        ends = [await service.end(task_id) for task_id in await waiting(service)]
    assert {end.failure.reason for end in ends} == {pb.ERROR_REASON_CREDITS_EXHAUSTED}


def hour_ago(service: Service) -> None:
    """Let everything that has happened so far be an hour ago."""
    change(service.database_url, "UPDATE holds SET since = since - 3600")
    change(service.database_url, "UPDATE tasks SET create_time = create_time - 3600")


async def test_a_task_that_is_older_than_the_hold_is_held_from_its_beginning_on(
    start: Start,
) -> None:
    async with listening(Account(NO_CREDITS)) as account:
        async with start(account, kie_api_url="http://127.0.0.1:1") as service:
            ids = await waiting(service)
        change(service.database_url, "UPDATE tasks SET create_time = create_time - 7200")
        async with start(account) as service:
            await until_held(service)
            await until_probed(account, 5)
            assert len([t for t in await snapshots(service, ids) if t.HasField("failure")]) == 1


async def test_a_restart_fails_no_further_task_and_forgets_no_time(start: Start) -> None:
    async with listening(Account(NO_CREDITS)) as account:
        async with start(account) as service:
            ids = await waiting(service)
            await until_held(service)
        [(since,)] = rows(service.database_url, "SELECT since FROM holds")
        async with start(account) as service:
            await until_probed(account, 4)
            failed = [t for t in await snapshots(service, ids) if t.HasField("failure")]
            assert rows(service.database_url, "SELECT since FROM holds") == [(since,)]
    assert len(failed) == 1


# --- what an operator sees ---


async def test_readyz_the_metric_and_the_log_say_that_the_account_is_refused_until_it_is_not(
    start: Start,
) -> None:
    async with listening(Account(NO_CREDITS)) as account:
        with capture_logs() as logs:
            async with start(account, admin_address="127.0.0.1:0") as service:
                assert "account" not in (await readyz(service))[1]
                assert set((await held_reasons(service)).values()) == {0}
                await waiting(service, 1)
                await until_held(service)
                status, text = await readyz(service)
                held = await held_reasons(service)
                [task] = await waiting(service, 1)
                await until_probed(account, 2)
                account.answer = None
                await service.end(task)
                assert "account" not in (await readyz(service))[1]
                assert set((await held_reasons(service)).values()) == {0}
    ok, *_, note = text.splitlines()
    assert (status, ok) == (200, "ok")
    assert note.startswith("account refused since ")
    assert note.endswith("tasks wait: CREDITS_EXHAUSTED (code 402: Credits insufficient)")
    assert {reason for reason, value in held.items() if value} == {"CREDITS_EXHAUSTED"}
    events = [log["event"] for log in logs]
    opened = "the provider refuses the account: tasks wait, and one at a time is tried"
    assert events.count(opened) == 1
    assert events.count("the provider accepts the account again") == 1
    assert "the provider refuses the account, the task waits" in events
    assert "the provider does not accept tasks now" not in events
