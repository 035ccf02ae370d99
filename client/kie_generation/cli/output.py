"""What the command line prints: results to stdout, everything else to stderr.

TextOutput is for people, JsonOutput is for scripts.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, Self

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console

from kie_generation.cli.forms import form_lines, model_lines, properties
from kie_generation.cli.options import in_words_of_options
from kie_generation.cli.problems import Problem
from kie_generation.cli.progress import WatchProgress, watch_progress
from kie_generation.cli.tasks import (
    TABLE_COLUMNS,
    TaskTable,
    change_line,
    coloured,
    task_rows,
    utc,
)
from kie_generation.cli.terminal import one_line, printable
from kie_generation.errors import UnavailableError
from kie_generation.generated.generation.v1.generation_pb2 import (
    GenerationTask,
    Model,
    UploadedFile,
)
from kie_generation.watch import ended


class Output(Protocol):
    """Where results, progress and errors go."""

    def task(self, task: GenerationTask) -> None:
        """Show one task in full."""

    def listed(self, task: GenerationTask) -> None:
        """Show one task among many."""

    def totals(self, text: str) -> None:
        """Show the sums of what was listed."""

    def changed(self, task: GenerationTask) -> None:
        """Show a change of one task among many."""

    def model(self, model: Model) -> None:
        """Show one model in full, with its form."""

    def listed_model(self, model: Model) -> None:
        """Show one model among many."""

    def file(self, file: UploadedFile) -> None:
        """Show an upload."""

    def saved(self, task: GenerationTask, paths: Sequence[Path]) -> None:
        """Show where results were saved."""

    def note(self, text: str) -> None:
        """Show a note."""

    def problem(self, problem: Problem) -> None:
        """Show an error."""

    def progress(self, task_id: str) -> WatchProgress:
        """Return the display of a watch. It omits the terminal snapshot, which `task` shows."""


class TextOutput:
    """For people."""

    def __init__(self) -> None:
        self._stderr = Console(stderr=True)
        on_terminal = sys.stdout.isatty()
        self._columns = shutil.get_terminal_size().columns if on_terminal else TABLE_COLUMNS
        self._table = TaskTable(self._columns)

    def task(self, task: GenerationTask) -> None:
        """Print a line for each property that is set."""
        _rows(*task_rows(task))

    def listed(self, task: GenerationTask) -> None:
        """Print a row of a table, and its header before the first one."""
        for line in self._table.lines(task, time.time()):
            _line(line)

    def totals(self, text: str) -> None:
        """Print the sums below the table."""
        _line(text)

    def changed(self, task: GenerationTask) -> None:
        """Print a line for a change."""
        _line(change_line(task, self._columns))

    def model(self, model: Model) -> None:
        """Print a line for each property that is set, and one for each field of the form."""
        _rows(*properties(model))
        if lines := form_lines(model):
            _line("\n".join(["", "input", *lines]))

    def listed_model(self, model: Model) -> None:
        """Print one line, or two if the id is long."""
        _line("\n".join(model_lines(model)))

    def file(self, file: UploadedFile) -> None:
        """Print the URL and the properties of the file."""
        _rows(
            ("url", file.download_url),
            ("type", file.mime_type),
            ("bytes", str(file.size_bytes)),
            ("sha256", file.sha256.hex()),
            ("expires", utc(file.expire_time)),
        )

    def saved(self, task: GenerationTask, paths: Sequence[Path]) -> None:  # noqa: ARG002 - for JSON
        """Print the paths."""
        _rows(*(("saved", str(path)) for path in paths))

    def note(self, text: str) -> None:
        """Print to stderr."""
        self._stderr.out(printable(text), style="yellow", highlight=False)

    def problem(self, problem: Problem) -> None:
        """Print code, reason and message, then a line for each further property that is set."""
        name = " ".join(dict.fromkeys(filter(None, (problem.code, problem.reason))))
        # With violations the message only repeats them, and each has its own line.
        message = "" if problem.violations else f": {problem.message}"
        lines = [f"error: {name}{message}"]
        violations = map(in_words_of_options, problem.violations)
        lines += [f"  {each.field}: {each.description}" for each in violations]
        if problem.task_id:
            lines.append(f"  task: {problem.task_id}")
        if problem.retry_after is not None:
            lines.append(f"  retry after: {problem.retry_after:g} s")
        if problem.hint:
            lines.append(f"  hint: {problem.hint}")
        self._stderr.out("\n".join(map(one_line, lines)), style="red", highlight=False)

    def progress(self, task_id: str) -> WatchProgress:
        """Show a live line on a terminal, plain lines elsewhere."""
        return watch_progress(self._stderr, one_line(task_id))


class JsonOutput:
    """For scripts: one JSON object per line. Messages are protojson with the proto's names."""

    def task(self, task: GenerationTask) -> None:
        """Print a GenerationTask."""
        _json(_protojson(task))

    listed = changed = task

    def totals(self, text: str) -> None:
        """Print nothing: every line on stdout is a task."""

    def model(self, model: Model) -> None:
        """Print a Model."""
        _json(_protojson(model))

    listed_model = model

    def file(self, file: UploadedFile) -> None:
        """Print an UploadedFile."""
        _json(_protojson(file))

    def saved(self, task: GenerationTask, paths: Sequence[Path]) -> None:
        """Print `{"task_id": …, "saved": [paths]}`."""
        _json({"task_id": task.id, "saved": [str(path) for path in paths]})

    def note(self, text: str) -> None:
        """Print `{"note": …}` to stderr."""
        print(json.dumps({"note": text}), file=sys.stderr)  # noqa: T201 - printing is this module's job

    def problem(self, problem: Problem) -> None:
        """Print `{"error": {…}}` to stderr, with the fields that are set."""
        known = {
            name: value for name, value in asdict(problem).items() if value not in ("", (), None)
        }
        print(json.dumps({"error": known}), file=sys.stderr)  # noqa: T201

    def progress(self, task_id: str) -> WatchProgress:  # noqa: ARG002 - snapshots name it
        """Print the snapshots themselves."""
        return _JsonProgress(self)


class _JsonProgress:
    def __init__(self, output: JsonOutput) -> None:
        self._output = output
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, task: GenerationTask) -> None:
        if not ended(task):  # the terminal snapshot is printed as the result
            self._output.task(task)

    def connection(self, error: UnavailableError | None) -> None:
        if error is None:
            self._output.note("reconnected")
        elif not self._lost:
            self._output.note(f"reconnecting: {error}")
        self._lost = error is not None


def _rows(*rows: tuple[str, str]) -> None:
    for name, value in rows:
        if value:
            shown = one_line(value)
            _line(f"{name:<10} {coloured(shown) if name == 'state' else shown}")


def _line(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _json(value: object) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201


def _protojson(message: Message) -> dict[str, object]:
    return MessageToDict(message, preserving_proto_field_name=True)
