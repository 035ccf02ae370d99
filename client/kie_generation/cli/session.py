"""One run of a command: its connection, its output, and steps that commands share."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from google.protobuf.message import Message

from kie_generation.cli.problems import ExitCode, InterruptedWorkError
from kie_generation.cli.progress import label
from kie_generation.cli.settings import Settings
from kie_generation.client import GenerationClient
from kie_generation.download import DownloadError
from kie_generation.errors import UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import TASK_STATUS_FAILED, GenerationTask
from kie_generation.watch import ended


class Session:
    """What a command works with. `resume_hint` says how to continue after an interruption."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = GenerationClient(
            settings.address,
            token=settings.token,
            tls=settings.tls,
            give_up_after_seconds=settings.give_up_after_seconds,
            on_retry=self.note_retry,
        )
        self.output = settings.output
        self.invocation = settings.invocation
        self.timeout = settings.timeout_seconds
        self.resume_hint = "nothing was left incomplete"
        self._retried = False

    async def follow(self, task_id: str, known: GenerationTask | None = None) -> GenerationTask:
        """Show a task's progress until it has ended; return its last snapshot."""
        self.invocation.task_id = task_id
        self.resume_hint = f"to watch it again: {self.watch_command(task_id)}"
        if known is not None and ended(known):
            return known
        task = known or GenerationTask(id=task_id)
        with self.output.progress(task_id) as progress:
            if known is not None:
                progress.update(known)
            snapshots = self.client.watch(task_id, task.revision, on_connection=progress.connection)
            try:
                async for snapshot in snapshots:
                    self.resume_hint = f"the task continues: {self.watch_command(task_id)}"
                    progress.update(snapshot)
                    task = snapshot
            except UnavailableError:
                self.output.note(self.resume_hint)
                raise
        return task

    def watch_command(self, task_id: str) -> str:
        """Return the command that continues to watch a task."""
        return self.invocation.line("watch", task_id)

    @contextmanager
    def note_after(self, seconds: float, text: str) -> Iterator[None]:
        """Print a note if the block takes longer than this."""
        timer = asyncio.get_running_loop().call_later(seconds, self.output.note, text)
        try:
            yield
        finally:
            timer.cancel()

    def note_retry(self, error: UnavailableError) -> None:
        """Print one note about retries, which may take a while."""
        if not self._retried:
            self.output.note(f"{label(error)}: retrying for up to {self.timeout:g} s")
        self._retried = True

    async def conclude(self, task: GenerationTask, save: Path | None) -> ExitCode:
        """Show a task, save its results if `save` is set, and return the exit code."""
        self.output.task(task)
        if save is not None:
            self.invocation.folder = str(save)
            allow_private = self.settings.allow_private_addresses
            try:
                paths = await self.client.save_artifacts(task, save, allow_private=allow_private)
            except DownloadError as error:
                if error.saved:
                    self.output.saved(task, error.saved)
                raise
            self.output.saved(task, paths)
        return ExitCode.TASK_FAILED if task.status == TASK_STATUS_FAILED else ExitCode.OK

    async def upload_local_files(self, params: Message) -> None:
        """Upload the local files in the `…_urls` fields, and replace their paths by URLs."""
        for member in params.DESCRIPTOR.fields:
            if member.name.endswith("_urls"):
                values = getattr(params, member.name)
                values[:] = [await self._url_of(value) for value in values]

    async def _url_of(self, url_or_path: str) -> str:
        if url_or_path.startswith(("http://", "https://")):
            return url_or_path
        file = await self.client.upload(url_or_path)
        self.output.note(f"uploaded {url_or_path}")
        return file.download_url


def run(context: typer.Context, work: Callable[[Session], Awaitable[ExitCode]]) -> None:
    """Run a command on a connection, and exit with the code that it returns."""
    settings: Settings = context.obj
    session = Session(settings)

    async def connected() -> ExitCode:
        async with session.client:
            return await work(session)

    try:
        code = asyncio.run(connected())
    except KeyboardInterrupt:
        raise InterruptedWorkError(session.resume_hint) from None
    except BrokenPipeError:
        # The reader of stdout has closed it, as `head` does. Python must not fail when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.OK
    raise typer.Exit(code)
