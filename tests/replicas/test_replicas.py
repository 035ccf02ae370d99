"""Several replicas on one PostgreSQL: any of them serves any call, and each task has one worker."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from kie_generation import GenerationClient, Imagen4Params
from kie_generation.generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.jobs import Jobs
from service.leases import LeaseTimes
from service.limits import LimitBounds
from storage.creation import Created
from storage.opening import open_store
from storage.schema import MIGRATIONS
from storage.store import Store
from storage.task import Task
from tests.support.databases import change, rows
from tests.support.harness import INSTANT, Service, ended, poller_bounds
from tests.support.killing import Victim, creates, patient_client, replicas
from tests.support.prompts import STUCK, STUCK_PROMPT
from tests.support.refusals import refusal
from tests.support.storing import NO_LIMIT, Gate, enqueued, new
from tests.support.waiting import eventually

PASSES_ON_SECONDS = 15.0
SUCCESS = pb.TASK_STATUS_SUCCESS


# --- any replica serves any call ---


async def test_a_task_of_one_replica_is_queried_watched_and_listed_on_every_other(
    fleet: Any,
) -> None:
    async with fleet() as services:
        created = await services[0].create(prompt_id="mine")
        for service in services:
            assert (await service.query(created.id)).revision >= created.revision
            assert (await service.end(created.id)).status == SUCCESS
            listed = await service.stub.ListTasks(pb.ListTasksRequest(prompt_id="mine"))
            assert [task.id for task in listed.tasks] == [created.id]
    assert len(services[0].kie.tasks) == 1


async def test_a_task_of_one_replica_is_cancelled_on_another_and_never_sent(
    fleet: Any, kie: Simulator
) -> None:
    async with fleet(create_wait_seconds=0) as (first, second, third):
        kie.add_fault("create:code,code=455,times=0")
        created = await first.until_put_back((await first.create()).id)
        asked = len(kie.tasks)
        await second.stub.CancelTask(pb.CancelTaskRequest(task_id=created.id))
        kie.clear_faults()
        assert (await third.end(created.id)).failure.reason == pb.ERROR_REASON_CANCELLED
        assert (await first.end((await second.create()).id)).status == SUCCESS
    assert len(kie.tasks) == asked + 1


async def test_a_list_continues_on_another_replica(fleet: Any) -> None:
    async with fleet(create_wait_seconds=0) as services:
        created = [await service.create(STUCK) for service in services * 3]
        request, found = pb.ListTasksRequest(page_size=2), []
        for service in itertools.cycle(services):
            page = await service.stub.ListTasks(request)
            found += [task.id for task in page.tasks]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
    assert found == [task.id for task in reversed(created)]


async def test_a_request_id_raced_over_all_replicas_makes_one_task_and_one_purchase(
    fleet: Any, kie: Simulator
) -> None:
    rng = random.Random(1)
    async with fleet() as services:
        calls = [(n, service) for n in range(50) for service in services for _ in range(4)]
        rng.shuffle(calls)
        answers = await asyncio.gather(
            *(service.create(request_id=f"r-{n}", timeout=60) for n, service in calls)
        )
    tasks = {(n, answer.id) for (n, _), answer in zip(calls, answers, strict=True)}
    assert len(tasks) == len({n for n, _ in tasks}) == 50
    assert all(answer.provider_task_id for answer in answers), "each waited for the verdict"
    assert kie.stats["purchases"]["total"] == 50


async def test_creates_of_the_same_request_ids_in_any_order_do_not_block_each_other(
    elsewhere: Store, postgresql_url: str
) -> None:
    other = open_store(postgresql_url)
    names = [f"r-{n}" for n in range(200)]
    try:
        for n in range(10):
            tasks = [new(f"{n}-{name}", request_id=f"{n}-{name}") for name in names]
            again = [new(f"{n}-{name}-b", request_id=f"{n}-{name}") for name in reversed(names)]
            gates = [Gate(elsewhere), Gate(other)]
            for gate in gates:
                await gate.reached()
            creates = [
                *await enqueued(*(elsewhere.create(task, NO_LIMIT) for task in tasks)),
                *await enqueued(*(other.create(task, NO_LIMIT) for task in again)),
            ]
            for gate in gates:
                gate._open.set()
            answers = await asyncio.gather(*creates)
            assert sum(isinstance(answer, Created) for answer in answers) == len(names)
    finally:
        await other.close()


async def test_a_create_that_is_repeated_on_another_replica_gets_the_refusal_of_the_first(
    fleet: Any, kie: Simulator
) -> None:
    async with fleet() as services:
        kie.add_fault("create:code,code=422,msg=no")
        messages = set()
        for service in services:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.create(request_id="r")
            messages.add((refusal(caught.value).reason, refusal(caught.value).message))
    assert messages == {("PROVIDER_REJECTED", "no")}


async def test_a_watcher_that_resumes_anywhere_never_sees_an_older_snapshot(
    fleet: Any, kie: Simulator
) -> None:
    kie.update(seconds={"imagen4": [0.2, 0.8]})
    rng = random.Random(2)

    async def wander(services: list[Service], task_id: str) -> Any:
        """Watch each snapshot on another replica, and query yet another one."""
        seen = 0
        while True:
            async for task in rng.choice(services).watch(task_id, after_revision=seen):
                assert task.revision >= seen
                seen = task.revision
                assert (await rng.choice(services).query(task_id)).revision >= seen
                if not ended(task):
                    break
                return task

    async with fleet(create_wait_seconds=0) as services:
        created = [await service.create() for service in services * 10]
        ends = await asyncio.gather(*(wander(services, task.id) for task in created))
    assert {end.status for end in ends} == {SUCCESS}


# --- the account's limits ---


async def test_the_accounts_limits_apply_across_replicas_and_are_used(
    fleet: Any,
) -> None:
    margin = LimitBounds().creates_window_seconds - 10.0
    # A wide window for polls: three services and the simulator share one event loop here.
    bounds = poller_bounds(
        limits=LimitBounds(creates_window_seconds=1.0 + margin, status_window_seconds=1.6)
    )
    limits = replace(
        INSTANT,
        creates_per_window=20,
        create_window_seconds=1.0,
        records_per_second=20,
        max_running=40,
        seconds={"imagen4": (0.3, 0.6)},
    )
    async with (
        Simulator(limits) as kie,
        fleet(
            simulator=kie,
            bounds=bounds,
            create_wait_seconds=0,
            kie_creates_per_10_seconds=20,
            kie_status_per_second=20,
            kie_running_max=40,
            poll_interval_seconds=0.3,
        ) as services,
    ):
        started = time.monotonic()
        created = await asyncio.gather(*(service.create() for service in services * 33))
        await eventually(lambda: len(kie.tasks) == 99)
        seconds = time.monotonic() - started
        ends = await asyncio.gather(
            *(service.end(task.id) for service, task in zip(services * 33, created, strict=True))
        )
    assert {end.status for end in ends} == {SUCCESS}
    assert kie.stats["creates_refused"] == {}
    assert kie.stats["peaks"]["creates_in_a_window"] <= 20
    assert kie.stats["peaks"]["records_in_a_second"] <= 20
    best = (99 // 20) * (1.0 + margin)
    assert best / seconds > 0.7, f"{best / seconds:.0%} of the rate"


async def test_replicas_that_race_for_few_tasks_waste_no_slot(
    fleet: Any, postgresql_url: str
) -> None:
    async with fleet(create_wait_seconds=0, kie_creates_per_10_seconds=200) as services:
        for _ in range(20):
            created = await asyncio.gather(*(service.create() for service in services))
            await asyncio.gather(
                *(s.end(task.id) for s, task in zip(services, created, strict=True))
            )
    sql = "SELECT count(*) FROM slots WHERE quota = 'creates' AND free_time > 0"
    [(taken,)] = rows(postgresql_url, sql)
    assert 60 <= taken <= 66, "but for those that a stall of this machine made stale"


# --- watching what others do ---


async def moved(store: Store, task_id: str, percent: int) -> Task:
    """Let another replica change a task."""
    while True:
        task = await store.get(task_id)
        assert task is not None
        saved = await store.save(task, task.progressed(True, percent, store.now()))
        if saved:
            return saved


async def seconds_until_shown(watching: AsyncIterator[pb.GenerationTask], percent: int) -> float:
    """Return the seconds until a watcher sees a percentage."""
    started = time.monotonic()
    async for task in watching:
        if task.progress_percent >= percent:
            break
    return time.monotonic() - started


@pytest.mark.parametrize(("hints", "most_seconds"), [(True, 0.8), (False, 3.0)])
async def test_what_another_replica_commits_is_shown_by_its_hint_or_else_by_the_sweep(
    fleet: Any, elsewhere: Store, hints: bool, most_seconds: float
) -> None:
    async with fleet(1, database_hints=hints, poll_interval_seconds=60) as (service,):
        created = await service.create(STUCK)
        watching = service.watch(created.id)
        await anext(watching)
        for percent in range(10, 50, 10):
            await moved(elsewhere, created.id, percent)
            assert await seconds_until_shown(watching, percent) < most_seconds


def listeners(database_url: str) -> list[int]:
    """The database connections that wait for hints in one schema."""
    schema = database_url.rpartition("%3D")[2]
    found = rows(
        database_url,
        "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE ?"
        " AND (query LIKE 'LISTEN%' OR query LIKE '%pg_notify%')",
        f"%generation_{schema}%",
    )
    return [pid for (pid,) in found]


async def test_a_lost_connection_of_the_hints_is_opened_again_and_nothing_is_missed(
    fleet: Any, elsewhere: Store, postgresql_url: str
) -> None:
    async with fleet(1, poll_interval_seconds=60) as (service,):
        created = await service.create(STUCK)
        watching = service.watch(created.id)
        await anext(watching)
        await eventually(lambda: len(listeners(postgresql_url)) == 2)
        lost = set(listeners(postgresql_url))
        for pid in lost:
            rows(postgresql_url, "SELECT pg_terminate_backend(?)", pid)
        await moved(elsewhere, created.id, 10)  # while no connection listens
        assert await seconds_until_shown(watching, 10) < 4, "when it listens again, it compares"
        await eventually(lambda: len(set(listeners(postgresql_url)) - lost) == 2)
        for percent in range(20, 60, 10):
            await moved(elsewhere, created.id, percent)
            assert await seconds_until_shown(watching, percent) < 0.8, "by a hint again"


# --- leases ---


@pytest.fixture
def processes(
    tmp_path: Path, kie: Simulator, postgresql_url: str, unused_tcp_port_factory: Any
) -> Callable[..., Any]:
    """Start several replicas as processes, whose callbacks go to the second one."""
    ports = [unused_tcp_port_factory() for _ in range(4)]

    @asynccontextmanager
    async def start(**settings: str) -> AsyncIterator[list[Victim]]:
        given = iter(ports)
        settings = {
            "DATABASE_URL": postgresql_url,
            "PUBLIC_URL": f"http://127.0.0.1:{ports[3]}",
            "POLL_INTERVAL_SECONDS": "1",
            "CREATE_WAIT_SECONDS": "0",
        } | settings
        async with replicas(2, tmp_path, kie, lambda: next(given), **settings) as victims:
            yield victims

    return start


def imagen(prompt: str) -> Imagen4Params:
    return Imagen4Params(prompt=prompt)


def version(database_url: str, task_id: str) -> int:
    [(number,)] = rows(database_url, "SELECT version FROM tasks WHERE id = ?", task_id)
    return int(number)


@pytest.mark.torture
async def test_a_paused_replicas_poll_is_taken_over_and_its_late_save_changes_nothing(
    processes: Any, kie: Simulator, postgresql_url: str
) -> None:
    async with processes(PUBLIC_URL="") as (first, second):
        second.pause()
        async with patient_client(first) as client:
            created = await client.create(imagen(STUCK_PROMPT), prompt_id="p")
            kie.add_fault("record:slow,seconds=2")
            await eventually(lambda: kie.stats["faults_struck"].get("slow") == 1)
        first.pause()
        second.resume()
        kie.finish(created.provider_task_id or kie.tasks[0]["id"])
        async with patient_client(second) as client:
            started = time.monotonic()
            end = await client.wait(created.id, timeout=30)
            seconds = time.monotonic() - started
            before = version(postgresql_url, created.id)
            first.resume()
            async with patient_client(first) as other:
                await other.wait((await other.create(imagen("y"), prompt_id="p")).id, timeout=20)
                assert await other.get(created.id) == end
        assert version(postgresql_url, created.id) == before
    print(f"a poll passed on within {seconds:.1f} s")  # noqa: T201
    assert end.status == SUCCESS
    assert seconds < PASSES_ON_SECONDS


@asynccontextmanager
async def paused_sender(
    processes: Any, kie: Simulator, prompt: str, **settings: str
) -> AsyncIterator[tuple[Victim, GenerationClient, str]]:
    """One replica is paused while its paid request is in progress, and another continues."""
    async with processes(**settings) as (sender, other):
        other.pause()
        kie.add_fault("create:slow,seconds=1")
        async with patient_client(sender) as client:
            created = await client.create(imagen(prompt), prompt_id="p")
        await eventually(lambda: kie.stats["faults_struck"].get("slow") == 1)
        sender.pause()
        other.resume()
        await eventually(lambda: len(kie.tasks) == 1)
        async with patient_client(other) as client:
            yield sender, client, created.id
            assert creates(kie) == 1, "never sent twice"


async def test_a_paused_senders_task_becomes_unknown_and_its_late_response_is_adopted(
    processes: Any, kie: Simulator
) -> None:
    settings = {"PUBLIC_URL": "", "UNKNOWN_WAIT_SECONDS": "0"}
    async with paused_sender(processes, kie, "a cat", **settings) as (sender, client, task_id):
        async with asyncio.timeout(PASSES_ON_SECONDS):
            unknown = await client.wait(task_id)
        assert unknown.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
        sender.resume()
        late = unknown
        async with asyncio.timeout(10):
            while not late.artifacts:
                late = await client.get(task_id)
        assert late.failure == unknown.failure
        assert late.provider_task_id == kie.tasks[0]["id"]


@pytest.mark.torture
async def test_a_paused_senders_task_waits_for_its_callback_and_its_late_response_is_adopted(
    processes: Any, kie: Simulator, postgresql_url: str
) -> None:
    settings = {"UNKNOWN_WAIT_SECONDS": "60"}
    async with paused_sender(processes, kie, STUCK_PROMPT, **settings) as given:
        sender, client, task_id = given
        sql = "SELECT count(*) FROM tasks WHERE unknown_time IS NOT NULL"
        await eventually(lambda: rows(postgresql_url, sql) == [(1,)], PASSES_ON_SECONDS)
        assert (await client.get(task_id)).stage == pb.TASK_STAGE_SUBMITTING
        sender.resume()
        async for task in client.watch(task_id):
            if task.stage == pb.TASK_STAGE_QUEUED:
                kie.finish(task.provider_task_id)
        assert task.status == SUCCESS


async def test_a_paused_senders_task_is_recovered_by_another_replica_through_its_callback(
    processes: Any, kie: Simulator
) -> None:
    async with paused_sender(processes, kie, "a cat") as (sender, client, task_id):
        async with asyncio.timeout(PASSES_ON_SECONDS):
            end = await client.wait(task_id)
        assert end.status == SUCCESS
        sender.resume()
        async with patient_client(sender) as its_client:
            assert await its_client.get(task_id) == end


async def test_a_sender_that_finds_its_own_lease_expired_renews_it(
    fleet: Any, kie: Simulator, postgresql_url: str
) -> None:
    """Be the first replica that is back after an outage of the database."""
    bounds = poller_bounds(leases=LeaseTimes(lease_seconds=1.0, renew_seconds=0.3))
    kie.add_fault("create:slow,seconds=4")
    async with fleet(1, create_wait_seconds=0, bounds=bounds) as (sender,):
        created = await sender.create()
        await eventually(lambda: kie.stats["faults_struck"].get("slow") == 1)
        change(postgresql_url, "UPDATE tasks SET due_time = 0")
        await sender.create()  # wakes it
        sql = "SELECT version FROM tasks WHERE stage = 'SUBMITTING' AND version > 2"
        await eventually(lambda: bool(rows(postgresql_url, sql)))
        async with fleet(1, bounds=bounds) as (other,):
            assert (await other.end(created.id)).status == SUCCESS
    assert creates(kie) == 2


@pytest.mark.parametrize("judged", [True, False])
async def test_a_sender_paused_before_its_request_sends_it_unless_another_process_decided(
    fleet: Any, kie: Simulator, postgresql_url: str, monkeypatch: pytest.MonkeyPatch, judged: bool
) -> None:
    take_fresh_slot = Jobs._take_fresh_slot

    async def paused(*args: Any) -> None:
        change(postgresql_url, "UPDATE tasks SET due_time = 0")
        if judged:
            change(postgresql_url, "UPDATE tasks SET version = version + 1, unknown_time = 1")
        await asyncio.sleep(0.2)  # longer than the lease: the pause itself
        await take_fresh_slot(*args)

    monkeypatch.setattr(Jobs, "_take_fresh_slot", paused)
    bounds = poller_bounds(leases=LeaseTimes(lease_seconds=0.1))
    async with fleet(1, create_wait_seconds=0, bounds=bounds) as (sender,):
        end = await sender.end((await sender.create()).id)
    unknown = end.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
    assert (unknown, creates(kie)) == ((True, 0) if judged else (False, 1))


async def test_eight_replicas_started_at_once_on_an_empty_database_migrate_once_and_all_serve(
    tmp_path: Path, kie: Simulator, postgresql_url: str, unused_tcp_port_factory: Any
) -> None:
    settings = {"DATABASE_URL": postgresql_url, "PUBLIC_URL": ""}
    async with replicas(8, tmp_path, kie, unused_tcp_port_factory, **settings) as victims:
        for victim in victims:
            async with patient_client(victim) as client:
                task = await client.create(imagen("a cat"), prompt_id="p")
                assert (await client.wait(task.id, timeout=30)).status == SUCCESS
    applied = rows(postgresql_url, "SELECT name, count(*) FROM schema_migration GROUP BY name")
    assert sorted(applied) == [(file.stem, 1) for file in sorted(MIGRATIONS.glob("0*.py"))]
