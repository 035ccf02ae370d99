"""How much of the machine other processes used during a drill.

Tests share the machine with each other and with everything else that runs, and a drill would
measure that too. So the processor time of other processes is subtracted from its results. What the
service and its attacker take from each other, and from Bob, is not.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import cpu_seconds

LEAST_SHARE = 0.05  # of the processors: with less, a drill cannot measure anything


@dataclass(frozen=True)
class _Used:
    """The time of all processors so far, in seconds."""

    total: float
    busy: float
    ours: float


class Contention:
    """Compares the processor time that a drill could have used with all of it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = (os.getpid(), *pids)
        self._before = self._used()

    def factor(self) -> float:
        """Return how many times as much there would have been without other processes."""
        now, before = self._used(), self._before
        total = now.total - before.total
        others = (now.busy - before.busy) - (now.ours - before.ours)
        return total / max(total - max(others, 0), total * LEAST_SHARE) if total else 1

    def _used(self) -> _Used:
        if sys.platform != "linux":
            return _Used(0, 0, 0)
        first, _ = Path("/proc/stat").read_text().split("\n", 1)
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of the first two
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in first.split()[1:9]]
        idle = ticks[3] + ticks[4]
        return _Used(sum(ticks), sum(ticks) - idle, sum(map(cpu_seconds, self._pids)))
