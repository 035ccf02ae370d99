"""Claims: which tasks a worker gets, in which order, and for how long."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from storage.claims import UNREADABLE_SECONDS, Claim, Quota, RunningMax, Sending, Waiting
from storage.store import Store
from storage.task import Lane, Stage, Status, Task
from tests.support.databases import change, rows
from tests.support.storing import (
    LANES,
    NO_QUOTA,
    NOW,
    claim,
    claim_in_turns,
    new,
    off,
    read,
    saved,
    send,
    stored,
)


async def test_a_claim_takes_what_is_longest_due_first_and_at_most_the_limit(store: Store) -> None:
    ages = [5, 1, 9, 3, 7]
    await stored(store, *(new(f"t{age}", due_time=NOW - age) for age in ages))
    claimed = await claim(store, Lane.SUBMIT, NOW, 3, send)
    assert [task.id for task in claimed] == ["t9", "t7", "t5"]
    claimed = await claim(store, Lane.SUBMIT, NOW, 3, send)
    assert [task.id for task in claimed] == ["t3", "t1"]
    assert await claim(store, Lane.SUBMIT, NOW, 3, send) == []


async def test_a_claim_takes_only_what_is_due_now(store: Store) -> None:
    due_times = {"before": NOW - 1, "now": NOW, "after": NOW + 0.001, "never": None}
    await stored(store, *(new(name, due_time=time) for name, time in due_times.items()))
    claimed = await claim(store, Lane.SUBMIT, NOW, 10, send)
    assert [task.id for task in claimed] == ["before", "now"]


@pytest.mark.parametrize("lane", Lane)
async def test_a_claim_takes_only_from_its_lane(store: Store, lane: Lane) -> None:
    await stored(store, *LANES.values(), new("done", status=Status.SUCCESS, due_time=None))
    claimed = await claim(store, lane, NOW, 10, off(60))
    assert [task.id for task in claimed] == [lane]


async def test_a_claim_stores_and_returns_what_the_move_made(store: Store) -> None:
    await stored(store, new("t"))
    [claimed] = await claim(store, Lane.SUBMIT, NOW, 10, send)
    assert claimed == send(new("t"))._replace(version=2)
    assert await read(store, "t") == claimed


async def test_no_task_is_claimed_twice_by_racing_claims(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(100)))
    racing = (claim(store, Lane.SUBMIT, NOW, 10, send) for _ in range(20))
    claimed = [task.id for tasks in await asyncio.gather(*racing) for task in tasks]
    assert len(claimed) == len(set(claimed)) == 100


async def test_a_claimed_task_is_claimed_again_when_it_is_due(store: Store) -> None:
    await stored(store, LANES[Lane.POLL])
    assert await claim(store, Lane.POLL, NOW, 10, off(60))
    assert await claim(store, Lane.POLL, NOW + 59, 10, off(120)) == []
    assert await claim(store, Lane.POLL, NOW + 60, 10, off(120))


async def test_a_move_that_raises_claims_nothing_and_the_writer_continues(store: Store) -> None:
    await stored(store, new("t"))

    def broken(task: Task) -> Task:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await claim(store, Lane.SUBMIT, NOW, 10, broken)
    assert await read(store, "t") == new("t")
    assert await claim(store, Lane.SUBMIT, NOW, 10, send)


DAMAGES = {
    "artifacts cut short": "artifacts = '[[\"https://'",
    "artifacts of another form": "artifacts = '[[1]]'",
    "artifacts without a URL": """artifacts = '[{"mime_type": "image/png"}]'""",
    "artifacts that are a number": "artifacts = '7'",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("limit", [1, 10])
async def test_a_damaged_row_waits_an_hour_and_the_others_are_claimed(
    store: Store, database_url: str, damage: str, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    await stored(store, new("broken", due_time=NOW - 9), new("t0"), new("t1"))
    change(database_url, f"UPDATE tasks SET {damage} WHERE id = 'broken'")  # noqa: S608 - it is ours
    claimed: list[Task] = []
    for _ in range(3):
        claimed += await claim(store, Lane.SUBMIT, NOW, limit, send)
    assert {task.id for task in claimed} == {"t0", "t1"}
    assert [vars(record)["task_id"] for record in caplog.records] == ["broken"], "said once"
    waiting = "SELECT id, due_time FROM tasks WHERE lane = 'submit'"
    assert rows(database_url, waiting) == [("broken", NOW + UNREADABLE_SECONDS)]


# --- claims in turns ---


async def test_waiting_tasks_have_turns_by_caller_and_creation(store: Store) -> None:
    tasks = [
        new(f"{caller}{age}", caller=caller, create_time=NOW - age)
        for caller in "cd"
        for age in (1, 3, 2)
    ]
    not_yet = new("later", due_time=NOW + 1, create_time=NOW - 9)
    await stored(store, *tasks, not_yet, LANES[Lane.POLL])
    seen: list[Waiting] = []

    def pick(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        seen.extend(waiting)
        return ["d2", "c3"]

    claimed = await claim_in_turns(store, 2, pick)
    assert [task.id for task in claimed] == ["d2", "c3"]
    assert set(seen) == {
        Waiting("c3", "c", 1, 0, "imagen4"),
        Waiting("c2", "c", 2, 0, "imagen4"),
        Waiting("d3", "d", 1, 0, "imagen4"),
        Waiting("d2", "d", 2, 0, "imagen4"),
    }
    assert await read(store, "d2") == claimed[0]
    assert await store.count(Lane.SUBMIT) == 5


async def test_no_task_is_claimed_twice_by_racing_claims_in_turns(store: Store) -> None:
    await stored(store, *(new(f"t{i}", caller=f"c{i % 3}") for i in range(60)))

    def first(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        return [each.task_id for each in waiting][:5]

    racing = (claim_in_turns(store, 5, first) for _ in range(20))
    claimed = [task.id for tasks in await asyncio.gather(*racing) for task in tasks]
    assert len(claimed) == len(set(claimed)) == 60


# --- quotas ---

QUOTA = Quota("creates", 3, 10.0)


async def taken(store: Store, now: float, limit: int, quota: Quota = QUOTA) -> tuple[int, float]:
    """Claim due tasks within a quota; return how many, and when there may be more."""
    claimed = await store.claim(
        Lane.POLL, now, limit, lambda task: task.scheduled(now + 60, 0), quota
    )
    return len(claimed.tasks), claimed.next_time


async def test_claims_take_no_more_slots_than_the_quota_has_in_any_window(store: Store) -> None:
    await store.add_slots(QUOTA)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(20)))
    assert await taken(store, NOW, 2) == (2, 0.0)
    assert await taken(store, NOW + 4, 2) == (1, NOW + 10)
    assert await taken(store, NOW + 9.9, 2) == (0, NOW + 10)
    assert await taken(store, NOW + 10, 9) == (2, NOW + 14)
    assert await taken(store, NOW + 14, 1) == (1, 0.0)


async def test_a_claim_takes_no_slot_that_it_has_no_task_for(store: Store) -> None:
    await store.add_slots(QUOTA)
    await stored(store, new("t", stage=Stage.QUEUED))
    assert await taken(store, NOW, 9) == (1, 0.0)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(9)))
    assert (await taken(store, NOW, 9))[0] == 2


async def test_slots_are_remembered_when_the_quota_is_made_again_larger_or_smaller(
    store: Store,
) -> None:
    await store.add_slots(QUOTA)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(20)))
    assert (await taken(store, NOW, 9))[0] == 3
    larger = replace(QUOTA, limit=5)
    await store.add_slots(larger)
    assert (await taken(store, NOW + 1, 9, larger))[0] == 2
    assert (await taken(store, NOW + 12, 9, replace(QUOTA, limit=1)))[0] == 1


async def test_a_slot_is_taken_or_the_time_of_the_next_one_returned(store: Store) -> None:
    quota = replace(QUOTA, limit=1)
    await store.add_slots(quota)
    assert await store.take_slot(quota, NOW) == 0
    assert await store.take_slot(quota, NOW + 1) == NOW + 10
    assert await store.take_slot(quota, NOW + 10) == 0


async def test_racing_claims_take_each_slot_once(store: Store) -> None:
    quota = replace(QUOTA, limit=7)
    await store.add_slots(quota)
    await stored(store, *(new(f"t{i}", stage=Stage.QUEUED) for i in range(100)))
    racing = [taken(store, NOW, 2, quota) for _ in range(20)]
    assert sum(count for count, _ in await asyncio.gather(*racing)) == 7


async def test_no_more_tasks_are_claimed_than_may_run(store: Store) -> None:
    running = [new(f"r{i}", stage=Stage.QUEUED, due_time=NOW + 60) for i in range(2)]
    await stored(store, *running, *(new(f"t{i}") for i in range(9)))

    async def send_some() -> Claim:
        sending = Sending(
            room=100,
            depth=100,
            pick=lambda waiting, room: [each.task_id for each in waiting][:room],
            move=send,
            quota=NO_QUOTA,
            running_max=RunningMax(5),
        )
        return await store.claim_in_turns(NOW, sending)

    assert len((await send_some()).tasks) == 3
    assert await send_some() == Claim([], inf)


# --- leases ---


async def test_a_lease_is_renewed_unless_another_process_changed_the_task(store: Store) -> None:
    await stored(store, new("mine"), new("moved"))
    claimed = await claim(store, Lane.SUBMIT, NOW, 10, send)
    by_id = {task.id: task for task in claimed}
    moved = await saved(store, by_id["moved"], by_id["moved"].queued("k", NOW, NOW))
    renewed = await store.renew(claimed, NOW + 500)
    assert renewed == [by_id["mine"]._replace(due_time=NOW + 500)]
    assert await read(store, "mine") == renewed[0]
    assert await read(store, "moved") == moved
    assert await store.save(renewed[0], renewed[0].queued("k", NOW, NOW))


# --- at the start, and after an outage ---


async def test_abandoned_tasks_can_be_made_due(store: Store) -> None:
    later = NOW + 900
    waiting = [
        new("accepted", due_time=later),
        new("submitting", stage=Stage.SUBMITTING, due_time=later),
        new("queued", stage=Stage.QUEUED, due_time=later),
        new("generating", stage=Stage.GENERATING, due_time=later),
    ]
    others = [
        new("waits for its callback", stage=Stage.SUBMITTING, unknown_time=NOW, due_time=later),
        new("waits for a late delivery", status=Status.FAILED, stage=None, due_time=later),
        new("was due", due_time=NOW - 5),
        new("ended", status=Status.SUCCESS, stage=None, due_time=None),
    ]
    await stored(store, *waiting, *others)
    await store.make_abandoned_due(NOW)
    for task in waiting:
        assert await read(store, task.id) == task._replace(due_time=NOW, version=task.version + 1)
    for task in others:
        assert await read(store, task.id) == task


async def test_a_worker_cannot_save_a_task_that_was_made_due(store: Store) -> None:
    await stored(store, new("t"))
    [claimed] = await claim(store, Lane.SUBMIT, NOW, 1, send)
    await store.make_abandoned_due(NOW)
    assert await store.save(claimed, claimed.queued("k", NOW, NOW)) is None


async def test_tasks_that_an_outage_postponed_are_due_when_it_is_over(
    store: Store,
) -> None:
    later = NOW + 900
    hurried = new("t", stage=Stage.QUEUED, setbacks=1, due_time=later)
    others = [
        new("without setbacks", stage=Stage.QUEUED, due_time=later),
        new("failed while others were answered", stage=Stage.QUEUED, setbacks=2, due_time=later),
        new("not sent", setbacks=1, due_time=later),
        new("being sent", stage=Stage.SUBMITTING, setbacks=1, due_time=later),
        new("was due", stage=Stage.QUEUED, setbacks=1, due_time=NOW - 5),
        new(
            "waits for its callback",
            stage=Stage.SUBMITTING,
            setbacks=1,
            unknown_time=1.0,
            due_time=later,
        ),
    ]
    await stored(store, hurried, *others)
    await store.make_polls_due(NOW)
    assert await read(store, "t") == hurried._replace(due_time=NOW, version=2)
    for task in others:
        assert await read(store, task.id) == task


async def test_tasks_whose_last_poll_failed_come_last_unless_long_overdue(
    store: Store,
) -> None:
    await stored(
        store,
        new("failing", stage=Stage.QUEUED, setbacks=3, due_time=NOW - 20),
        new("healthy", stage=Stage.QUEUED, due_time=NOW - 10),
        new("overdue", stage=Stage.QUEUED, setbacks=3, due_time=NOW - 61),
    )

    def postpone(task: Task) -> Task:
        return task.scheduled(NOW + 10, task.setbacks)

    order = []
    for _ in range(3):
        claim = await store.claim(Lane.POLL, NOW, 1, postpone, NO_QUOTA)
        order += [task.id for task in claim.tasks]
    assert order == ["overdue", "healthy", "failing"]


async def test_tasks_without_setbacks_are_claimed_before_any_number_of_tasks_with_setbacks(
    store: Store,
) -> None:
    failing = [
        new(f"failing-{i}", stage=Stage.QUEUED, setbacks=1, due_time=NOW - 9) for i in range(9)
    ]
    healthy = [new(f"healthy-{i}", stage=Stage.QUEUED, due_time=NOW - i) for i in range(2)]
    await stored(store, *failing, *healthy)
    claimed = await claim(store, Lane.POLL, NOW, 4, off(60))
    assert [task.setbacks for task in claimed] == [0, 0, 1, 1]


async def test_a_claim_of_polls_reads_the_due_tasks_in_one_statement(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored(
        store,
        new("failing", stage=Stage.QUEUED, setbacks=1),
        *(new(f"healthy-{i}", stage=Stage.QUEUED) for i in range(3)),
    )
    execute, statements = store._engine.execute, []

    def recording(sql: str, *params: object) -> Any:
        statements.append(sql)
        return execute(sql, *params)

    monkeypatch.setattr(store._engine, "execute", recording)
    assert len(await claim(store, Lane.POLL, NOW, 16, off(60))) == 4
    reads = [sql for sql in statements if sql.startswith("SELECT")]
    assert reads == [store._engine.sql.claims.due]


async def test_tasks_of_closed_models_wait_and_others_are_sent(store: Store) -> None:
    await stored(
        store,
        *(new(f"closed-{i}", model="veo3", create_time=NOW - 9) for i in range(3)),
        new("open-1", create_time=NOW - 1),
        new("open-0", caller="d"),
        new("not due", due_time=NOW + 1),
    )
    seen: list[Waiting] = []

    def pick(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        seen.extend(waiting)
        return [each.task_id for each in waiting]

    sending = Sending(
        room=9, depth=9, pick=pick, move=send, quota=NO_QUOTA, closed_models=["veo3", "sora2"]
    )
    claimed = await store.claim_in_turns(NOW, sending)
    assert {task.id for task in claimed.tasks} == {"open-0", "open-1"}
    assert set(seen) == {
        Waiting("open-1", "c", 1, 0, "imagen4"),
        Waiting("open-0", "d", 1, 0, "imagen4"),
    }


@pytest.mark.parametrize("depth", [1, 3, 100])
async def test_a_caller_has_one_turn_for_all_its_models(store: Store, depth: int) -> None:
    models = ["imagen4", "veo3", "sora2"]
    tasks = [
        new(f"{caller}{i}", caller=caller, model=models[i % 3], create_time=NOW + i)
        for caller in "cd"
        for i in range(9)
    ]
    await stored(store, *tasks)
    seen: list[Waiting] = []

    def pick(waiting: Sequence[Waiting], room: int) -> Sequence[str]:
        seen.extend(waiting)
        return []

    await store.claim_in_turns(
        NOW, Sending(room=5, depth=depth, pick=pick, move=send, quota=NO_QUOTA)
    )
    assert set(seen) == {
        Waiting(task.id, task.caller, int(task.id[1:]) + 1, 0, task.model)
        for task in tasks
        if int(task.id[1:]) < depth
    }
