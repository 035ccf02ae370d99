"""The display of a watch: one live line on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from kie_generation.cli.terminal import one_line
from kie_generation.errors import UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import GenerationTask
from kie_generation.states import percent, state

BAR_COLUMNS = 80  # a narrower terminal shows no bar, but all of the text


class WatchProgress(Protocol):
    """The display of a watch, as a context manager around it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    def update(self, task: GenerationTask) -> None:
        """Show a newer snapshot."""

    def connection(self, error: UnavailableError | None) -> None:
        """Show that the stream was lost or, with None, that it works again."""


def watch_progress(console: Console, task_id: str) -> WatchProgress:
    """Return a live line if the console is a terminal, plain lines otherwise.

    The task's id is printed first, unless the result with the id goes to the same terminal.
    """
    if not (console.is_terminal and sys.stdout.isatty()):
        console.out(f"task {task_id}", highlight=False)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


class LiveProgress:
    """A live line: state, bar, percentage, elapsed seconds, revision."""

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
        """Show a newer snapshot. Without a percentage the bar only pulses."""
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
        """Show `reconnecting` until the stream works again."""
        note = self._revision if error is None else f"reconnecting ({label(error)})"
        self._progress.update(self._bar, note=note)


class PlainProgress:
    """A line for each change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, task: GenerationTask) -> None:
        """Print state, percentage and revision."""
        known = percent(task)
        progress = "" if known is None else f" {known}%"
        self._line(f"{state(task)}{progress} (revision {task.revision})")

    def connection(self, error: UnavailableError | None) -> None:
        """Print a line when the stream is lost and when it works again, not for each attempt."""
        if error is None:
            self._line("reconnected")
        elif not self._lost:
            self._line(f"reconnecting ({label(error)})")
        self._lost = error is not None

    def _line(self, text: str) -> None:
        elapsed_seconds = time.monotonic() - self._began
        self._console.out(f"{elapsed_seconds:5.0f} s  {text}", highlight=False)


def label(error: UnavailableError) -> str:
    """Return in one word why a stream was lost."""
    return one_line(error.reason or error.code.name)
