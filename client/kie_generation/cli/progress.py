"""What a person sees while a task is watched.

It is one live line on a terminal, and plain lines where nothing can move.
"""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from client.errors import UnavailableError
from client.states import percent, state
from client.terminal import one_line
from generated.generation.v1.generation_pb2 import GenerationTask

BAR_COLUMNS = 80  # a narrower terminal shows no bar, but all of the text


class WatchProgress(Protocol):
    """Shows a watch, as a context manager around it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    def update(self, task: GenerationTask) -> None:
        """Shows a newer snapshot."""

    def connection(self, error: UnavailableError | None) -> None:
        """Shows that the stream was lost, or, with None, that it is back."""


def watch_progress(console: Console, task_id: str) -> WatchProgress:
    """Returns what suits the console: a live line on a terminal, plain lines elsewhere.

    The task's id is printed first, unless the same terminal shows it with the result.
    """
    if not (console.is_terminal and sys.stdout.isatty()):
        console.out(f"task {task_id}", highlight=False)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


class LiveProgress:
    """One line that moves: stage, bar, percent, elapsed seconds, revision."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}", markup=False),
            *([BarColumn(bar_width=30)] if console.width >= BAR_COLUMNS else []),
            TextColumn(
                "{task.fields[percent]:>4}  {task.elapsed:.0f} s  {task.fields[note]}", markup=False
            ),
            console=console,
            transient=True,
        )
        self._bar = self._progress.add_task("CONNECTING", total=None, percent="", note="")
        self._revision = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, task: GenerationTask) -> None:
        """Shows a newer snapshot; without a percentage the bar only pulses."""
        known = percent(task)
        self._revision = f"revision {task.revision}"
        self._progress.update(
            self._bar,
            description=state(task),
            total=None if known is None else 100,
            completed=known or 0,
            percent="" if known is None else f"{known}%",
            note=self._revision,
        )

    def connection(self, error: UnavailableError | None) -> None:
        """Shows `reconnecting` until the stream is back."""
        note = self._revision if error is None else f"reconnecting ({label(error)})"
        self._progress.update(self._bar, note=note)


class PlainProgress:
    """A line for each change, as logs and pipes want it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, task: GenerationTask) -> None:
        """Prints stage, percent and revision."""
        known = percent(task)
        progress = "" if known is None else f" {known}%"
        self._line(f"{state(task)}{progress} (revision {task.revision})")

    def connection(self, error: UnavailableError | None) -> None:
        """Prints a line when the stream is lost and one when it is back, not one for each try."""
        if error is None:
            self._line("connected again")
        elif not self._lost:
            self._line(f"reconnecting ({label(error)})")
        self._lost = error is not None

    def _line(self, text: str) -> None:
        elapsed_seconds = time.monotonic() - self._began
        self._console.out(f"{elapsed_seconds:5.0f} s  {text}", highlight=False)


def label(error: UnavailableError) -> str:
    """Returns why a stream was lost, in a word."""
    return one_line(error.reason or error.code.name)
