"""The account's limits, request_ids and turns, when many calls arrive at once."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.limits import LimitBounds, Turns
from storage.claims import Waiting
from tests.support.harness import (
    INSTANT,
    Serve,
    Service,
    create_request,
    ended,
    poller_bounds,
    serving,
)
from tests.support.prompts import STUCK
from tests.support.waiting import eventually


async def test_racing_creates_with_one_request_id_make_one_task_and_one_purchase(
    service: Service,
) -> None:
    for number in range(100):
        request = create_request(request_id=f"r-{number}")
        answers = await asyncio.gather(*(service.stub.CreateTask(request) for _ in range(16)))
        assert len({answer.task.id for answer in answers}) == 1
        assert all(answer.task.provider_task_id for answer in answers)
    assert service.kie.stats["purchases"]["total"] == 100


async def test_racing_creates_that_are_refused_all_get_the_same_refusal(service: Service) -> None:
    service.kie.add_fault("create:code,code=422,msg=no,times=0")
    request = create_request(request_id="r")
    answers = await asyncio.gather(
        *(service.stub.CreateTask(request) for _ in range(16)), return_exceptions=True
    )
    details = {a.details() for a in answers if isinstance(a, grpc.aio.AioRpcError)}
    assert (len(answers), details) == (16, {"no"})
    assert service.kie.stats["creates_refused"] == {}
    assert service.kie.stats["faults_struck"] == {"code": 1}


# --- the account's rate, ten times as fast ---

WINDOW_SECONDS = 1.0
LIMITED = replace(INSTANT, creates_per_window=20, create_window_seconds=WINDOW_SECONDS)


# The margin stays as it is, since latency does not shrink with the window.
MARGIN_SECONDS = LimitBounds().creates_window_seconds - 10.0
TEN_TIMES_AS_FAST = poller_bounds(
    limits=LimitBounds(creates_window_seconds=WINDOW_SECONDS + MARGIN_SECONDS)
)


@pytest.fixture
async def limited() -> AsyncIterator[Simulator]:
    """A Kie that accepts 20 creates in any second."""
    async with Simulator(LIMITED) as kie:
        yield kie


async def burst(service: Service, count: int) -> tuple[float, list[float]]:
    """Create many tasks at once; return the seconds until all were sent, and those of queries."""
    started = time.monotonic()
    tasks = await asyncio.gather(*(service.create(STUCK) for _ in range(count)))
    queries = []
    while service.kie.stats["purchases"]["total"] < count:
        asked = time.monotonic()
        await service.query(tasks[0].id)
        queries.append(time.monotonic() - asked)
    return time.monotonic() - started, queries


async def test_a_burst_uses_the_accounts_rate_and_earns_no_refusal(
    tmp_path: Path, limited: Simulator, database_url: str
) -> None:
    settings: dict[str, Any] = {"kie_creates_per_10_seconds": 20, "create_wait_seconds": 0}
    settings |= {"database_url": database_url, "bounds": TEN_TIMES_AS_FAST}
    async with serving(tmp_path, limited, poll_interval_seconds=5, **settings) as service:
        seconds, queries = await burst(service, 120)
    assert limited.stats["creates_refused"] == {}
    assert limited.stats["peaks"]["creates_in_a_window"] <= 20
    assert seconds >= (120 / 20 - 1) * WINDOW_SECONDS
    assert queries, "the service answers meanwhile"


@pytest.mark.torture
async def test_two_hundred_creates_at_once_use_95_percent_of_the_real_rate(tmp_path: Path) -> None:
    async with Simulator(replace(LIMITED, create_window_seconds=10)) as kie:
        settings: dict[str, Any] = {"kie_creates_per_10_seconds": 20, "create_wait_seconds": 0}
        async with serving(tmp_path, kie, poll_interval_seconds=30, **settings) as service:
            seconds, queries = await burst(service, 200)
        assert kie.stats["creates_refused"] == {}
    best = (200 / 20 - 1) * 10.0
    print(f"{best / seconds:.1%} of the rate; QueryTask {statistics.median(queries):.4f} s")  # noqa: T201
    assert best / seconds >= 0.95
    assert statistics.median(queries) < 0.05


async def test_the_accounts_rate_survives_a_restart(
    tmp_path: Path, limited: Simulator, database_url: str
) -> None:
    settings: dict[str, Any] = {"kie_creates_per_10_seconds": 20, "create_wait_seconds": 0}
    settings |= {"database_url": database_url, "bounds": TEN_TIMES_AS_FAST}
    async with serving(tmp_path, limited, **settings) as service:
        await asyncio.gather(*(service.create(STUCK) for _ in range(40)))
    async with serving(tmp_path, limited, **settings) as service:
        await eventually(lambda: limited.stats["purchases"]["total"] == 40)
    assert limited.stats["creates_refused"] == {}


async def test_no_more_tasks_run_than_the_account_may_run(serve: Serve, kie: Simulator) -> None:
    kie.update(max_running=5)
    async with serve(kie_running_max=5, create_wait_seconds=0) as service:
        created = await asyncio.gather(*(service.create() for _ in range(40)))
        ends = await asyncio.gather(*(service.end(task.id) for task in created))
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    assert kie.stats["creates_refused"] == {}


async def test_callers_are_served_round_robin_and_each_in_its_order(
    tmp_path: Path, limited: Simulator, database_url: str
) -> None:
    tokens = tmp_path / "tokens"
    names = ("large", "small")
    tokens.write_text("".join(f"{n} {sha256(n.encode()).hexdigest()}\n" for n in names))
    settings: dict[str, Any] = {"create_wait_seconds": 0, "auth_tokens_file": tokens}
    # One at a time: several that are sent at once may arrive in any order.
    settings |= {"database_url": database_url, "kie_creates_in_flight_max": 1}
    # All are waiting before more than a few are sent.
    async with serving(tmp_path, limited, kie_creates_per_10_seconds=1, **settings) as service:
        for name, count in (("large", 60), ("small", 15)):
            for number in range(count):
                await service.create(
                    {"imagen4": {"prompt": f"{name} {number} [sim:stuck]"}},
                    metadata=(("authorization", f"Bearer {name}"),),
                )
    settings |= {"kie_creates_per_10_seconds": 20, "bounds": TEN_TIMES_AS_FAST}
    async with serving(tmp_path, limited, **settings):
        await eventually(lambda: limited.stats["purchases"]["total"] == 75)
    sent = [task["body"]["input"]["prompt"].split()[:2] for task in limited.tasks]
    for name in names:
        numbers = [int(number) for who, number in sent if who == name]
        assert numbers == sorted(numbers), "first come, first served within a caller"
    last_of_small = max(i for i, (who, _) in enumerate(sent) if who == "small")
    assert Counter(who for who, _ in sent[: last_of_small + 1])["large"] < 25, "in turns"


async def test_a_cancelled_task_in_the_queue_is_never_sent_however_close_its_turn(
    tmp_path: Path, limited: Simulator, database_url: str
) -> None:
    settings: dict[str, Any] = {"kie_creates_per_10_seconds": 20, "create_wait_seconds": 0}
    settings |= {"database_url": database_url, "bounds": TEN_TIMES_AS_FAST}
    async with serving(tmp_path, limited, **settings) as service:
        created = await asyncio.gather(*(service.create(STUCK) for _ in range(150)))
        await eventually(lambda: limited.stats["purchases"]["total"])

        async def cancel(task_id: str) -> str:
            try:
                await service.stub.CancelTask(pb.CancelTaskRequest(task_id=task_id))
            except grpc.aio.AioRpcError:
                return "sent"
            return "cancelled"

        outcomes = Counter(await asyncio.gather(*(cancel(task.id) for task in created)))
        await eventually(lambda: limited.stats["purchases"]["total"] == outcomes["sent"])
        snapshots = [await service.query(task.id) for task in created]
    assert sum(ended(task) for task in snapshots) == outcomes["cancelled"] > 0
    assert limited.stats["purchases"]["total"] == outcomes["sent"] > 0


# --- pure parts ---


def test_turns_are_round_robin_and_remember_who_was_served() -> None:
    turns = Turns()
    waiting = [Waiting(f"{who}{n}", who, n, 0) for who in "abc" for n in (1, 2, 3)]
    assert turns.pick(waiting, 4) == ["a1", "b1", "c1", "a2"]
    assert turns.pick(waiting, 2) == ["b1", "c1"]
    assert turns.pick(waiting, 1) == ["a1"]


def test_a_probe_is_the_task_that_was_postponed_least_often() -> None:
    waiting = [Waiting("a1", "a", 1, 2), Waiting("a2", "a", 2, 0), Waiting("b1", "b", 1, 1)]
    assert Turns().pick_probe(waiting) == ["a2"]
