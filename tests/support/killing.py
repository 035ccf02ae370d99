"""Service processes that tests kill, pause and restart, and the ledger of what was bought."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from kie_generation import GenerationClient, Imagen4Params, Retry
from kie_generation.generated.generation.v1 import generation_pb2 as pb
from kie_generation.watch import ended
from providers.kie.simulator import Simulator
from tests.support.harness import API_KEY
from tests.support.paths import ROOT
from tests.support.waiting import START_SECONDS

END_SECONDS = 180.0
PATIENT = Retry(attempts=200, first_delay_seconds=0.05, max_delay_seconds=0.3)


class Victim:
    """One service on fixed addresses and one database, across the processes that run it.

    Its database is a file in the folder, unless its settings name another.

    Attributes:
        root: The checkout that the next process runs.
    """

    def __init__(self, folder: Path, kie: Simulator, ports: Sequence[int], **settings: str) -> None:
        self.root = ROOT
        self.address = f"127.0.0.1:{ports[0]}"
        self._env = {
            "PATH": os.environ["PATH"],
            "LISTEN_ADDRESS": self.address,
            "ADMIN_ADDRESS": "",
            "HTTP_ADDRESS": f"127.0.0.1:{ports[1]}",
            "PUBLIC_URL": f"http://127.0.0.1:{ports[1]}",
            "DATABASE_URL": f"sqlite:///{folder}/generation.db",
            "KIE_API_KEY": API_KEY,
            "KIE_API_URL": kie.url,
            "KIE_UPLOAD_URL": kie.url,
            "KIE_CREATES_PER_10_SECONDS": "0",
            "KIE_STATUS_PER_SECOND": "0",
            "KIE_RUNNING_MAX": "0",
            "POLL_INTERVAL_SECONDS": "0.1",
            "UNKNOWN_WAIT_SECONDS": "3",
            "LOG_LEVEL": "warning",
            **settings,
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    async def start(self, *crashing: str) -> None:
        """Start it; if a point of tests/support/crashing.py is given, it will crash there."""
        module = ["tests.support.crashing", *crashing] if crashing else ["service"]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module),
            env=self._env | {"PYTHONPATH": str(self.root)},
            cwd=self.root,
        )
        async with grpc.aio.insecure_channel(self.address) as channel:
            await asyncio.wait_for(channel.channel_ready(), START_SECONDS)

    async def crashed(self) -> None:
        """Wait until it has killed itself."""
        assert self._process is not None
        code = await asyncio.wait_for(self._process.wait(), START_SECONDS)
        assert code == -signal.SIGKILL

    async def kill(self) -> None:
        """Kill it as a power cut would, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def pause(self) -> None:
        """Suspend it, as when a machine is suspended."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume it, as if no time had passed."""
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """Stop it gracefully, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            assert await asyncio.wait_for(self._process.wait(), START_SECONDS) == 0


@asynccontextmanager
async def replicas(
    count: int, folder: Path, kie: Simulator, ports: Callable[[], int], **settings: str
) -> AsyncIterator[list[Victim]]:
    """Run several on one PostgreSQL; at the end each must stop gracefully."""
    victims = [Victim(folder, kie, (ports(), ports()), **settings) for _ in range(count)]
    async with running(victims):
        yield victims


@asynccontextmanager
async def running(victims: Sequence[Victim]) -> AsyncIterator[None]:
    """Start services together; at the end each must stop gracefully."""
    try:
        await asyncio.gather(*(victim.start() for victim in victims))
        yield
        await asyncio.gather(*(victim.stop() for victim in victims))
    finally:
        await asyncio.gather(*(victim.kill() for victim in victims))


def patient_client(*victims: Victim) -> GenerationClient:
    """A caller that does not give up on services that are killed again and again.

    It is connected to the first of them that answers.
    """
    addresses = ",".join(victim.address for victim in victims)
    return GenerationClient(f"ipv4:{addresses}", retry=PATIENT)


async def create(client: GenerationClient, request_id: str) -> pb.GenerationTask:
    params = Imagen4Params(prompt=f"the picture of {request_id}")
    return await client.create(params, prompt_id="p", request_id=request_id, timeout=120)


@asynccontextmanager
async def clients_of(victims: list[Victim]) -> AsyncIterator[list[GenerationClient]]:
    """A caller for each replica, which uses the others while that one is unavailable."""
    async with AsyncExitStack() as stack:
        orders = [victims[n:] + victims[:n] for n in range(len(victims))]
        clients = [patient_client(*order) for order in orders]
        yield [await stack.enter_async_context(client) for client in clients]


async def create_and_watch(clients: list[GenerationClient], number: int) -> pb.GenerationTask:
    """Create a task with one caller, and have another watch it to its end."""
    task = await create(clients[number % len(clients)], f"r-{number}")
    seen = 0
    async with asyncio.timeout(END_SECONDS):
        async for snapshot in clients[(number + 1) % len(clients)].watch(task.id):
            assert snapshot.revision > seen or ended(snapshot), "no older snapshot anywhere"
            seen = snapshot.revision
    assert ended(snapshot)
    return snapshot


def creates(kie: Simulator) -> int:
    """Count the paid requests that arrived."""
    requests: dict[str, int] = kie.stats["requests"]
    return requests.get("/api/v1/jobs/createTask", 0)


def purchases(kie: Simulator) -> Counter[str]:
    """Count what was bought, by our task, whose id is in the callback URL."""
    return Counter(task["callBackUrl"].split("/")[-2] for task in kie.tasks)


def check_ledger(kie: Simulator, ends: Sequence[pb.GenerationTask]) -> dict[str, Any]:
    """Check what must be true after any crash; return a summary for people."""
    bought = purchases(kie)
    assert max(bought.values(), default=0) <= 1, "nothing is bought twice"
    unknown = [t for t in ends if t.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN]
    good = [t for t in ends if t.status == pb.TASK_STATUS_SUCCESS]
    assert len(good) + len(unknown) == len(ends), "every acknowledged task reaches an end"
    assert all(bought[task.id] == 1 for task in good)
    called_back = {t["callBackUrl"].split("/")[-2] for t in kie.tasks if t["callback_acknowledged"]}
    assert not called_back & {task.id for task in unknown}, (
        "what was bought is recovered by its callback"
    )
    return {
        "tasks": len(ends),
        "succeeded": len(good),
        "unknown": len(unknown),
        "unknown and bought": sum(bought[task.id] for task in unknown),
    }
