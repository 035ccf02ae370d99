"""Write the tables of docs/settings.md from the settings class: `make settings-page`.

The descriptions are the docstrings of its fields. They are read here and not by pydantic, which
would take 0.1 s for that at every start of the service.
"""

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.setting_types import COUNT_MAX, SECONDS_MAX
from service.settings import Settings
from tests.support.paths import ROOT

PAGE = ROOT / "docs/settings.md"
BEGIN = "<!-- The tables are written by `make settings-page`. -->\n"
END = "<!-- The end of the tables. -->\n"
# The title of a table, and its first setting.
TABLES = {
    "listen_address": "Serving",
    "database_url_file": "Database",
    "kie_simulator": "Kie",
    "public_url": "Callbacks",
    "queue_max_tasks": "Tasks",
    "max_streams_per_connection": "Connections",
    "watch_max_streams": "Watches",
    "uploads_max": "Uploads",
    "results_url": "Results that are kept",
    "shutdown_seconds": "Shutdown",
    "metrics_per_caller": "Metrics, traces and logs",
}
TYPES: dict[object, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    Path: "file",
    str: "text",
    SecretStr: "text, kept secret",
    frozenset[str]: "list",
}
BOUNDS = {Ge: "at least", Gt: "above", Le: "at most"}
# The text before the tables names the bound that all others have.
COMMON_BOUNDS = (Le(COUNT_MAX), Le(SECONDS_MAX))


def tables() -> str:
    """Return the tables: one row for each setting, in the order of the class."""
    return "".join(_lines())


def replaced(page: str) -> str:
    """Return the page with its tables replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{tables()}\n{END}{after}"


def descriptions() -> dict[str, str]:
    """Return the docstring of each field, as one line."""
    [settings] = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(settings, ast.ClassDef)
    found = {}
    for field, text in pairwise(settings.body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(name)),
                ast.Expr(value=ast.Constant(value=str(docstring))),
            ):
                found[name] = " ".join(docstring.split())
            case _:
                pass
    return found


def _lines() -> Iterator[str]:
    described = descriptions()
    for name, field in Settings.model_fields.items():
        if title := TABLES.get(name):
            yield f"\n## {title}\n\n| name | type | default | description |\n|---|---|---|---|\n"
        columns = name.upper(), setting_type(field), _default(field.default), described[name]
        yield f"| {' | '.join(columns)} |\n"


def setting_type(field: FieldInfo) -> str:
    """Return the type of a setting in words, with its bounds."""
    annotation, metadata = field.annotation, list(field.metadata)
    for part in get_args(annotation):
        if part is not NoneType and NoneType in get_args(annotation):
            annotation, metadata = _bare(part)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    bounds = (
        f", {words} {getattr(bound, kind.__name__.lower()):,}"
        for bound in _bounds(metadata)
        for kind, words in BOUNDS.items()
        if isinstance(bound, kind) and bound not in COMMON_BOUNDS
    )
    return TYPES[annotation] + "".join(bounds)


def _bare(annotation: Any) -> tuple[Any, list[object]]:
    """Return the type within an Annotated one, and what it was annotated with."""
    metadata = list(getattr(annotation, "__metadata__", ()))
    return getattr(annotation, "__origin__", annotation), metadata


def _bounds(metadata: list[object]) -> Iterator[object]:
    for part in metadata:
        yield from part.metadata if isinstance(part, FieldInfo) else [part]


def _default(value: object) -> str:
    match value:
        case None | frozenset():
            return ""
        case SecretStr():
            return f"`{value.get_secret_value()}`"
        case bool():
            return f"`{str(value).lower()}`"
        case float() | int():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case _:
            return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
