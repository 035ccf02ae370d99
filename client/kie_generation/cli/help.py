"""The text of --help for terminals of any width: no name is truncated or split."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

PROGRAM = "kie-generation"  # its name in the examples of docstrings

_MAX_WIDTH = 100
_TWO_COLUMNS_WIDTH = 70
_NAMES_WIDTH = 26
_METAVARS = {"<int>": "N", "<int range>": "N", "<float range>": "SECONDS"}
_TABLE_ROW = re.compile(r"\d+  ")

Parameter: TypeAlias = TyperArgument | TyperOption


class Command(TyperCommand):
    """A command with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write("\n".join(_help(self, ctx)))


class Group(TyperGroup):
    """A group of commands with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write("\n".join(_help(self, ctx)))


def _help(command: TyperCommand | TyperGroup, ctx: Any) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - 1
    every: list[Any] = list(command.get_params(ctx))
    arguments = [each for each in every if isinstance(each, TyperArgument)]
    options = [each for each in every if isinstance(each, TyperOption)]
    yield from _usage(command, ctx, arguments)
    yield ""
    yield from _text((command.help or "").replace(PROGRAM, ctx.find_root().command_path), width)
    yield from _section("Arguments", [_parameter(each, ctx) for each in arguments], width)
    yield from _section("Options", [_parameter(each, ctx) for each in options], width)
    if isinstance(command, TyperGroup):
        commands = ((name, command.commands[name].help or "") for name in command.commands)
        summaries = [(name, help_text.partition("\n\n")[0]) for name, help_text in commands]
        yield from _section("Commands", summaries, width)


def _usage(
    command: TyperCommand | TyperGroup, ctx: Any, arguments: Iterable[TyperArgument]
) -> Iterator[str]:
    rest = ["COMMAND ..."] if isinstance(command, TyperGroup) else []
    names = [each.display_name_raw for each in arguments]
    yield " ".join(["Usage:", ctx.command_path, "[OPTIONS]", *names, *rest])


def _text(text: str, width: int) -> Iterator[str]:
    """Yield paragraphs as lines: examples unchanged, table rows line by line, prose filled."""
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith(" ") for line in lines):
            yield from lines
        elif all(_TABLE_ROW.match(line) for line in lines):
            for line in lines:
                yield from _fill(line, width, indent=6, first_indent=2)
        else:
            yield from _fill(" ".join(lines), width)
        yield ""


def _fill(text: str, width: int, *, indent: int = 0, first_indent: int | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=" " * (indent if first_indent is None else first_indent),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _section(title: str, rows: list[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield a list of names and descriptions, in two columns if the terminal is wide enough."""
    if not rows:
        return
    yield f"{title}:"
    column = min(_NAMES_WIDTH, 2 + max(len(name) for name, _ in rows)) + 2
    indent = column if width >= _TWO_COLUMNS_WIDTH else 6
    for name, description in rows:
        described = _fill(description, width, indent=indent)
        if described and len(name) + 4 <= indent:
            described[0] = f"  {name}".ljust(indent) + described[0].lstrip()
        else:
            yield from _names(name, width)
        yield from described
    yield ""


def _names(name: str, width: int) -> Iterator[str]:
    if len(name) + 2 <= width:
        yield f"  {name}"
    else:
        yield from (f"  {each}" for each in name.split(", "))


def _parameter(parameter: Parameter, ctx: Any) -> tuple[str, str]:
    """Return the names and the description of an option or argument."""
    text = parameter.help or ""
    if isinstance(parameter, TyperArgument):
        return parameter.display_name_raw, text
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if not parameter.is_flag:
        type_name = parameter.display_type_rich(ctx=ctx) or ""
        names += f" {parameter.metavar or _METAVARS.get(type_name, 'TEXT')}"
    _, record = parameter.get_help_record(ctx) or ("", text)
    # typer appends `[env var: X; default: y; required]` to the text.
    added = record.removeprefix(text).strip(" []").split("; ")
    notes = "; ".join(each for each in added if each and each != "required")
    required = "Required. " if parameter.required else ""
    return names, required + text + (f" [{notes}]" if notes else "")
