"""What is read of a process, and what is said of many readings."""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

QUIET_SECONDS = 0.1
QUIET_SHARE = 0.02  # of one core
SAMPLE_SECONDS = 0.02
MIB = 1 << 20


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process since its start, user and system, of all its threads."""
    if sys.platform == "linux":
        # The kernel's clock of that process, in nanoseconds: clock_getcpuclockid(3).
        return time.clock_gettime((~pid << 3) | 2)
    minutes, seconds = _ps(pid, "time").rsplit(":", 1)
    hours, _, rest = minutes.rpartition(":")
    return (int(hours or 0) * 60 + int(rest)) * 60 + float(seconds)


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    if sys.platform == "linux":
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return int(_ps(pid, "rss")) * 1024


def _ps(pid: int, what: str) -> str:
    return subprocess.run(  # the same words on Linux and macOS
        ["/bin/ps", "-o", f"{what}=", "-p", str(pid)], capture_output=True, check=True, text=True
    ).stdout.strip()


def settle(*pids: int, timeout_seconds: float = 30.0) -> None:
    """Wait until processes have nothing left to do."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        before = sum(map(cpu_seconds, pids))
        time.sleep(QUIET_SECONDS)
        if sum(map(cpu_seconds, pids)) - before < QUIET_SECONDS * QUIET_SHARE:
            return


class Peak:
    """The most memory that a process was seen to use."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self.before_bytes = self.most_bytes = memory_bytes(pid)

    @property
    def growth_bytes(self) -> int:
        """Above what it used at first."""
        return self.most_bytes - self.before_bytes

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Look at it again and again for as long as the context lasts."""
        sampler = threading.Thread(target=self._sample)
        sampler.start()
        try:
            yield
        finally:
            self._stop.set()
            sampler.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.most_bytes = max(self.most_bytes, memory_bytes(self._pid))


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several values, and the quarters below and above it."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def ratios(ours: Sequence[float], floor: Sequence[float]) -> Spread:
    """Return the spread of what the rounds say, each of which measured both sides."""
    return spread([a / b for a, b in zip(ours, floor, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share of them lies; nan of none."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
