"""Health checks: they agree, they follow the database, and only a dead part asks for a restart."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.bounds import BOUNDS, Bounds, UpkeepBounds
from service.poller import Poller
from service.vitals import VitalTimes
from storage.engine import DatabaseTimeouts
from storage.worker import Worker
from tests.support.databases import locked
from tests.support.harness import Serve, Service
from tests.support.metrics_page import scrape
from tests.support.processes import NAME
from tests.support.refusals import refused
from tests.support.waiting import DEADLINE_SECONDS, eventually_answered

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READY = ["", NAME]
ALIVE = "liveness"


def bounds(**times: float) -> Bounds:
    """Return bounds with other times, and checks that follow each other quickly.

    The poller idles for up to 3 s, so nothing counts as stuck before.
    """
    vitals = VitalTimes(**{"check_seconds": 0.05, "idle_seconds": 0.1} | times)
    quick = DatabaseTimeouts(sqlite_busy_seconds=0.2, lock_milliseconds=200, ping_seconds=0.3)
    return replace(BOUNDS, upkeep=UpkeepBounds(vitals=vitals), database=quick)


@dataclass(frozen=True)
class Checks:
    """What asks a service for its health."""

    service: Service
    session: aiohttp.ClientSession
    stub: Any

    async def status(self, name: str) -> int:
        request = health_pb2.HealthCheckRequest(service=name)
        answer = await self.stub.Check(request, timeout=DEADLINE_SECONDS)
        return int(answer.status)

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://{self.service.admin_address}{path}"
        async with self.session.get(url) as response:
            return response.status, await response.text()

    async def until(self, path: str, expected: int) -> str:
        """Ask until a page answers with a status; return its text."""

        async def expected_text() -> str | None:
            status, text = await self.get(path)
            return text if status == expected else None

        return await eventually_answered(expected_text)

    async def are_ready(self) -> bool:
        """Return whether everybody says so: all say the same."""
        [said] = {await self.status(name) == SERVING for name in READY}
        assert ((await self.get("/readyz"))[0] == 200) is said
        return said

    async def are_alive(self) -> bool:
        said = await self.status(ALIVE) == SERVING
        assert ((await self.get("/healthz"))[0] == 200) is said
        return said


@asynccontextmanager
async def checking(serve: Serve, **times: float) -> AsyncIterator[Checks]:
    """Start a service, and what asks it for its health."""
    async with (
        serve(admin_address="127.0.0.1:0", shutdown_seconds=1, bounds=bounds(**times)) as service,
        aiohttp.ClientSession() as session,
    ):
        yield Checks(service, session, health_pb2_grpc.HealthStub(service.channel))


# --- ready ---


async def test_a_database_that_is_unavailable_for_long_takes_the_service_out(serve: Serve) -> None:
    async with checking(serve, outage_seconds=0.5) as checks:
        assert await checks.are_ready()
        watch = checks.stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == SERVING
        with locked(checks.service.database_url):
            assert await checks.until("/readyz", 503) == "the database is unavailable\n"
            assert not await checks.are_ready()
            assert await checks.are_alive()
            assert (await watch.read()).status == NOT_SERVING
        await checks.until("/readyz", 200)
        assert await checks.are_ready()
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_a_short_outage_of_the_database_changes_nothing(serve: Serve) -> None:
    async with checking(serve, outage_seconds=60) as checks:
        watch = checks.stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        with locked(checks.service.database_url):
            refusal = await refused(checks.service.create())
            assert refusal.reason == "STORAGE_UNAVAILABLE"
            assert await checks.are_ready()
        await checks.service.create()
        assert await checks.are_ready()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.read(), 0.2)  # not a word


async def test_a_watch_of_an_unknown_name_says_so(serve: Serve) -> None:
    async with checking(serve) as checks:
        watch = checks.stub.Watch(health_pb2.HealthCheckRequest(service="generation.v2.Other"))
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert (await watch.read()).status == unknown
        watch.cancel()


# --- alive ---


async def test_an_outage_longer_than_a_thread_may_be_stuck_asks_for_no_restart(
    serve: Serve,
) -> None:
    async with checking(serve, outage_seconds=0.5, stuck_seconds=4) as checks:
        with locked(checks.service.database_url):
            began = time.monotonic()
            while time.monotonic() - began < 6:
                assert await checks.are_alive()
                await asyncio.sleep(0.05)
            assert not await checks.are_ready()
        await checks.until("/readyz", 200)
        assert await checks.are_alive()


@pytest.mark.parametrize("name", ["writer", "lister"])
async def test_a_dead_thread_of_the_storage_asks_for_a_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with checking(serve) as checks:
        assert await checks.are_alive()
        monkeypatch.setattr(Worker, "is_alive", lambda worker: worker.name != name)
        assert await checks.until("/healthz", 503) == f"{name}: it is dead\n"
        assert not await checks.are_alive()
        assert not await checks.are_ready()


@contextmanager
def blocked(worker: Worker) -> Iterator[None]:
    """Keep a thread of the storage from ending what it does."""
    released = threading.Event()

    def block(jobs: Any) -> list[None]:
        released.wait()
        return [None for _ in jobs]

    blocking = asyncio.ensure_future(worker.run(block, None))
    try:
        yield
    finally:
        released.set()
        blocking.cancel()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Worker]:
    """The threads of the storage that are started from now on."""
    found: dict[str, Worker] = {}
    start = Worker.__init__

    def started(self: Worker, name: str, *args: Any, **options: Any) -> None:
        start(self, name, *args, **options)
        found[name] = self

    monkeypatch.setattr(Worker, "__init__", started)
    return found


@pytest.mark.parametrize("name", ["writer", "lister"])
async def test_a_stuck_thread_of_the_storage_asks_for_a_restart(
    serve: Serve, workers: dict[str, Worker], name: str
) -> None:
    async with checking(serve, stuck_seconds=4) as checks:
        with blocked(workers[name]):
            words = await checks.until("/healthz", 503)
            assert words.startswith(f"{name}: no progress for ")
            assert not await checks.are_ready()
        await checks.until("/healthz", 200)
        await checks.until("/readyz", 200)


async def hang(_: Poller) -> None:
    await asyncio.Event().wait()


async def end(_: Poller) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("run", "words"), [(hang, "poller: no progress for "), (end, "poller: it is dead")]
)
async def test_a_poller_that_does_nothing_asks_for_a_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, run: Callable[[Poller], Any], words: str
) -> None:
    monkeypatch.setattr(Poller, "run_once", run)
    async with checking(serve, stuck_seconds=0.5) as checks:
        assert (await checks.until("/healthz", 503)).startswith(words)
        assert not await checks.are_alive()
        assert not await checks.are_ready()


# --- metrics ---


async def test_each_thread_that_must_run_is_a_metric(
    serve: Serve, workers: dict[str, Worker]
) -> None:
    async with checking(serve, stuck_seconds=4) as checks:

        async def value(name: str) -> float | None:
            page = await scrape(checks.service)
            return page.value("generation_threads_alive", thread=name)

        async def lister_is_reported() -> bool:
            return await value("lister") == 0

        assert [await value(name) for name in (*workers, "poller")] == [1] * (len(workers) + 1)
        with blocked(workers["lister"]):
            await eventually_answered(lister_is_reported)
