"""The limits of each caller: from a file, or by default half of what the service allows.

[default]                       # of each caller that has no table of its own
queue = 1000

[callers.billing]               # what it does not set comes from [default]
models = ["imagen4", "veo*"]
"""

import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.callers import CALLER_MAX_CHARACTERS, Callers
from service.files import stamp_of
from service.metrics import Metrics

RECHECK_SECONDS = 1.0
NUMBER_MAX = 1_000_000_000
PATTERN_MAX_CHARACTERS = 128
PATTERN = re.compile(r"(?:[A-Za-z0-9._-]+/)*(?:[A-Za-z0-9._-]+\*?|\*)")

log = structlog.get_logger()


class CallerLimitsError(ValueError):
    """A limits file that cannot be used; the message names every bad table and key."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may take; infinity is no limit.

    Attributes:
        queue: Tasks that wait to be sent.
        running: Tasks at the provider; more of them wait.
        watches: Open streams, of one process.
        uploads: Uploads at a time, of one process.
        lists: ListTasks at a time, of one process.
        creates_per_minute: Tasks created in any minute.
        models: The names of the models to use; `*` at the end stands for any characters.
    """

    queue: float
    running: float
    watches: float
    uploads: float
    lists: float
    creates_per_minute: float
    models: tuple[str, ...]

    def allow(self, model: str) -> bool:
        """Whether the caller may use a model."""
        return any(
            model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern
            for pattern in self.models
        )

    def halved(self) -> "Limits":
        """Return the default limits of one caller if there are several: half of the service's."""
        return replace(
            self,
            queue=_half(self.queue),
            running=_half(self.running),
            watches=_half(self.watches),
            uploads=_half(self.uploads),
        )


@dataclass(frozen=True, slots=True)
class LimitsTable:
    """The limits of every caller at one moment."""

    default: Limits
    callers: Mapping[str, Limits]

    def of(self, caller: str) -> Limits:
        """Return the limits of a caller."""
        return self.callers.get(caller, self.default)


class CallerLimits:
    """Knows the limits of callers at any moment, as the file and the number of callers change."""

    def __init__(
        self, file: Path | None, service: Limits, callers: Callers, metrics: Metrics
    ) -> None:
        """Read the file.

        Args:
            file: Where the limits are written, if anywhere.
            service: The limits of the whole service: the defaults are these, or half of them.
            callers: Knows how many callers there are.
            metrics: Shows whether the file can be used.

        Raises:
            CallerLimitsError: The file cannot be used.
        """
        self._file = file
        self._service = service
        self._callers = callers
        self._metrics = metrics
        self._stamp: object = stamp_of(file) if file else None
        self._content = read_limits(file.read_bytes()) if file else LimitsFile()
        self._problem = ""  # of the file as it is now
        self._checked = time.monotonic()
        self._table = self._make_table()
        metrics.show_config_problems("caller_limits", 0)

    def of(self, caller: str) -> Limits:
        """Return the current limits of a caller."""
        return self.table().of(caller)

    def table(self) -> LimitsTable:
        """Return the current limits of all callers; the file is checked at most once a second."""
        if time.monotonic() - self._checked >= RECHECK_SECONDS:
            self._reread_if_changed()
            self._table = self._make_table()
            self._checked = time.monotonic()
        return self._table

    def _reread_if_changed(self) -> None:
        if self._file is None:
            return
        try:
            if (stamp := stamp_of(self._file)) == self._stamp:
                return
            self._stamp = stamp
            self._content = read_limits(self._file.read_bytes())
        except (OSError, ValueError) as error:
            self._complain(str(error))
        else:
            self._problem = ""
            self._metrics.show_config_problems("caller_limits", 0)
            log.info("caller limits file read again", callers=len(self._content.callers))

    def _complain(self, problem: str) -> None:
        self._metrics.show_config_problems("caller_limits", 1)
        if problem != self._problem:
            self._problem = problem
            log.warning("caller limits file cannot be used, the old limits stay", error=problem)

    def _make_table(self) -> LimitsTable:
        several = len(self._callers.names) > 1
        default = _with(self._service.halved() if several else self._service, self._content.default)
        callers = {name: _with(default, given) for name, given in self._content.callers.items()}
        return LimitsTable(default, callers)


# --- the file ---


def _caller_name(name: str) -> str:
    if not name or len(name) > CALLER_MAX_CHARACTERS or "#" in name or name.split() != [name]:
        raise ValueError("cannot be the name of a caller")
    return name


def _pattern(pattern: str) -> str:
    if len(pattern) > PATTERN_MAX_CHARACTERS or not PATTERN.fullmatch(pattern):
        raise ValueError("must be the name of a model, or the beginning of one and `*`")
    return pattern


Number = Annotated[int, Field(ge=1, le=NUMBER_MAX)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class _Table(BaseModel):
    """One table of the file; None is what it does not set."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    queue: Number | None = None
    running: Number | None = None
    watches: Number | None = None
    uploads: Number | None = None
    lists: Number | None = None
    creates_per_minute: Number | None = None
    models: list[Pattern] | None = None


class LimitsFile(BaseModel):
    """What the file says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    default: _Table = _Table()
    callers: dict[Annotated[str, AfterValidator(_caller_name)], _Table] = {}


def read_limits(content: bytes) -> LimitsFile:
    """Read a limits file.

    Raises:
        CallerLimitsError: It is not TOML, or breaks a rule; each broken one is named.
    """
    try:
        return LimitsFile.model_validate(tomllib.loads(content.decode()))
    except ValidationError as error:
        problems = (_problem(each) for each in error.errors(include_input=False))
        raise CallerLimitsError("; ".join(dict.fromkeys(problems))) from None
    except UnicodeDecodeError:
        raise CallerLimitsError("must be text in UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CallerLimitsError(f"must be TOML: {error}") from None


_WORDS = {
    "extra_forbidden": "is unknown",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "int_type": "must be a whole number",
    "list_type": "must be a list of model names",
    "string_type": "must be the name of a model",
}


def _problem(error: Any) -> str:
    """Say where a problem is and what it is, as in `[callers.alice] queue must be at least 1`."""
    table = error["loc"][:2] if error["loc"][0] == "callers" else error["loc"][:1]
    key, *position = [part for part in error["loc"][len(table) :] if part != "[key]"] or [""]
    where = f"[{'.'.join(map(_key, table))}] {key}" + "".join(f"[{index}]" for index in position)
    words = _WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return f"{where.rstrip()} {words.replace('Input should be', 'must be')}"


def _key(part: object) -> str:
    """Write a part of a table's name as TOML does."""
    name = str(part)
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else repr(name)


def _with(limits: Limits, given: _Table) -> Limits:
    changes: dict[str, Any] = given.model_dump(exclude_none=True)
    if given.models is not None:
        changes["models"] = tuple(given.models)
    return replace(limits, **changes)


def _half(limit: float) -> float:
    return limit if limit == float("inf") else ceil(limit / 2)
