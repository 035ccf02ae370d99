"""How long tasks are held."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from providers.base import Accepted, Postponed, Refused
from service.account_hold import AccountHold
from service.holds import Holds, HoldTimes
from service.metrics import Metrics
from storage.opening import open_store
from storage.store import Store
from storage.task import Task

NOW = 10_000.0
TASK = Task(
    id="t",
    caller="c",
    request_id="",
    prompt_id="p",
    model="imagen4",
    params=b"",
    create_time=NOW,
    update_time=NOW,
    due_time=NOW,
)
UNREACHABLE = Postponed("not connected", reached=False)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/generation.db")
    yield opened
    await opened.close()


def holds(store: Store) -> Holds:
    return Holds(HoldTimes(), AccountHold(store, Metrics(["imagen4"]), 3_600.0))


async def test_holds_grow_to_their_limit_and_an_outage_may_last_for_weeks(store: Store) -> None:
    kept, now, waits = holds(store), NOW, []
    for _ in range(60_000):
        until = kept.learn(TASK, UNREACHABLE, now).until
        waits.append(until - now)
        now = until
    assert waits[:5] == [2, 4, 8, 16, 30]
    assert set(waits[5:]) == {30}
    kept.learn(TASK, Accepted("k"), now)
    assert kept.room(now) == math.inf


async def test_a_task_that_was_sent_before_the_account_was_refused_does_not_end_the_hold(
    store: Store,
) -> None:
    kept = holds(store)
    earlier, later = (TASK.submitting(sent, NOW + 60) for sent in (NOW, NOW + 3))
    refused = Refused("CREDITS_EXHAUSTED", "no", "402", account=True)
    kept.learn(earlier, refused, NOW + 1)
    kept.learn(earlier, Accepted("k-1"), NOW + 1.5)
    assert not kept.room(NOW + 2)
    kept.learn(later, Accepted("k-2"), NOW + 4)
    assert kept.room(NOW + 4) == math.inf


async def test_an_answer_to_a_request_from_before_the_hold_does_not_extend_it(store: Store) -> None:
    kept = holds(store)
    first = kept.learn(TASK, UNREACHABLE, NOW).until
    assert kept.learn(TASK, UNREACHABLE, NOW + 1).until == first
