"""What was stored before a clock was set: nothing waits for as long as the clock has jumped."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from storage.claims import Quota
from storage.creation import Created, CreateLimits, LimitReached
from storage.opening import open_store
from storage.store import Store
from storage.task import Lane, Stage
from tests.support.clocks import HOUR, DatabaseTime
from tests.support.databases import change
from tests.support.storing import NO_LIMIT, NOW, new, read, stored

QUOTA = Quota("creates", 3, 10.0)
NOTICED_SECONDS = 20.0


async def taken(store: Store, now: float) -> int:
    """Take all slots that are free; return how many they were."""
    count = 0
    while not await store.take_slot(QUOTA, now):
        count += 1
        assert count <= QUOTA.limit
    return count


# --- slots ---


@pytest.mark.parametrize("ahead_seconds", [20.0, 2 * HOUR, 1_000 * HOUR])
async def test_slots_that_lie_further_ahead_than_their_window_are_free(
    store: Store, ahead_seconds: float
) -> None:
    await store.add_slots(QUOTA)
    assert await taken(store, NOW + ahead_seconds) == 3
    assert await taken(store, NOW) == 3, "the clock was set back"
    assert await taken(store, NOW + 1) == 0, "the limit applies again"
    assert await taken(store, NOW + 10.1) == 3


async def test_slots_within_their_window_stay_taken_if_clocks_differ_a_little(
    store: Store,
) -> None:
    await store.add_slots(QUOTA)
    assert await taken(store, NOW + 0.5) == 3  # by another process
    assert await taken(store, NOW) == 0


async def test_a_slot_is_never_waited_for_longer_than_its_window(
    store: Store, database_url: str
) -> None:
    await store.add_slots(QUOTA)
    assert await taken(store, NOW) == 3
    change(database_url, "UPDATE slots SET free_time = ? WHERE number = 0", NOW + 10.9)
    assert NOW < await store.take_slot(QUOTA, NOW) <= NOW + 11


# --- limits of callers ---


async def test_tasks_from_the_future_do_not_count_as_created_in_the_last_minute(
    store: Store,
) -> None:
    limits = CreateLimits(1_000, creates_per_minute=2)
    for number in range(2):
        task = new(f"before-{number}", create_time=NOW + 2 * HOUR)
        assert await store.create(task, limits) == Created(task)
    refused = await store.create(new("refused", create_time=NOW + 2 * HOUR + 1), limits)
    assert isinstance(refused, LimitReached)
    for number in range(2):  # the clock was set back
        task = new(f"after-{number}", create_time=NOW + number)
        assert await store.create(task, limits) == Created(task)
    refused = await store.create(new("again", create_time=NOW + 2), limits)
    assert isinstance(refused, LimitReached)
    assert refused.retry_seconds == pytest.approx(58)


# --- due times ---


async def test_due_times_and_leases_are_limited_without_a_new_version(
    store: Store, database_url: str
) -> None:
    ahead = NOW + 2 * HOUR
    sending = new("sending", due_time=ahead, stage=Stage.SUBMITTING)
    polled = new("polled", due_time=ahead, stage=Stage.QUEUED)
    soon = new("soon", due_time=NOW + 5, stage=Stage.QUEUED)
    await stored(store, sending, polled, soon)
    await store.limit_leases(NOW + 10, NOW)
    assert await read(store, "sending") == sending._replace(due_time=NOW)
    assert await read(store, "polled") == polled
    await store.limit_due_times(Lane.POLL, NOW + 10, NOW + 1)
    assert await read(store, "polled") == polled._replace(due_time=NOW + 1)
    assert await read(store, "soon") == soon
    assert (await store.next_due_times())[Lane.POLL] == NOW


# --- the database's clock ---


@pytest.fixture
async def database_time(postgresql_url: str) -> DatabaseTime:
    """The clock of a database, which can be set."""
    return DatabaseTime(postgresql_url)


@pytest.fixture
async def replica(database_time: DatabaseTime) -> AsyncIterator[Store]:
    """A store on that database."""
    store = open_store(database_time.url)
    yield store
    await store.close()


async def until_noticed(store: Store) -> None:
    """Use the database until the store has noticed a jump of its clock."""
    async with asyncio.timeout(NOTICED_SECONDS):
        while store.clock.last_jump is None:
            await store.ping()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("seconds", [2 * HOUR, -2 * HOUR])
async def test_a_jump_of_the_databases_clock_is_followed_within_seconds(
    replica: Store, database_time: DatabaseTime, seconds: float
) -> None:
    before = replica.now()
    database_time.jump(seconds)
    await until_noticed(replica)
    jump = replica.clock.last_jump
    assert jump is not None
    assert jump.seconds == pytest.approx(seconds, abs=1)
    assert replica.now() - before == pytest.approx(seconds, abs=NOTICED_SECONDS)
    other = open_store(database_time.url)
    assert abs(other.now() - replica.now()) < 1
    await other.close()


async def test_a_standby_with_another_clock_is_followed_on_the_first_connection_to_it(
    replica: Store, database_time: DatabaseTime
) -> None:
    await replica.ping()
    database_time.jump(HOUR)
    database_time.disconnect_all()
    task = new("t")
    assert await replica.create(task, NO_LIMIT) == Created(task)
    assert replica.clock.last_jump is not None


async def test_small_differences_of_the_databases_clock_are_no_jumps(
    replica: Store, database_time: DatabaseTime
) -> None:
    database_time.jump(3)
    before = replica.now()
    async with asyncio.timeout(NOTICED_SECONDS):
        while replica.now() - before < 3:
            await replica.ping()
            await asyncio.sleep(0.05)
    assert replica.clock.last_jump is None
