"""The pages refer to what exists: files, headings, tests and log lines."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
TEST_FILE = re.compile(r"`(test_\w+)`")
# Parts of the names of tests, in words: `test_http`: "cut off", "idle".
QUOTED_TESTS = re.compile(r'`(test_\w+)`: ("[^"|]+"(?:, "[^"|]+")*)')
LOG_LINES = re.compile(r'log lines? "([^"]+)"(?: and[\s#]+"([^"]+)")?')


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    broken = []
    for link in LINK.findall(path.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_test_file_that_a_page_names_exists(path: Path) -> None:
    files = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    assert set(TEST_FILE.findall(path.read_text())) <= files


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_test_that_a_page_quotes_exists(path: Path) -> None:
    missing = []
    for name, quoted in QUOTED_TESTS.findall(path.read_text()):
        sources = "".join(file.read_text() for file in (ROOT / "tests").rglob(f"{name}.py"))
        tests = " ".join(re.findall(r"def (test_\w+)", sources)).replace("_", " ")
        missing += [words for words in re.findall(r'"(.+?)"', quoted) if words.lower() not in tests]
    assert not missing


@pytest.mark.parametrize("path", [*PAGES, ROOT / "deploy/prometheus/alerts.yaml"], ids=named)
def test_every_log_line_that_a_page_quotes_exists(path: Path) -> None:
    code = "".join(file.read_text() for file in (ROOT / "service").glob("*.py"))
    quoted = [line for lines in LOG_LINES.findall(path.read_text()) for line in lines if line]
    assert not [line for line in quoted if f'"{line}"' not in code]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    readme, results = ((ROOT / name).read_text() for name in ("README.md", "benchmarks/results.md"))
    costs = readme.partition("## What it costs to run")[2].partition("\n## ")[0]
    figures = re.findall(r"\d[\d,.]*(?:/s| (?:us|ms|s|KiB|MiB)\b)", costs.replace("µs", "us"))
    assert figures
    assert not [figure for figure in figures if f" {figure}" not in results]
