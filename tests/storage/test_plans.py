"""The plans of hot statements: each uses an index, however many tasks have ended."""

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from operator import attrgetter
from typing import Any

import pytest

from storage.opening import open_store
from storage.pages import ListFilter
from storage.postgresql.connection import is_postgres
from storage.postgresql.engine import PostgresEngine
from storage.sqlite import SqliteEngine
from storage.store import Store
from storage.task import Lane, Stage, Status
from tests.support.databases import analyse, change, connect, fill
from tests.support.storing import MODELS, NOW, claim, claim_in_turns, new, off, read, stored

FEW, MANY = 1_000, 1_000_000

# Each hot statement, with its parameters.
STATEMENTS: dict[str, tuple[object, ...]] = {
    "tasks.get": ("ended-7",),
    "tasks.find_request": ("c", "request-7"),
    "claims.due": (Lane.POLL, NOW, 10),
    "claims.due_first": (Lane.POLL, NOW, NOW - 60, 10),
    "claims.lock": ("ended-7", Lane.SUBMIT, NOW),
    "lanes.next_due": (),
    "counts.lane": (Lane.POLL,),
    "counts.waiting_of_callers": (),
    "counts.running": (NOW - 300,),
    "counts.running_of_callers": (NOW - 300,),
    "lanes.due_after": (Lane.SUBMIT, NOW),
    "counts.created_since": ("c", NOW, NOW - 60),
    "counts.nth_newest": ("c", NOW, 10),
    "purges.count_cancelled": (),
    "purges.cancelled": ("c", NOW, 10),
    "counts.sending": (NOW - 300,),
    "claims.waiting_queues": (),
    "models.successes": ("imagen4", 256),
    "models.successes_with_params": ("imagen4", 256),
    "claims.waiting_since": (NOW, NOW, 10),
    "claims.first_waiting": ("c", "imagen4", NOW, 10),
    "tasks.renew": (NOW, "ended-7", 5),
    "lanes.make_abandoned_due": (NOW, NOW),
    "lanes.limit_due_times": (NOW, Lane.POLL, NOW),
    "lanes.limit_leases": (NOW, Lane.POLL, NOW),
    "lanes.make_polls_due": (NOW, NOW),
    "purges.ended": (NOW - 19_000, NOW - 19_000, 10),
}
INDICES = re.compile(r"(?:using|on|INDEX) (tasks_\w+)")  # that a plan names
FILTERS = [
    ListFilter("c"),
    ListFilter("c", prompt_id="prompt-7"),
    ListFilter("c", status=Status.FAILED),
    ListFilter("c", model="veo3"),
    ListFilter("c", created_after=NOW - 100, created_before=NOW - 50),
]


class Plans:
    """A database with many ended tasks, whose plans are read."""

    def __init__(self, database_url: str, engine: PostgresEngine | SqliteEngine) -> None:
        self._url = database_url
        self.engine = engine

    def of(self, sql: str, params: Sequence[object]) -> str:
        """Return the plan of a statement."""
        explain = "EXPLAIN" if is_postgres(self._url) else "EXPLAIN QUERY PLAN"
        with closing(connect(self._url)) as connection:
            cursor = connection.cursor()
            cursor.execute(f"{explain} {sql}", params)
            return "\n".join(str(row[-1]) for row in cursor.fetchall())


@pytest.fixture
async def plans(database_url: str) -> Any:
    store = open_store(database_url, needs=MODELS)
    fill(database_url, 20_000, NOW)
    yield Plans(database_url, store._engine)  # type: ignore[arg-type]
    await store.close()


def reads_all(plan: str) -> bool:
    """Return whether a plan scans the whole table, or sorts its result."""
    table = re.search(r"Seq Scan on tasks|SCAN (tasks|t1)(?! USING)", plan)
    return bool(table or re.search(r"\bSort\b|TEMP B-TREE", plan))


@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_hot_statement_never_scans_the_ended_tasks(plans: Plans, name: str) -> None:
    plan = plans.of(attrgetter(name)(plans.engine.sql), STATEMENTS[name])
    if name.endswith("_of_callers"):  # tasks of one lane are sorted by caller
        plan = re.sub(r"\bSort\b|USE TEMP B-TREE FOR .*", "", plan)
    assert not reads_all(plan), plan


async def test_requests_are_found_by_their_index(plans: Plans) -> None:
    engine = plans.engine
    if isinstance(engine, PostgresEngine):
        plan = plans.of(engine._bulk.find_requests, (["c"] * 9, [f"request-{i}" for i in range(9)]))
        assert not reads_all(plan), plan


WAITING = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 4999)
INSERT INTO tasks (id, caller, prompt_id, model, params, create_time, update_time, lane, due_time,
    status, stage, revision, artifacts, result_json, provider_task_id, hinted_id, setbacks, version)
SELECT 'waiting-' || i, 'limited', 'p', 'imagen4', ?, ? - i, ? - i, 'submit', ? - i,
    'PENDING', 'ACCEPTED', 1, '[]', '', '', '', 0, 1
FROM n
"""


async def test_a_claim_steps_over_the_waiting_tasks_of_a_caller_at_its_limit(
    plans: Plans, database_url: str
) -> None:
    change(database_url, WAITING, b"\x0a\x00", NOW, NOW, NOW)
    analyse(database_url)
    engine = plans.engine
    asked: list[tuple[str, Sequence[object]]] = [
        (engine.sql.claims.waiting_queues, ()),
        (engine.sql.claims.first_waiting, ("limited", "imagen4", NOW, 10)),
    ]
    if isinstance(engine, PostgresEngine):
        asked.append((engine._bulk.first_waiting, (["limited"], ["imagen4"], NOW, 10)))
    for sql, params in asked:
        plan = plans.of(sql, params)
        assert "tasks_waiting" in plan, plan
        assert not reads_all(plan), plan


NEWER = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
INSERT INTO tasks (id, caller, prompt_id, model, params, create_time, update_time, lane, due_time,
    status, stage, revision, artifacts, result_json, provider_task_id, hinted_id, setbacks, version)
SELECT 'newer-' || i, 'c' || (i % 3), 'p', 'market/' || (i % 200), ?, ? - i, ? - i,
    CASE i % 2 WHEN 0 THEN 'submit' ELSE 'poll' END, ? - i, 'PENDING',
    CASE i % 2 WHEN 0 THEN 'ACCEPTED' ELSE 'QUEUED' END, 1, '[]', '', '', '', 0, 1
FROM n
"""
# But for `waiting_since`, which takes any tasks: if most of the table matches, it may read that.
LOOKING_FOR_WORK = [
    name
    for name in STATEMENTS
    if name.startswith(("claims.", "lanes.")) and name != "claims.waiting_since"
]


@pytest.mark.parametrize("name", LOOKING_FOR_WORK)
async def test_the_plans_stay_if_most_tasks_that_wait_are_of_a_newer_version(
    plans: Plans, database_url: str, name: str
) -> None:
    sql, params = attrgetter(name)(plans.engine.sql), STATEMENTS[name]
    change(database_url, WAITING, b"\x0a\x00", NOW, NOW, NOW)
    analyse(database_url)
    before = plans.of(sql, params)
    change(database_url, NEWER, b"\x0a\x00", NOW, NOW, NOW)
    analyse(database_url)
    after = plans.of(sql, params)
    assert not reads_all(after), after
    assert INDICES.findall(after) == INDICES.findall(before)


@pytest.mark.parametrize("which", FILTERS, ids=str)
@pytest.mark.parametrize("before", [None, (NOW - 500, "t")], ids=["first page", "next page"])
async def test_a_page_reads_what_it_shows_and_sorts_nothing(
    plans: Plans,
    which: ListFilter,
    before: tuple[float, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, Sequence[object]]] = []

    async def note(sql: str, *params: object) -> list[Any]:
        asked.append((sql, params))
        return [(NOW - 500, "t", 9), (NOW - 900, "t", 9)] if len(asked) == 1 else []

    monkeypatch.setattr(plans.engine, "all", note)
    await Store(plans.engine).page(which, before, 10)
    assert len(asked) == 2, "the keys, then the tasks"
    for sql, params in asked:
        plan = plans.of(sql, params)
        assert not reads_all(plan), plan


# --- a million ended tasks cost what a thousand cost ---


async def median_seconds(ask: Callable[[], Awaitable[object]], times: int = 60) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        await ask()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def costs(store: Store) -> dict[str, float]:
    """Return the seconds of each hot operation, with 500 tasks in progress."""
    tasks = [new(f"poll-{i}", stage=Stage.QUEUED, due_time=NOW) for i in range(250)]
    tasks += [new(f"submit-{i}", due_time=NOW) for i in range(250)]
    await stored(store, *tasks)

    async def polls() -> object:
        return await claim(store, Lane.POLL, NOW, 4, off(60))

    async def sends() -> object:
        return await claim_in_turns(store, 4, lambda waiting, _: [waiting[0].task_id])

    return {
        "claim to poll": await median_seconds(polls),
        "claim to send": await median_seconds(sends),
        "next due times": await median_seconds(store.next_due_times),
        "get": await median_seconds(lambda: read(store, "ended-500")),
        "find request": await median_seconds(lambda: store.find_request("c", "request-500")),
        "page": await median_seconds(lambda: store.page(ListFilter("c"), None, 50)),
        "page of a prompt": await median_seconds(
            lambda: store.page(ListFilter("c", prompt_id="prompt-7"), None, 1)
        ),
    }


@pytest.mark.torture
async def test_a_million_ended_tasks_cost_what_a_thousand_cost(database_url: str) -> None:
    store = open_store(database_url, needs=MODELS)
    await asyncio.to_thread(fill, database_url, FEW, NOW)
    few = await costs(store)
    await store.close()
    store = open_store(database_url, needs=MODELS)
    for name in ("tasks",):
        with closing(connect(database_url)) as connection:
            connection.cursor().execute(f"DELETE FROM {name}")  # noqa: S608 - ours
            connection.commit()
    await asyncio.to_thread(fill, database_url, MANY, NOW)
    many = await costs(store)
    await store.close()
    for name, seconds in few.items():
        print(f"{name}: {seconds * 1e6:.0f} us, then {many[name] * 1e6:.0f} us")  # noqa: T201
    for name, seconds in few.items():
        assert many[name] < 2 * seconds + 0.0005, name
