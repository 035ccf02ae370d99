"""Structured logs on stderr, as text for people or as JSON for machines."""

import logging
import os
import sys
from typing import Literal

import structlog

NOISY = ("aiohttp.access", "asyncio", "grpc", "peewee")

# gRPC's core writes lines of its own form past all this, one for each failed TLS handshake. It
# reads this when grpc is imported, which is after this module.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def configure_logs(form: Literal["text", "json"], level: str) -> None:
    """Send the logs of this process, and of its libraries, to stderr in one form."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # What is not logged costs next to nothing.
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(form),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def _renderers(form: str) -> list[structlog.types.Processor]:
    if form == "json":
        # Without the values of variables: they hold prompts, tokens and keys.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(),
        ]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
