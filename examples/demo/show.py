"""A server with the bundled simulator, one task of each model live, results saved."""

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from client.client import GenerationClient
from client.download import DownloadError, save_artifacts
from client.errors import GenerationError
from client.problems import ExitCode
from client.progress import BAR_COLUMNS
from client.states import percent, state
from client.terminal import one_line, printable
from client.watch import ended
from generated.generation.v1.generation_pb2 import (
    TASK_STATUS_SUCCESS,
    Imagen4Params,
    MidjourneyParams,
    Sora2Params,
    Veo3Params,
)

RESULTS = Path("demo-results")
START_SECONDS = 30
START_PAUSE_SECONDS = 0.05
STOP_SECONDS = 15
PROMPT = "a lighthouse at dawn, waves below"
TASKS: dict[str, Message] = {
    "imagen4": Imagen4Params(prompt=PROMPT, num_images=2, aspect_ratio="16:9"),
    "midjourney": MidjourneyParams(
        prompt=PROMPT, task_type=MidjourneyParams.TASK_TYPE_TXT2IMG, version="7"
    ),
    "veo3": Veo3Params(prompt=PROMPT, aspect_ratio="16:9"),
    "sora2": Sora2Params(prompt=PROMPT, duration_seconds=10),
}


class ServiceFailedError(Exception):
    """The service of the demonstration did not start."""


@asynccontextmanager
async def service() -> AsyncIterator[str]:
    """Runs a service of its own on a free port, with a database of its own; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"127.0.0.1:{_free_port()}"
        own = {
            "LISTEN_ADDRESS": address,
            "ADMIN_ADDRESS": "",
            "DATABASE_URL": f"sqlite:///{folder}/demo.db",
            "LOG_LEVEL": "error",
        }
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", env={**kept, **own}
        )
        try:
            await _until_serving(address, process)
            yield address
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), STOP_SECONDS)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


async def _until_serving(address: str, process: asyncio.subprocess.Process) -> None:
    """Returns once the service accepts connections. Raises ServiceFailedError if it never does."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(START_PAUSE_SECONDS)
        else:
            writer.close()
            return
    raise ServiceFailedError(f"the service did not start (exit code {process.returncode})")


async def run_task(client: GenerationClient, model: str, progress: Progress, bar: TaskID) -> bool:
    """Creates one task, follows it to its end and saves its results; whether it succeeded."""
    created = await client.create(TASKS[model], prompt_id="demo")
    task = created
    async for task in client.watch(created.id):
        known = percent(task)
        progress.update(
            bar, state=state(task), total=None if known is None else 100, completed=known
        )
    paths = await save_artifacts(task, RESULTS, name=model)
    result = f"{len(paths)} saved" if paths else one_line(task.failure.message)
    progress.update(bar, total=100, completed=100, result=result)
    progress.stop_task(bar)
    return ended(task) and task.status == TASK_STATUS_SUCCESS


async def demo(console: Console) -> bool:
    """Runs the demonstration; whether every task succeeded."""
    columns = (
        SpinnerColumn(finished_text="•"),
        TextColumn("{task.description:<11}{task.fields[state]:<11}", markup=False),
        *([BarColumn(bar_width=20)] if console.width >= BAR_COLUMNS else []),
        TextColumn("{task.elapsed:.0f} s {task.fields[result]}", markup=False),
    )
    async with service() as address, GenerationClient(address) as client:
        with Progress(*columns, console=console) as progress:
            bars = {
                name: progress.add_task(name, total=None, state="", result="") for name in TASKS
            }
            runs = (run_task(client, model, progress, bar) for model, bar in bars.items())
            return all(await asyncio.gather(*runs))


def main() -> int:
    """Runs it on this terminal; returns the exit code."""
    console = Console()
    console.print("Four tasks of four models, on the bundled simulator: the results are samples.")
    try:
        succeeded = asyncio.run(demo(console))
    except (GenerationError, DownloadError, ServiceFailedError, OSError) as error:
        console.out(f"The demonstration failed: {printable(str(error))}", highlight=False)
        return ExitCode.TASK_FAILED
    console.print(f"The results are in {RESULTS}/." if succeeded else "Not every task succeeded.")
    return ExitCode.OK if succeeded else ExitCode.TASK_FAILED
