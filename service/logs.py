"""Structured logs on stderr, as text for people or JSON for machines."""

import asyncio
import atexit
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import structlog

from service.calls import add_call
from service.logged_task import add_task
from service.sparse import SparseLog

NEEDS_QUOTES = re.compile("[ \\t=\\r\\n\"']")
WITH_TRACEBACK = frozenset({"exc_info", "exception", "stack", "stack_info"})
GATHER_SECONDS = 0.02
ENCODE = json.JSONEncoder(default=repr).encode
TIME = "timestamp"
NOISY = ("aiohttp.access", "asyncio", "grpc", "peewee")
GRPC = "grpc._cython.cygrpc"
# Words in grpc's errors that callers cause, and what is logged instead.
CAUSED_BY_CALLERS = {
    "Invalid encoding on": "metadata is not UTF-8",
    "raised in core by servicer method": "the client left before its response was sent",
}

Line = MutableMapping[str, Any]


def configure_logs(
    form: Literal["text", "json"],
    level: str,
    processors: Sequence[structlog.types.Processor] = (),
) -> None:
    """Send the logs of this process, and of its libraries, to stderr in one form.

    Args:
        form: The format of the lines: `text` or `json`.
        level: The lowest level that is logged.
        processors: Add further fields to the lines.
    """
    threshold = logging.getLevelName(level.upper())
    at_once: list[structlog.types.Processor] = [
        add_task,
        add_call,
        *processors,
        structlog.processors.add_log_level,
        _add_time,
    ]
    later = [_format_time, escape_controls, *_renderers(form)]
    lines = _Lines(sys.stderr, later)
    structlog.configure(
        processors=[*at_once, _unrendered],
        # Not through logging: that would double the cost of a line.
        logger_factory=lambda *_: lines,
        # A line below the threshold costs next to nothing.
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *at_once],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *later],
        )
    )
    logging.basicConfig(handlers=[handler], level=threshold, force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, threshold))
    grpc = logging.getLogger(GRPC)
    grpc.filters = [_NotByCallers()]


def _add_time(logger: object, method: str, line: Line) -> Line:
    """Add the time in unix seconds: a structlog processor."""
    del logger, method
    line[TIME] = time.time()
    return line


def _format_time(logger: object, method: str, line: Line) -> Line:
    """Write the time in the form of ISO 8601: a structlog processor."""
    del logger, method
    moment = datetime.fromtimestamp(line[TIME], UTC)
    line[TIME] = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return line


def _unrendered(logger: object, method: str, line: Line) -> tuple[tuple[Line], dict[str, Any]]:
    """Pass a line to `_Lines` as it is: a structlog processor."""
    del logger, method
    return (line,), {}


def escape_controls(logger: object, method: str, line: Line) -> Line:
    """Escape what a terminal would interpret: a structlog processor."""
    del logger, method
    for key, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            line[key] = printable(value)
    return line


def printable(text: str) -> str:
    """Return text with its control and format characters written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _renderers(form: str) -> list[structlog.types.Processor]:
    if form == "json":
        # Without the values of variables: they contain prompts, tokens and keys.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(frames),
            _render_json,
        ]
    colored = sys.stderr.isatty()
    console = structlog.dev.ConsoleRenderer(colors=colored, exception_formatter=_write_traceback)
    return [console if colored else _Plain(console)]


def _render_json(logger: object, method: str, line: Line) -> str:
    """Return a line of JSON: a structlog processor. structlog's own makes an encoder each time."""
    del logger, method
    return ENCODE(line)


class _Plain:
    """Renders a line like structlog's console renderer without colors, at a fifth of the cost.

    CreateTask waits until its line is written.
    """

    def __init__(self, console: structlog.dev.ConsoleRenderer) -> None:
        self._console = console

    def __call__(self, logger: Any, method: str, line: Line) -> str:
        """Return a line of text: a structlog processor."""
        if not WITH_TRACEBACK.isdisjoint(line):
            return self._console(logger, method, line)
        moment, level, event = line.pop(TIME), line.pop("level"), line.pop("event")
        fields = " ".join([f"{key}={_value(line[key])}" for key in sorted(line)])
        return f"{moment} [{level:<9}] {event:<30} {fields}".rstrip()


def _value(value: object) -> str:
    if isinstance(value, str) and not NEEDS_QUOTES.search(value):
        return value
    return repr(value)


class _NotByCallers(logging.Filter):
    """Replaces grpc's errors that callers cause, which have tracebacks and come at any rate.

    The one about metadata also contains the value, which may be a token and may have 16 KiB.
    """

    def __init__(self) -> None:
        super().__init__()
        self._log = SparseLog()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record as it is."""
        for words, event in CAUSED_BY_CALLERS.items():
            if words in str(record.msg):
                self._log.write(logging.INFO, event)
                return False
        return True


class _Lines:
    """Renders and writes lines, in batches.

    CreateTask waits for its own lines, and many at once cost less. Warnings are written at once,
    and so are lines logged outside an event loop. Errors of the stream are ignored: no call may
    fail because the terminal is closed or the disk is full.
    """

    def __init__(self, stream: TextIO, renderers: Sequence[structlog.types.Processor]) -> None:
        """Start without lines.

        Args:
            stream: Where they are written.
            renderers: Make text of a line, one after the other.
        """
        self._stream = stream
        self._renderers = renderers
        self._waiting: list[Line] = []
        atexit.register(self._flush)

    def debug(self, line: Line) -> None:
        """Write a line within GATHER_SECONDS; at once if the current exception belongs to it."""
        if not WITH_TRACEBACK.isdisjoint(line):
            self.warning(line)
            return
        self._waiting.append(line)
        if len(self._waiting) > 1:
            return
        try:
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self._flush)
        except RuntimeError:
            self._flush()

    def warning(self, line: Line) -> None:
        """Write a line, and the ones queued before it."""
        self._waiting.append(line)
        self._flush()

    info = debug
    error = critical = warning

    def _flush(self) -> None:
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        text = "".join(f"{self._text(line)}\n" for line in lines)
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)

    def _text(self, line: Any) -> Any:
        for render in self._renderers:
            line = render(None, "", line)
        return line


def _write_traceback(out: Any, exc_info: Any) -> None:
    """Write a traceback without the values of variables, and with its messages escaped."""
    for line in "".join(traceback.format_exception(*exc_info)).rstrip().split("\n"):
        out.write("\n" + printable(line))
