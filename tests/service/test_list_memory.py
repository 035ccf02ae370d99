"""Lists of long prompts: how much of them the service reads, and holds, at a time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from storage.known import Known
from storage.opening import open_store
from storage.pages import ListFilter
from storage.rows import readable
from storage.store import Store
from storage.task import Task
from tests.support.databases import change
from tests.support.killing import Victim
from tests.support.memory import resident_mib
from tests.support.storing import new, stored
from tests.support.waiting import DEADLINE_SECONDS

MIB = 1 << 20
LONGEST = "\U0001f408" * 5_000
PARAMS = pb.ProviderParams(
    kie=pb.KieParams(imagen4=pb.Imagen4Params(prompt=LONGEST, negative_prompt=LONGEST))
).SerializeToString()
TASKS = [
    new(f"t{n:03}", caller="default", params=PARAMS, create_time=1e9 + n, due_time=None)
    for n in range(200)
]
LISTS = 64


@pytest.fixture
async def filled(database_url: str) -> str:
    """A database with 200 tasks whose prompts are as long as they may be: 8 MB."""
    store = open_store(database_url)
    await stored(store, *TASKS)
    await store.close()
    return database_url


@pytest.fixture
async def store(filled: str) -> AsyncIterator[Store]:
    store = open_store(filled)
    yield store
    await store.close()


@pytest.fixture
async def process(
    filled: str, tmp_path: Path, kie: Simulator, unused_tcp_port_factory: Any
) -> AsyncIterator[Victim]:
    ports = [unused_tcp_port_factory() for _ in range(2)]
    limits = tmp_path / "limits.toml"
    limits.write_text(f"[default]\nlists = {LISTS}\n")
    victim = Victim(tmp_path, kie, ports, DATABASE_URL=filled, CALLER_LIMITS_FILE=str(limits))
    await victim.start()
    yield victim
    await victim.stop()


async def test_64_lists_of_long_prompts_at_a_time_take_less_than_150_mib(process: Victim) -> None:
    request = pb.ListTasksRequest(page_size=200)
    async with grpc.aio.insecure_channel(process.address) as channel:
        stub: Any = GenerationServiceStub(channel)
        await stub.ListTasks(pb.ListTasksRequest(page_size=1))
        before = resident_mib(process.pid)
        pages = await asyncio.gather(
            *(stub.ListTasks(request, timeout=DEADLINE_SECONDS) for _ in range(LISTS))
        )
        grown = resident_mib(process.pid, "VmHWM") - before
    assert {len(page.tasks) for page in pages} == {26}
    assert grown < 150, f"{grown:.0f} MiB"


# --- what is read ---

ALL = ListFilter("default")


def numbers(tasks: list[Task]) -> list[int]:
    return [int(task.id.removeprefix("t")) for task in tasks]


@pytest.mark.parametrize(
    ("max_bytes", "count"),
    [(MIB, 27), (10 * len(PARAMS), 11), (10 * len(PARAMS) - 1, 10), (1, 2), (0, 2), (1e9, 200)],
)
async def test_a_page_reads_up_to_the_task_that_exceeds_its_bytes_and_two_at_least(
    store: Store, monkeypatch: pytest.MonkeyPatch, max_bytes: float, count: int
) -> None:
    read: list[str] = []

    def noted(row: Sequence[Any], known: Known) -> Task | None:
        read.append(row[0])
        return readable(row, known)

    monkeypatch.setattr("storage.reads.readable", noted)
    tasks = await store.page(ALL, None, 201, max_bytes)
    assert numbers(tasks) == list(range(199, 199 - count, -1))
    assert len(read) == count


async def test_results_count_as_well_as_params_and_in_bytes(store: Store) -> None:
    results = [
        new(f"t{n}", caller="c", create_time=1e9 + n, due_time=None, result_json="ü" * 500)
        for n in range(5)
    ]
    await stored(store, *results)
    assert numbers(await store.page(ListFilter("c"), None, 5, 2_000)) == [4, 3]
    assert numbers(await store.page(ListFilter("c"), None, 5, 3_500)) == [4, 3, 2, 1]


async def test_damaged_tasks_take_no_room_on_a_page(store: Store, filled: str) -> None:
    change(filled, "UPDATE tasks SET artifacts = '7' WHERE id IN ('t199', 't197', 't190')")
    tasks = await store.page(ALL, None, 201, 10 * len(PARAMS))
    assert numbers(tasks) == [198, 196, 195, 194, 193, 192, 191, 189, 188, 187, 186]


@pytest.mark.parametrize("damaged", ["t199", "t198", "t000", "t001"])
async def test_pages_limited_by_bytes_contain_every_task(
    store: Store, filled: str, damaged: str
) -> None:
    change(filled, f"UPDATE tasks SET artifacts = '7' WHERE id = '{damaged}'")  # noqa: S608 - ours
    met: list[Task] = []
    before = None
    while page := await store.page(ALL, before, 7, 3 * len(PARAMS)):
        met += page
        before = page[-1].create_time, page[-1].id
    assert numbers(met) == [n for n in range(199, -1, -1) if f"t{n:03}" != damaged]
