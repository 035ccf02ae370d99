"""When the poller looks at each lane next."""

import asyncio
import math

import pytest

from service.agenda import Agenda, AgendaTimes
from storage.task import Lane

NOW = 1_000.0
STUCK_SECONDS = 20.0


@pytest.fixture
def agenda() -> Agenda:
    """An agenda that was read at NOW: a poll is due in 2 s, and nothing else."""
    made = Agenda(AgendaTimes(least_seconds=0))
    made.begin(NOW)
    due_times = {Lane.SUBMIT: math.inf, Lane.POLL: NOW + 2, Lane.LATE: math.inf}
    made.set_due_times(due_times, NOW)
    made.plan(NOW + 2, NOW)
    return made


async def is_woken(agenda: Agenda) -> bool:
    """Whether a wait that would last for a minute ends at once."""
    try:
        async with asyncio.timeout(0.01):
            await agenda.wait(NOW - 60)
    except TimeoutError:
        return False
    return True


async def test_a_wait_lasts_until_the_planned_time(agenda: Agenda) -> None:
    started = asyncio.get_running_loop().time()
    await agenda.wait(NOW + 1.9)
    assert asyncio.get_running_loop().time() - started >= 0.1


async def test_a_task_that_is_due_sooner_wakes_the_poller_and_a_later_one_does_not(
    agenda: Agenda,
) -> None:
    agenda.wake(Lane.POLL, NOW + 3)
    assert not await is_woken(agenda)
    agenda.wake(Lane.POLL, NOW + 1)
    assert await is_woken(agenda)
    assert agenda.due_time(Lane.POLL) == NOW + 1


def test_a_due_time_that_was_read_before_a_wake_does_not_hide_it(agenda: Agenda) -> None:
    agenda.wake(Lane.SUBMIT)
    agenda.set_due_times({Lane.SUBMIT: math.inf}, NOW)
    assert agenda.due_time(Lane.SUBMIT) == 0
    agenda.begin(NOW)
    assert agenda.due_time(Lane.SUBMIT) == 0


def test_held_tasks_are_due_when_the_submit_lane_is_woken_but_not_the_poll_lane(
    agenda: Agenda,
) -> None:
    agenda.set_due_times({Lane.SUBMIT: NOW}, NOW)
    agenda.hold_back(NOW + 30)
    agenda.wake(Lane.POLL, NOW)
    assert agenda.due_time(Lane.SUBMIT) == NOW + 30
    agenda.wake(Lane.SUBMIT)
    assert agenda.due_time(Lane.SUBMIT) == 0


async def test_a_run_that_plans_nothing_is_tried_again(agenda: Agenda) -> None:
    agenda.begin(NOW)
    async with asyncio.timeout(STUCK_SECONDS):
        await agenda.wait(NOW + 0.99)


async def test_a_stopped_agenda_wakes_the_poller(agenda: Agenda) -> None:
    agenda.stop()
    assert agenda.is_stopped()
    assert await is_woken(agenda)
