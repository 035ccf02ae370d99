"""How long files and functions are, and how much an object keeps, at most."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FILE_MAX_LINES = 350
FUNCTION_MAX_LINES = 50
OBJECT_MAX_FIELDS = 10
SOURCES = sorted(
    path
    for folder in ("service", "storage", "providers", "client/kie_generation")
    for path in (ROOT / folder).rglob("*.py")
    if "generated" not in path.parts
)
TABLES = {"providers/base.py"}  # what all providers have in common
RECORDS = {  # they mirror a row, a message or a list of settings
    "FaultRule",
    "LimitBounds",
    "Midjourney",
    "ModelFacts",
    "Settings",
    "SimulatorSettings",
    "Snapshot",
    "StoredModel",
    "Task",
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fields_of(node: ast.ClassDef) -> set[str]:
    """Return what a class declares, and what its methods assign to `self`."""
    declared = {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    return declared | set(_assigned(node))


def _assigned(node: ast.ClassDef) -> Iterator[str]:
    for part in ast.walk(node):
        if (
            isinstance(part, ast.Attribute)
            and isinstance(part.ctx, ast.Store)
            and isinstance(part.value, ast.Name)
            and part.value.id == "self"
        ):
            yield part.attr


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_module_is_short(path: Path) -> None:
    text = path.read_text()
    assert named(path) in TABLES or len(text.splitlines()) <= FILE_MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_MAX_LINES, f"{node.name} has {lines} lines"
        if isinstance(node, ast.ClassDef) and node.name not in RECORDS:
            fields = fields_of(node)
            assert len(fields) <= OBJECT_MAX_FIELDS, f"{node.name} has {len(fields)} fields"
