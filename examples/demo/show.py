"""A service with the bundled simulator, and tasks of four models with live progress."""

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

from kie_generation.cli.problems import ExitCode
from kie_generation.cli.progress import BAR_COLUMNS
from kie_generation.cli.terminal import one_line, printable
from kie_generation.client import GenerationClient
from kie_generation.download import DownloadError
from kie_generation.errors import GenerationError
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STATUS_SUCCESS,
    Imagen4Params,
    MidjourneyParams,
    Sora2Params,
    Veo3Params,
)
from kie_generation.saving import save_artifacts
from kie_generation.states import percent, state
from kie_generation.watch import ended

RESULTS = Path("demo-results")
TITLE = "Four tasks of four models, on the bundled simulator: the results are samples."
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
    """The service of the demo did not start."""


@asynccontextmanager
async def service() -> AsyncIterator[str]:
    """Run a service with a new database on a free port; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"127.0.0.1:{_free_port()}"
        settings = {
            "LISTEN_ADDRESS": address,
            "ADMIN_ADDRESS": "",
            "DATABASE_URL": f"sqlite:///{folder}/demo.db",
            "LOG_LEVEL": "error",
        }
        inherited = {
            name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", env={**inherited, **settings}
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
    """Wait until the service accepts connections.

    Raises:
        ServiceFailedError: It does not start.
    """
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
    """Create a task, watch it until it ends and save its results; return whether it succeeded."""
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


def progress_on(console: Console) -> Progress:
    """Return a progress display with a line for each task."""
    progress = Progress(
        SpinnerColumn(finished_text="•"),
        TextColumn("{task.description:<11}{task.fields[state]:<11}", markup=False),
        *([BarColumn(bar_width=20)] if console.width >= BAR_COLUMNS else []),
        TextColumn("{task.elapsed:.0f} s {task.fields[result]}", markup=False),
        console=console,
    )
    for name in TASKS:
        progress.add_task(name, total=None, state="", result="")
    return progress


def run_tasks(client: GenerationClient, progress: Progress) -> list[asyncio.Task[bool]]:
    """Start a task of each of the four models."""
    return [
        asyncio.create_task(run_task(client, bar.description, progress, bar.id))
        for bar in progress.tasks
    ]


async def demo(console: Console) -> bool:
    """Run the demo; return whether every task succeeded."""
    console.print(TITLE)
    async with service() as address, GenerationClient(address) as client:
        with progress_on(console) as progress:
            return all(await asyncio.gather(*run_tasks(client, progress)))


def main() -> int:
    """Run the demo on this terminal; return the exit code."""
    console = Console()
    try:
        succeeded = asyncio.run(demo(console))
    except (GenerationError, DownloadError, ServiceFailedError, OSError) as error:
        console.out(f"The demo failed: {printable(str(error))}", highlight=False)
        return ExitCode.TASK_FAILED
    console.print(f"The results are in {RESULTS}/." if succeeded else "Not every task succeeded.")
    return ExitCode.OK if succeeded else ExitCode.TASK_FAILED
