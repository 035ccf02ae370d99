"""How tasks are shown to people: all about one, a table of many, a line for each change."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToJson
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len, set_cell_size

from kie_generation.cli.options import option_of, value_name
from kie_generation.cli.terminal import one_line
from kie_generation.enums import short_name
from kie_generation.generated.generation.v1.generation_pb2 import (
    ErrorReason,
    GenerationTask,
    TaskStatus,
)
from kie_generation.states import state

TABLE_COLUMNS = 80
ID_COLUMNS = 32
WITH_ID_COLUMNS = TABLE_COLUMNS + 1 + ID_COLUMNS
_MODEL, _STATE, _AGE, _CREDITS, _RESULTS = 16, 10, 4, 7, 7
_ALL_BUT_PROMPT = _MODEL + _STATE + _AGE + _CREDITS + _RESULTS + 5  # with spaces in between

MARKET = "market"  # the member of KieParams that takes any model
_PROMPTS = ("prompt", "text", "lyrics", "title")  # the fields of its input that describe it best
_COLOURS = {"SUCCESS": typer.colors.GREEN, "FAILED": typer.colors.RED}
_UNITS = (("s", 1, 60), ("m", 60, 60), ("h", 3600, 48), ("d", 86400, 1000), ("y", 31_557_600, 1000))


def task_rows(task: GenerationTask) -> list[tuple[str, str]]:
    """Return all that is known of a task, as names and values; values may be empty."""
    return [
        ("task", task.id),
        ("state", state(task)),
        ("model", model_name(task)),
        ("prompt", prompt_of(task)),
        ("parameters", _parameters(task)),
        ("prompt id", task.prompt_id),
        ("request id", task.request_id),
        ("id at Kie", task.provider_task_id),
        ("created", utc(task.create_time)),
        ("ended", utc(task.complete_time)),
        ("credits", _credits(task)),
        ("failure", _failure(task)),
        *((f"result {n}", artifact.url) for n, artifact in enumerate(task.artifacts, start=1)),
        ("expires", _first_expiry(task)),
    ]


def model_name(task: GenerationTask) -> str:
    """Return the model's name; "" if only a newer version of the client knows it."""
    member = _member(task)
    return task.provider_params.kie.market.model if member == MARKET else member


def prompt_of(task: GenerationTask) -> str:
    """Return the prompt; "" if there is none, or if only a newer client knows the model."""
    member = _member(task)
    if member == MARKET:
        fields = task.provider_params.kie.market.input.fields
        return next((fields[name].string_value for name in _PROMPTS if name in fields), "")
    return str(getattr(task.provider_params.kie, member).prompt) if member else ""


def _member(task: GenerationTask) -> str:
    return task.provider_params.kie.WhichOneof("model") or ""


def utc(timestamp: Timestamp) -> str:
    """Return a time in words; "" if it is not set."""
    return f"{timestamp.ToDatetime():%Y-%m-%d %H:%M:%S} UTC" if timestamp.seconds else ""


def _parameters(task: GenerationTask) -> str:
    """Return the parameters as the options that set them, without the prompt."""
    member = _member(task)
    if not member:
        return ""
    words: list[str] = []
    if member == MARKET:
        fields = task.provider_params.kie.market.input.fields
        for name in sorted(fields.keys() - _PROMPTS[:1]):
            words += ["-i", f"{name}={MessageToJson(fields[name], indent=None)}"]
        return shlex.join(words)
    for field, value in getattr(task.provider_params.kie, member).ListFields():
        if field.name != "prompt":
            for each in value if field.is_repeated else [value]:
                words += _option(field, each)
    return shlex.join(words)


def _option(field: FieldDescriptor, value: Any) -> list[str]:
    option = option_of(field.name)
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return [option, value_name(found.name.removeprefix(prefix)) if found else str(value)]
    if field.message_type is not None:
        return [option, MessageToJson(value, indent=None)]
    return [option, f"{value:g}" if isinstance(value, float) else str(value)]


def _credits(task: GenerationTask) -> str:
    return f"{task.credits_consumed:.7g}" if task.HasField("credits_consumed") else ""


def _failure(task: GenerationTask) -> str:
    if not task.HasField("failure"):
        return ""
    return f"{short_name(ErrorReason, task.failure.reason)}: {task.failure.message}"


def _first_expiry(task: GenerationTask) -> str:
    times = [each.expire_time for each in task.artifacts if each.expire_time.seconds]
    return utc(min(times, key=Timestamp.ToNanoseconds)) if times else ""


class TaskTable:
    """A table that fits the terminal: a row for each task, after a header.

    The id has a column only if there is room for it, and otherwise a line.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._is_narrow = columns < TABLE_COLUMNS
        self._has_id = columns >= WITH_ID_COLUMNS
        room = columns - _ALL_BUT_PROMPT - (1 + ID_COLUMNS if self._has_id else 0)
        self._prompt_columns = columns if self._is_narrow else room
        self._is_begun = False

    def lines(self, task: GenerationTask, now: float) -> Iterator[str]:
        """Yield the lines for a task; the header before the first one."""
        if not (self._is_begun or self._is_narrow):
            row = self._row("PROMPT", "MODEL", "STATUS", "AGE", "CREDITS", "RESULTS")
            yield f"{row} ID" if self._has_id else row
        self._is_begun = True
        prompt, model = one_line(prompt_of(task)), one_line(model_name(task))
        cells = (_age(task, now), _credits(task), str(len(task.artifacts) or ""))
        if self._is_narrow:
            yield cut(prompt, self._columns).rstrip()
            yield f"  {coloured(state(task))} {' '.join(filter(None, (model, *cells)))}"
        else:
            row = self._row(prompt, model, state(task), *cells)
            yield f"{row} {one_line(task.id)}" if self._has_id else row
        if not self._has_id:
            yield f"  {one_line(task.id)}"

    def _row(self, prompt: str, model: str, status: str, *numbers: str) -> str:
        age, credits_, results = numbers
        return (
            f"{cut(prompt, self._prompt_columns)} {cut(model, _MODEL)}"
            f" {coloured(f'{status:<{_STATE}}')} {age:>{_AGE}} {credits_:>{_CREDITS}}"
            f" {results:>{_RESULTS}}"
        )


class Totals:
    """The sums below a table."""

    def __init__(self) -> None:
        self._by_status: Counter[str] = Counter()
        self._credits = 0.0
        self._results = 0

    def add(self, task: GenerationTask) -> None:
        """Count a task."""
        self._by_status[short_name(TaskStatus, task.status)] += 1
        self._credits += task.credits_consumed
        self._results += len(task.artifacts)

    def __len__(self) -> int:
        return self._by_status.total()

    def __str__(self) -> str:
        by_status = ", ".join(f"{count} {name}" for name, count in self._by_status.most_common())
        return (
            f"{_count(len(self), 'task')}: {by_status};"
            f" {self._credits:.10g} credits, {_count(self._results, 'result')}"
        )


def change_line(task: GenerationTask, columns: int) -> str:
    """Return one line for a change of a task."""
    head = f"{one_line(task.id):<{ID_COLUMNS}} {coloured(f'{state(task):<{_STATE}}')}"
    room = columns - ID_COLUMNS - _STATE - 2
    return f"{head} {cut(f'{model_name(task)}  {one_line(prompt_of(task))}', max(room, 0))}"


def cut(text: str, columns: int) -> str:
    """Return a text of exactly this many columns of a terminal."""
    if cell_len(text) > columns > 0:
        return f"{set_cell_size(text, columns - 1)}…"
    return set_cell_size(text, columns)


def coloured(word: str) -> str:
    """Return a state in colour if it is final and stdout is a terminal with colours."""
    colour = _COLOURS.get(word.strip())
    if colour is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return word
    return typer.style(word, fg=colour)


def _age(task: GenerationTask, now: float) -> str:
    """Return how long ago a task was created, in one unit; "" if that is unknown."""
    if not task.create_time.seconds:
        return ""
    seconds = max(0, int(now - task.create_time.seconds))
    ages = (f"{seconds // size}{unit}" for unit, size, most in _UNITS if seconds < size * most)
    return next(ages, "old")


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
