"""How much the processes of a drill had to wait for a processor.

Tests share their machine: with each other, and with whatever else runs. A drill would then measure
them and not the service. Linux counts for each thread how long it ran, and how long it could have
run but had to wait.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Scheduled:
    """What a main thread got of the processors so far, in nanoseconds."""

    ran: int
    waited: int


class Contention:
    """How much longer work takes than it would on processors of its own."""

    def __init__(self, *pids: int) -> None:
        self._before = {pid: _scheduled(pid) for pid in (os.getpid(), *pids)}

    def factor(self) -> float:
        """Return the factor since the start, of the process that waited most."""
        return max(_factor(before, _scheduled(pid)) for pid, before in self._before.items())


def _factor(before: _Scheduled, after: _Scheduled) -> float:
    ran, waited = after.ran - before.ran, after.waited - before.waited
    return 1 + waited / ran if ran > 0 else 1


def _scheduled(pid: int) -> _Scheduled:
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # another system, or the process has ended
        return _Scheduled(0, 0)
    return _Scheduled(int(ran), int(waited))
