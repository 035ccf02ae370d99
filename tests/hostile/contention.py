"""How much of the machine the processes of a drill had to leave to others.

Tests share their machine: with each other, and with whatever else runs. A drill would then measure
them and not the service. What others used of the processors is taken out of what it measures; what
the service and its attacker take from each other, and from Bob, is not.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import cpu_seconds

LEAST_SHARE = 0.05  # of the processors: with less, a drill measures nothing


@dataclass(frozen=True)
class _Used:
    """The time of all processors so far, in seconds."""

    total: float
    busy: float
    ours: float


class Contention:
    """Compares what the processes of a drill could have used with all that there is."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = (os.getpid(), *pids)
        self._before = self._used()

    def factor(self) -> float:
        """Return how many times as much there would have been without others."""
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
