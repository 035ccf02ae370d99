"""Structured logs on stderr, as text for people or as JSON for machines."""

import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from service.calls import add_call

NOISY = ("aiohttp.access", "asyncio", "grpc", "peewee")

# gRPC's core writes lines of its own form past all this, one for each failed TLS handshake. It
# reads this when grpc is imported, which is after this module.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def configure_logs(form: Literal["text", "json"], level: str) -> None:
    """Send the logs of this process, and of its libraries, to stderr in one form."""
    threshold = logging.getLevelName(level.upper())
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_call,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        escape_controls,
    ]
    renderers = _renderers(form)
    structlog.configure(
        processors=[*shared, *renderers],
        # Not through the library's loggers: that would double what a line costs.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        # What is not logged costs next to nothing.
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=threshold, force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, threshold))


def escape_controls(
    logger: object, method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape what a terminal would obey, whoever wrote it: a structlog processor."""
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
        # Without the values of variables: they hold prompts, tokens and keys.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(),
        ]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=_write_traceback
        )
    ]


def _write_traceback(out: Any, exc_info: Any) -> None:
    """Write a traceback without the values of variables, and with its messages escaped."""
    for line in "".join(traceback.format_exception(*exc_info)).split("\n"):
        out.write(printable(line) + "\n")
