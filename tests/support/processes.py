"""A process of the service, and calls to it."""

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2_grpc

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from tests.support.harness import API_KEY, create_request, ended
from tests.support.paths import ROOT
from tests.support.waiting import START_SECONDS, eventually, eventually_answered

if TYPE_CHECKING:  # it exists for type checkers only
    from generated.generation.v1.generation_pb2_grpc import GenerationServiceAsyncStub

NAME = "generation.v1.GenerationService"


@dataclass(frozen=True)
class Process:
    """A process of the service, whose output goes to a file."""

    process: asyncio.subprocess.Process
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines so far; each must be JSON."""
        whole, _, _ = self.text.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def logged(self, event: str) -> dict[str, Any] | None:
        return next((line for line in self.log if line["event"] == event), None)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self, seconds: float = START_SECONDS) -> int:
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@asynccontextmanager
async def started(folder: Path, **variables: str) -> AsyncIterator[Process]:
    """Start a process in a folder; kill it if it is still there afterwards."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "LISTEN_ADDRESS": "127.0.0.1:0",
        "ADMIN_ADDRESS": "127.0.0.1:0",
        "LOG_FORMAT": "json",
        "POLL_INTERVAL_SECONDS": "0.1",
        "TMPDIR": str(folder),  # what a killed process leaves there goes with the test's folder
    }
    output = folder / f"output-{time.monotonic_ns()}"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service"),
            cwd=folder,
            env=environment | variables,
            stdout=file,
            stderr=file,
        )
    try:
        yield Process(process, output)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass(frozen=True)
class Served:
    """A process that serves, and a channel to it."""

    process: Process
    address: str
    channel: grpc.aio.Channel
    stub: "GenerationServiceAsyncStub"
    health: Any
    admin_url: str

    @property
    def pid(self) -> int:
        return self.process.process.pid

    async def create(self, prompt: str = "a cat", **options: Any) -> pb.GenerationTask:
        request = create_request({"imagen4": {"prompt": prompt}})
        return (await self.stub.CreateTask(request, timeout=20, **options)).task

    async def end(self, task_id: str, **options: Any) -> pb.GenerationTask:
        """Watch a task to its end."""
        watch = self.stub.WatchTask(pb.WatchTaskRequest(task_id=task_id), timeout=20, **options)
        last = [answer.task async for answer in watch][-1]
        assert ended(last)
        return last

    async def get(self, path: str) -> tuple[int, str]:
        """Ask the admin port."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.admin_url + path) as response,
        ):
            return response.status, await response.text()

    async def until(self, path: str, expected: tuple[int, str]) -> None:
        """Ask the admin port until it answers as expected."""

        async def is_expected() -> bool:
            return await self.get(path) == expected

        await eventually_answered(is_expected)

    async def stop(self) -> None:
        """Stop the process as an orchestrator does."""
        self.process.signal(signal.SIGTERM)
        assert await self.process.exit_code() == 0


@asynccontextmanager
async def served(folder: Path, **variables: str) -> AsyncIterator[Served]:
    """Start a process, and wait until it says that it serves."""
    async with started(folder, **variables) as process:
        line = await eventually(lambda: _serving(process), START_SECONDS)
        async with grpc.aio.insecure_channel(line["address"]) as channel:
            yield Served(
                process,
                line["address"],
                channel,
                GenerationServiceStub(channel),
                health_pb2_grpc.HealthStub(channel),
                f"http://{line['admin_address']}",
            )


def _serving(process: Process) -> dict[str, Any] | None:
    """Return the line that names the addresses, in either form of the log."""
    assert process.process.returncode is None, process.text
    if line := re.search(r"serving +address=(\S+) admin_address=(\S+)", process.text):
        return {"address": line[1], "admin_address": line[2]}
    return process.logged("serving") if process.text.startswith("{") else None


Launch = Callable[..., AbstractAsyncContextManager[Served]]


def to(url: str) -> dict[str, str]:
    """Return the settings of a process whose provider is at a URL."""
    return {"KIE_API_KEY": API_KEY, "KIE_API_URL": url, "KIE_UPLOAD_URL": url}


async def read_to_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass
