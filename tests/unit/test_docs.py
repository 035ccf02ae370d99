"""The pages refer to what exists: files, headings, tests and log lines."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
TEST_FILE = re.compile(r"`(test_\w+)`")


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


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    readme, results = ((ROOT / name).read_text() for name in ("README.md", "benchmarks/results.md"))
    costs = readme.partition("## What it costs to run")[2].partition("\n## ")[0]
    figures = re.findall(r"\d[\d,.]*(?:/s| (?:us|ms|s|KiB|MiB)\b)", costs.replace("µs", "us"))
    assert figures
    assert not [figure for figure in figures if f" {figure}" not in results]
