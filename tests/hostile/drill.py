"""An attack from start to end: the service, the other caller, and what must be true during it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.measure import percentile
from tests.hostile.bob import Noticed, bob
from tests.hostile.contention import Contention
from tests.hostile.processes import STOP_SECONDS_MAX, TOKENS, Defender, Setup, attacker
from tests.hostile.target import Attack, Outcome

P99_SECONDS_MAX = 0.1
HEALTHZ_SECONDS_MAX = 0.5
TASK_SECONDS_MAX = 5.0
PEAK_MIB_MAX = {"": 400, "alice": 700}
LOG_BYTES_MAX = 1_000_000
DATABASE_MIB_MAX = 100
CALLS_MIN = 30
SECONDS_MIN = 1.0  # of an attack that ends sooner, so that there are enough calls for a percentile


@dataclass(frozen=True)
class Scale:
    """The form of an attack: how long it lasts, and how much larger than the short form it is.

    Attributes:
        p99_seconds_max: How long the other caller may wait. A short attack leaves it some 200
            calls, so that one pause of the machine, or the burst with which an attack opens, is
            more than a hundredth of them. And it shares the machine with the other tests.
    """

    seconds: float
    factor: int
    p99_seconds_max: float


@dataclass(frozen=True)
class Drill:
    """One attack.

    Attributes:
        caller: Who attacks; "" for somebody without a token.
        outcome_max: The most that the attacker may report of what it names.
    """

    attack: Attack
    caller: str
    count: int
    seconds: float
    setup: Setup = field(default_factory=Setup)
    outcome_max: Outcome = field(default_factory=dict)
    p99_seconds_max: float = P99_SECONDS_MAX

    @property
    def name(self) -> str:
        """The name of the attack in the table."""
        return f"{self.attack.__name__} {self.caller or 'without a token'}"


@dataclass(frozen=True)
class Observed:
    """What was observed from the start of an attack to the end of the service."""

    noticed: Noticed
    peak_mib: float
    log_bytes: int
    database_mib: float
    stop_seconds: float
    outcome: Outcome
    contention: float  # see contention.py

    @property
    def p99_seconds(self) -> float:
        """Bob's 99th percentile, without the effect of other processes on the machine."""
        return percentile(self.noticed.latencies, 0.99) / self.contention

    @property
    def healthz_seconds(self) -> float:
        """The slowest response of /healthz, corrected in the same way."""
        return self.noticed.healthz_seconds / self.contention

    @property
    def task_seconds(self) -> float:
        """Bob's slowest task, corrected in the same way."""
        return self.noticed.task_seconds / self.contention


async def observe(drill: Drill, folder: Path) -> Observed:
    """Attack once."""
    defender = Defender(folder, drill.setup)
    token = TOKENS.get(drill.caller, "")
    target = defender.target(token=token, count=drill.count, seconds=drill.seconds)
    async with attacker(drill.attack, target) as hostile, defender.running():
        async with bob(defender.address, defender.admin_address) as caller:
            logged = defender.log_bytes
            contention = Contention((*defender.pids, hostile.pid))
            async with caller.working():
                outcome, _ = await asyncio.gather(hostile.attack(), asyncio.sleep(SECONDS_MIN))
            factor = contention.factor()
            peak_mib, database_mib = defender.peak_mib(), defender.database_mib
        stop_seconds = await defender.stop()  # while the attacker keeps everything open
        log_bytes = defender.log_bytes - logged
    return Observed(
        caller.noticed, peak_mib, log_bytes, database_mib, stop_seconds, outcome, factor
    )


async def withstands(drill: Drill, folder: Path, p99_seconds_max: float = P99_SECONDS_MAX) -> None:
    """Fail unless the service withstands an attack.

    Timing may fail once: other processes may have used the machine.

    Args:
        drill: The attack.
        folder: For the files of the service.
        p99_seconds_max: For Bob's 99th percentile, unless the drill allows more.
    """
    drill = replace(drill, p99_seconds_max=max(drill.p99_seconds_max, p99_seconds_max))
    for attempt in range(2):
        place = folder / str(attempt)
        place.mkdir()
        observed = await observe(drill, place)
        lasting = list(_lasting_faults(drill, observed))
        slow = list(_slow_faults(drill, observed))
        print(_row(drill, observed))  # noqa: T201 - a line of the table that `-s` shows
        if lasting or not slow:
            break
    assert not lasting + slow, f"{drill.name}: {'; '.join(lasting + slow)}"


def _slow_faults(drill: Drill, observed: Observed) -> Iterator[str]:
    """Name what took too long."""
    if observed.p99_seconds >= drill.p99_seconds_max:
        yield f"Bob's 99th percentile is {observed.p99_seconds * 1000:.0f} ms"
    if observed.healthz_seconds >= HEALTHZ_SECONDS_MAX:
        yield f"/healthz took {observed.healthz_seconds:.2f} s"
    if observed.task_seconds >= TASK_SECONDS_MAX:
        yield f"a task of Bob's took {observed.task_seconds:.1f} s"
    if observed.stop_seconds > STOP_SECONDS_MAX:
        yield f"SIGTERM did not end the process within {STOP_SECONDS_MAX:g} s"
    if observed.noticed.errors:
        yield f"Bob got {dict(observed.noticed.errors)}"


def _lasting_faults(drill: Drill, observed: Observed) -> Iterator[str]:
    """Name what does not depend on how busy the machine is."""
    if len(observed.noticed.latencies) < CALLS_MIN:
        yield f"Bob made only {len(observed.noticed.latencies)} calls"
    if observed.peak_mib >= PEAK_MIB_MAX[drill.caller]:
        yield f"{observed.peak_mib:.0f} MiB resident"
    if observed.log_bytes >= LOG_BYTES_MAX:
        yield f"{observed.log_bytes} bytes of log"
    if observed.database_mib >= DATABASE_MIB_MAX:
        yield f"{observed.database_mib:.0f} MiB of database"
    for name, value in observed.outcome.items():
        if value > drill.outcome_max.get(name, float("inf")) or "Error" in name:
            yield f"the attacker reports {value:g} {name}"


def _row(drill: Drill, observed: Observed) -> str:
    noticed = observed.noticed
    columns = (
        f"{drill.name:<38}",
        f"p99 {observed.p99_seconds * 1000:7.1f} ms of {len(noticed.latencies):4}",
        f"healthz {observed.healthz_seconds:5.2f} s",
        f"task {observed.task_seconds:5.2f} s",
        f"contention {observed.contention:4.1f}",
        f"{observed.peak_mib:6.0f} MiB",
        f"log {observed.log_bytes:8}",
        f"database {observed.database_mib:4.0f} MiB",
        f"stop {observed.stop_seconds:5.2f} s",
        f"{observed.outcome} {dict(noticed.errors) or ''} {dict(noticed.refusals) or ''}",
    )
    return " | ".join(columns)
