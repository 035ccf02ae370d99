"""`follow`: every change of all tasks, across restarts of this program and of the service."""

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kie_generation.changes import TaskChange
from kie_generation.cli.listing import PromptId
from kie_generation.cli.problems import ExitCode, problem_of
from kie_generation.cli.progress import label
from kie_generation.cli.session import Session, run
from kie_generation.download import DownloadError
from kie_generation.errors import UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import GenerationTask

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


def follow(
    context: typer.Context,
    *,
    prompt_id: PromptId = "",
    ended: Annotated[bool, typer.Option("--ended", help="Only tasks that have ended.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Remember here what was shown and saved, and continue there the next time.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, help="Save the results of every task here, each once."
        ),
    ] = None,
) -> None:
    """Show all tasks, and then every change, until it is interrupted.

    It reconnects without limit, unless --give-up-after is set. Results that have expired, or cannot
    be downloaded, are reported and left out; while the network fails, it waits.

    Example:
      kie-generation follow --ended --state feed.json --save results
    """
    _reconnect_without_limit(context)
    # Notes on stderr already report what the stream logs.
    logging.getLogger("kie_generation.changes").addHandler(logging.NullHandler())

    async def work(session: Session) -> ExitCode:
        session.resume_hint = _resume_hint(session, prompt_id, state, save, ended=ended)
        saver = await _Saver.into(save, session) if save is not None else None
        changes = session.client.watch_tasks(
            prompt_id=prompt_id,
            ended_only=ended,
            state=state,
            on_connection=_ConnectionNotes(session),
        )
        async with aclosing(changes):
            async for change in changes:
                await _handle(change, session, saver)
        raise AssertionError("a stream of all changes never ends")

    run(context, work)


def _reconnect_without_limit(context: typer.Context) -> None:
    source = context.find_root().get_parameter_source("give_up_after")
    if source is None or source.name == "DEFAULT":
        context.obj = replace(context.obj, give_up_after_seconds=None)


def _resume_hint(
    session: Session, prompt_id: str, state: Path | None, save: Path | None, *, ended: bool
) -> str:
    if state is None:
        return "with --state FILE it would continue here the next time"
    named = {"--prompt-id": prompt_id, "--state": state, "--save": save}
    options = [word for name, value in named.items() if value for word in (name, str(value))]
    flags = ["--ended"] if ended else []
    return f"to continue: {session.invocation.line('follow', *flags, *options)}"


async def _handle(change: TaskChange, session: Session, saver: "_Saver | None") -> None:
    if change.started_over:
        session.output.note("changes were missed: the stream starts over, with all tasks")
    if change.task is not None:
        session.output.changed(change.task)
        if saver is not None:
            await saver.save(change.task)
    if saver is not None and change.bookmark is not None:
        saver.note_expired()


class _ConnectionNotes:
    """Notes when the stream is lost and when it works again, not each attempt."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_lost = False

    def __call__(self, error: UnavailableError | None) -> None:
        if error is None:
            self._session.output.note("reconnected")
        elif not self._is_lost:
            self._session.output.note(f"reconnecting ({label(error)})")
        self._is_lost = error is not None


class _Saver:
    """Saves the results of each task once."""

    def __init__(self, folder: Path, session: Session) -> None:
        self._folder = folder
        self._session = session
        self._expired = 0

    @classmethod
    async def into(cls, folder: Path, session: Session) -> "_Saver":
        """Return a saver for a folder, which is created if it is missing."""
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        session.invocation.folder = str(folder)
        return cls(folder, session)

    async def save(self, task: GenerationTask) -> None:
        """Save what is not there yet; while the network fails, try again until it expires.

        The stream waits, so that a result is not forgotten if this program ends in the meantime.
        """
        delay_seconds = FIRST_RETRY_SECONDS
        while not _is_expired(task):
            try:
                self._show(task, await self._download(task))
            except DownloadError as error:
                self._show(task, error.saved)
                if not error.is_transient:
                    self._session.invocation.task_id = task.id
                    self._session.output.problem(problem_of(error, self._session.invocation))
                    return
                self._session.output.note(f"{error}; trying again in {delay_seconds:g} s")
            else:
                return
            await asyncio.sleep(delay_seconds)
            delay_seconds = min(2 * delay_seconds, MAX_RETRY_SECONDS)
        self._expired += 1

    async def _download(self, task: GenerationTask) -> list[Path]:
        allow_private = self._session.settings.allow_private_addresses
        return await self._session.client.save_artifacts(
            task, self._folder, allow_private=allow_private, overwrite=False
        )

    def _show(self, task: GenerationTask, paths: list[Path]) -> None:
        if paths:
            self._session.output.saved(task, paths)

    def note_expired(self) -> None:
        """Note how many tasks had results that could not be saved in time."""
        if self._expired:
            self._session.output.note(f"the results of {self._expired} tasks have expired")
        self._expired = 0


def _is_expired(task: GenerationTask) -> bool:
    """Return whether all results of a task have expired; False if it has none. Copies remain."""
    if any(each.storage_uri for each in task.artifacts):
        return False
    times = [each.expire_time.seconds for each in task.artifacts]
    return bool(times) and all(0 < each < time.time() for each in times)
