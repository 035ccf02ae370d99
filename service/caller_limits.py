"""The limits of each caller: from a file, or by default half of what the service allows.

[default]                       # for each caller without its own table
queue = 1000

[callers.billing]               # what it does not set comes from [default]
models = ["imagen4", "veo*"]
"""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.callers import PROBLEMS_MAX, Callers, is_name
from service.files import RECHECK_SECONDS, WatchedFile, read_file, text_in
from service.metrics import Metrics
from service.model_patterns import is_pattern, matches, matches_any

NUMBER_MAX = 1_000_000_000
KEY_PARTS_MAX = 100  # of a dotted key: the time to read one grows with their square

log = structlog.get_logger()


class CallerLimitsError(ValueError):
    """An invalid limits file; the message names every bad table and key."""


@dataclass(frozen=True, slots=True)
class LimitSet:
    """The limits of one caller; infinity means no limit.

    Attributes:
        queue: Tasks waiting to be sent.
        running: Tasks at the provider; further ones wait.
        watches: Open streams, in one process.
        uploads: Uploads at a time, in one process.
        lists: ListTasks at a time, in one process.
        creates_per_minute: Tasks created in any minute.
        models: The allowed models; `*` at the end of a name matches any characters.
    """

    queue: float
    running: float
    watches: float
    uploads: float
    lists: float
    creates_per_minute: float
    models: tuple[str, ...]

    def allow(self, model: str) -> bool:
        """Return whether the caller may use a model."""
        return matches_any(self.models, model)

    def halved(self) -> "LimitSet":
        """Return the default limits of one of several callers: half of the service's."""
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

    default: LimitSet
    callers: Mapping[str, LimitSet]

    def of(self, caller: str) -> LimitSet:
        """Return the limits of a caller."""
        return self.callers.get(caller, self.default)


class CallerLimits:
    """The current limits of callers, as the file and the number of callers change."""

    def __init__(
        self,
        file: Path | None,
        service: LimitSet,
        callers: Callers,
        metrics: Metrics,
        *,
        models: Callable[[], Collection[str]],
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        """Read the file.

        Args:
            file: The file, or None.
            service: The limits of the whole service: the defaults are these, or half of them.
            callers: They say how many callers there are.
            metrics: They show whether the file is valid.
            models: Returns the names of all models.
            recheck_seconds: The time between two checks for changes of the file.

        Raises:
            CallerLimitsError: The file is invalid.
        """
        self._file = WatchedFile(file, recheck_seconds)
        self._service = service
        self._callers = callers
        self._metrics = metrics
        self._models = models
        self._content = read_limits(read_file(file)) if file else LimitsFileContent()
        self._problem = ""  # with the current file
        self._table = self._make_table()
        self._warn_of_unknown_models()
        metrics.show_config_problems("caller_limits", 0)

    def of(self, caller: str) -> LimitSet:
        """Return the current limits of a caller."""
        return self.table().of(caller)

    def table(self) -> LimitsTable:
        """Return the current limits of all callers; the file is checked at most once a second."""
        if self._file.is_due():
            self._reread_if_changed()
            self._table = self._make_table()
        return self._table

    def _reread_if_changed(self) -> None:
        try:
            if (content := self._file.changed()) is None:
                return
            self._content = read_limits(content)
        except (OSError, ValueError) as error:
            self._complain(str(error))
        else:
            self._problem = ""
            self._metrics.show_config_problems("caller_limits", 0)
            log.info("caller limits file reloaded", callers=len(self._content.callers))
            self._warn_of_unknown_models()

    def _warn_of_unknown_models(self) -> None:
        """Log names that match no model: legal, as a model may come later, but likely a typo."""
        tables = (self._content.default, *self._content.callers.values())
        patterns = {pattern for table in tables for pattern in table.models or ()}
        unknown = [
            pattern
            for pattern in sorted(patterns)
            if not any(matches(pattern, model) for model in self._models())
        ]
        if unknown:
            models = ", ".join(_first(unknown, "names"))
            log.warning("caller limits file names unknown models", models=models)

    def _complain(self, problem: str) -> None:
        self._metrics.show_config_problems("caller_limits", 1)
        if problem != self._problem:
            self._problem = problem
            log.warning("caller limits file is invalid; the old limits stay", error=problem)

    def _make_table(self) -> LimitsTable:
        several = len(self._callers.names) > 1
        default = _with(self._service.halved() if several else self._service, self._content.default)
        callers = {name: _with(default, given) for name, given in self._content.callers.items()}
        return LimitsTable(default, callers)


# --- the file ---


def _caller_name(name: str) -> str:
    if not is_name(name) or "#" in name or name.split() != [name]:
        raise ValueError("cannot be the name of a caller")
    return name


def _pattern(pattern: str) -> str:
    if not is_pattern(pattern):
        raise ValueError("must be the name of a model, or the beginning of one and `*`")
    return pattern


Number = Annotated[int, Field(ge=1, le=NUMBER_MAX)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class _Table(BaseModel):
    """One table of the file; None for what it does not set."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    queue: Number | None = None
    running: Number | None = None
    watches: Number | None = None
    uploads: Number | None = None
    lists: Number | None = None
    creates_per_minute: Number | None = None
    models: list[Pattern] | None = None


class LimitsFileContent(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    default: _Table = _Table()
    callers: dict[Annotated[str, AfterValidator(_caller_name)], _Table] = {}


def read_limits(content: bytes) -> LimitsFileContent:
    """Read a limits file.

    Raises:
        CallerLimitsError: It is not TOML, or breaks rules; the message names each one.
    """
    try:
        text = text_in(content)
        _check_keys(text)
        return LimitsFileContent.model_validate(tomllib.loads(text))
    except CallerLimitsError:
        raise
    except ValidationError as error:
        problems = dict.fromkeys(_problem(each) for each in error.errors(include_input=False))
        raise CallerLimitsError("; ".join(_first(list(problems), "problems"))) from None
    except UnicodeDecodeError:
        raise CallerLimitsError("must be text in UTF-8") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise CallerLimitsError(f"must be TOML: {error}") from None


def _check_keys(text: str) -> None:
    """Raise CallerLimitsError if a dotted key has so many parts that reading it takes long."""
    parts = 0
    for part in text.split("."):
        # Between the names of a list there are commas, and nothing is empty in a key.
        parts = 0 if "," in part or "\n" in part or not part.strip() else parts + 1
        if parts > KEY_PARTS_MAX:
            raise CallerLimitsError(f"must be TOML: a key has more than {KEY_PARTS_MAX} parts")


def _first(texts: Sequence[str], what: str) -> Sequence[str]:
    """Return the first texts, and how many more there are: the file may be of another kind."""
    if len(texts) <= PROBLEMS_MAX:
        return texts
    return [*texts[:PROBLEMS_MAX], f"{len(texts) - PROBLEMS_MAX} more {what}"]


_WORDS = {
    "extra_forbidden": "is unknown",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "int_type": "must be a whole number",
    "list_type": "must be a list of model names",
    "string_type": "must be the name of a model",
}


def _problem(error: Any) -> str:
    """Describe a problem and its place, as in `[callers.alice] queue must be at least 1`."""
    table = error["loc"][:2] if error["loc"][0] == "callers" else error["loc"][:1]
    key, *position = [part for part in error["loc"][len(table) :] if part != "[key]"] or [""]
    shown = key and _key(key)
    where = f"[{'.'.join(map(_key, table))}] {shown}" + "".join(f"[{index}]" for index in position)
    words = _WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return f"{where.rstrip()} {words.replace('Input should be', 'must be')}"


def _key(part: object) -> str:
    """Return a part of a table's name as TOML writes it."""
    name = str(part)
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else repr(name)


def _with(limits: LimitSet, given: _Table) -> LimitSet:
    changes: dict[str, Any] = given.model_dump(exclude_none=True)
    if given.models is not None:
        changes["models"] = tuple(given.models)
    return replace(limits, **changes)


def _half(limit: float) -> float:
    return limit if limit == float("inf") else ceil(limit / 2)
