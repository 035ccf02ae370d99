"""The tests are in rooms, and share nothing but tests/support."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
ROOMS = {"client", "hostile", "process", "replicas", "service", "simulator", "storage", "unit"}
MODULES = sorted(TESTS.rglob("*.py"))
# In the text, as some modules contain programs that run in processes.
IMPORT_OF_A_TEST = re.compile(
    r"^\s*(?:from|import) tests[\w.]*\.(?:test_\w+|conftest)\b"
    r"|^\s*from tests[\w.]* import .*\b(?:test_\w+|conftest)\b",
    re.MULTILINE,
)


def named(path: Path) -> str:
    return str(path.relative_to(TESTS))


def test_every_test_is_in_a_room() -> None:
    assert {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")} == ROOMS


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_module_imports_a_test_or_a_conftest(path: Path) -> None:
    assert not IMPORT_OF_A_TEST.findall(path.read_text())


@pytest.mark.parametrize("path", sorted((TESTS / "support").glob("*.py")), ids=named)
def test_no_helper_imports_from_a_room(path: Path) -> None:
    rooms = "|".join(sorted(ROOMS))
    assert not re.search(
        rf"^\s*(?:from|import) tests\.(?:{rooms})\b", path.read_text(), re.MULTILINE
    )
