"""Three replicas under load while they are killed, or PostgreSQL is: nothing is lost."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from providers.kie.simulator import Simulator
from tests.support.databases import rows
from tests.support.harness import INSTANT
from tests.support.killing import Victim, check_ledger, clients_of, create_and_watch, replicas
from tests.support.postgres import Cluster

STATUS_PER_SECOND = 30
Trouble = Callable[[list[Victim]], Awaitable[int]]  # how many times it struck


@dataclass(frozen=True)
class Load:
    """The load: tasks, and how many of them the account allows in 10 seconds."""

    tasks: int
    creates_per_window: int


@asynccontextmanager
async def limited_kie(load: Load) -> AsyncIterator[Simulator]:
    """A Kie that enforces the account's limits, and retries callbacks until one is received."""
    settings = replace(
        INSTANT,
        creates_per_window=load.creates_per_window,
        create_window_seconds=10.0,
        records_per_second=STATUS_PER_SECOND,
        seconds={"imagen4": (0.5, 3.0)},
        callback_retry_seconds=(0.5, 0.5, *[1.0] * 30),
    )
    async with Simulator(settings) as kie:
        yield kie


async def survive(
    folder: Path, ports: Any, database_url: str, load: Load, trouble: Trouble, **settings: str
) -> dict[str, Any]:
    """Create and watch all tasks on three failing replicas; return the results."""
    limits = {
        "DATABASE_URL": database_url,
        "KIE_CREATES_PER_10_SECONDS": str(load.creates_per_window),
        "KIE_STATUS_PER_SECOND": str(STATUS_PER_SECOND),
        "POLL_INTERVAL_SECONDS": "0.5",
        "CREATE_WAIT_SECONDS": "1",
        "LOG_LEVEL": "error",
    }
    started = time.monotonic()
    async with (
        limited_kie(load) as kie,
        replicas(3, folder, kie, ports, **limits | settings) as victims,
        clients_of(victims) as clients,
    ):
        waiting = asyncio.gather(*(create_and_watch(clients, n) for n in range(load.tasks)))
        strikes, ends = await asyncio.gather(trouble(victims), waiting)
        stored = rows(database_url, "SELECT count(*), count(DISTINCT request_id) FROM tasks")
        assert stored == [(load.tasks, load.tasks)], "what was created is there, once each"
        assert kie.stats["creates_refused"] == {}
        assert kie.stats["peaks"]["creates_in_a_window"] <= load.creates_per_window
        assert kie.stats["peaks"]["records_in_a_second"] <= STATUS_PER_SECOND
        result = check_ledger(kie, ends)
        assert result["unknown and bought"] == 0, "what was bought is recovered"
    return result | {"strikes": strikes, "seconds": round(time.monotonic() - started)}


def kills(seconds: float) -> Trouble:
    """Kill each replica at random moments, and start it again."""
    rng = random.Random(seconds)

    async def killed(victim: Victim, until: float) -> int:
        for count in itertools.count():
            await asyncio.sleep(rng.uniform(1.0, 8.0))
            if time.monotonic() > until:
                return count
            await victim.kill()
            await asyncio.sleep(rng.uniform(0.0, 2.0))
            await victim.start()
        raise AssertionError

    async def trouble(victims: list[Victim]) -> int:
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(killed(victim, until) for victim in victims)))

    return trouble


def restarts(cluster: Cluster, count: int) -> Trouble:
    """Restart PostgreSQL at random moments, alternately gracefully and by a crash."""
    rng = random.Random(count)

    async def trouble(_: list[Victim]) -> int:
        for number in range(count):
            await asyncio.sleep(rng.uniform(1.0, 6.0))
            await asyncio.to_thread(cluster.kill if number % 2 else cluster.stop)
            await asyncio.sleep(rng.uniform(0.0, 1.5))
            await asyncio.to_thread(cluster.start)
        return count

    return trouble


FULL = Load(tasks=500, creates_per_window=50)
SHORT = Load(tasks=60, creates_per_window=50)


@pytest.mark.torture
async def test_replicas_killed_at_random_for_two_minutes_lose_nothing(
    tmp_path: Path, postgresql_url: str, unused_tcp_port_factory: Any
) -> None:
    result = await survive(
        tmp_path,
        unused_tcp_port_factory,
        postgresql_url,
        FULL,
        kills(120),
        UNKNOWN_WAIT_SECONDS="30",
    )
    print("killed for two minutes:", result)  # noqa: T201


async def test_replicas_killed_at_random_for_some_seconds_lose_nothing(
    tmp_path: Path, postgresql_url: str, unused_tcp_port_factory: Any
) -> None:
    await survive(
        tmp_path, unused_tcp_port_factory, postgresql_url, SHORT, kills(8), UNKNOWN_WAIT_SECONDS="8"
    )


@pytest.mark.torture
async def test_ten_restarts_of_postgresql_under_load_lose_nothing(
    tmp_path: Path, cluster: Cluster, unused_tcp_port_factory: Any
) -> None:
    result = await survive(
        tmp_path, unused_tcp_port_factory, cluster.url, FULL, restarts(cluster, 10)
    )
    print("PostgreSQL restarted ten times:", result)  # noqa: T201


@pytest.mark.torture
async def test_two_restarts_of_postgresql_under_load_lose_nothing(
    tmp_path: Path, cluster: Cluster, unused_tcp_port_factory: Any
) -> None:
    await survive(tmp_path, unused_tcp_port_factory, cluster.url, SHORT, restarts(cluster, 2))
