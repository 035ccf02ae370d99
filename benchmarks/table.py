"""The results of measurements: numbers with their targets and units, and tables of them."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.measure import MIB, Spread, ratios, spread

HEAD = ("what", "service", "baseline", "ratio (quartiles)", "target", "")
CURVE_HEAD = ("what", "should be", "exponent", "measured")
DIGITS_FROM = 100  # smaller numbers are shown with three significant digits

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for a number: a maximum, or a minimum."""

    limit: float
    text: str
    at_least: bool = False

    def share(self, value: float) -> float:
        """Return how much of the limit a value uses: more than 1 misses the target."""
        return self.limit / value if self.at_least else value / self.limit


def at_most(limit: float) -> Target:
    """Return a target for a ratio."""
    return Target(limit, f"≤ {limit:g} x")


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table.

    Attributes:
        service: What was measured of the service, as text.
        baseline: The same of the baseline.
        value: What the target limits: the median of the ratios, or a number of the service.
    """

    what: str
    service: str
    baseline: str = ""
    ratio: Spread | None = None
    value: float = math.nan
    target: Target | None = None

    @property
    def share(self) -> float | None:
        """How much of the target's limit is used; None without a target."""
        return self.target.share(self.value) if self.target else None

    @property
    def verdict(self) -> str:
        """`met`, `MISSED`, or nothing without a target."""
        if self.share is None:
            return ""
        return "met" if self.share <= 1 else "MISSED"

    @property
    def limited(self) -> str:
        """What the target limits, as text."""
        is_ratio = self.ratio is not None and self.value == self.ratio.median
        return f"{self.value:.2f} x" if is_ratio else self.service

    def cells(self) -> Sequence[str]:
        """Return the result as text."""
        target = self.target.text if self.target else ""
        return self.what, self.service, self.baseline, _ratio(self.ratio), target, self.verdict


def versus(
    what: str,
    sides: Iterable[Sequence[float]],
    unit: Callable[[float], str],
    target: Target | None = None,
) -> Result:
    """Compare two sides, the service and the baseline, by rounds; the target limits the ratio."""
    service, baseline = sides
    ratio = ratios(service, baseline)
    medians = unit(spread(service).median), unit(spread(baseline).median)
    return Result(what, *medians, ratio, ratio.median, target)


def _ratio(ratio: Spread | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.median:.2f} x ({ratio.low:.2f}-{ratio.high:.2f}, {ratio.count} rounds)"


@dataclass(frozen=True, slots=True)
class Curve:
    """How a cost grows.

    Attributes:
        should: `flat`, `linear`, `falling` or `flat or falling`.
    """

    title: str
    x: str
    y: str
    should: str
    points: Sequence[tuple[float, float]]

    @property
    def growth(self) -> float:
        """The exponent of the growth: 0 is flat, 1 is linear.

        It is that of all points. Where the growth should be linear, it is that of the last two: a
        fixed cost hides the growth of the first points.
        """
        first = -2 if self.should == "linear" else 0
        (x0, y0), (x1, y1) = self.points[first], self.points[-1]
        return math.log(max(y1, 1e-9) / max(y0, 1e-9)) / math.log(x1 / x0)

    def cells(self) -> Sequence[str]:
        """Return the curve as text, for a table under CURVE_HEAD."""
        points = ", ".join(f"{x:,.0f}: {number(y)}" for x, y in self.points)
        return self.title, self.should, f"{self.growth:+.2f}", f"{points} ({self.y})"


# --- units ---


def microseconds(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds * 1e6:.0f} us"


def milliseconds(seconds: float) -> str:
    """Return a time as text."""
    return f"{seconds * 1e3:.1f} ms"


def per_second(count: float) -> str:
    """Return a rate as text."""
    return f"{count:,.0f}/s"


def mib(size_bytes: float) -> str:
    """Return a size as text."""
    return f"{size_bytes / MIB:.1f} MiB"


def kib(size_bytes: float) -> str:
    """Return a size as text."""
    return f"{size_bytes / 1024:.1f} KiB"


def number(value: float) -> str:
    """Return a number without a unit as text."""
    return f"{value:,.0f}" if value >= DIGITS_FROM else f"{value:.3g}"


# --- tables ---


def markdown(rows: Rows, head: Sequence[str]) -> str:
    """Return a Markdown table, with missed targets in bold."""
    marked = [[f"**{cell}**" if cell == "MISSED" else cell for cell in row] for row in rows]
    lines = (head, ["---"] * len(head), *marked)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(rows: Rows, head: Sequence[str] = HEAD) -> None:
    """Print a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    sys.stdout.flush()
