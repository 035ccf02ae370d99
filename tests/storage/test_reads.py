"""Reads of many tasks: the state of a lane, and pages."""

from math import inf

import pytest

from storage.pages import ListFilter
from storage.store import Store
from storage.task import Lane, Status, Task
from tests.support.databases import change
from tests.support.storing import LANES, NOW, new, some_tasks, stored


@pytest.mark.parametrize("lane", Lane)
async def test_a_lane_knows_how_many_wait_and_when_the_first_is_due(
    store: Store, lane: Lane
) -> None:
    assert (await store.count(lane), await store.next_due_times()) == (0, dict.fromkeys(Lane, inf))
    others = [task for other, task in LANES.items() if other is not lane]
    await stored(store, *(task._replace(due_time=NOW - 100) for task in others))
    assert (await store.count(lane), (await store.next_due_times())[lane]) == (0, inf)
    await stored(store, *(LANES[lane]._replace(id=f"t{i}", due_time=NOW + i) for i in (3, 1, 2)))
    assert (await store.count(lane), (await store.next_due_times())[lane]) == (3, NOW + 1)


def newest_first(task: Task) -> tuple[float, str]:
    return task.create_time, task.id


FILTERS = [
    ListFilter("c"),
    ListFilter("d", prompt_id="p"),
    ListFilter("c", status=Status.SUCCESS),
    ListFilter("c", prompt_id="q", status=Status.PENDING),
    ListFilter("nobody"),
    ListFilter("c", prompt_id="nothing"),
]


@pytest.mark.parametrize("which", FILTERS, ids=str)
@pytest.mark.parametrize("limit", [1, 7, 1_000])
async def test_pages_hold_every_task_of_the_filter_once_and_newest_first(
    store: Store, which: ListFilter, limit: int
) -> None:
    tasks = some_tasks()
    await stored(store, *tasks)
    listed: list[Task] = []
    before = None
    while page := await store.page(which, before, limit):
        assert len(page) <= limit
        listed += page
        before = (page[-1].create_time, page[-1].id)
    expected = [
        task
        for task in tasks
        if task.caller == which.caller
        and which.prompt_id in {"", task.prompt_id}
        and which.status in {None, task.status}
    ]
    assert listed == sorted(expected, key=newest_first, reverse=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 10])
async def test_damaged_rows_are_left_out_of_pages_and_do_not_end_them(
    store: Store, database_url: str, limit: int
) -> None:
    tasks = [new(f"t{i}", create_time=NOW + i) for i in range(9)]
    await stored(store, *tasks)
    change(database_url, "UPDATE tasks SET artifacts = '7' WHERE id IN ('t0', 't3', 't6', 't7')")
    readable = [task for task in reversed(tasks) if task.id not in {"t0", "t3", "t6", "t7"}]
    assert await store.page(ListFilter("c"), None, limit) == readable[:limit]


async def test_a_task_created_between_pages_does_not_shift_them(store: Store) -> None:
    await stored(store, *(new(f"t{i}", create_time=NOW + i) for i in range(4)))
    first = await store.page(ListFilter("c"), None, 2)
    await stored(store, new("newer", create_time=NOW + 10))
    before = (first[-1].create_time, first[-1].id)
    second = await store.page(ListFilter("c"), before, 2)
    assert [task.id for task in first + second] == ["t3", "t2", "t1", "t0"]


@pytest.mark.parametrize("limit", [1, 3, 1_000])
async def test_ended_tasks_are_read_in_the_order_of_their_ends_each_once(
    store: Store, limit: int
) -> None:
    ends = {f"t{number}": NOW + number // 3 for number in range(12)}  # three end together
    tasks = [
        new(task_id, status=Status.SUCCESS, stage=None, due_time=None, complete_time=time)
        for task_id, time in ends.items()
    ]
    await stored(store, *tasks, *LANES.values())
    read: list[str] = []
    after = NOW + 1, ""
    while page := await store.ended_after(*after, limit):
        assert len(page) <= limit
        read += [task.id for task in page]
        after = page[-1].complete_time or 0.0, page[-1].id
    assert read == sorted((t for t in ends if ends[t] >= NOW + 1), key=lambda t: (ends[t], t))
