"""Time that is steady while a process runs, although the clocks of machines are set.

A clock that jumps by hours would make tasks wait for hours, or time them out. So the time comes
from the machine's monotonic clock, and the offset to unix time is taken at the start. Where the
clock of another machine has to be followed, its jumps are remembered, so that they do not count as
time that has passed.
"""

import time
from collections import deque
from dataclasses import dataclass

JUMPS_KEPT = 100
# CLOCK_BOOTTIME where available, because it also counts time spent suspended.
STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
SKEW_SECONDS = 1.0  # by which the clocks of two processes on one database may differ


@dataclass(frozen=True, slots=True)
class Jump:
    """A jump of the clock.

    Attributes:
        time: When it was noticed, by the clock after the jump.
        seconds: How far the clock jumped; negative if it was set back.
    """

    time: float
    seconds: float


class Clock:
    """The time in unix seconds."""

    def __init__(self) -> None:
        """Read the machine's clock, once."""
        self._offset = time.time() - monotonic_seconds()
        self._jumps: deque[Jump] = deque(maxlen=JUMPS_KEPT)

    def now(self) -> float:
        """Return the time."""
        return monotonic_seconds() + self._offset

    @property
    def last_jump(self) -> Jump | None:
        """The last jump since the start."""
        return self._jumps[-1] if self._jumps else None

    def jumped_seconds(self, since: float) -> float:
        """Return how far the clock has jumped since a time, all jumps added up.

        A time that the clock shows a second time, after it was set back, counts as the later one.
        """
        return sum(jump.seconds for jump in tuple(self._jumps) if since <= _last_before(jump))

    def elapsed_seconds(self, since: float, now: float) -> float:
        """Return how long ago a time was, without jumps of the clock; never less than 0."""
        return max(0.0, now - since - (self.jumped_seconds(since) if self._jumps else 0.0))

    def without_jumps(self, now: float) -> float:
        """Return the time without the net jump forward since the start: it makes nothing older."""
        return now - max(0.0, self.jumped_seconds(0.0))

    def _jump_to(self, offset: float) -> None:
        """Continue with another offset."""
        # The jump comes first: a thread that reads the new time must already see the jump.
        self._jumps.append(Jump(monotonic_seconds() + offset, offset - self._offset))
        self._offset = offset


def _last_before(jump: Jump) -> float:
    """Return the last time that belongs to the clock before a jump.

    Other processes may notice a jump forward some seconds earlier or later: the middle of the gap
    separates what they wrote before from what they wrote after.
    """
    return jump.time - max(0.0, jump.seconds) / 2


def monotonic_seconds() -> float:
    """Return a monotonic time."""
    return time.clock_gettime(STEADY)
