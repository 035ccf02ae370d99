"""`make demo`: a server with the bundled simulator, one task of each model live, results saved."""

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from client.client import GenerationClient
from client.download import save_artifacts
from client.progress import state
from client.terminal import one_line
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


@asynccontextmanager
async def service() -> AsyncIterator[str]:
    """Runs a service of its own on a free port, with a database of its own; yields its address."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        own = {
            "LISTEN_ADDRESS": address,
            "ADMIN_ADDRESS": "",
            "DATABASE_URL": f"sqlite:///{folder}/demo.db",
            "LOG_LEVEL": "error",
        }
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", env={**kept, **own}
        )
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                await asyncio.wait_for(channel.channel_ready(), START_SECONDS)
            yield address
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), STOP_SECONDS)


async def run_task(client: GenerationClient, model: str, progress: Progress, bar: TaskID) -> bool:
    """Creates one task, follows it to its end and saves its results; whether it succeeded."""
    created = await client.create(TASKS[model], prompt_id="demo")
    task = created
    async for task in client.watch(created.id):
        percent = task.progress_percent if task.HasField("progress_percent") else None
        progress.update(bar, state=state(task), total=percent and 100, completed=percent)
    paths = await save_artifacts(task, RESULTS)
    result = f"{len(paths)} saved" if paths else one_line(task.failure.message)
    progress.update(bar, total=100, completed=100, result=result)
    progress.stop_task(bar)
    return ended(task) and task.status == TASK_STATUS_SUCCESS


async def demo(console: Console) -> bool:
    """Runs the demonstration; whether every task succeeded."""
    columns = (
        SpinnerColumn(finished_text="•"),
        TextColumn("{task.description:<11}{task.fields[state]:<11}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.elapsed:4.0f} s  {task.fields[result]}", markup=False),
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
    succeeded = asyncio.run(demo(console))
    console.print(f"The results are in {RESULTS}/." if succeeded else "Not every task succeeded.")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
