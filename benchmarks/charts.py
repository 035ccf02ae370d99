"""`python -m benchmarks.charts`: draw results.svg and curves.svg from results.json."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import FILE, Entry, read
from benchmarks.table import Curve, number

MET, MISSED, GREY = "#2f855a", "#c53030", "#718096"
STYLE: Any = {  # matplotlib's own type names every parameter
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "results",  # the same results give the same file
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SHARE_MAX = 1.8  # where a bar is cut off
PANELS_PER_ROW = 3
DECADES_MIN = 2.0  # of a cost's axis, so that noise does not look like growth


def main() -> None:
    """Draw both charts."""
    entries = [entry for section in read().values() for entry in section]
    curves = [Curve(**entry["curve"]) for entry in entries if "curve" in entry]
    with mpl.rc_context(STYLE):
        _save(_targets([entry for entry in entries if entry.get("share") is not None]), "results")
        if curves:
            _save(_curves(curves), "curves")


def _save(figure: Figure, name: str) -> None:
    figure.savefig(FILE.with_name(f"{name}.svg"), metadata={"Date": None, "Creator": None})


def _targets(entries: Sequence[Entry]) -> Figure:
    """Draw a bar for each target, as long as the share of its limit that is used."""
    figure = Figure(figsize=(11, 0.24 * len(entries) + 0.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(entries))
    shares = [min(entry["share"], SHARE_MAX) for entry in entries]
    colors = [MET if share <= 1 else MISSED for share in shares]
    axes.barh(places, shares, color=colors)
    axes.axvline(1, color="black", linestyle="dashed")
    axes.set(xlim=(0, max(1.05, *shares)), ylim=(len(entries) - 0.4, -0.6))
    axes.set_yticks(places, [entry["name"] for entry in entries])
    axes.set_xticks([1], ["target"])
    axes.tick_params(length=0, top=False, bottom=False)
    axes.xaxis.tick_top()
    values = axes.secondary_yaxis("right")
    values.set_yticks(places, [_value(entry) for entry in entries])
    values.tick_params(length=0)
    values.spines["right"].set_visible(False)
    return figure


def _value(entry: Entry) -> str:
    *_, target, verdict = entry["cells"]
    value = f"{entry['limited']}, target {target}"
    return f"MISSED: {value}" if verdict == "MISSED" else value


def _curves(curves: Sequence[Curve]) -> Figure:
    """Draw a panel for each curve, both axes logarithmic: flat is level, linear climbs."""
    rows = math.ceil(len(curves) / PANELS_PER_ROW)
    figure = Figure(figsize=(10, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, PANELS_PER_ROW, squeeze=False).flat
    for curve, axes in zip(curves, panels, strict=False):
        _panel(axes, curve)
    for axes in panels:  # without a curve
        axes.remove()
    return figure


def _panel(axes: Axes, curve: Curve) -> None:
    xs, ys = zip(*curve.points, strict=True)
    axes.loglog(xs, ys, marker="o", markersize=4, color=MET)
    low, high = math.log10(min(ys)), math.log10(max(ys))
    margin = max(DECADES_MIN - (high - low), 0) / 2
    axes.set_ylim(10 ** (low - margin - 0.2), 10 ** (high + margin + 0.6))  # room for the labels
    axes.set_title(curve.title, fontweight="bold", pad=26)
    words = f"{curve.y}\nshould be {curve.should}, exponent {curve.growth:+.2f}"
    axes.text(0, 1.04, words, transform=axes.transAxes, size=7.5, color=GREY)
    axes.set_xlabel(curve.x)
    axes.set_xticks(xs, [f"{x:,.0f}" for x in xs])
    axes.set_yticks([])
    axes.minorticks_off()
    axes.margins(x=0.12)
    for x, y in curve.points:
        axes.annotate(number(y), (x, y), (0, 6), textcoords="offset points", ha="center", size=7.5)


if __name__ == "__main__":
    main()
