"""Two versions on one database under load, while replicas of one replace those of the other."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kie_generation import GenerationClient, Imagen4Params, MarketParams
from kie_generation.generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.databases import rows
from tests.support.harness import INSTANT
from tests.support.killing import (
    Victim,
    check_ledger,
    clients_of,
    create_and_watch,
    creates,
    running,
)
from tests.support.older_version import checkout
from tests.support.paths import ROOT

# The last commit of the version before this one.
VERSION_BEFORE = "f58170f02becef7e2e6e5cd516dd296921420e19"

# The last commit before KieParams.market.
VERSION_WITHOUT_MARKET = "8bcd10df6c9e363e8c57943a08067a565fd830ad"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A checkout of the version before."""
    return checkout(VERSION_BEFORE, tmp_path / "older")


@asynccontextmanager
async def older_replicas(
    count: int, folder: Path, kie: Simulator, ports: Any, older: Path, **settings: str
) -> AsyncIterator[list[Victim]]:
    """Run several replicas of the version before."""
    victims = [Victim(folder, kie, (ports(), ports()), **settings) for _ in range(count)]
    for victim in victims:
        victim.root = older
    async with running(victims):
        yield victims


async def replace_each(victims: list[Victim], root: Path) -> None:
    """Replace one replica after the other, as an orchestrator does."""
    for victim in victims:
        await victim.stop()
        victim.root = root
        await victim.start()


async def run_both_versions(
    folder: Path, ports: Any, database_url: str, older: Path, *, count: int, rounds: int
) -> dict[str, Any]:
    """Create tasks for as long as replicas are replaced forwards and back; return the results."""
    settings = {
        "DATABASE_URL": database_url,
        "POLL_INTERVAL_SECONDS": "0.5",
        "CREATE_WAIT_SECONDS": "1",
        "UNKNOWN_WAIT_SECONDS": "30",
        "LOG_LEVEL": "error",
    }
    replaced = asyncio.Event()

    async def replacing(victims: list[Victim]) -> None:
        for _ in range(rounds):
            await replace_each(victims, ROOT)
            await replace_each(victims, older)
        replaced.set()

    async with (
        Simulator(replace(INSTANT, seconds={"imagen4": (0.5, 3.0)})) as kie,
        older_replicas(count, folder, kie, ports, older, **settings) as victims,
        clients_of(victims) as clients,
    ):
        tasks: list[asyncio.Task[pb.GenerationTask]] = []
        change_of_versions = asyncio.create_task(replacing(victims))
        for number in itertools.count():
            tasks.append(asyncio.create_task(create_and_watch(clients, number)))
            await asyncio.sleep(0.1)
            if change_of_versions.done():
                break
        await change_of_versions
        ends = await asyncio.gather(*tasks)
        stored = rows(database_url, "SELECT count(*) FROM tasks WHERE request_id LIKE 'r-%'")
        assert stored == [(len(tasks),)]
        assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
        assert creates(kie) == len(tasks), "each task was sent once"
        result = check_ledger(kie, ends)
    assert result["unknown"] == 0
    return result


@pytest.mark.torture
async def test_rolling_upgrades_forwards_and_back_lose_nothing(
    tmp_path: Path, postgresql_url: str, unused_tcp_port_factory: Any, older: Path
) -> None:
    result = await run_both_versions(
        tmp_path, unused_tcp_port_factory, postgresql_url, older, count=3, rounds=4
    )
    print("replaced 24 times:", result)  # noqa: T201


async def test_an_upgrade_that_is_undone_loses_nothing(
    tmp_path: Path, postgresql_url: str, unused_tcp_port_factory: Any, older: Path
) -> None:
    await run_both_versions(
        tmp_path, unused_tcp_port_factory, postgresql_url, older, count=2, rounds=1
    )


async def test_each_version_continues_a_file_of_the_other(
    tmp_path: Path, unused_tcp_port_factory: Any, older: Path
) -> None:
    """On SQLite, versions follow one another."""
    async with Simulator(replace(INSTANT, seconds={"imagen4": (1.0, 3.0)})) as kie:
        ports = (unused_tcp_port_factory(), unused_tcp_port_factory())
        victim = Victim(tmp_path, kie, ports, CREATE_WAIT_SECONDS="0")
        victim.root = older
        try:
            await victim.start()
            async with clients_of([victim]) as clients:
                tasks = []
                for number, root in enumerate([ROOT, older, ROOT]):
                    tasks += [
                        asyncio.create_task(create_and_watch(clients, number * 10 + each))
                        for each in range(10)
                    ]
                    await asyncio.sleep(0.3)
                    await victim.stop()
                    victim.root = root
                    await victim.start()
                ends = await asyncio.gather(*tasks)
            assert check_ledger(kie, ends)["succeeded"] == len(ends) == 30
            await victim.stop()
        finally:
            await victim.kill()


# --- tasks that only newer replicas know ---


def cat_of_market() -> MarketParams:
    params = MarketParams(model="nano-banana-2")
    params.input.update({"prompt": "a cat"})
    return params


async def test_tasks_of_market_are_shown_by_the_version_without_it_and_left_to_newer_replicas(
    tmp_path: Path, postgresql_url: str, unused_tcp_port_factory: Any
) -> None:
    ports = unused_tcp_port_factory
    settings = {"DATABASE_URL": postgresql_url, "CREATE_WAIT_SECONDS": "0"}
    async with Simulator(INSTANT) as kie:
        newer, older = (Victim(tmp_path, kie, (ports(), ports()), **settings) for _ in range(2))
        older.root = checkout(VERSION_WITHOUT_MARKET, tmp_path / "older")
        async with (
            running([newer, older]),
            GenerationClient(newer.address) as to_newer,
            GenerationClient(older.address) as to_older,
        ):
            created = [await to_newer.create(cat_of_market(), prompt_id="p") for _ in range(10)]
            for task in created:
                assert (await to_newer.wait(task.id, 60)).status == pb.TASK_STATUS_SUCCESS
                shown = await to_older.get(task.id)
                assert (shown.status, shown.id) == (pb.TASK_STATUS_SUCCESS, task.id)

            kie.add_fault("create:code,code=455,times=0,model=nano-banana-2")
            waiting = await to_newer.create(cat_of_market(), prompt_id="p")
            await newer.stop()
            sent = creates(kie)  # with the refused one, if it was sent in time
            kie.clear_faults()
            other = await to_older.create(Imagen4Params(prompt="a cat"), prompt_id="p")
            assert (await to_older.wait(other.id, 60)).status == pb.TASK_STATUS_SUCCESS
            assert (await to_older.get(waiting.id)).stage == pb.TASK_STAGE_ACCEPTED
            assert creates(kie) == sent + 1, "the older version sent its own task only"

            await newer.start()
            assert (await to_newer.wait(waiting.id, 60)).status == pb.TASK_STATUS_SUCCESS
        assert creates(kie) == sent + 2
