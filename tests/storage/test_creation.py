"""Which tasks of a batch are stored: decided for each, known request_ids first."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from peewee import IntegrityError

from storage.creation import Created, CreateLimits, CreateResult, Existing, LimitReached
from storage.store import Store
from storage.task import Failure, Lane, Stage, Task
from tests.support.databases import rows
from tests.support.storing import NO_LIMIT, NOW, Gate, enqueued, new, read, saved, send, stored

TWO = CreateLimits(1_000, 2)
TWO_A_MINUTE = CreateLimits(1_000, creates_per_minute=2)
FULL = LimitReached("queue", 2, "caller")


async def together(store: Store, *creations: tuple[Task, CreateLimits]) -> Sequence[CreateResult]:
    """Create in one batch."""
    gate = Gate(store)
    await gate.reached()
    jobs = await enqueued(*(store.create(task, limits) for task, limits in creations))
    await gate.open()
    answers: Sequence[CreateResult] = await asyncio.gather(*jobs)
    return answers


def alices(task_id: str, request_id: str = "") -> Task:
    return new(task_id, caller="alice", request_id=request_id)


def bobs(task_id: str) -> Task:
    return new(task_id, caller="bob")


# --- queue ---


async def test_one_callers_refusals_do_not_refuse_another_in_the_same_batch(store: Store) -> None:
    tasks = [alices(f"a{i}") for i in range(4)]
    limits = CreateLimits(3, 2)
    answers = await together(
        store,
        *((task, limits) for task in tasks),
        (bobs("b1"), limits),
        (bobs("b2"), limits),
    )
    assert answers == [
        Created(tasks[0]),
        Created(tasks[1]),
        FULL,
        FULL,
        Created(bobs("b1")),
        LimitReached("queue", 3, "service"),
    ]
    assert await store.count(Lane.SUBMIT) == 3


async def test_retries_of_known_requests_take_no_room_in_a_batch(store: Store) -> None:
    first = alices("first", "r")
    await stored(store, first)
    answers = await together(
        store,
        (alices("again", "r"), TWO),
        (alices("second"), TWO),
        (alices("again-2", "r"), TWO),
        (alices("third"), TWO),
    )
    assert answers == [Existing(first), Created(alices("second")), Existing(first), FULL]


async def test_the_same_new_request_twice_in_a_batch_takes_room_once(store: Store) -> None:
    answers = await together(
        store,
        (alices("a", "r"), TWO),
        (alices("b", "r"), TWO),
        (alices("c", "s"), TWO),
        (alices("d", "s"), TWO),
        (alices("e", "t"), TWO),
    )
    assert answers == [
        Created(alices("a", "r")),
        Existing(alices("a", "r")),
        Created(alices("c", "s")),
        Existing(alices("c", "s")),
        FULL,
    ]


async def test_a_request_id_of_another_caller_is_not_known(store: Store) -> None:
    await stored(store, alices("a", "r"), alices("b"))
    other = bobs("c")._replace(request_id="r")
    answers = await together(store, (alices("d", "x"), TWO), (other, TWO))
    assert answers == [FULL, Created(other)]


async def test_sent_cancelled_and_postponed_tasks_count_at_once(store: Store) -> None:
    first, second, third = alices("a"), alices("b"), alices("c")
    await stored(store, first, second)
    assert await store.create(third, TWO) == FULL
    sent = await saved(store, first, send(first))
    assert await store.create(third, TWO) == Created(third)
    assert await store.create(alices("d"), TWO) == FULL
    await saved(store, second, second.failed(Failure("CANCELLED", "no"), NOW))
    await saved(store, sent, sent.postponed(NOW, NOW + 1))
    assert await store.create(alices("d"), TWO) == FULL, "one left, one came back"


async def test_racing_creates_do_not_exceed_the_limits_of_their_callers(store: Store) -> None:
    racing = (
        store.create(new(f"{who}{i}", caller=who), CreateLimits(1_000, 7))
        for i in range(40)
        for who in ("alice", "bob")
    )
    answers = await asyncio.gather(*racing)
    created = [answer.task.caller for answer in answers if isinstance(answer, Created)]
    assert (created.count("alice"), created.count("bob")) == (7, 7)


# --- creates_per_minute ---


async def test_a_full_minute_ends_when_its_oldest_task_is_a_minute_old(store: Store) -> None:
    for second in (0, 20):
        task = alices(f"t{second}")._replace(create_time=NOW + second)
        assert isinstance(await store.create(task, TWO_A_MINUTE), Created)
    answer = await store.create(alices("t")._replace(create_time=NOW + 25), TWO_A_MINUTE)
    assert answer == LimitReached("creates_per_minute", 2, "caller", 35)
    answer = await store.create(alices("t")._replace(create_time=NOW + 59), TWO_A_MINUTE)
    assert answer == LimitReached("creates_per_minute", 2, "caller", 1)
    task = alices("t")._replace(create_time=NOW + 60)
    assert await store.create(task, TWO_A_MINUTE) == Created(task)
    answer = await store.create(alices("u")._replace(create_time=NOW + 61), TWO_A_MINUTE)
    assert answer == LimitReached("creates_per_minute", 2, "caller", 19)


async def test_a_raised_limit_counts_at_once(store: Store) -> None:
    await stored(store, alices("a"), alices("b"), alices("c"))
    assert isinstance(await store.create(alices("d"), TWO_A_MINUTE), LimitReached)
    four = CreateLimits(1_000, creates_per_minute=4)
    assert await store.create(alices("d"), four) == Created(alices("d"))
    assert isinstance(await store.create(alices("e"), four), LimitReached)
    assert await store.create(alices("e"), NO_LIMIT) == Created(alices("e"))


async def test_creates_of_one_batch_count_for_its_minute(store: Store) -> None:
    answers = await together(
        store,
        *((alices(f"a{i}"), TWO_A_MINUTE) for i in range(3)),
        (bobs("b"), TWO_A_MINUTE),
        (alices("c", "r"), NO_LIMIT),
    )
    assert [type(answer) for answer in answers] == [
        Created,
        Created,
        LimitReached,
        Created,
        Created,
    ]
    assert answers[2] == LimitReached("creates_per_minute", 2, "caller", 60)


async def test_tasks_that_ended_count_for_the_minute(store: Store) -> None:
    first, second = alices("a"), new("b", caller="alice", stage=Stage.QUEUED)
    await stored(store, first, second)
    await saved(store, first, first.failed(Failure("CANCELLED", "no"), NOW))
    await saved(store, second, second.failed(Failure("PROVIDER_REJECTED", "no"), NOW))
    assert isinstance(await store.create(alices("c"), TWO_A_MINUTE), LimitReached)


# --- request_ids ---


async def test_a_request_id_of_one_caller_makes_one_task_whatever_its_state(
    store: Store,
) -> None:
    first = new("first", request_id="r")
    await stored(store, first)
    assert await store.create(new("second", request_id="r", prompt_id="q"), NO_LIMIT) == Existing(
        first
    )

    ended = await saved(store, first, first.failed(Failure("CANCELLED", "no"), NOW))
    assert await store.create(new("third", request_id="r"), NO_LIMIT) == Existing(ended)
    assert await store.find_request("c", "r") == ended
    assert await read(store, "second") is None


async def test_a_request_id_of_another_caller_is_another(store: Store) -> None:
    first, second = new("first", request_id="r"), new("second", request_id="r", caller="d")
    await stored(store, first, second)
    assert await store.find_request("c", "r") == first
    assert await store.find_request("d", "r") == second


async def test_tasks_without_a_request_id_are_never_the_same(store: Store) -> None:
    await stored(store, *(new(f"t{i}") for i in range(3)))
    assert await store.find_request("c", "") is None


async def test_racing_creates_with_one_request_id_make_one_task(
    store: Store, database_url: str
) -> None:
    racing = (store.create(new(f"t{i}", request_id="r"), NO_LIMIT) for i in range(50))
    answers = await asyncio.gather(*racing)
    assert Counter(map(type, answers)) == {Created: 1, Existing: 49}
    assert len({answer.task for answer in answers if not isinstance(answer, LimitReached)}) == 1
    assert rows(database_url, "SELECT count(*) FROM tasks") == [(1,)]


async def test_a_duplicate_id_is_a_bug_and_affects_no_other_task(store: Store) -> None:
    await stored(store, new("t"))
    answers = await asyncio.gather(
        store.create(new("t", prompt_id="q"), NO_LIMIT),
        store.create(new("u"), NO_LIMIT),
        return_exceptions=True,
    )
    assert isinstance(answers[0], IntegrityError)
    assert answers[1] == Created(new("u"))
    assert await read(store, "t") == new("t")


# --- the queue's limit ---


async def test_only_tasks_that_wait_to_be_sent_count_for_the_queues_limit(store: Store) -> None:
    first, second = new("t0"), new("t1", due_time=NOW + 900)
    await stored(store, first, second)
    assert await store.create(new("t2"), CreateLimits(2)) == LimitReached("queue", 2, "service")
    assert await read(store, "t2") is None

    await saved(store, first, send(first))
    assert await store.create(new("t2"), CreateLimits(2)) == Created(new("t2"))
    assert await store.create(new("t3"), CreateLimits(2)) == LimitReached("queue", 2, "service")

    await saved(store, second, second.failed(Failure("CANCELLED", "no"), NOW))
    assert await store.create(new("t3"), CreateLimits(2)) == Created(new("t3"))


async def test_a_full_queue_still_knows_its_request_ids(store: Store) -> None:
    first = new("first", request_id="r")
    await stored(store, first)
    assert await store.create(new("second", request_id="r"), CreateLimits(1)) == Existing(first)


async def test_racing_creates_do_not_pass_the_queues_limit(store: Store) -> None:
    answers = await asyncio.gather(
        *(store.create(new(f"t{i}"), CreateLimits(7)) for i in range(50))
    )
    assert Counter(map(type, answers)) == {Created: 7, LimitReached: 43}
    assert await store.count(Lane.SUBMIT) == 7
