"""The words that CONTRIBUTING.md bans appear in no page, no proto and no module."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

BANNED_ROW = re.compile(r"^\| (`[^|]+`) \| [^|`]+ \|$", re.MULTILINE)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
BANNED = [
    word for row in BANNED_ROW.findall(CONTRIBUTING) for word in re.findall(r"`([^`]+)`", row)
]
PATTERN = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
PAGES = sorted(
    path
    for pattern in (
        *("*.md", "docs/*.md", "benchmarks/README.md", "examples/**/*.md", "client/*.md"),
        *("protos/**/*.proto", "compose.yaml", "deploy/**/*"),
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)
CODE = sorted(
    path
    for folder in ("service", "storage", "providers", "client", "examples", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    and path != Path(__file__)
    and "node_modules" not in path.parts
)
# The value of a metric's label, which is an interface.
KEPT = {"the database is away"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def found(text: str) -> list[str]:
    """Return the banned words of a text, with what is around them."""
    flat = " ".join(text.split())
    return [flat[max(0, m.start() - 40) : m.end() + 20] for m in PATTERN.finditer(flat)]


def prose(page: str) -> str:
    """Return a page without its inline code, and without the list of banned words."""
    return re.sub(r"`[^`\n]+`", "`code`", BANNED_ROW.sub("", page))


def texts(source: str) -> Iterator[str]:
    """Yield the comments, the strings with a space, and the names of functions of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if " " in node.value and node.value not in KEPT:
                yield node.value
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name.replace("_", " ")


def test_the_list_of_banned_words_is_read() -> None:
    assert len(BANNED) > 20
    assert found("It goes\non for ever.")


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_page_has_no_banned_words(path: Path) -> None:
    assert not found(prose(path.read_text()))


@pytest.mark.parametrize("path", CODE, ids=named)
def test_a_module_has_no_banned_words(path: Path) -> None:
    assert not [part for text in texts(path.read_text()) for part in found(text)]
