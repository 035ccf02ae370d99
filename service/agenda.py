"""When the poller looks at each lane next."""

import asyncio
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from storage.task import Lane, Task


@dataclass(frozen=True, slots=True)
class AgendaTimes:
    """How long the poller waits between two runs.

    Attributes:
        least_seconds: From the start of one run to the start of the next: tasks that fall due
            together are claimed together.
        idle_seconds: How long at most: tasks that other processes have stored are found by then.
        retry_seconds: After a run that failed.
    """

    least_seconds: float = 0.01
    idle_seconds: float = 3.0
    retry_seconds: float = 1.0


class Agenda:
    """The due times of the lanes, and the event that wakes the poller. Times are unix seconds."""

    def __init__(self, times: AgendaTimes) -> None:
        self._times = times
        self._due_times = dict.fromkeys(Lane, math.inf)  # as last read from the database
        self._sooner: dict[Lane, float] = {}  # and what has become due sooner since
        self._held_back_until = 0.0
        self._read_time = 0.0
        self._next_time = 0.0
        self._run_started = 0.0  # by the monotonic clock
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()

    # --- for the loop ---

    def begin(self, now: float) -> None:
        """Begin a run. Until `plan` is called, the next one is a retry."""
        self._run_started = time.monotonic()
        self._woken.clear()
        self._next_time = now + self._times.retry_seconds
        sooner, self._sooner = self._sooner, {}
        for lane, due_time in sooner.items():
            self._due_times[lane] = min(self._due_times[lane], due_time)

    def due_time(self, lane: Lane) -> float:
        """Return when the first task of a lane is due, or may be sent."""
        due_time = min(self._due_times[lane], self._sooner.get(lane, math.inf))
        return max(due_time, self._held_back_until) if lane is Lane.SUBMIT else due_time

    def is_outdated(self, now: float) -> bool:
        """Return whether to read the due times again: other processes store tasks, too."""
        return now >= self._read_time + self._times.idle_seconds

    def set_due_times(self, due_times: Mapping[Lane, float], now: float) -> None:
        """Take over due times as they are in the database."""
        self._due_times |= due_times
        self._read_time = now

    def plan(self, next_time: float, now: float) -> None:
        """Set the time of the next run: `next_time`, or earlier if the poller would idle longer."""
        self._next_time = min(next_time, now + self._times.idle_seconds)

    def clock_jumped(self) -> None:
        """Forget until when lanes are held back: that time is from before the jump."""
        self._held_back_until = 0.0

    async def wait(self, now: float) -> None:
        """Wait until the next run."""
        seconds = min(self._next_time - now, self._times.idle_seconds)  # the clock may be set back
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        await asyncio.sleep(self._run_started + self._times.least_seconds - time.monotonic())

    # --- for everybody ---

    def wake(self, lane: Lane | None = None, due_time: float = 0.0) -> None:
        """Have the poller look again.

        Args:
            lane: The lane in which a task has become due; None if only the limits have changed.
            due_time: When the task is due.
        """
        if lane in {None, Lane.SUBMIT, Lane.LATE}:
            self._held_back_until = 0.0
        if lane:
            self._sooner[lane] = min(self._sooner.get(lane, math.inf), due_time)
        if due_time < self._next_time:
            self._woken.set()

    def add(self, task: Task) -> None:
        """Have the poller look at a task when it is due."""
        if task.lane and task.due_time is not None:
            self.wake(task.lane, task.due_time)

    def hold_back(self, until: float) -> None:
        """Claim no tasks to send before a time, unless a new one arrives or limits change."""
        self._held_back_until = until

    def stop(self) -> None:
        """End the poller once its current run is over."""
        self._stopping.set()
        self.wake()

    def is_stopped(self) -> bool:
        """Return whether the poller has to end."""
        return self._stopping.is_set()

    async def sleep(self, seconds: float) -> None:
        """Wait, but not longer than until the poller has to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
