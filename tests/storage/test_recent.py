"""The caches: never older than what was shown, and limited in size."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from service.messages import Answers, Links
from service.warm_up import warm_answers
from storage.creation import CreateLimits
from storage.engine import DatabaseTimeouts
from storage.errors import StorageUnavailableError
from storage.opening import open_store
from storage.pages import ListFilter
from storage.recent import MAX_BYTES, RecentTasks
from storage.store import Store
from storage.task import Artifact, Copy, Failure, Lane, Stage, Status, Task
from tests.support.databases import change, locked
from tests.support.storing import NO_LIMIT, NOW, Gate, claim, enqueued, new, off, send, stored

DAY = 86_400.0
SUCCESS = new("t", status=Status.SUCCESS, stage=None, due_time=None, complete_time=NOW)
FAILED = new("t").failed(Failure("CANCELLED", "no"), NOW)


def remembered(store: Store, task_id: str) -> Task | None:
    return store._recent.get(task_id)


async def test_tasks_that_only_this_process_writes_are_cached(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/generation.db"
    store = open_store(url)
    await stored(store, SUCCESS)
    change(url, "DELETE FROM tasks")
    assert await store.get("t") == SUCCESS
    await store.close()


async def test_tasks_that_another_process_may_change_are_not_cached(postgresql_url: str) -> None:
    first, second = open_store(postgresql_url), open_store(postgresql_url)
    task = new("t")
    await stored(first, task)
    for number in range(5):
        assert await first.get("t") == task
        saved = await second.save(task, task.scheduled(NOW + number, number))
        assert saved
        task = saved
    failed = await second.save(task, task.failed(Failure("CANCELLED", "no"), NOW))
    assert await first.get("t") == failed
    await first.close()
    await second.close()


async def test_the_cache_follows_every_write(store: Store) -> None:
    await stored(store, new("t"), new("u", stage=Stage.QUEUED, setbacks=1, due_time=NOW + 9))
    [claimed] = await claim(store, Lane.SUBMIT, NOW, 1, send)
    assert await store.get("t") == claimed
    [renewed] = await store.renew([claimed], NOW + 500)
    assert await store.get("t") == renewed
    saved = await store.save(renewed, renewed.queued("k", NOW, NOW))
    assert await store.get("t") == saved
    await store.make_polls_due(NOW)
    hastened = await store.get("u")
    assert hastened
    assert hastened.due_time == NOW
    assert await claim(store, Lane.POLL, NOW, 9, off(60))


async def test_after_a_lost_race_the_task_is_read_again(store: Store, database_url: str) -> None:
    await stored(store, new("t"))
    change(database_url, "UPDATE tasks SET version = 9, prompt_id = 'q'")
    assert await store.save(new("t"), send(new("t"))) is None
    assert await store.get("t") == new("t", version=9, prompt_id="q")


async def test_a_write_whose_caller_has_disconnected_is_cached(store: Store) -> None:
    await stored(store, new("t"))
    gate = Gate(store)
    await gate.reached()
    [saving] = await enqueued(store.save(new("t"), send(new("t"))))
    saving.cancel()
    await gate.open()
    await store.ping()  # it is written after that
    assert await store.get("t") == send(new("t"))._replace(version=2)


async def test_a_failed_write_clears_the_cache(
    database_url: str,
) -> None:
    store = open_store(
        database_url, timeouts=DatabaseTimeouts(sqlite_busy_seconds=0.02, lock_milliseconds=20)
    )
    await stored(store, SUCCESS, new("u"))
    with locked(database_url), pytest.raises(StorageUnavailableError):
        await store.save(new("u"), send(new("u")))
    assert remembered(store, "t") is None
    assert await store.get("t") == SUCCESS
    await store.close()


async def test_a_page_is_never_newer_than_the_cache(store: Store) -> None:
    tasks = [new(f"t{i}") for i in range(20)]
    await stored(store, *tasks)

    async def move(task: Task) -> None:
        for number in range(10):
            saved = await store.save(task, task.scheduled(NOW + number, number))
            assert saved
            task = saved

    async def look() -> None:
        for _ in range(20):
            for listed in await store.page(ListFilter("c"), None, 50):
                present = await store.get(listed.id)
                assert present
                assert present.version >= listed.version

    await asyncio.gather(look(), *map(move, tasks))


async def test_purged_tasks_leave_the_cache(store: Store) -> None:
    await stored(store, SUCCESS)
    await store.purge(NOW + 1, 100)
    assert await store.get("t") is None


async def test_a_refused_create_is_not_cached(store: Store) -> None:
    await store.create(new("t"), CreateLimits(0))
    assert await store.get("t") is None
    await store.create(new("t"), NO_LIMIT)
    assert await store.get("t") == new("t")


def test_the_least_recently_used_task_leaves_a_full_cache() -> None:
    recent = RecentTasks()
    large = [new(f"t{i}", params=bytes(MAX_BYTES // 4)) for i in range(4)]
    recent.keep(large[:3])
    assert recent.get("t0")
    recent.keep(large[3:])
    assert [bool(recent.get(task.id)) for task in large] == [True, False, True, True]


def test_a_task_larger_than_the_cache_is_not_cached_nor_its_earlier_snapshot() -> None:
    recent = RecentTasks()
    recent.keep([new("t")])
    recent.keep([new("t", version=2, params=bytes(MAX_BYTES))])
    assert recent.get("t") is None


# --- answers ---


def test_a_response_is_cached_only_for_its_caller_and_only_for_a_success() -> None:
    answers = Answers(Links(DAY))
    answer = answers.of(SUCCESS)
    assert answers.for_success("c", "t", NOW) == answer
    assert answers.for_success("d", "t", NOW) is None
    answers.of(new("u"))
    answers.of(new("f").failed(Failure("CANCELLED", "no"), NOW))
    assert answers.for_success("c", "u", NOW) is answers.for_success("c", "f", NOW) is None


@pytest.mark.parametrize("task", [new("t"), SUCCESS, FAILED], ids=lambda task: task.status)
def test_a_revision_is_serialised_once(task: Task) -> None:
    answers = Answers(Links(DAY))
    first = answers.of(task)
    answers.of(new("another"))
    assert answers.of(task._replace(version=50)) is first


def test_the_next_revision_is_serialized_again() -> None:
    answers = Answers(Links(DAY))
    task = new("t")
    assert answers.of(send(task)) != answers.of(task)


def test_a_success_is_read_again_while_copies_of_its_results_may_follow() -> None:
    answers = Answers(Links(DAY, copies_may_follow=True))
    artifact = Artifact("https://x.example/0.png", "image/png")
    copy = Copy("s3://b/0.png", 1, "00" * 32, "image/png")
    success = SUCCESS._replace(artifacts=(artifact,))
    copied = success.copied((replace(artifact, copy=copy),), NOW)
    first = answers.of(success)
    assert answers.for_success("c", "t", NOW) is None
    assert answers.of(success._replace(version=50)) is first
    assert answers.of(copied) != first
    assert answers.for_success("c", "t", NOW) == answers.of(copied)


def test_a_cached_response_expires_when_its_task_may_have_been_purged() -> None:
    answers = Answers(Links(DAY), kept_seconds=60)
    answer = answers.of(SUCCESS)
    assert answers.for_success("c", "t", NOW + 59) == answer
    assert answers.for_success("c", "t", NOW + 60) is None


async def test_the_newest_results_are_cached_at_start(store: Store) -> None:
    await stored(store, *(SUCCESS._replace(id=f"t{i}", complete_time=NOW + i) for i in range(9)))
    answers = Answers(Links(DAY))
    await warm_answers(store, answers, tasks_max=6, batch=2)
    known = [bool(answers.for_success("c", f"t{i}", NOW)) for i in range(9)]
    assert known == [False] * 3 + [True] * 6
