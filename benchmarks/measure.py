"""The CPU time and memory of a process, and statistics of many values."""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

QUIET_SECONDS = 0.1
QUIET_SHARE = 0.02  # of one core
SAMPLE_SECONDS = 0.02
MIB = 1 << 20


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of all threads of a process since its start."""
    if sys.platform == "linux":
        # The CPU clock of a process, in nanoseconds: clock_getcpuclockid(3).
        return time.clock_gettime((~pid << 3) | 2)
    minutes, seconds = _ps(pid, "time").rsplit(":", 1)
    hours, _, rest = minutes.rpartition(":")
    return (int(hours or 0) * 60 + int(rest)) * 60 + float(seconds)


def family_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children; 0 where they cannot be found."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        return 0.0
    total = 0.0
    for each in (pid, *map(int, children.read_text().split())):
        with suppress(OSError):  # it has ended
            total += cpu_seconds(each)
    return total


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    if sys.platform == "linux":
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return int(_ps(pid, "rss")) * 1024


def _ps(pid: int, what: str) -> str:
    return subprocess.run(  # the same options on Linux and macOS
        ["/bin/ps", "-o", f"{what}=", "-p", str(pid)], capture_output=True, check=True, text=True
    ).stdout.strip()


def settle(*pids: int, timeout_seconds: float = 30.0) -> None:
    """Wait until processes are idle."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        before = sum(map(cpu_seconds, pids))
        time.sleep(QUIET_SECONDS)
        if sum(map(cpu_seconds, pids)) - before < QUIET_SECONDS * QUIET_SHARE:
            return


class Peak:
    """The peak of the memory of a process, from samples."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self.before_bytes = self.most_bytes = memory_bytes(pid)

    @property
    def growth_bytes(self) -> int:
        """The peak above the first sample."""
        return self.most_bytes - self.before_bytes

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Take samples for as long as the context lasts."""
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
    """The median and the quartiles of several values."""

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


def ratios(service: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Return the spread of the ratios of the rounds; each round measured both sides."""
    return spread([a / b for a, b in zip(service, baseline, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share of the values lies; nan if there are none."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
