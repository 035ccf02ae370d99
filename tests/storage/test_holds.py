"""Since when the account is held, and the tasks that have waited since then."""

from storage.store import Store
from storage.task import Lane
from tests.support.storing import NOW, claim, new, stored


async def test_the_hold_of_the_account_is_kept_from_its_first_refusal_on(store: Store) -> None:
    assert await store.account_held_since(0) is None
    assert await store.hold_account(NOW, NOW - 600) == NOW
    assert await store.hold_account(NOW + 500, NOW - 100) == NOW
    assert await store.account_held_since(NOW + 500) == NOW
    assert await store.account_held_since(NOW + 501) is None, "it was not confirmed since"
    await store.release_account()
    assert await store.account_held_since(0) is None


async def test_a_hold_that_was_not_confirmed_for_long_begins_again(store: Store) -> None:
    await store.hold_account(NOW, NOW - 600)
    assert await store.hold_account(NOW + 601, NOW + 1) == NOW + 601


async def test_waiting_tasks_are_found_by_when_they_were_created(store: Store) -> None:
    tasks = [new(f"t{i}")._replace(create_time=NOW - i, due_time=NOW - i) for i in range(5)]
    await stored(store, *tasks)
    await claim(store, Lane.SUBMIT, NOW, 1, lambda task: task.submitting(NOW, NOW + 10))
    found = await store.waiting_since(NOW - 2, NOW, 10)
    assert {task.id for task in found} == {"t2", "t3"}, "t4 is being sent"
    assert len(await store.waiting_since(NOW - 2, NOW, 1)) == 1
