"""The time from process start to SERVING, and the memory of an idle process."""

import time
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.databases import ended
from benchmarks.measure import MIB, memory_bytes, settle, spread
from benchmarks.table import Result, Target, mib

TASKS = 100_000
START_TARGET_SECONDS = 1.0
MEMORY_TARGET_BYTES = 100 * MIB


def measure(bench: Bench) -> Iterator[Result]:
    """Start once per round, with 100,000 tasks in the database."""
    for kind in bench.databases:
        service = bench.seeded(kind, ended(range(bench.count(TASKS)), time.time()))
        starts, memories = [], []
        for _ in range(bench.rounds):
            with service.running():
                starts.append(service.start_seconds)
                settle(service.pid)
                memories.append(memory_bytes(service.pid))
        start, memory = spread(starts), spread(memories)
        yield Result(
            f"process start to SERVING, {kind.name}",
            f"{start.median:.2f} s ({start.low:.2f}-{start.high:.2f})",
            value=start.median,
            target=Target(START_TARGET_SECONDS, "≤ 1.0 s"),
        )
        yield Result(
            f"idle memory, {kind.name}",
            mib(memory.median),
            value=memory.median,
            target=Target(MEMORY_TARGET_BYTES, "≤ 100 MiB"),
        )
