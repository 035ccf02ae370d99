"""The table, and results.md with its charts.

Results are kept as JSON beside it, so that a run replaces what it measured, and nothing else.
"""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import MIB, Spread

FOLDER = Path(__file__).parent
DATA = FOLDER / "results.json"
PAGE = FOLDER / "results.md"
TARGETS_CHART = FOLDER / "results.svg"
CURVES_CHART = FOLDER / "curves.svg"
HEAD = ("what", "ours", "floor", "ratio (quartiles)", "target", "")
CURVE_HEAD = ("what", "should be", "exponent", "measured")
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

Cells = tuple[str, str, str, str, str, str]
Kept = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a number: at most that much, or at least."""

    limit: float
    text: str
    at_least: bool = False

    def use(self, value: float) -> float:
        """Return the share that a value uses of what is allowed: above 1 it is missed."""
        return self.limit / value if self.at_least else value / self.limit


def at_most(limit: float) -> Target:
    """Return a target for a ratio."""
    return Target(limit, f"≤ {limit:g} x")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        value: What is held against the target: the ratio's median, or a number of ours.
    """

    what: str
    ours: str
    floor: str = ""
    ratio: Spread | None = None
    value: float = math.nan
    target: Target | None = None

    @property
    def verdict(self) -> str:
        """`met`, `MISSED`, or nothing without a target."""
        if self.target is None:
            return ""
        return "met" if self.target.use(self.value) <= 1 else "MISSED"

    @property
    def held(self) -> str:
        """What is held against the target, as text."""
        of_ratio = self.ratio is not None and self.value == self.ratio.median
        return f"{self.value:.2f} x" if of_ratio else self.ours

    def cells(self) -> Cells:
        """Return the line as text."""
        target = self.target.text if self.target else ""
        return self.what, self.ours, self.floor, _ratio(self.ratio), target, self.verdict


@dataclass(frozen=True, slots=True)
class Curve:
    """How a cost grows.

    Attributes:
        should: `flat`, `straight`, `falling` or `flat or falling`.
    """

    title: str
    x: str
    y: str
    should: str
    points: Sequence[tuple[float, float]]

    @property
    def growth(self) -> float:
        """The exponent of the growth: 0 is flat, 1 is straight.

        From end to end; of what should be straight over the last step, as it starts from something.
        """
        first = -2 if self.should == "straight" else 0
        (x0, y0), (x1, y1) = self.points[first], self.points[-1]
        return math.log(max(y1, 1e-9) / max(y0, 1e-9)) / math.log(x1 / x0)


def versus(what: str, ours: str, floor: str, ratio: Spread, target: Target | None = None) -> Line:
    """Return a line that holds ours against the floor."""
    return Line(what, ours, floor, ratio, ratio.median, target)


# --- units ---


def microseconds(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds * 1e6:.0f} us"


def milliseconds(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds * 1e3:.1f} ms"


def a_second(count: float) -> str:
    """Return a rate as text."""
    return f"{count:,.0f}/s"


def mib(size_bytes: float) -> str:
    """Return a size as text."""
    return f"{size_bytes / MIB:.1f} MiB"


def kib(size_bytes: float) -> str:
    """Return a size as text."""
    return f"{size_bytes / 1024:.1f} KiB"


def _ratio(ratio: Spread | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.median:.2f} x ({ratio.low:.2f}-{ratio.high:.2f}, {ratio.count} rounds)"


# --- what was measured, kept ---


class Results:
    """All that was measured, by measurement.

    Args:
        databases: What this run measures on, as text.
        left_out: The databases that this run does not measure. What is known of them stays.
    """

    def __init__(self, databases: str, left_out: Sequence[str] = ()) -> None:
        self._databases = databases
        self._left_out = left_out
        self._data: Kept = {"lines": {}, "curves": {}}
        if DATA.exists():
            self._data = json.loads(DATA.read_text())

    def put_lines(self, measurement: str, lines: Sequence[Line]) -> None:
        """Replace a measurement's lines."""
        new = [{"cells": line.cells(), "held": line.held, "use": _use(line)} for line in lines]
        if new:
            old = self._data["lines"].get(measurement, {})
            self._data["lines"][measurement] = self._merged("lines", old, new)

    def put_curves(self, curves: Sequence[Curve]) -> None:
        """Replace the curves."""
        new = [asdict(curve) for curve in curves]
        if new:
            self._data["curves"] = self._merged("curves", self._data["curves"], new)

    def _merged(self, key: str, old: Kept, new: Sequence[Kept]) -> Kept:
        """Return a section with the new entries in the places of those of the same names.

        An entry that stays notes where it was measured; the others were where the section says.
        """
        replaced = {_name(entry): entry for entry in new}
        kept = {
            name: {"where": old["where"]} | entry
            for entry in old.get(key, ())
            if (name := _name(entry)) in replaced or any(kind in name for kind in self._left_out)
        }
        return {"where": _where(self._databases), key: list((kept | replaced).values())}

    def write(self) -> None:
        """Write the data, the page and the charts."""
        DATA.write_text(json.dumps(self._data, indent=1) + "\n")
        PAGE.write_text("\n".join(self._page()))
        TARGETS_CHART.write_text(targets_chart(list(self._bars())))
        if curves := _curves(self._data["curves"].get("curves", ())):
            CURVES_CHART.write_text(curves_chart(curves))

    def _page(self) -> Iterator[str]:
        yield "# What was measured\n"
        yield "Written by `make bench`; [README.md](README.md) says how to read it.\n"
        yield "![The share of each target that is used](results.svg)\n"
        for measurement, section in self._data["lines"].items():
            yield f"## {measurement}\n"
            for where, lines in _by_run(section, "lines"):
                yield from markdown([line["cells"] for line in lines])
                yield f"\n{where}\n"
        if self._data["curves"]:
            yield "## How cost grows\n"
            yield "![Curves of cost](curves.svg)\n"
            for where, curves in _by_run(self._data["curves"], "curves"):
                yield from markdown(curve_rows(_curves(curves)), CURVE_HEAD)
                yield f"\n{where}\n"

    def _bars(self) -> Iterator[tuple[str, str, float]]:
        for section in self._data["lines"].values():
            for line in section["lines"]:
                if line["use"] is not None:
                    what, *_, target, _ = line["cells"]
                    yield what, f"{line['held']}, target {target}", line["use"]


def _name(entry: Kept) -> str:
    """Return the name of a line or a curve."""
    return str(entry["cells"][0] if "cells" in entry else entry["title"])


def _by_run(section: Kept, key: str) -> Iterable[tuple[str, list[Kept]]]:
    """Return a section's entries by when and where they were measured."""
    runs: dict[str, list[Kept]] = {}
    for entry in section[key]:
        runs.setdefault(entry.get("where", section["where"]), []).append(entry)
    return runs.items()


def _curves(kept: Iterable[Kept]) -> list[Curve]:
    return [
        Curve(**{name: value for name, value in curve.items() if name != "where"}) for curve in kept
    ]


def _use(line: Line) -> float | None:
    return line.target.use(line.value) if line.target else None


def _where(databases: str) -> str:
    """Say when, on which machine and with which versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {_system()}"
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    python = f"Python {platform.python_version()}"
    return f"{when}, commit {_commit()}. {machine}. {databases}. {python}, {libraries}."


def _system() -> str:
    return f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit that was measured, and whether anything but these results differs."""
    commit = _git("rev-parse", "--short", "HEAD")
    others = (":/", ":(exclude)results.*", ":(exclude)*.svg")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *others)
    return (commit or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    git = ["/usr/bin/env", "git", *arguments]
    said = subprocess.run(git, cwd=FOLDER, capture_output=True, text=True, check=False)
    return said.stdout.strip()


# --- tables ---


def markdown(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> Iterator[str]:
    """Yield the lines of a Markdown table; what was missed stands out."""
    yield _markdown_row(head)
    yield _markdown_row(["---"] * len(head))
    for row in rows:
        yield _markdown_row([f"**{cell}**" if cell == "MISSED" else cell for cell in row])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def print_table(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> None:
    """Print a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, ["-" * width for width in widths], *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    sys.stdout.flush()


def curve_rows(curves: Sequence[Curve]) -> list[Sequence[str]]:
    """Return curves as rows of a table under CURVE_HEAD."""
    return [(c.title, c.should, f"{c.growth:+.2f}", _points(c)) for c in curves]


def _points(curve: Curve) -> str:
    return ", ".join(f"{x:,.0f}: {_number(y)}" for x, y in curve.points) + f" ({curve.y})"


# --- charts ---

GOOD, BAD, INK, FAINT = "#2f855a", "#c53030", "#1a202c", "#a0aec0"
FONT = 'font-family="system-ui, sans-serif" font-size="12"'
BAR_STEP, LABEL_WIDTH, TARGET_WIDTH, VALUE_WIDTH, USE_MAX = 24, 430, 220, 270, 1.8
PANEL_WIDTH, PANEL_HEIGHT, PANEL_COLUMNS = 300, 205, 3


def targets_chart(bars: Sequence[tuple[str, str, float]]) -> str:
    """Return bars, each as long as the share of its target that is used; the target is a line."""
    target_x = LABEL_WIDTH + TARGET_WIDTH
    height = BAR_STEP * len(bars) + 40
    parts = [
        f'<text x="{target_x}" y="16" text-anchor="middle" fill="{INK}">target</text>',
        *(_bar(24 + BAR_STEP * index, *bar) for index, bar in enumerate(bars)),
        f'<path d="M{target_x} 22V{height - 12}" stroke="{INK}" stroke-dasharray="4 3"/>',
    ]
    width = LABEL_WIDTH + TARGET_WIDTH * USE_MAX + VALUE_WIDTH
    return _svg(width, height, parts)


def _bar(y: int, what: str, value: str, use: float) -> str:
    length = TARGET_WIDTH * min(use, USE_MAX)
    color = GOOD if use <= 1 else BAD
    value_x = LABEL_WIDTH + max(length, TARGET_WIDTH) + 8
    word = "" if use <= 1 else "MISSED: "
    return (
        f'<text x="{LABEL_WIDTH - 8}" y="{y + 13}" text-anchor="end" fill="{INK}">{escape(what)}'
        f'</text><rect x="{LABEL_WIDTH}" y="{y + 2}" width="{length:.1f}" height="15" rx="2"'
        f' fill="{color}"/><text x="{value_x:.1f}" y="{y + 13}" fill="{color}">{word}'
        f"{escape(value)}</text>"
    )


def curves_chart(curves: Sequence[Curve]) -> str:
    """Return a small panel for each curve, both axes logarithmic: flat lies, straight climbs."""
    rows = math.ceil(len(curves) / PANEL_COLUMNS)
    panels = []
    for index, curve in enumerate(curves):
        row, column = divmod(index, PANEL_COLUMNS)
        at = f"translate({column * PANEL_WIDTH}, {row * PANEL_HEIGHT})"
        panels.append(f'<g transform="{at}">{_panel(curve)}</g>')
    return _svg(PANEL_WIDTH * PANEL_COLUMNS, PANEL_HEIGHT * rows, panels)


def _panel(curve: Curve) -> str:
    left, top, right, bottom = 20, 65, PANEL_WIDTH - 30, PANEL_HEIGHT - 40
    xs = [math.log10(x) for x, _ in curve.points]
    ys = [math.log10(max(y, 1e-9)) for _, y in curve.points]
    # At least two decades, so that noise does not look like growth.
    middle, half = (max(ys) + min(ys)) / 2, max(max(ys) - min(ys), 2.0) / 2
    places = [
        (
            left + (right - left) * (x - xs[0]) / ((xs[-1] - xs[0]) or 1),
            bottom - (bottom - top) * (y - middle + half) / (2 * half),
        )
        for x, y in zip(xs, ys, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    labels = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{GOOD}"/>'
        f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle" font-size="10" fill="{INK}">'
        f'{_number(value)}</text><text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle"'
        f' font-size="10" fill="{FAINT}">{_short(number)}</text>'
        for (x, y), (number, value) in zip(places, curve.points, strict=True)
    )
    return (
        f'<text x="{left - 8}" y="18" fill="{INK}" font-weight="bold">{escape(curve.title)}</text>'
        f'<text x="{left - 8}" y="33" fill="{FAINT}" font-size="10">{escape(curve.y)}</text>'
        f'<text x="{left - 8}" y="47" fill="{FAINT}" font-size="10">should be {curve.should};'
        f" exponent {curve.growth:+.2f}</text>"
        f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{FAINT}"/>'
        f'<polyline points="{line}" fill="none" stroke="{GOOD}" stroke-width="2"/>{labels}'
        f'<text x="{(left + right) / 2}" y="{bottom + 28}" text-anchor="middle" font-size="10"'
        f' fill="{INK}">{escape(curve.x)}</text>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


def _short(number: float) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}"'
        f' viewBox="0 0 {width:.0f} {height}" {FONT}><rect width="100%" height="100%" fill="#fff"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )
