"""results.json and results.md: everything that was measured, by this run and by earlier ones."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.table import CURVE_HEAD, HEAD, Curve, Result, markdown

FILE = Path(__file__).parent / "results.json"
PAGE = FILE.with_suffix(".md")
CURVES = "curves"  # the section with the curves
CURVES_TITLE = "## How cost grows\n\n![Curves of cost](curves.svg)\n"
INTRODUCTION = """# What was measured

Written by `make bench`; [README.md](README.md) says how to read it.

![How much of each target is used](results.svg)
"""
LIBRARIES = (
    "grpcio",
    "protobuf",
    "uvloop",
    "aiohttp",
    "peewee",
    "psycopg2-binary",
    "pydantic",
    "prometheus-client",
)

Entry = Mapping[str, Any]  # a result or a curve, with the run that measured it
Sections = Mapping[str, Sequence[Entry]]  # one for each measurement, and one for the curves


class Results:
    """The results of this run and of the runs before it.

    Args:
        databases: The databases of this run, as text.
        left_out: The kinds of database that this run does not measure. Their entries stay.
    """

    def __init__(self, databases: str, left_out: Sequence[str]) -> None:
        self._databases = databases
        self._left_out = left_out

    def put(self, section: str, measured: Sequence[Result | Curve]) -> None:
        """Replace a section, and write both files."""
        sections = dict(read())
        run = _run(self._databases)
        new = {entry["name"]: entry for entry in (_entry(each, run) for each in measured)}
        old = {
            entry["name"]: entry
            for entry in sections.get(section, ())
            if entry["name"] in new or any(kind in entry["name"] for kind in self._left_out)
        }
        sections[section] = list((old | new).values())
        FILE.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n")
        PAGE.write_text(page(sections))


def read() -> Sections:
    """Return what results.json holds."""
    sections: Sections = json.loads(FILE.read_text()) if FILE.exists() else {}
    return sections


def page(sections: Sections) -> str:
    """Return results.md."""
    return "\n".join((INTRODUCTION, *_parts(sections)))


def _parts(sections: Sections) -> Iterator[str]:
    for name, section in sections.items():
        title, head = (CURVES_TITLE, CURVE_HEAD) if name == CURVES else (f"## {name}\n", HEAD)
        yield title
        for run, entries in groupby(section, key=lambda entry: str(entry["run"])):
            yield markdown([entry["cells"] for entry in entries], head)
            yield f"{run}\n"


def _entry(measured: Result | Curve, run: str) -> Entry:
    if isinstance(measured, Curve):
        return {
            "name": measured.title,
            "run": run,
            "cells": measured.cells(),
            "curve": asdict(measured),
        }
    return {
        "name": measured.what,
        "run": run,
        "cells": measured.cells(),
        "limited": measured.limited,
        "share": measured.share,
    }


def _run(databases: str) -> str:
    """Describe a run: when, on which machine, and with which versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    machine = f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    python = f"Python {platform.python_version()}"
    return f"{when}, commit {_commit()}. {machine}. {databases}. {python}, {libraries}."


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the measured commit, with "-dirty" if files other than the results were changed."""
    commit = _git("rev-parse", "--short", "HEAD")
    others = (":/", ":(exclude)results.*", ":(exclude)*.svg")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *others)
    return (commit or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    git = ["/usr/bin/env", "git", *arguments]
    done = subprocess.run(git, cwd=FILE.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
